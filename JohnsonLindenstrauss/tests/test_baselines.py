"""The baselines are what they are called."""

import math

import pytest
import torch

from baselines import gaussian, gaussian_distortions, scaled_pca, sparse
from model import Pairs, Vectors, distortion


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("draw", [gaussian, sparse])
def test_random_projections_keep_norms_in_the_mean(draw):
    x = torch.randn(49, generator=seeded(), dtype=torch.float64)
    x /= x.norm()
    generator = seeded()
    squares = torch.stack([(draw(10, 49, generator) @ x).square().sum() for _ in range(4000)])
    assert abs(squares.mean() - 1) < 3 * squares.std() / math.sqrt(4000)


def test_sparse_entries():
    A = sparse(200, 100, seeded())
    value = math.sqrt(math.sqrt(100) / 200)
    assert set(A.unique().tolist()) == {-value, 0, value}
    assert abs((A != 0).double().mean() - 0.1) < 3 * math.sqrt(0.1 * 0.9 / 20_000)


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_pca_is_scaled_best(kind):
    X = torch.randn(20, 6, generator=seeded(), dtype=torch.float64) * torch.linspace(2, 1, 6, dtype=torch.float64)
    problem = kind(X)
    M = scaled_pca(problem, 3)
    assert torch.allclose(M @ M.T, M[0].square().sum() * torch.eye(3, dtype=torch.float64), atol=1e-12)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert distortion(problem, factor * M) > distortion(problem, M)
    other = torch.linalg.qr(torch.randn(6, 3, generator=seeded(), dtype=torch.float64))[0].T
    centered = X - X.mean(0) if kind is Pairs else problem.X
    assert (centered @ M.T / M[0].norm()).square().sum() > (centered @ other.T).square().sum()


def test_pca_has_no_more_rows_than_there_are_directions():
    problem = Pairs(torch.randn(3, 8, generator=seeded(), dtype=torch.float64))
    assert scaled_pca(problem, 5).shape == (5, 8) and distortion(problem, scaled_pca(problem, 5)) < 1e-12


def test_gaussian_distortions_are_of_single_matrices():
    problem = Vectors(torch.randn(10, 20, generator=seeded(), dtype=torch.float64))
    generator = seeded()
    assert gaussian_distortions(problem, 4, 2, seeded()).tolist() == [
        distortion(problem, gaussian(4, 20, generator)) for _ in range(2)
    ]
