"""The toy: moments against quadrature, the closed form of figure 1, PGD at the global minimum."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

import toy


def tensor(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("w, b", [(0.5, 0.0), (-1.3, 0.4), (0.2, -0.7), (1e-3, 1.0), (2.0, -3.0)])
def test_moments_against_numerical_integration(w, b):
    for k in range(7):
        numeric = quad(lambda x, k=k: max(w * x + b, 0) ** k * norm.pdf(x), -12, 12, points=[-b / w], limit=500)[0]
        if k:
            assert float(toy.moments(tensor(w), tensor(b), k)[k]) == pytest.approx(numeric, rel=1e-6, abs=1e-12)


def test_derivatives_and_the_stein_identity():
    """∂f/∂w = (∂²f/∂b² + 2λ) w, also where w → 0."""
    w = torch.tensor([0.5, -1.3, 1e-4, 0.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.2, 0.4, 0.8, 0.9], dtype=torch.float64, requires_grad=True)
    lam = tensor(0.01)
    assert torch.autograd.gradcheck(lambda w, b: toy.objective(w, b, lam), (w, b))
    g_w, g_b = torch.autograd.grad(toy.objective(w, b, lam).sum(), (w, b), create_graph=True)
    (H,) = torch.autograd.grad(g_b.sum(), b)
    assert torch.allclose(g_w, (H + 2 * lam) * w, atol=1e-10)
    assert torch.allclose(torch.stack(toy.gradient(w, b, lam)), torch.stack([g_w, g_b]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("lam", [1e-6, 1e-2, 0.3, 0.44, 0.5, 10.0])
def test_the_frozen_global_minimizer_against_search(lam):
    def f(w: float) -> float:
        return float(toy.objective(tensor(w), tensor(0.0), tensor(lam)))

    grid = np.linspace(1e-6, 1.5, 400)
    best = min([0.0, *grid], key=lambda w: f(w) if w else 1.0)
    if best:
        best = minimize_scalar(f, bounds=(best - 0.01, best + 0.01), method="bounded", options={"xatol": 1e-10}).x
    assert toy.global_minimizer(lam, frozen=True) == pytest.approx(best, abs=1e-6)


def test_the_trained_global_minimum_is_zero():
    assert float(toy.objective(tensor(0.0), tensor(1.0), tensor(1e-6))) == pytest.approx(0, abs=1e-15)
    w, b = torch.meshgrid(torch.linspace(-2, 2, 41).double(), torch.linspace(-2, 2, 41).double(), indexing="ij")
    assert float(toy.objective(w, b, tensor(0.0)).min()) > -1e-12


@pytest.mark.parametrize("frozen", [True, False])
def test_pgd_ends_at_the_global_minimum_for_every_lambda(frozen):
    w = toy.descend(toy.LAMBDAS, frozen)
    exact = [toy.global_minimizer(lam, frozen) for lam in toy.LAMBDAS]
    assert np.abs(w - exact).max() <= 1e-3
    if frozen:
        assert w[0] > 0.47  # at tiny λ the frozen bias keeps w
    else:
        assert w.max() <= 1e-3
