"""Training finds the structure, and its certificate is true."""

import math

import numpy as np
import pytest
import torch

from activations import activation
from model import LOSSES, Student, Teacher, cosines, perpendicular, quadrature, risk, sampled
from train import train


def problem(width: int = 60, seed: int = 0, d: int = 2, k: int = 1, name: str = "relu_iota", link: str = "tanh"):
    generator = torch.Generator().manual_seed(seed)
    teacher = Teacher(cosines(d), k, activation(link))
    student = Student(d, [width], activation(name), generator)
    student.a.requires_grad_(False)
    return student, teacher, teacher.labelled(*quadrature([32] + [8] * (d - 1))), generator


def run(student, teacher, batch, generator, data=None, loss="squared", **options):
    defaults = dict(lam=1e-3, lr=2.0 * len(student.a), rho=2e-4, momentum=0.9, steps=2000)
    return train(
        student,
        batch if data is None else data,
        teacher.directions,
        LOSSES[loss],
        held_out=batch,
        generator=generator,
        **(defaults | options),
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_w_perp_vanishes_under_the_lemmas_bound(loss, seed):
    parts = problem(seed=seed)
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
    assert certificate.lambda_min <= smallest + 1e-12 and certificate.lambda_min == pytest.approx(smallest, abs=1e-4 / 4)


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
        assert result.steps == 600 and not result.converged and result.kicks
        noise.append(result.history["w_perp"][-1])
    assert noise[1] < 0.5 * noise[0]


def test_hessian_descent_ends_at_an_sosp_too():
    result = run(*problem(), escape="curvature")
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


def test_ctrl_c_keeps_what_there_is():
    student, teacher, batch, generator = problem()
    interrupted = []

    def progress(step: int, objective: float, w_perp: float) -> None:
        if step == 7 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    result = run(student, teacher, batch, generator, progress=progress)
    assert result.interrupted and result.steps == 7 and not result.converged
    assert result.history["risk"][-1] == pytest.approx(float(risk(student, LOSSES["squared"], batch).detach()))


def test_divergence_is_reported_at_its_step():
    with pytest.raises(FloatingPointError, match=r"at step \d+"):
        run(*problem(name="relu3"), lr=1e6)
