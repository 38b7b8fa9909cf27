"""The closed forms agree with Monte Carlo, with scipy, with autograd, with each other, and with the heat equation."""

import math
from collections.abc import Iterator

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import model
from model import (
    Ball,
    Pairs,
    Vectors,
    bound,
    bound_gradient,
    distortion,
    distortions,
    exact_distortion,
    log_moments,
    metric,
    row_space,
    sampled,
    strongest,
    tail,
)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(M: Tensor, sigma: float, count: int, seed: int = 1) -> Tensor:
    return M + sigma * normal(count, *M.shape, seed=seed)


def make(kind: str, n: int = 9, d: int = 6, seed: int = 0) -> Vectors | Pairs:
    return (Pairs if kind == "pairs" else Vectors)(normal(n, d, seed=seed))


def to_s(problem: Vectors | Pairs, M: Tensor, sigma: float) -> Tensor:
    return torch.tensor(sigma * math.sqrt(len(M) * problem.d))


def worst_of_draws(problem: Vectors | Pairs, A: Tensor) -> Tensor:
    return torch.tensor([distortion(problem, one) for one in A])


@pytest.mark.parametrize("sigma, tau", [(0.3, 0.5), (0.2, 2.0), (0.1, 4.0)])
def test_moments_agree_with_monte_carlo(sigma, tau):
    M, x = 0.5 * normal(4, 6), normal(6, seed=3)
    x /= x.norm()
    square = (draws(M, sigma, 200_000) @ x).square().sum(1)
    exact = log_moments((M @ x).square().sum(), sigma**2, tau, 4)
    for sign, log_moment in zip((1, -1), exact, strict=True):
        sample = (sign * tau * (square - 1)).exp()
        assert abs(sample.mean() - log_moment.exp()) < 3 * sample.std() / math.sqrt(len(sample))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["vectors", "pairs"]),
    seed=st.integers(0, 10**6),
    size=st.floats(0, 0.6),
    sigma=st.floats(0.01, 0.5),
    fraction=st.floats(0.02, 0.9),
)
def test_bound_lies_above_the_expected_worst_distortion(kind, seed, size, sigma, fraction):
    problem, M = make(kind, seed=seed), size * normal(4, 6, seed=seed + 1)
    tau = fraction / (2 * sigma**2)
    worst = worst_of_draws(problem, draws(M, sigma, 400))
    F = bound(problem, M, to_s(problem, M, sigma), tau)
    assert F > worst.mean() - 3 * worst.std() / math.sqrt(len(worst))


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
@pytest.mark.parametrize("tau", [0.1, 10.0, 1e5])
def test_bound_without_noise_is_near_the_worst_distortion(kind, tau):
    problem, M = make(kind), 0.5 * normal(4, 6)
    worst, F = distortion(problem, M), bound(problem, M, torch.tensor(0.0), tau).item()
    assert worst - 1e-12 <= F <= worst + math.log(2 * problem.N) / tau


def test_bound_is_infinite_where_the_moment_is():
    problem, M = make("vectors"), normal(4, 6)
    f, f_M, f_s = bound_gradient(problem, M, to_s(problem, M, 1.0), 0.51)
    assert f == math.inf and not f_M.any() and not f_s.any()
    assert math.isfinite(bound_gradient(problem, M, to_s(problem, M, 1.0), 0.49)[0])


@pytest.mark.parametrize("kind", ["vectors", "pairs", "some pairs"])
@pytest.mark.parametrize("sigma, tau", [(0.2, 3.0), (1e-4, 500.0), (0.0, 1e6)])
def test_gradient_in_closed_form_is_autograd_s(kind, sigma, tau, monkeypatch):
    monkeypatch.setattr(model, "TILE", 4)
    problem, M = make(kind.split()[-1]), 0.4 * normal(4, 6)
    if kind == "some pairs":
        problem = problem.subset(*strongest(problem, M, torch.abs, 20)[0])
        assert problem.N == 20
    s = to_s(problem, M, sigma).requires_grad_()
    M.requires_grad_()
    F = bound(problem, M, s, tau)
    f_M, f_s = torch.autograd.grad(F, [M, s])
    f, g_M, g_s = bound_gradient(problem, M.detach(), s.detach(), tau)
    assert f == pytest.approx(F.item(), rel=1e-12)
    assert torch.allclose(g_M, f_M, atol=1e-9) and torch.allclose(g_s, f_s, atol=1e-9)


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
@pytest.mark.parametrize("name", ["bound", "tail"])
def test_derivatives_agree_with_finite_differences(kind, name, monkeypatch):
    monkeypatch.setattr(model, "TILE", 2)  # several tiles
    problem = make(kind, n=5, d=4)
    M, s = (0.4 * normal(3, 4)).requires_grad_(), to_s(problem, torch.empty(3), 0.2).requires_grad_()

    def f(M: Tensor, s: Tensor) -> Tensor:
        return bound(problem, M, s, 3.0) if name == "bound" else tail(problem, M, s, 0.4)

    assert torch.autograd.gradcheck(f, (M, s))
    assert torch.autograd.gradgradcheck(f, (M, s))


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
@pytest.mark.parametrize("name", ["bound", "tail"])
def test_heat_identity(kind, name):
    """∂E/∂σ = σ Δ_M E for E[g(M + σZ)]: of E e^{τ…} = exp(τ F_τ), and of the probabilities."""
    problem, sigma, tau = make(kind, n=5, d=4), 0.25, 2.0
    M = 0.4 * normal(3, 4)

    def expectation(M: Tensor, sigma: Tensor) -> Tensor:
        s = sigma * math.sqrt(M.numel())
        return (tau * bound(problem, M, s, tau)).exp() if name == "bound" else tail(problem, M, s, 0.4)

    variable = torch.tensor(sigma, requires_grad=True)
    (slope,) = torch.autograd.grad(expectation(M, variable), variable)
    hessian = torch.autograd.functional.hessian(lambda x: expectation(x.view_as(M), torch.tensor(sigma)), M.flatten())
    assert slope.item() == pytest.approx(sigma * hessian.trace().item(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5, 30])
@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.01, 1e-4])
def test_ball_probability_agrees_with_scipy(k, sigma):
    q, variance = torch.linspace(0, 3, 13), torch.tensor(sigma**2)
    exact = scipy.stats.ncx2.cdf(1.2 / sigma**2, k, (q / variance).numpy())
    assert Ball.apply(q, variance, 1.2, k, False).numpy() == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
def test_tail_agrees_with_monte_carlo(kind):
    problem, M, sigma, epsilon = make(kind), 0.4 * normal(4, 6), 0.2, 0.5
    q = torch.stack([torch.cat(list(distortions(problem, A))) for A in draws(M, sigma, 20_000)])
    outside = ((q - 1).abs() > epsilon).double().sum(1)
    exact = tail(problem, M, to_s(problem, M, sigma), epsilon)
    assert abs(outside.mean() - exact) < 3 * outside.std() / math.sqrt(len(outside))


def test_tail_without_noise_counts():
    problem, M = make("pairs"), 0.4 * normal(4, 6)
    q = torch.cat(list(distortions(problem, M)))
    s = torch.tensor(1e-9, requires_grad=True)
    count = tail(problem, M, s, 0.5)
    assert count.item() == ((q - 1).abs() > 0.5).sum() and 0 < count < problem.N
    assert torch.autograd.grad(count, s)[0] == 0


def test_the_worst_pair_may_be_one_of_near_points():
    """Points in couples, 8·10⁻⁵ apart where M stretches most: a Gram matrix knows that to six digits."""
    X, M = normal(30, 12), normal(4, 12, seed=2)
    X = torch.cat([X, X + 8e-5 * torch.linalg.svd(M)[2][0]])
    worst = float(torch.linalg.matrix_norm(M, 2)) ** 2 - 1
    assert exact_distortion(Pairs(X), M) == pytest.approx(worst, rel=1e-10)
    assert 1e-9 < abs(distortion(Pairs(X), M) / worst - 1) < 1e-5


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
def test_sampled_is_the_mean_worst_distortion(kind):
    problem, M, sigma = make(kind), 0.4 * normal(4, 6), 0.2
    s = to_s(problem, M, sigma).requires_grad_()
    value = sampled(problem, M, s, 500, torch.Generator().manual_seed(5))
    exact = worst_of_draws(problem, draws(M, sigma, 500, seed=5))
    assert value.item() == pytest.approx(exact.mean().item(), rel=1e-12)
    (slope,) = torch.autograd.grad(value, s)
    up, down = (sampled(problem, M, s + h, 500, torch.Generator().manual_seed(5)).item() for h in (1e-6, -1e-6))
    assert slope.item() == pytest.approx((up - down) / 2e-6, rel=1e-3)


@pytest.mark.parametrize("kept, tiles", [(0, 0), (49, 3), (50, 4), (10**6, 10)])
def test_pairs_are_the_vectors_between_the_points(kept, tiles, monkeypatch):
    monkeypatch.setattr(model, "TILE", 4)
    monkeypatch.setattr(model, "KEPT", kept)
    X, M = normal(15, 6), 0.5 * normal(4, 6)
    i, j = torch.triu_indices(15, 15, 1)
    pairs, vectors = Pairs(X), Vectors(X[i] - X[j])
    assert len(pairs.blocks) > 3 and pairs.N == vectors.N == 105
    q, reference = (torch.cat(list(distortions(problem, M))).sort()[0] for problem in (pairs, vectors))
    assert torch.allclose(q, reference, rtol=1e-12)
    assert sum(block[-1] is not None for block in pairs.blocks) == tiles
    least = (reference - 1).abs().median().item()
    heavy = pairs.subset(*strongest(pairs, M, torch.abs, 10**9, distortion(pairs, M) - least)[0])
    chosen = torch.cat(list(distortions(heavy, M)))
    expected = reference[(reference - 1).abs() >= least]
    assert heavy.N == 53 and torch.allclose(chosen.sort()[0], expected.sort()[0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
def test_rotations_and_scale_change_nothing(kind):
    X, M, s = normal(9, 6), 0.5 * normal(4, 6), torch.tensor(0.5)
    R, Q = (torch.linalg.qr(normal(m, m, seed=7))[0] for m in (4, 6))
    cls = Pairs if kind == "pairs" else Vectors
    F = bound(cls(X), M, s, 2.0)
    shift = 100 if kind == "pairs" else 0
    for problem, matrix in ((cls(X), R @ M), (cls(X @ Q), M @ Q), (cls(1e200 * X), M), (cls(1e-200 * (X + shift)), M)):
        assert bound(problem, matrix, s, 2.0).item() == pytest.approx(F.item(), rel=1e-10)


def test_duplicates_are_left_out_and_counted():
    X = normal(6, 3)
    X[3], X[4] = X[1], X[1]
    problem = Pairs(X)
    assert problem.duplicates == 3 and problem.N == 12
    assert math.isfinite(distortion(problem, normal(2, 3)))
    with pytest.raises(ValueError, match="all 4 points are the same"):
        Pairs(torch.ones(4, 3))
    with pytest.raises(ValueError, match="row 2 is the zero vector"):
        Vectors(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))


def brute_force(X: Tensor, M: Tensor) -> Tensor:
    """|‖M u‖² − 1| of all unit differences u of different points."""
    i, j = torch.triu_indices(len(X), len(X), 1)
    D = X[i] - X[j]
    D = D[D.norm(dim=1) > 1e-9]
    return ((D @ M.T).square().sum(1) / D.square().sum(1) - 1).abs()


@pytest.mark.parametrize("limit, margin", [(7, math.inf), (10**6, 0.4), (10**6, math.inf)])
def test_the_strongest_of_all_pairs_with_the_memory_of_a_few(limit, margin, monkeypatch):
    monkeypatch.setattr(model, "TILE", 32)
    X = torch.cat([normal(150, 6), normal(150, 6)[:20], normal(30, 6, seed=2)])  # 20 duplicates
    pairs, M = Pairs(X), 0.4 * normal(4, 6, seed=1)
    c = brute_force(X, M).sort(descending=True)[0]
    ends, keys, worst = strongest(pairs, M, torch.abs, limit, margin)
    expected = c[c >= c[0] - margin][:limit]
    assert pairs.N == len(c) and pairs.duplicates == 20 and worst == pytest.approx(float(c[0]))
    assert torch.allclose(keys.sort(descending=True)[0], expected)
    few = pairs.subset(*ends)
    found = torch.cat([(q - 1).abs() for q in distortions(few, M)])
    assert torch.allclose(found, keys) and few.N == len(expected)
    assert torch.allclose(few.units().norm(dim=1), torch.tensor(1.0))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, made.numel() if torch.is_tensor(made) else 0)
        return made


def test_a_few_pairs_in_many_columns_take_the_memory_of_fewer():
    pairs, (i, j) = Pairs(normal(50, 2000)), torch.triu_indices(50, 50, 1)
    with Largest() as largest:
        few = pairs.subset(i, j)
    assert few.N == 1225 and largest.numbers <= 256 * 2000


def test_of_equal_keys_none_is_kept_in_the_place_of_a_larger_one():
    vectors = Vectors(torch.diag(torch.tensor([1.0, 1.0, 1.0, 3.0, 1.0, 2.0])))
    M = torch.diag(torch.tensor([2.0, 2.0, 2.0, 3.0, 2.0, 4.0], dtype=torch.float64)).sqrt()
    (rows,), keys, worst = strongest(vectors, M, torch.abs, 4)
    assert {3, 5} <= set(rows.tolist()) and len(rows) == 4
    assert keys.tolist() == pytest.approx((M.diag()[rows] ** 2 - 1).tolist()) and worst == pytest.approx(3)


@pytest.mark.parametrize("kind", ["vectors", "pairs"])
def test_metric_changes_the_coordinates_and_nothing_else(kind):
    X = normal(30, 5) * torch.logspace(0, -4, 5) @ normal(5, 8, seed=1)  # rank 5 of 8 columns
    problem = (Pairs if kind == "pairs" else Vectors)(X)
    small, B = metric(problem)
    flat, V = row_space(problem)
    assert small.X.shape == flat.X.shape == (30, 5) and B.shape == V.shape == (5, 8) and small.d == 8
    assert torch.allclose(V @ V.T, torch.eye(5))
    M = normal(3, 5, seed=2)
    for there, back in ((small, B), (flat, V)):
        for q, expected in zip(distortions(there, M), distortions(problem, M @ back), strict=True):
            assert torch.allclose(q, expected, rtol=1e-6)
    everything = strongest(small, M, torch.abs, 10**6)[0]
    of, C = strongest(flat, M, torch.abs, 10**6)[0], (lambda U: U.T @ U / len(U))
    variances = torch.linalg.eigvalsh(C(flat.subset(*of).units()))
    wide = variances.clamp(min=1e-3 * variances.mean())
    assert 2 <= (wide == variances).sum() < 5  # the others hardly differ
    expected = variances / wide * wide.mean()
    assert torch.allclose(C(small.subset(*everything).units()), torch.diag(expected), atol=1e-6)


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_rounding_errors_do_not_choose_the_coordinates(kind):
    X = normal(30, 80)  # another processor's: the last digits differ
    B, others = (metric(kind(x))[1] for x in (X, X * (1 + 1e-15 * normal(30, 80, seed=1))))
    assert torch.allclose(others, B, atol=1e-10)
