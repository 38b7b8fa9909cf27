"""The descent ends at a certified SOSP without noise, beats the alternatives, and can be stopped at any time."""

import copy
import math
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

import newton
import train
from compare import best_scaled, gaussian, pca
from main import Config
from model import Pairs, Problem, Vectors, bound, distortion, distortions, row_space
from pgd import PGD, certify
from run import Checkpoint
from train import Derandomization, Monotone, Result, heavy, sample


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def derandomize(problem: Problem, k: int, seed: int = 0, **options: object) -> Result:
    config = Config(k=k, problem="pairs" if isinstance(problem, Pairs) else "vectors", **options)
    return Derandomization(problem, config, seeded(seed)).run().result()


def gaussian_distortions(problem: Problem, k: int, count: int) -> Tensor:
    source = gaussian(problem, k, seed=0)
    return torch.tensor([distortion(problem, next(source)) for _ in range(count)])


@pytest.fixture(scope="module")
def small_run():
    problem = Vectors(normal(30, 80))
    return problem, derandomize(problem, 10, growth=1.02)


def test_ends_at_a_certified_sosp_without_noise(small_run):
    problem, result = small_run
    assert result.distortion == pytest.approx(distortion(problem, result.M), abs=1e-13)
    assert result.distortion < 1e-5 and result.sigma < 1e-5
    assert result.certificate.is_sosp and result.certificate.gradient_norm <= 1e-6
    assert len(result.history["kicks"]) >= 1 and not result.interrupted and result.M.shape == (10, 80)
    s = torch.tensor(result.sigma * math.sqrt(800), dtype=torch.float64)
    assert result.objective == pytest.approx(bound(problem, result.M, s, 1e4).item() + 1e-3 * s.item() ** 2, rel=1e-9)


def test_the_lemmas_bound_holds_at_the_end(small_run):
    _, result = small_run
    assert result.certificate.w_norm == pytest.approx(result.sigma * math.sqrt(800))
    assert result.certificate.w_norm <= result.certificate.w_norm_bound


@pytest.mark.parametrize("tau", [1.0, 30.0, 100.0])
def test_the_lemmas_bound_holds_wherever_it_says_something(small_run, tau):
    """‖σI‖_F ≤ ∂f/∂‖σI‖_F / (2λ + λ_min(∇²_M F_τ)), at points that are not stationary."""
    problem, result = small_run
    M = (result.M + 0.01 * normal(10, 80, seed=1)).requires_grad_()
    s, lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 1.0
    certificate = certify(lambda: bound(problem, M, s, tau) + lam * s**2, [M, s], s, M, lam, rho=1e-6)
    assert 0.3 == pytest.approx(certificate.w_norm) and certificate.w_norm <= certificate.w_norm_bound


def test_without_a_kick_descent_ends_at_a_saddle():
    """At M = 0 the gradient in M is exactly 0: M stays there while σ shrinks, and then a direction leads down."""
    problem = Vectors(normal(30, 80))
    still = derandomize(problem, 10, radius=0.0, steps=500)
    assert not still.M.any() and still.distortion == 1 and not still.certificate.is_sosp
    assert still.certificate.lambda_min < -1e-2


@pytest.mark.parametrize("k", [5, 20])
def test_pairs_are_kept_better_than_by_pca_and_gaussian_matrices(k):
    problem = Pairs(normal(60, 30) * torch.logspace(0, -1, 30, dtype=torch.float64))
    result = derandomize(problem, k, growth=1.01, steps=1500)
    assert result.distortion < 0.8 * distortion(problem, pca(problem, k))
    assert result.distortion < 0.5 * gaussian_distortions(problem, k, 100).min()
    assert result.sigma < 1e-5


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_few_points_in_many_dimensions_are_handled_in_their_span(kind):
    problem, M, s = kind(normal(8, 40)), 0.3 * normal(4, 40), torch.tensor(0.7, dtype=torch.float64)
    small, basis = row_space(problem)
    rank = 7 if kind is Pairs else 8  # differences of 8 points
    assert small.X.shape == (8, rank) and problem.X.shape == (8, 40) and small.d == 40
    assert bound(small, M @ basis.T, s, 2.0).item() == pytest.approx(bound(problem, M, s, 2.0).item(), rel=1e-12)
    result = derandomize(problem, 4, growth=1.02, steps=1000)
    assert result.M.shape == (4, 40)
    assert result.distortion == pytest.approx(distortion(problem, result.M), rel=1e-12)
    assert torch.allclose(result.M @ basis.T @ basis, result.M, atol=1e-12)


def test_the_tail_objective_ends_with_no_distortion_above_epsilon():
    problem = Vectors(normal(30, 80))
    result = derandomize(problem, 10, objective="tail", epsilon=0.4)
    assert result.distortion < 0.4 and result.certificate.is_sosp
    assert result.certificate.w_norm <= result.certificate.w_norm_bound


def test_the_sampled_objective_lowers_the_worst_distortion():
    problem = Vectors(normal(30, 80))
    result = derandomize(problem, 10, objective="sampled", lr=0.1, steps=300)
    assert result.distortion < 0.5 * gaussian_distortions(problem, 10, 100).mean()
    assert result.certificate is None and result.sigma < 0.2


def test_the_same_seed_gives_the_same_matrix(small_run):
    problem, result = small_run
    again = derandomize(problem, 10, growth=1.02)
    assert torch.equal(again.M, result.M) and again.sigma == result.sigma
    assert not torch.equal(derandomize(problem, 10, seed=1, growth=1.02).M, result.M)


def test_interrupted_it_returns_the_best_matrix_so_far(ctrl_c):
    ctrl_c(Derandomization, 405)
    result = derandomize(Pairs(normal(40, 20)), 5, growth=1.01)
    assert result.interrupted and result.steps == result.history["step"][-1] == 405 and result.certificate is None
    assert result.distortion == pytest.approx(min(result.history["distortion"])) and result.distortion < 1
    assert math.isfinite(result.objective)


def test_ctrl_c_after_the_descent_waits_for_the_matrix_and_its_distortion(monkeypatch):
    def pressed(problem: Pairs, M: torch.Tensor) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return distortion(problem, M)

    problem = Pairs(normal(20, 8))
    descent = Derandomization(problem, Config(k=3, problem="pairs", growth=1.02), seeded()).run()
    monkeypatch.setattr(train, "exact_distortion", pressed)
    result = descent.result()
    assert result.interrupted and not result.cut_short and result.certificate is None
    assert result.distortion == pytest.approx(distortion(problem, result.M)) and math.isfinite(result.objective)


@pytest.mark.parametrize(
    ("variables", "pairs", "turn"), [(10_000, 9_000, True), (50_000, 4_000, True), (50_000, 9_000, False)]
)
def test_newtons_matrices_are_no_larger_than_the_memory_for_them(variables, pairs, turn):
    few, config = SimpleNamespace(N=pairs, log_weight=0.0), Config()
    descent = SimpleNamespace(params={"M": torch.empty(variables)}, few=few, tau=config.tau, config=config)
    assert Derandomization.newtons_turn(descent) == turn


def test_interrupted_within_a_step_of_newtons_it_returns_the_matrix_whose_distortion_it_says(monkeypatch):
    seen, walk = [], newton.Newton._walk

    def stop(method: newton.Newton, solve: Callable) -> None:
        seen.append(method.worst)
        if len(seen) == 3:
            raise KeyboardInterrupt
        walk(method, solve)

    monkeypatch.setattr(newton.Newton, "_walk", stop)
    problem = Pairs(normal(60, 12) * torch.logspace(0, -1, 12))
    result = derandomize(problem, 4)
    assert result.interrupted and result.history["distortion"][-1] == seen[-1] == pytest.approx(
        distortion(problem, result.M)
    )
    assert (result.history["drawn_distortion"] == result.history["distortion"])[-2:].all() and result.sigma == 0


def test_what_pgd_may_go_back_to_is_rescaled_too():
    descent = Derandomization(Pairs(normal(100, 5)), Config(problem="pairs", k=2, tau=0.5), seeded())
    descent.pgd._x = [descent.params["M"].clone(), descent.params["t"].clone()]
    before = descent.params["t"].clone() * 0.01
    descent.params["t"].copy_(before)
    descent.snapshot()
    descent.next_stage()
    assert descent.scale == 10**0.25 and descent.params["t"] == before / descent.scale
    assert descent.pgd._x[1] == pytest.approx(100 * float(before) / descent.scale)


@pytest.mark.parametrize("algorithm, objective", [("default", "tail"), ("1", "bound")])
def test_pgd_stops_where_the_gradient_over_a_itself_is_as_small_as_asked(algorithm, objective):
    """A = M basis, so that ∇_M f = ∇_A f basisᵀ: the longest ∇_A f of the ∇_M f that PGD stops at has the length ρ."""
    X = normal(40, 8) * torch.logspace(0, -1, 8)
    config = Config(k=3, objective=objective, rho=1e-4, tau=0.5, algorithm=algorithm)
    descent = Derandomization(Vectors(X), config, seeded())
    descent.snapshot()
    descent.step()
    stretch = torch.linalg.svdvals(torch.linalg.pinv(descent.basis)).max()
    assert descent.pgd.param_groups[0]["rho"] * stretch == pytest.approx(1e-4)
    assert stretch == pytest.approx(1) if algorithm == "1" else stretch > 1.5


def test_with_too_many_pairs_that_matter_at_the_end_there_is_no_certificate(monkeypatch):
    monkeypatch.setattr(train, "CERTIFIABLE", 10)
    result = derandomize(Pairs(normal(40, 9)), 3, steps=20)
    assert result.certificate is None and not result.interrupted and not math.isnan(result.objective)
    monkeypatch.setattr(train, "CERTIFIABLE", 780)
    assert derandomize(Pairs(normal(40, 9)), 3, steps=20).certificate is not None


def test_stopped_early_it_does_not_claim_an_sosp():
    result = derandomize(Vectors(normal(30, 80)), 10, steps=40)
    assert result.steps == 40 and not result.certificate.is_sosp
    assert list(result.history["step"]) == [0, 10, 20, 30, 40]


def test_history_starts_at_the_random_projection(small_run):
    _, result = small_run
    history = result.history
    assert history["distortion"][0] == pytest.approx(1, abs=1e-3)
    assert history["sigma"][0] == pytest.approx(1 / math.sqrt(10), rel=1e-2)
    assert (np.diff(history["tau"]) >= 0).all() and history["tau"][-1] == 1e4
    assert (2 * history["tau"] * history["sigma"] ** 2 < 1).all()


def test_monotone_descent_never_rises_at_whatever_step_size():
    x = torch.tensor([3.0, -2.0])
    curvature = torch.tensor([1.0, 100.0])
    pgd = PGD([x], lr=10.0, rho=0, radius=0.1, momentum=0.9)
    descent = Monotone(pgd, lambda: (float((curvature * x**2).sum()), [2 * curvature * x]))
    values = []
    for _ in range(300):
        pgd.step(descent)
        values.append(descent.f)
    assert (np.diff(values) <= 0).all() and values[-1] < 1e-6 * values[0]


# --- what the certificate is of ---------------------------------------------------------------------------------------


def all_pairs(X: Tensor) -> Tensor:
    """The unit differences of the rows of X, written anew."""
    i, j = torch.triu_indices(len(X), len(X), 1)
    return (X[i] - X[j]) / (X[i] - X[j]).norm(dim=1, keepdim=True)


def anew(U: Tensor, M: Tensor, s: Tensor, tau: float, lam: float, ridge: float = 0.0) -> Tensor:
    """f from the moments of every u in the rows of U."""
    q, v = (U @ M.T).square().sum(1), s.square() / M.numel()
    logs = [-len(M) / 2 * torch.log(1 - 2 * t * v) + t * q / (1 - 2 * t * v) - t for t in (tau, -tau)]
    return torch.logsumexp(torch.cat(logs), 0) / tau + lam * s.square() + ridge * (M.square().sum() + s.square())


@pytest.mark.parametrize("switch", [train.SWITCH, math.inf])
def test_the_certificate_of_pairs_is_of_all_pairs(switch, monkeypatch):
    """Newton's, and PGD's where it is stopped early: those that are left out of it weigh e^−50, as if none were."""
    monkeypatch.setattr(train, "SWITCH", switch)
    X = normal(60, 6)
    result = derandomize(Pairs(X), 3, steps=700, growth=1.02)
    assert result.certificate.is_sosp == (switch < math.inf)
    M, s = result.M.requires_grad_(), torch.tensor(result.sigma * math.sqrt(18), dtype=torch.float64).requires_grad_()
    few, _ = heavy(Pairs(X), M.detach(), s.detach(), result.tau, result.distortion, 50)
    assert few.N < 100 < Pairs(X).N / 8
    of = lambda M, s: anew(all_pairs(X), M, s, result.tau, 1e-3, 1e-4)  # noqa: E731
    f = of(M, s)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(f, [M, s])])
    assert result.objective == pytest.approx(f.item(), rel=1e-12)
    assert result.certificate.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-10, abs=1e-10)
    H = torch.autograd.functional.hessian(lambda M: of(M, s.detach()), M.detach())
    eigenvalues = torch.linalg.eigvalsh(H.reshape(M.numel(), -1))
    assert result.certificate.lambda_min == pytest.approx(eigenvalues[0].item(), abs=1e-9 * eigenvalues[-1].item())


@pytest.mark.parametrize("sigma", [0.0, 0.001])
@pytest.mark.parametrize("margin", [2.0, 10.0, 25.0])
def test_pairs_left_out_are_lighter_than_the_margin(sigma, margin):
    X, tau = normal(80, 5), 3000.0
    M = best_scaled(Pairs(X), normal(3, 5, seed=1))
    s = torch.tensor(sigma * math.sqrt(15), dtype=torch.float64)
    few, _ = heavy(Pairs(X), M, s, tau, distortion(Pairs(X), M), margin)
    q, v = (all_pairs(X) @ M.T).square().sum(1), sigma**2
    up, down = (-1.5 * math.log(1 - 2 * t * v) + t * q / (1 - 2 * t * v) - t for t in (tau, -tau))
    weight = torch.maximum(up, down)
    matter = (weight >= weight.max() - margin).sum()
    assert few.N == matter <= 395
    i, j = torch.triu_indices(80, 80, 1)
    chosen = torch.isin(80 * i + j, 80 * few.chosen[0] + few.chosen[1])
    assert chosen.sum() == few.N and weight[~chosen].max() < weight.max() - margin


def test_a_certificate_where_the_barrier_is_near():
    """τ so large, and kd so small, that F_τ is infinite a step of 10⁻³ away from σ."""
    assert derandomize(Vectors(normal(5, 2)), 1, tau=1e7, growth=3, steps=300).certificate is not None


# --- the loop ---------------------------------------------------------------------------------------------------------


def small_descent(kind: type[Pairs] | type[Vectors], **options: object) -> Derandomization:
    config = Config(k=3, problem=kind.__name__.lower(), **options)
    return Derandomization(kind(normal(60, 6)), config, seeded())


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_steps_are_compared_by_the_f_of_now(kind, monkeypatch):
    """Between kicks f never rises at one τ, over all pairs, though it is computed over those that matter."""
    descent, problem = small_descent(kind, growth=1.05), kind(normal(60, 6))
    before, U = None, all_pairs(normal(60, 6)) if kind is Pairs else problem.X
    few, scales, stage = set(), set(), Derandomization.next_stage

    def f_now() -> float:
        M, t = descent.monotone.x
        return anew(U, M @ descent.basis, descent.scale * t, descent.tau, 1e-3, 1e-4 * (kind is Pairs)).item()

    def next_stage(self: Derandomization) -> None:
        stage(self)
        assert self.newton or math.isinf(self.monotone.f) or self.monotone.f == pytest.approx(f_now(), rel=1e-9)

    monkeypatch.setattr(Derandomization, "next_stage", next_stage)
    while descent.t < 3000:
        if descent.due():
            descent.snapshot()
        descent.step()
        descent.t += 1
        if descent.newton:
            break
        few.add(descent.few.N)
        scales.add(descent.scale)
        f, now = f_now(), (descent.tau, descent.pgd.perturbations)
        assert descent.monotone.f == pytest.approx(f, rel=1e-9)
        assert before is None or before[0] != now or f <= before[1] + 1e-12
        before = (now, f)
    assert descent.tau > 300 and len(scales) == 2 and (kind is Vectors or len(few) > 4)


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_a_descent_that_is_gone_on_with_comes_to_the_same_end(kind, tmp_path, monkeypatch):
    options, step, rates = dict(growth=1.1), Derandomization.step, []

    def watched(self: Derandomization) -> None:
        step(self)
        rates.append(-self.t if self.newton else self.pgd.param_groups[0]["lr"])

    monkeypatch.setattr(Derandomization, "step", watched)
    whole = small_descent(kind, **options).run()
    # between two stages, and where the next step undoes the one before
    when = next(t for t in range(len(rates))[::-1] if t % 10 and 0 < rates[t] < rates[t - 1])

    def interrupted(self: Derandomization) -> None:
        if self.t == when:
            raise KeyboardInterrupt
        step(self)

    first = small_descent(kind, **options)
    file = tmp_path / "run.checkpoint"
    checkpoint = Checkpoint(file, first.config, [first.problem.X])
    checkpoint.keep = lambda part, state: first.t == when and Checkpoint.keep(checkpoint, part, state, finished=True)
    monkeypatch.setattr(Derandomization, "step", interrupted)
    assert first.run(checkpoint).interrupted
    monkeypatch.setattr(Derandomization, "step", step)
    second = small_descent(kind, **options)
    second.run(Checkpoint(file, second.config, [second.problem.X]))
    assert second.pgd.converged and second.t == whole.t > when > 50 and not second.interrupted
    assert kind is Vectors or first.few.N < first.small.N
    for name, x in whole.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], x, err_msg=name)
    assert torch.equal(second.result().M, whole.result().M)


# --- the paper's algorithms and nothing else --------------------------------------------------------------------------


@pytest.mark.parametrize("kind, algorithm", [(Pairs, "1"), (Vectors, "2")])
def test_pure_algorithms_do_nothing_else(kind, algorithm):
    """Each step is −lr ∇f of one and the same f, or where ‖∇f‖ ≤ ρ a perturbation before it; the first too."""
    options = dict(algorithm=algorithm, lr=0.3, lam=0.1, steps=6000, rho=1e-3, radius=0.05)
    descent = small_descent(kind, **options)
    U, perturbed, after = all_pairs(normal(60, 6)) if kind is Pairs else Vectors(normal(60, 6)).X, [], -math.inf
    U, tau = U @ descent.basis.T, 0.3 * 3

    def gradients(M: Tensor, s: Tensor) -> list[Tensor]:
        M, s = M.requires_grad_(), s.requires_grad_()
        return [g.detach() for g in torch.autograd.grad(anew(U, M, s, tau, 0.1), [M, s])]

    randomness = descent.generator.get_state()
    assert not descent.params["M"].any() and descent.params["t"].item() == pytest.approx(math.sqrt(6))
    while not descent.pgd.converged and descent.t < 6000:
        M, s = descent.point()
        kicks, slopes = descent.pgd.perturbations, gradients(M.clone(), s.clone())
        norm = math.hypot(*(float(g.norm()) for g in slopes))
        descent.step()
        if descent.pgd.converged:
            break
        now = descent.point()
        if descent.pgd.perturbations == kicks:
            assert norm > 1e-3 or descent.t - after <= 50
            moved = math.hypot(float((M - 0.3 * slopes[0] - now[0]).norm()), float(s - 0.3 * slopes[1] - now[1]))
            assert moved < 1e-12
        else:
            assert norm <= 1e-3 and descent.t - after > 50
            moved = math.hypot(float((M - now[0]).norm()), float(s - now[1]))
            assert 1e-3 < moved < 0.06
            perturbed.append(descent.t)
            after = descent.t if algorithm == "1" else after
        descent.t += 1
    assert descent.pgd.converged and perturbed and descent.tau == pytest.approx(tau)
    assert torch.equal(descent.generator.get_state(), randomness) == (algorithm == "2")  # which follows curvature
    result = descent.result()
    assert result.certificate.is_sosp and result.sigma < 1e-3 and result.M.norm() > 1
    assert result.certificate.w_norm <= result.certificate.lemma_bound  # K is small at this τ: the lemma itself speaks


def test_a_slow_saddle_is_left():
    """A fall of f by 2·10⁻⁸ is an escape where √ρ³ = 10⁻⁹, and would not be for a rule a hundred times stricter."""
    options = dict(algorithm="1", lr=0.05, steps=20_000)
    problem = Vectors(torch.ones(1, 1))
    slow = Derandomization(problem, Config(k=1, tau=0.2, radius=4.5e-4, lam=0.1, **options), seeded())
    fall = []
    while not slow.pgd.converged and slow.t < 20_000:
        before, kicks = slow.value, slow.pgd.perturbations
        slow.step()
        slow.t += 1
        if slow.pgd.perturbations > kicks:
            fall.append((slow.t, before))
        if len(fall) == 1 and slow.t == fall[0][0] + 50:
            fell = fall[0][1] - slow.value
    assert 2e-9 < fell < 5e-8
    assert slow.pgd.converged and slow.result().distortion < 1e-3


def test_the_pure_algorithm_says_where_it_diverges():
    with pytest.raises(FloatingPointError, match="f is inf"):
        small_descent(Vectors, algorithm="1", lr=100.0).run()


def test_the_rule_sleeps_while_f_changes(monkeypatch):
    """However large ρ is, PGD neither kicks nor stops before τ has arrived."""
    monkeypatch.setattr(Derandomization, "newtons_turn", lambda _: False)
    descent = small_descent(Vectors, rho=1e3, tau=50.0, growth=1.05, patience=5).run()
    arrived = descent.history["step"][descent.history["tau"].index(50.0)]
    assert descent.kicks[0] == 0 and descent.kicks[1] >= arrived - 10 > 100 and descent.pgd.converged


# --- samples, and Newton's method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [6, 9])
def test_where_k_is_the_rank_nothing_is_lost(k):
    X = normal(50, 6) @ normal(6, 11, seed=1)
    result = derandomize(Pairs(X), k)
    i, j = np.triu_indices(50, 1)
    D = X[i] - X[j]
    assert (((D @ result.M.T).norm(dim=1) / D.norm(dim=1)) ** 2 - 1).abs().max() < 1e-10
    assert result.distortion < 1e-10 and result.certificate.is_sosp and result.sigma == 0


def test_with_too_many_variables_pgd_goes_on_alone(monkeypatch):
    few = small_descent(Pairs, growth=1.05, steps=600).run()
    monkeypatch.setattr(train, "DENSE", 17)  # of 18
    many = small_descent(Pairs, growth=1.05, steps=600).run()
    assert few.newton and not many.newton and many.tau == 1e4 and many.result().sigma < 1e-3
    assert few.result().distortion < many.result().distortion + 1e-6 < 1.1 * few.result().distortion


def test_newtons_method_is_given_up_after_so_many_steps_and_stays_so_in_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STEPS", 3)
    checkpoint = Checkpoint(tmp_path / "run.pt", Config())
    run = small_descent(Pairs, growth=1.05, steps=600).run(checkpoint)
    assert run.newton.steps == 3 and run.t < 600 and run.tau < 1e4 and not run.pgd.converged
    again = small_descent(Pairs, growth=1.05, steps=600).run(Checkpoint(tmp_path / "run.pt", Config()))
    assert again.t == run.t and again.newton.steps == 3


def test_a_sample_stands_for_all():
    """Σ e^{τc} of priority samples has the mean of all pairs'."""
    problem, M, tau = Pairs(normal(60, 8)), 0.4 * normal(3, 8, seed=1), 8.0
    c = torch.cat([(q - 1).abs() for q in distortions(problem, M)])
    sums = []
    for seed in range(300):
        few, worst = sample(problem, M, tau, 100, seeded(seed))
        mine = torch.cat([(q - 1).abs() for q in distortions(few, M)])
        sums.append(float((few.log_weight + tau * mine).exp().sum()))
        assert few.N == 100 and worst == pytest.approx(float(c.max()))
    assert abs(np.mean(sums) - float((tau * c).exp().sum())) < 4 * np.std(sums) / math.sqrt(len(sums))


class Kept:
    """A checkpoint that keeps the states after 45 and 400 steps and within Newton's method; or has one."""

    def __init__(self, state: dict | None = None) -> None:
        self.state, self.states = state, {}

    def resume(self, part: str, load: Callable[[dict], None]) -> None:
        if self.state is not None:
            load(self.state)

    def keep(self, part: str, state: Callable[[], dict], finished: bool = False) -> None:
        if (now := state())["newton"] or now["t"] in (45, 400):
            self.states[now["t"]] = copy.deepcopy(now)


def test_goes_on_from_a_saved_state_to_the_same_end(monkeypatch):
    """From a sample early and late, and from within Newton's method."""
    for name, size in (("WHOLE", 200), ("SAMPLE", 150), ("ANYWAY", 100)):
        monkeypatch.setattr(train, name, size)
    problem, config, kept = Pairs(normal(40, 12)), Config(k=4, problem="pairs", growth=1.02), Kept()
    whole = Derandomization(problem, config, seeded()).run(kept)
    for stop in (45, 400, whole.t - 8):
        state = kept.states[stop]
        assert (state["newton"] is None) == (stop <= 400) and (stop != 45 or torch.is_tensor(state["log_weight"]))
        resumed = Derandomization(problem, config, seeded(1)).run(Kept(state))
        assert resumed.pgd.converged and resumed.result().certificate.is_sosp
        assert resumed.t == whole.t > 408 and torch.equal(resumed.params["M"], whole.params["M"])
        assert resumed.history == whole.history
