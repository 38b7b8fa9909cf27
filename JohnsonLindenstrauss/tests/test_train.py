"""The descent ends at a certified SOSP without noise, beats the alternatives, and can be stopped at any time."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from compare import gaussian, pca
from main import Config
from model import Pairs, Problem, Vectors, bound, distortion
from pgd import PGD, certify
from train import Derandomization, Monotone, Result, row_space


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
    assert result.distortion == distortion(problem, result.M) < 1e-5 and result.sigma < 1e-5
    assert result.certificate.is_sosp and result.certificate.gradient_norm <= 1e-6
    assert len(result.kicks) >= 2 and not result.interrupted and result.M.shape == (10, 80)
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


@pytest.mark.parametrize("k", [5, 10, 20])
def test_pairs_are_kept_better_than_by_pca_and_gaussian_matrices(k):
    problem = Pairs(normal(60, 30) * torch.logspace(0, -1, 30, dtype=torch.float64))
    result = derandomize(problem, k, growth=1.01, steps=1500)
    assert result.distortion < 0.8 * distortion(problem, pca(problem, k))
    assert result.distortion < 0.5 * gaussian_distortions(problem, k, 100).min()
    assert result.sigma < 1e-5


def test_no_projection_is_found_where_none_is_needed():
    problem = Pairs(normal(20, 5))
    result = derandomize(problem, 5, growth=1.02)
    assert result.distortion < 1e-5 and result.certificate.is_sosp


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_few_points_in_many_dimensions_are_handled_in_their_span(kind):
    problem, M, s = kind(normal(8, 40)), 0.3 * normal(4, 40), torch.tensor(0.7, dtype=torch.float64)
    small, basis = row_space(problem)
    assert small.X.shape == (8, 8) and problem.X.shape == (8, 40) and small.d == 40
    assert bound(small, M @ basis, s, 2.0).item() == pytest.approx(bound(problem, M, s, 2.0).item(), rel=1e-12)
    result = derandomize(problem, 4, growth=1.02, steps=1000)
    assert result.M.shape == (4, 40) and result.distortion == distortion(problem, result.M)
    assert torch.allclose(result.M @ basis @ basis.T, result.M, atol=1e-12)


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


def test_interrupted_it_returns_the_best_matrix_so_far(monkeypatch):
    def step(self: Derandomization) -> None:
        if self.t == 405:
            raise KeyboardInterrupt
        whole_step(self)

    whole_step = Derandomization.step
    monkeypatch.setattr(Derandomization, "step", step)
    result = derandomize(Pairs(normal(40, 20)), 5, growth=1.01)
    assert result.interrupted and result.steps == result.history["step"][-1] == 405 and result.certificate is None
    assert result.distortion == pytest.approx(min(result.history["distortion"])) and result.distortion < 1
    assert math.isfinite(result.objective)


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
