"""The risk is the population risk; the Stein identity ties its gradient to its Hessian; W⊥ is what it says."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from activations import ACTIVATIONS, activation
from model import (
    LOSSES,
    Student,
    Teacher,
    cosines,
    effective_rank,
    parallel,
    perpendicular,
    quadrature,
    risk,
    sampled,
    sobol,
)


def student(d: int, widths: list[int], name: str = "relu_iota", seed: int = 0) -> Student:
    return Student(d, widths, activation(name), torch.Generator().manual_seed(seed))


def teacher(k: int, d: int, name: str = "tanh", noise: float = 0.0) -> Teacher:
    return Teacher(cosines(d), k, activation(name), noise)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_two_right_derivatives(name):
    z = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(activation(name), z)
    assert torch.autograd.gradgradcheck(activation(name), z)


def test_activations_are_stable_and_are_what_they_are_called():
    z = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], dtype=torch.float64)
    for name in ("relu_iota", "tanh", "gelu", "sigmoid"):
        assert activation(name)(z).isfinite().all()
    assert torch.allclose(activation("relu_iota", 50.0)(z), z.relu(), atol=math.log(2) / 50 + 1e-12)
    small = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.allclose(activation("relu_iota", 3.0)(small), (1 + (3 * small).exp()).log() / 3)
    x, p = quadrature([10])
    he = [activation(name)(x[:, 0]) for name in ("he2", "he3", "he4")]
    gram = torch.stack([torch.stack([p @ (f * g) for f in he]) for g in he])
    assert torch.allclose(gram, torch.diag(torch.tensor([2.0, 6.0, 24.0]).double()), atol=1e-6)
    with pytest.raises(ValueError, match="known are relu_iota, tanh"):
        activation("relu")
    with pytest.raises(ValueError, match="iota"):
        activation("relu_iota", 0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_zero_at_the_label_and_only_there_and_smooth(name):
    y = torch.linspace(-3, 3, 7, dtype=torch.float64)
    prediction = torch.linspace(-2, 4, 7, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name]
    assert loss(y, y).abs().max() < 1e-12 and (loss(prediction, y) > 0).all()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), prediction)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), prediction)
    far = loss(torch.tensor([1e6, -1e6], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert far.isfinite().all()


def test_the_logistic_loss_is_the_mean_over_the_class():
    y, prediction = torch.tensor(0.7).double(), torch.tensor(-0.4).double()
    p = y.sigmoid()
    cross_entropy = -p * prediction.sigmoid().log() - (1 - p) * (-prediction).sigmoid().log()
    entropy = -p * p.log() - (1 - p) * (1 - p).log()
    assert LOSSES["logistic"](prediction, y) == pytest.approx(float(cross_entropy - entropy))


@pytest.mark.parametrize(
    "d, k, widths, loss, noise",
    [(1, 0, [5], "squared", 0.5), (2, 1, [200], "squared", 0), (3, 2, [20, 10], "huber", 0.2)],
)
def test_exact_risk_against_many_samples(d, k, widths, loss, noise):
    s, t = student(d, widths), teacher(k, d, noise=noise)
    with torch.no_grad():
        exact = float(risk(s, LOSSES[loss], t.labelled(*quadrature([40] * k + [12] * (t.inputs - k)))))
        x, y, p = t.labelled(*sampled(t.inputs, 250_000, torch.Generator().manual_seed(1)))
        losses = torch.cat([LOSSES[loss](s(a), b) for a, b in zip(x.split(50_000), y.split(50_000), strict=True)])
    assert abs(exact - losses.mean()) < 3 * losses.std() / 500
    assert float(p.sum()) == pytest.approx(1)


def test_label_noise_adds_its_variance_to_the_squared_risk():
    s = student(2, [10])
    batches = (t.labelled(*quadrature([20] * t.inputs)) for t in (teacher(1, 2), teacher(1, 2, noise=0.5)))
    with torch.no_grad():
        risks = [float(risk(s, LOSSES["squared"], batch)) for batch in batches]
    assert risks[1] - risks[0] == pytest.approx(0.25, abs=1e-6)


def test_quadrature_converges_to_the_risk_of_figure_3():
    s, t = student(2, [1000]), teacher(1, 2)
    with torch.no_grad():
        risks = [float(risk(s, LOSSES["squared"], t.labelled(*quadrature(n)))) for n in ([20, 8], [64, 8], [96, 32])]
    assert abs(risks[1] - risks[2]) < 1e-6 < abs(risks[0] - risks[2])


@pytest.mark.parametrize("nodes, trapezoids", [([12, 13, 14], 0), ([40, 13, 14], 1), ([41, 40, 14], 2)])
def test_quadrature_integrates_gaussian_moments(nodes, trapezoids):
    x, p = quadrature(nodes, trapezoids)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(x.T @ (p[:, None] * x), torch.eye(3).double(), atol=1e-10)
    assert float(p @ (x[:, 0] ** 4 * x[:, 1] ** 2)) == pytest.approx(3, abs=1e-6)


def test_a_sobol_set_is_far_closer_than_independent_draws():
    s, t = student(8, [30, 30]), teacher(3, 8)
    with torch.no_grad():
        reference = float(risk(s, LOSSES["squared"], t.labelled(*sobol(8, 2**17, seed=1))))
        set_ = float(risk(s, LOSSES["squared"], t.labelled(*sobol(8, 2**13, seed=2))))
        x, y, _ = t.labelled(*sampled(8, 2**13, torch.Generator().manual_seed(0)))
        standard_error = float(LOSSES["squared"](s(x), y).std()) / 2**6.5
    assert abs(set_ - reference) < standard_error / 3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("widths, name, noise", [([6], "relu_iota", 0.0), ([6], "tanh", 0.4), ([5, 4, 3], "gelu", 0.0)])
def test_stein_identity_on_the_perpendicular_block(loss, widths, name, noise):
    """∇_W f (I − UᵀU) = (∇²_b f + 2 lam I) W⊥: labels don't depend on the directions orthogonal to U."""
    lam, s, t = 1e-2, student(2, widths, name), teacher(1, 2, noise=noise)
    batch = t.labelled(*quadrature([40, 40] if noise == 0 else [24, 24, 24]))

    def f(b: Tensor) -> Tensor:
        s.b.data = b.data
        out = torch.func.functional_call(s, {"b": b}, batch[0])
        return batch[2] @ LOSSES[loss](out, batch[1]) + lam * s.W.square().sum()

    b = s.b.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(b), s.W)
    H = torch.autograd.functional.hessian(f, b.detach())
    W_perp = perpendicular(s.W.detach(), t.directions)
    expected = (H + 2 * lam * torch.eye(len(H)).double()) @ W_perp
    assert W_perp.norm() > 0.5
    assert torch.allclose(perpendicular(gradient, t.directions), expected, atol=2e-4 * float(W_perp.norm()))


def test_he4_is_invisible_to_he2():
    """E[He₄(u·x) g] = 0 for every student of He₂ neurons: the risk is E[y²] + E[g²], and W = 0, b = ±1 is optimal."""
    s, t = student(2, [7], "he2"), teacher(1, 2, "he4")
    x, y, p = t.labelled(*quadrature([24, 24]))
    with torch.no_grad():
        assert float(p @ (s(x) * y)) == pytest.approx(0, abs=1e-6)
        s.W.zero_()
        s.b.fill_(1)
        assert float(risk(s, LOSSES["squared"], (x, y, p))) == pytest.approx(24, rel=1e-6)


@pytest.mark.parametrize("k, d", [(0, 3), (1, 2), (3, 20), (5, 5)])
def test_directions_are_orthonormal_and_split_the_weights(k, d):
    U, W = teacher(k, d).directions, torch.randn(30, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(U @ U.T, torch.eye(k).double())
    if k:
        assert torch.allclose(U[0], torch.full((d,), d**-0.5).double())
    perp, par = perpendicular(W, U), parallel(W, U)
    assert torch.allclose(perp + par, W) and torch.allclose(perp @ U.T, torch.zeros(30, k).double(), atol=1e-12)
    assert float(perp.norm() ** 2 + par.norm() ** 2) == pytest.approx(float(W.norm() ** 2))
    if 0 < k:
        assert effective_rank(par) <= k + 1e-6


def test_more_directions_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="k is 3 and d is 2"):
        teacher(3, 2)


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]))) == pytest.approx(3)
    assert effective_rank(torch.outer(torch.ones(4), torch.ones(3))) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(3, 2)) == 0


def test_labels_depend_on_the_teachers_directions_only():
    t = teacher(2, 5)
    x, y, p = t.labelled(*sampled(5, 50, torch.Generator().manual_seed(0)))
    assert torch.allclose(y, (x @ t.directions.T).tanh().sum(1) / math.sqrt(2))
    assert torch.equal(teacher(0, 5).labelled(x, p)[1], torch.ones(50).double())


def test_at_w_perp_zero_a_coarse_quadrature_has_no_gradient_in_w_perp():
    s, t = student(3, [20]), teacher(2, 3)
    s.W.data = parallel(s.W.data, t.directions)
    (gradient,) = torch.autograd.grad(risk(s, LOSSES["huber"], t.labelled(*quadrature([6, 6, 6]))), s.W)
    assert perpendicular(gradient, t.directions).norm() < 1e-15 < 1e-4 < gradient.norm()


def test_a_two_layer_student_starts_as_the_papers():
    h, d = 20_000, 2
    s = student(d, [h])
    assert float(s.W.detach().std()) == pytest.approx(1 / math.sqrt(d), rel=0.02)
    assert float(s.b.detach().std()) * h == pytest.approx(1, rel=0.02)
    x = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    a = s.a.detach() / h
    assert float((a * h).std()) == pytest.approx(1, rel=0.02)
    assert torch.allclose(s(x), (torch.nn.functional.softplus(2 * (x @ s.W.T + s.b)) / 2) @ a)


def test_outputs_and_gradients_keep_their_size_as_the_width_grows():
    """So one step size, proportional to the width, is right for every layer: h ‖∇‖² is of order 1."""
    x, y, p = teacher(1, 4).labelled(*sobol(4, 512, seed=0))
    sizes = []
    for h in (64, 1024):
        s = student(4, [h, h])
        gradients = torch.autograd.grad(risk(s, LOSSES["squared"], (x, y, p)), list(s.parameters()))
        sizes.append([h * float(g.norm()) ** 2 for g in gradients])
    ratio = np.array(sizes[1]) / np.array(sizes[0])
    assert (ratio > 0.1).all() and (ratio < 10).all()


@pytest.mark.parametrize("widths", [[], [0], [5, 0]])
def test_students_without_neurons_are_refused(widths):
    with pytest.raises(ValueError, match="widths"):
        student(2, widths)
