"""300 random small problems: every certificate's numbers are those of the dense Hessian of f, written anew here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

import train
from main import Config
from model import Pairs, Vectors


def draw(number: int) -> tuple[np.ndarray, str, int, dict]:
    """Data, problem, k and options of the problem with this number."""
    rng = np.random.default_rng([1, number])
    n, d, k = int(rng.integers(2, 13)), int(rng.integers(1, 4)), int(rng.choice([1, 2, 3], p=[0.6, 0.2, 0.2]))
    X = rng.standard_normal((n, d)) * rng.uniform(0.2, 1, d) * 10 ** rng.uniform(-5, 5)
    shape = rng.choice(["as it is", "twice the same row", "on a line", "far from 0"], p=[0.6, 0.1, 0.1, 0.2])
    if shape == "twice the same row":
        X[-1] = X[0] * [1, -2][n == 2]
    elif shape == "on a line":
        X = np.outer(X[:, 0], X[0])
    elif shape == "far from 0":
        X += 10 * np.abs(X).max()
    options = dict(
        objective="tail" if k != 2 and rng.random() < 0.1 else "bound",
        tau=10 ** rng.uniform(-1, 4 if rng.random() < 0.1 else 0.5),
        growth=rng.uniform(1.1, 3),
        epsilon=rng.uniform(0.1, 0.9),
        lam=10 ** rng.uniform(-1, 0.5),
        rho=10 ** rng.uniform(-3.5, -1),
        lr=10 ** rng.uniform(-1.5, 0),
        momentum=rng.choice([0, 0.5, 0.9]),
        radius=rng.choice([1e-2, 0.1, 0.5]),
        patience=int(rng.integers(1, 10)),
        steps=int(rng.choice([12, 70], p=[0.05, 0.95])),
    )
    if options["objective"] == "bound" and rng.random() < 0.1:
        options["radius"] = 0  # M stays 0, where the closed form below of the tail objective is 0/0
    options["ridge"] = float(rng.choice([0, 1e-4, 1e-2]))
    return X, str(rng.choice(["vectors", "pairs"])), k, options


def directions(X: np.ndarray, kind: str) -> Tensor:
    """The unit vectors whose norms are to be preserved."""
    if kind == "pairs":
        i, j = np.triu_indices(len(X), 1)
        U, far = X[i] - X[j], np.linalg.norm(X - X.mean(0), axis=1)
        X = U[np.square(U).sum(1) > 1e-10 * (far[i] ** 2 + far[j] ** 2)]
    return torch.from_numpy(X / np.linalg.norm(X, axis=1, keepdims=True))


def f(x: Tensor, U: Tensor, k: int, tau: float, options: dict) -> Tensor:
    """f at x = (M, ‖σI‖_F), from the moments of ‖A u‖², or its distribution, which is elementary for k = 1 and 3."""
    Y, s = U @ x[:-1].view(k, -1).T, x[-1]
    v, more = s**2 / (len(x) - 1), options["lam"] * s**2 + options["ridge"] * x.square().sum()
    if options["objective"] == "bound":
        logs = [-k / 2 * torch.log(1 - 2 * t * v) + t * Y.square().sum(1) / (1 - 2 * t * v) - t for t in (tau, -tau)]
        return torch.logsumexp(torch.cat(logs), 0) / tau + more
    y, within = Y.norm(dim=1) if k == 3 else Y[:, 0], 0.0
    for sign in (1, -1):
        r = math.sqrt(1 + sign * options["epsilon"])
        a, b = (r - y) / v.sqrt(), (r + y) / v.sqrt()
        within += sign * (torch.special.ndtr(a) - torch.special.ndtr(-b))
        if k == 3:
            density = (torch.exp(-a.square() / 2) - torch.exp(-b.square() / 2)) / math.sqrt(2 * math.pi)
            within -= sign * v.sqrt() / y * density
    return (1 - within).mean() + more


@pytest.mark.parametrize("numbers", [range(30), pytest.param(range(30, 300), marks=pytest.mark.soak)], ids=len)
def test_certificates_are_those_of_the_dense_hessian(numbers, monkeypatch):
    monkeypatch.setattr("pgd.lipschitz", lambda *_: 0.0)  # which is not looked at here takes a third of the time
    claims, by_newton = 0, 0
    for number in numbers:
        X, kind, k, options = draw(number)
        problem = (Pairs if kind == "pairs" else Vectors)(torch.from_numpy(X))
        config = Config(k=k, problem=kind, **options)
        descent = train.Derandomization(problem, config, torch.Generator().manual_seed(number))
        result = descent.run().result()
        found, s = result.certificate, torch.tensor([result.sigma * math.sqrt(result.M.numel())], dtype=torch.float64)
        x = torch.cat([result.M.flatten(), s])
        where = (directions(X, kind), k, result.tau, options)
        assert len(where[0]) == problem.N, number

        gradient = jacobian(lambda x, where=where: f(x, *where), x)
        H = hessian(lambda x, where=where: f(x, *where), x, vectorize=True)
        eigenvalues, of_M = torch.linalg.eigvalsh(H), torch.linalg.eigvalsh(H[:-1, :-1])
        smallest, width = eigenvalues[0].item(), eigenvalues.abs().max().item()
        assert math.isfinite(result.objective), number
        assert result.objective == pytest.approx(f(x, *where).item(), rel=1e-8), number
        assert found.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-5, abs=1e-9), number
        least = smallest - found.lam / 4
        if result.sigma == 0:  # a proof that λ_min is above the threshold, or not far below 0, need be no closer
            least = min(smallest, 0) - min(math.sqrt(found.rho), found.lam)
        assert least - 1e-3 * width <= found.lambda_min <= smallest + 1e-7 * width, number
        assert found.w_norm == pytest.approx(x[-1].item(), rel=1e-12) and found.rho == options["rho"], number

        denominator, slack = 2 * options["lam"] + of_M[0].item(), 1e-3 * of_M.abs().max().item() + found.lam / 4
        if found.w_norm_bound is None:
            assert denominator <= slack, number
        else:
            slope = gradient[-1].abs().item()
            assert found.w_norm <= found.w_norm_bound, number
            assert found.w_norm_bound >= slope / denominator * (1 - 1e-5) - 1e-9 and denominator > 0, number
            if denominator > 2 * slack:
                assert found.w_norm_bound <= slope / (denominator - slack) * (1 + 1e-5) + 1e-9, number
        if found.is_sosp:
            assert gradient.norm() <= options["rho"] * (1 + 1e-5) and smallest >= -math.sqrt(options["rho"]), number
            claims, by_newton = claims + 1, by_newton + (result.sigma == 0)
    assert claims > 0.4 * len(numbers) and by_newton > 0.1 * len(numbers), (claims, by_newton)
