"""Training finds the structure, and its certificate is true."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import train
from activations import activation
from main import Config
from model import LOSSES, Student, Teacher, build, cosines, parallel, perpendicular, quadrature, risk, sampled
from pgd import Certificate, norm
from train import Training, complete


def problem(width: int = 60, seed: int = 0, d: int = 2, k: int = 1, name: str = "relu_iota", link: str = "tanh"):
    generator = torch.Generator().manual_seed(seed)
    teacher = Teacher(cosines(d), k, activation(link))
    student = Student(d, [width], activation(name), generator)
    student.a.requires_grad_(False)
    return student, teacher, teacher.labelled(*quadrature([32] + [8] * (d - 1))), generator


def training(student, teacher, batch, generator, data=None, **options):
    width, d = student.W.shape
    config = dict(d=d, k=teacher.k, width=width, lam=1e-3, lr=2.0 * width, rho=2e-4, momentum=0.9, steps=2000)
    rule = None if data is None else lambda level: batch
    return Training(student, data or batch, teacher.directions, Config(**config | options), generator, rule)


def run(*parts, **options):
    return training(*parts, **options).run().result()


@pytest.mark.parametrize("loss", LOSSES)
def test_w_perp_vanishes_under_the_lemmas_bound(loss):
    parts = problem()
    result = run(*parts, loss=loss, lam=1e-4, rho=1e-5)
    certificate, student, teacher, batch = result.certificate, *parts[:3]
    assert result.converged and certificate.is_sosp
    assert certificate.w_norm <= certificate.w_norm_bound
    assert certificate.w_norm <= 1e-2 * result.history["w_perp"][0]
    assert certificate.w_norm == pytest.approx(float(perpendicular(student.W.detach(), teacher.directions).norm()))

    def f(W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(student, {"W": W, "b": b}, batch[0])
        return batch[2] @ LOSSES[loss](outputs, batch[1]) + 1e-4 * W.square().sum()

    W, b = student.W.detach().requires_grad_(), student.b.detach().requires_grad_()
    gradient = torch.autograd.grad(f(W, b), (W, b))
    assert certificate.gradient_norm == pytest.approx(math.hypot(*(float(g.norm()) for g in gradient)), rel=1e-6)
    (H_WW, H_Wb), (H_bW, H_bb) = torch.autograd.functional.hessian(f, (W.detach(), b.detach()))
    n, h = W.numel(), len(b)
    rows = [torch.cat([H_WW.reshape(n, n), H_Wb.reshape(n, h)], 1), torch.cat([H_bW.reshape(h, n), H_bb], 1)]
    smallest = float(torch.linalg.eigvalsh(torch.cat(rows))[0])
    assert certificate.lambda_min <= smallest + 1e-12 and certificate.lambda_min == pytest.approx(
        smallest, abs=1e-4 / 4
    )


def test_the_counterexample_finds_structure_and_learns_nothing():
    parts = problem(width=20, name="he2", link="he4")
    result = run(*parts, lr=0.1 * 20, lam=1e-3, rho=1e-6)
    assert result.certificate.is_sosp and result.certificate.w_norm <= result.certificate.w_norm_bound
    assert result.history["w_perp"][-1] < 1e-2 and result.history["w_parallel"][-1] < 1e-2
    assert result.history["risk"][-1] == pytest.approx(24, abs=1e-2)  # the variance of the labels


def test_a_frozen_bias_keeps_w_and_voids_the_bound():
    generator = torch.Generator().manual_seed(0)
    teacher = Teacher(cosines(1), 0, activation("tanh"))
    batch = teacher.labelled(*quadrature([64]))
    ends = {}
    for frozen in (True, False):
        student = Student(1, [1], activation("relu3"), generator)
        for parameter, value in ((student.a, 1.0), (student.W, 0.5), (student.b, 0.0)):
            parameter.data.fill_(value)
        student.a.requires_grad_(False)
        student.b.requires_grad_(not frozen)
        result = run(student, teacher, batch, generator, lam=1e-6, rho=1e-6, lr=0.02, momentum=0.5)
        assert result.converged and student.b.requires_grad is not frozen
        ends[frozen] = result.certificate
    assert ends[True].w_norm > 0.4 and ends[True].w_norm_bound is None
    assert ends[False].w_norm <= 1e-3 and ends[False].w_norm <= ends[False].w_norm_bound


def test_a_module_whose_weights_have_other_names():
    """W and b may be another module's: the certificate is that of a student whose own they are."""

    class Wrapped(torch.nn.Module):
        def __init__(self, student: Student) -> None:
            super().__init__()
            self.inner = student

        W, b = property(lambda self: self.inner.W), property(lambda self: self.inner.b)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    student, teacher, batch, generator = problem(width=10)
    config, rules = Config(width=10, lam=1e-3, lr=20, rho=2e-4), [quadrature([n, 8]) for n in (8, 10, 12)]

    def certificate(module: torch.nn.Module) -> Certificate:
        parts = batch, teacher.directions, config, generator, lambda level: teacher.labelled(*rules[level[0]])
        return Training(module, *parts).result().certificate

    assert certificate(student) == certificate(Wrapped(student)) and certificate(student).gradient_error > 0


def test_frozen_parameters_stay():
    student, teacher, batch, generator = problem()
    student.b.requires_grad_(False)
    before = {name: x.detach().clone() for name, x in student.named_parameters()}
    run(student, teacher, batch, generator, steps=20)
    changed = {name for name, x in student.named_parameters() if not torch.equal(x, before[name])}
    assert changed == {"W"}


def test_fresh_batches_take_all_their_steps_and_annealing_calms_them():
    noise = []
    for anneal in (False, True):
        student, teacher, batch, generator = problem()
        result = run(
            student,
            teacher,
            batch,
            generator,
            data=lambda teacher=teacher, generator=generator: teacher.labelled(*sampled(2, 50, generator)),
            momentum=0.0,
            rho=1.0,
            steps=600,
            anneal=anneal,
        )
        assert result.steps == 600 and not result.converged and len(result.history["kicks"])
        noise.append(result.history["w_perp"][-1])
    assert noise[1] < 0.5 * noise[0]


def test_an_annealed_step_size_falls_to_0_over_the_second_half():
    student, teacher, batch, generator = problem()
    descent = training(student, teacher, batch, generator, anneal=True, steps=600, lr=2.0)
    for t, lr in ((0, 2.0), (300, 2.0), (450, 1.0), (599, 2 / 300)):
        descent.t = t
        descent.step()
        assert descent.pgd.param_groups[0]["lr"] == pytest.approx(lr)


def test_an_escape_is_what_descent_gains_while_a_kick_waits():
    assert training(*problem()).pgd.f_decrease == pytest.approx(25 * 120 / (1 - 0.9) * 2e-4**2)


def test_hessian_descent_ends_at_an_sosp_too():
    result = run(*problem(), algorithm="2", momentum=None, lr=60.0)
    assert result.converged and result.certificate.is_sosp
    assert result.certificate.w_norm <= result.certificate.w_norm_bound


def test_snapshots_are_few_start_and_end_with_the_run():
    student, *rest = problem()
    W = student.W.detach().clone()
    result = run(student, *rest, steps=1000, rho=1e-12)
    step = result.history["step"]
    assert step[0] == 0 and step[-1] == result.steps == 1000 and len(step) < 130 and (np.diff(step) > 0).all()
    assert np.array_equal(result.history["weights"][0], W.numpy())
    assert np.array_equal(result.history["weights"][-1], student.W.detach().numpy())
    assert result.history["objective"][-1] < result.history["objective"][0]


def test_ctrl_c_keeps_what_there_is(ctrl_c):
    run_ = training(*problem())
    ctrl_c(type(run_), 7)
    result = run_.run().result()
    assert result.interrupted and result.steps == 7 and not result.converged
    assert result.history["risk"][-1] == pytest.approx(float(risk(run_.student, LOSSES["squared"], run_.data).detach()))


def test_ctrl_c_in_the_gradients_of_the_finer_rules_keeps_what_there_is(monkeypatch):
    config = complete(Config(width=10, steps=5))
    teacher, student, data, rule = build(config, torch.Generator().manual_seed(0))
    run_ = Training(student, data, teacher.directions, config, torch.Generator().manual_seed(0), rule).run()

    def stop(batch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_, "gradient", stop)
    result = run_.result()
    assert result.interrupted and result.certificate is None and result.steps == 5 and student.b.requires_grad


def test_divergence_is_reported_at_its_step():
    with pytest.raises(FloatingPointError, match=r"at step \d+"):
        run(*problem(name="relu3"), lr=1e6)


# --- saddles, algorithms, and what λ does -----------------------------------------------------------------------------


def saddle(**options):
    """One neuron He₂(w·x + b) for the teacher He₂(u·x), at W = 0, b = 0: ∇f = 0, and f falls in every direction."""
    student, teacher, batch, generator = problem(width=1, name="he2", link="he2")
    for parameter, value in ((student.W, 0.0), (student.b, 0.0), (student.a, 1.0)):
        parameter.data.fill_(value)
    return training(student, teacher, batch, generator, **dict(lam=1e-4, rho=1e-5, lr=0.02, patience=20) | options)


def test_fresh_batches_alone_are_no_f_to_be_certified():
    student, teacher, batch, generator = problem()
    for data in (lambda: batch, None):
        with pytest.raises(ValueError, match="give a rule"):
            Training(student, data, teacher.directions, Config(risk="sampled"), generator)


def test_a_frozen_bias_stays_so_where_the_certificate_fails(monkeypatch):
    run_ = training(*problem(), steps=1).run()
    run_.student.b.requires_grad_(False)
    run_.student.W.data.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        run_.result()
    assert not run_.student.b.requires_grad


@pytest.mark.parametrize("algorithm", ["default", "1", "2"])
def test_a_kick_leaves_the_saddle_and_finds_the_direction(algorithm):
    stuck = saddle(radius=0.0).run().result()
    assert not stuck.certificate.is_sosp and stuck.certificate.lambda_min < -1 and stuck.steps < 30
    result = saddle(algorithm=algorithm, momentum=0.5 if algorithm == "default" else None).run().result()
    assert result.converged and result.certificate.is_sosp and len(result.history["kicks"]) >= 1 + (algorithm != "2")
    assert result.history["w_parallel"][-1] == pytest.approx(1, abs=1e-2)
    assert result.history["w_perp"][-1] <= result.certificate.w_norm_bound + 1e-12 < 1e-4
    assert result.history["risk"][-1] < 1e-4 < 2.9 < result.history["risk"][0]


def test_a_slow_escape_is_an_escape():
    """What counts is a fall of f by what descent at ‖∇f‖ = ρ would gain: here f falls by ten times as much at first."""
    first = saddle(steps=21, momentum=0.0)
    f = float(first.objective(first.data).detach())
    fall = f - first.run().result().history["objective"][-1]
    rho = math.sqrt(fall / 10 / (20 * 0.02))
    result = saddle(rho=rho, lam=10 * rho, momentum=0.0).run().result()
    assert result.history["w_parallel"][-1] > 0.5 and len(result.history["kicks"]) > 1


def test_algorithm_1_is_gradient_descent_and_jin_et_als_kicks():
    parts = problem(width=20)
    student = copy.deepcopy(parts[0])
    run_ = training(*parts, algorithm="1", momentum=None, lr=20.0, rho=1e-3, patience=10, steps=400).run()
    assert run_.kicks and run_.pgd.f_decrease is None
    x, y, p = parts[2]
    for _ in range(run_.kicks[0] - 1):
        f = p @ (student(x) - y).square() + 1e-3 * student.W.square().sum()
        for parameter, slope in zip(
            (student.W, student.b), torch.autograd.grad(f, (student.W, student.b)), strict=True
        ):
            parameter.data -= 20.0 * slope
    before = training(*problem(width=20), algorithm="1", momentum=None, lr=20.0, rho=1e-3, steps=run_.kicks[0] - 1)
    torch.testing.assert_close(before.run().student.W, student.W, rtol=1e-12, atol=1e-14)
    f = p @ (student(x) - y).square() + 1e-3 * student.W.square().sum()
    slopes = torch.autograd.grad(f, (student.W, student.b))
    assert math.hypot(*(float(g.norm()) for g in slopes)) <= 1e-3 < before.history["gradient_norm"][-2]


@pytest.mark.parametrize("options", [dict(momentum=0.9), dict(anneal=True), dict(risk="sampled")])
def test_the_papers_algorithms_are_pure(options):
    with pytest.raises(ValueError, match="--algorithm 1 is pure"):
        Config(algorithm="1", **options)
    assert complete(Config(algorithm="2")).momentum == 0


def test_without_a_price_w_perp_stays_and_nothing_is_bounded():
    ends = {lam: run(*problem(), lam=lam, rho=1e-5, steps=4000) for lam in (0.0, 1e-4)}
    kept, fallen = (ends[lam].history["w_perp"] for lam in (0.0, 1e-4))
    assert kept[-1] > 0.8 * kept[0] and fallen[-1] < 0.05 * fallen[0]
    certificate = ends[0.0].certificate
    assert certificate.gradient_norm <= 1e-5 and certificate.w_norm_bound is certificate.lemma_bound is None
    assert "no bound" in str(certificate) and "2λ" not in str(certificate)
    assert ends[0.0].history["risk"][-1] < ends[1e-4].history["risk"][-1]


def test_the_curvature_is_that_of_h_in_w_perp():
    student, teacher, _, generator = problem(width=30)
    batch = teacher.labelled(*quadrature([100, 40]))
    run_ = training(student, teacher, batch, generator, steps=5, rho=1e-12).run()
    W, b = run_.student.W.detach(), run_.student.b.detach()

    def expected(b: torch.Tensor) -> torch.Tensor:
        return risk(lambda x: torch.func.functional_call(run_.student, {"b": b}, x), LOSSES["squared"], batch)

    H, perp = torch.autograd.functional.hessian(expected, b), perpendicular(W, run_.U)
    quotient = float((perp * (H @ perp)).sum() / perp.square().sum())
    assert run_.history["curvature"][-1] == pytest.approx(quotient, rel=1e-3) and abs(quotient) > 1e-5


def test_the_curvature_does_not_drown_as_w_perp_vanishes():
    """At W⊥ → 0 it tends to a limit, the Rayleigh quotient of W⊥'s direction, until W⊥ itself is a rounding error."""
    student, teacher, _, generator = problem(width=30)
    run_ = training(student, teacher, teacher.labelled(*quadrature([60, 20])), generator)
    W, perp, found = student.W.detach().clone(), perpendicular(student.W.detach(), run_.U), []
    for shrink in (1e-4, 1e-8):
        student.W.data = W - (1 - shrink) * perp
        found.append(run_.row()["curvature"])
    assert found[0] == pytest.approx(found[1], rel=1e-3) and abs(found[0]) > 1e-5


def test_defaults_that_depend_on_others():
    config = complete(Config(width=50, lam=1e-3))
    assert (config.lr, config.momentum, config.rho) == (100, 0.9, 2e-4)
    assert complete(replace(Config(width=50), lam=0.1)).lr == pytest.approx(10)  # λ's own curvature is 2λ
    assert complete(Config(lam=0)).rho == 1e-6 and complete(Config(risk="sampled")).momentum == 0
    assert complete(Config(width=50, algorithm="1")).lr == 50
    for pure in (dict(algorithm="1"), dict(algorithm="2"), dict(risk="sampled"), dict(momentum=0)):
        assert complete(Config(width=50, lam=0.1, **pure)).lr == pytest.approx(5)  # 10 would be W ← −W
    assert complete(Config(lr=3.0, rho=1e-9)).lr == 3 and complete(Config(trained="all")).lr == 50


def test_data_too_few_certify_nothing():
    """‖∇f‖ is that of the rule's next level, its error the distance from the one after; above ρ/10 it is no SOSP."""
    student, teacher, _, generator = problem(width=30)
    data, rough, fine, finest = (
        teacher.labelled(*quadrature(nodes)) for nodes in ([10, 6], [14, 8], [60, 30], [80, 40])
    )
    config = Config(width=30, lam=1e-3, lr=60, rho=2e-4, steps=2000)
    ends = []
    for rules in ((data, rough, fine), (data, fine, finest)):
        run_ = Training(
            student, data, teacher.directions, config, generator, lambda level, rules=rules: rules[level[0]]
        )
        ends.append((run_.run() if not ends else run_).result().certificate)
        slopes = [torch.autograd.grad(run_.objective(batch), (student.W, student.b)) for batch in rules[1:]]
        assert ends[-1].gradient_norm == pytest.approx(math.hypot(*(float(g.norm()) for g in slopes[0])))
        error = math.hypot(*(float((g - h).norm()) for g, h in zip(*slopes, strict=True)))
        assert ends[-1].gradient_error == pytest.approx(error, rel=1e-6, abs=1e-12)
        g, h = (perpendicular(slope[0], teacher.directions) for slope in slopes)
        (of_b,) = torch.autograd.grad(run_.objective(rules[1]), student.b, create_graph=True)
        H = torch.stack([torch.autograd.grad(x, student.b, retain_graph=True)[0] for x in of_b])
        bound = float((g.norm() + (g - h).norm()) / (2e-3 + torch.linalg.eigvalsh(H)[0]))
        assert bound <= ends[-1].w_norm_bound <= 1.3 * bound and float((g - h).norm()) < error / 2
    assert ends[0].gradient_error > 1e-5 > 5e-6 > ends[1].gradient_error and not ends[0].is_sosp


@pytest.mark.parametrize("width, iota", [(30, 2.0), (30, 6.0), (100, 2.0)])
def test_the_rule_is_as_fine_as_it_takes(width, iota):
    """∇f on one many times finer is ρ at most; a sharper σ takes a finer rule, and a resumed run keeps its own."""
    config = complete(Config(width=width, iota=iota, lam=1e-3, steps=3000))
    teacher, student, data, rule = build(config, torch.Generator().manual_seed(0))
    run_ = Training(student, data, teacher.directions, config, torch.Generator().manual_seed(0), rule).run()
    assert run_.pgd.converged and run_.result().certificate.is_sosp
    assert (run_.level == (0, 0)) == (iota == 2) and run_.batch() is rule(run_.level)
    exact = teacher.labelled(*quadrature([700, 90], trapezoids=1))
    slope = torch.autograd.grad(run_.objective(exact), (student.W, student.b))
    assert math.hypot(*(float(g.norm()) for g in slope)) <= config.rho
    resumed = Training(student, data, teacher.directions, config, torch.Generator(), rule)
    resumed.load_state_dict(run_.state_dict())
    assert resumed.level == run_.level


@pytest.mark.parametrize("off, stretch", [(0.02, (2, 2)), (1e-3, (4, 1))])
def test_a_rule_that_is_off_is_refined(off, stretch, monkeypatch):
    """From level (0, 0) on, to the first whose ∇f is within a fiftieth of the next ones', or of ρ, and no farther."""
    config = complete(Config(width=50, iota=4.0, rho=1e-9))
    teacher, student, data, rule = build(config, torch.Generator().manual_seed(1))
    run_ = Training(student, data, teacher.directions, config, torch.Generator().manual_seed(0), rule)
    W = student.W.data
    student.W.data = stretch[0] * parallel(W, run_.U) + stretch[1] * perpendicular(W, run_.U)
    if off != 0.02:
        monkeypatch.setattr(train, "OFF", off)

    def slope_at(level: tuple[int, int]) -> torch.Tensor:
        return torch.cat([g.flatten() for g in run_.gradient(rule(level))[1]])

    expected = (0, 0)
    for along, across in [(1, 0)] * 8 + [(0, 1)] * 8 + [(1, 0)]:
        next_ = expected[0] + along, expected[1] + across
        a, b = slope_at(expected), slope_at(next_)
        expected = next_ if (a - b).norm() > off * b.norm() else expected
    f, slope = run_.refined(*run_.gradient(rule((0, 0))))
    assert run_.level == expected and expected[0] < expected[1] and (min(expected) > 0) == (off < 0.02)
    assert torch.equal(torch.cat([g.flatten() for g in slope]), slope_at(run_.level))
    assert f == run_.objective(rule(run_.level)).detach()
    run_.level = (0, 0)
    monkeypatch.setattr(train, "FINEST", 1)
    run_.refined(*run_.gradient(rule((0, 0))))
    assert run_.level == (int(off < 0.02), 1)
    run_.level = (0, 0)
    monkeypatch.setattr(train, "MOST", 0)
    run_.refined(f, slope)
    assert run_.level == (0, 0)


def test_the_rule_is_put_to_the_test_before_each_kick(monkeypatch):
    config = complete(Config(width=10, lam=1e-3, steps=500))
    teacher, student, data, rule = build(config, torch.Generator().manual_seed(0))
    run_, tested = Training(student, data, teacher.directions, config, torch.Generator().manual_seed(0), rule), []

    def refined(f: torch.Tensor, slope: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As if a finer rule's ∇f were above ρ the first time that a kick was to come."""
        first = norm(slope) <= config.rho and not any(t & (t - 1) for t in tested)
        tested.append(run_.t)
        return f, [g * 1.1 * config.rho / norm(slope) for g in slope] if first else slope

    monkeypatch.setattr(run_, "refined", refined)
    assert run_.run().kicks and {t - 1 for t in run_.kicks} <= {*tested}


@pytest.mark.parametrize("d, risk_", [(2, "quadrature"), (2, "sobol"), (4, "sobol"), (4, "sampled")])
def test_what_is_built_is_what_the_config_says(d, risk_):
    config = complete(Config(d=d, width=7, depth=4, risk=risk_, samples=64, batch=9, freeze_bias=True))
    generator = torch.Generator().manual_seed(0)
    teacher, student, data, rule = build(config, generator)
    assert len(student.V) == 2 and teacher.k == 1 and student.W.shape == (7, d)
    assert [name for name, x in student.named_parameters() if x.requires_grad] == ["W"]
    assert (data is None) == (risk_ == "quadrature")
    batches = [data(), data()] if risk_ == "sampled" else [data] * (risk_ == "sobol")
    assert all(len(x) == {"sobol": 64, "sampled": 9}[risk_] for x, _, _ in batches)
    different = batches + [rule((level, level)) for level in (0, 1, 2)]
    assert len({float(x[0, 0]) for x, _, _ in different}) == len(different)
    for x, y, p in different:
        assert torch.allclose(y, (x @ teacher.directions[0]).tanh()) and float(p.sum()) == pytest.approx(1)


def test_beyond_three_dimensions_a_sobol_set_is_certified_on_a_finer_one():
    config = complete(Config(d=4, width=2, risk="sobol", samples=8192))
    _, _, data, rule = build(config, torch.Generator())
    assert len(data[0]) == 8192 and [len(rule((level, level))[0]) for level in (0, 1, 2)] == [16384] * 3
