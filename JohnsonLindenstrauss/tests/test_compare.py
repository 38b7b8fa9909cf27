"""What the projection is compared with is what it is called, and no comparison is unfair."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from torch import Tensor

from compare import best_scaled, compare, gaussian, interpolation, pca, sparse
from data import random_data
from model import Pairs, Vectors, distortion


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("draw", [gaussian, sparse])
def test_random_projections_keep_norms_in_the_mean(draw):
    x = normal(49)
    x /= x.norm()
    squares = 40_000 * (next(draw(Vectors(normal(2, 49)), 40_000, seed=0)) @ x).square()
    assert abs(squares.mean() - 1) < 3 * squares.std() / math.sqrt(40_000)


def test_of_many_pairs_fewer_gaussian_matrices_are_compared_but_twenty():
    problem = Vectors(normal(30, 9))
    for problem.N, count in ((10**5, 50), (5 * 10**6, 40), (10**8, 20)):
        assert len(compare(problem, normal(3, 9), 50, 0).gaussian) == count


def test_sparse_entries():
    A = next(sparse(Vectors(normal(2, 100)), 200, seed=0))
    value = math.sqrt(math.sqrt(100) / 200)
    assert A.unique().tolist() == pytest.approx([-value, 0, value])
    assert abs((A != 0).double().mean() - 0.1) < 3 * math.sqrt(0.1 * 0.9 / 20_000)


def test_seeds_beyond_those_of_random_states():
    problem = Vectors(normal(2, 9))
    assert torch.equal(next(gaussian(problem, 3, 2**62)), next(gaussian(problem, 3, 2**62)))
    assert not torch.equal(next(gaussian(problem, 3, 2**62)), next(gaussian(problem, 3, 2**62 + 1)))


@pytest.mark.parametrize("kind", [Vectors, Pairs])
def test_best_scaled_is_best(kind):
    problem, A = kind(normal(20, 6)), normal(3, 6, seed=1)
    M = best_scaled(problem, A)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert distortion(problem, factor * M) > distortion(problem, M)
    assert distortion(problem, M) < 1  # that of M = 0
    assert torch.allclose(best_scaled(problem, 7 * A), M)
    assert not best_scaled(problem, 0 * A).any()


def test_pca_is_scikit_learns_scaled():
    X = normal(20, 6) * torch.linspace(2, 1, 6, dtype=torch.float64) + 3
    problem = Pairs(X)
    M, theirs = pca(problem, 3), PCA(3).fit(X.numpy()).components_
    assert np.abs(M.numpy() @ theirs.T / M[0].norm().item()) == pytest.approx(np.eye(3), abs=1e-9)
    assert distortion(problem, M) == pytest.approx(distortion(problem, best_scaled(problem, torch.from_numpy(theirs))))


def test_pca_has_no_more_rows_than_there_are_directions():
    problem = Pairs(normal(3, 8))
    assert pca(problem, 5).shape == (5, 8) and distortion(problem, pca(problem, 5)) < 1e-12


def test_one_row_keeps_the_norms_of_independent_vectors():
    papers = Vectors(torch.from_numpy(random_data("vectors", 100, 500, 42)))
    M = interpolation(papers)
    assert M.shape == (1, 500) and distortion(papers, M) < 1e-13
    assert torch.allclose(papers.X @ M.T, torch.ones(100, 1, dtype=torch.float64))
    assert interpolation(Vectors(normal(10, 9))) is None
    assert interpolation(Vectors(torch.cat([normal(5, 20), normal(5, 20)[:1]]))) is None


def test_the_numbers_are_those_of_the_matrices():
    X = normal(12, 5)
    found = compare(Pairs(X), 0.5 * normal(2, 5, seed=1), count=3, seed=0)
    numbers, upper = found.numbers(), np.triu_indices(12, 1)
    source = gaussian(Pairs(X), 2, seed=0)
    next(source)  # the one whose histogram is drawn
    q = np.array(
        [(pairwise_distances(X @ next(source).T)[upper] / pairwise_distances(X)[upper]) ** 2 for _ in range(3)]
    )
    assert found.gaussian == pytest.approx(np.abs(q - 1).max(1))
    scales = np.linspace(0.01, 3, 100_000)
    best = [min(np.maximum(np.abs(scales * x.min() - 1), np.abs(scales * x.max() - 1))) for x in q]
    assert found.gaussian_scaled == pytest.approx(best, abs=1e-4) and (found.gaussian_scaled < 1).all()
    assert (
        numbers["gaussian_min"] == found.gaussian.min() and numbers["gaussian_scaled_mean"] < numbers["gaussian_mean"]
    )
    assert numbers["interpolation"] is None and numbers["sparse_scaled"] <= min(1, numbers["sparse"])
    assert all(counts.sum() == 66 for counts in found.counts.values())
    for name, counts in found.counts.items():
        reach = found.edges[np.r_[counts > 0, False] | np.r_[False, counts > 0]]
        width = found.edges[1] - found.edges[0]
        assert np.abs(reach).max() == pytest.approx(found.worst[name], abs=width)
