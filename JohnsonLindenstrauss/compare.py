"""What one would project with otherwise: random matrices, as they are and best-scaled, and principal components.

Best-scaled means times the one number that makes the worst distortion least. A random matrix as it is can be worse than
M = 0, which has distortion 1; best-scaled, no matrix is. Ours and PCA have no scale to gain from.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from model import Problem, Vectors, distortion, distortions, exact_distortion, extremes

ROUNDING = 1e-14
"""below it a distortion is the processor's, and differs from run to run"""


@dataclass
class Comparison:
    """Worst distortions beside ours."""

    worst: dict[str, float]
    """by the projection's name, ours ("derandomized") the first; of random ones that is a single draw"""
    gaussian: np.ndarray
    """(count,) of single Gaussian matrices"""
    gaussian_scaled: np.ndarray
    """(count,) of the same, best-scaled"""
    interpolation: float | None
    """of the one row that keeps all norms of independent vectors; `ROUNDING` where it is less"""
    edges: np.ndarray
    """(bins + 1,) of a histogram of all distortions ‖M x‖² − 1"""
    counts: dict[str, np.ndarray]
    """(bins,) numbers of vectors or pairs, by the projection's name"""

    def numbers(self) -> dict[str, float | None]:
        """For results.json."""
        return {
            "gaussian_mean": self.gaussian.mean(),
            "gaussian_min": self.gaussian.min(),
            "gaussian_scaled_mean": self.gaussian_scaled.mean(),
            "gaussian_scaled_min": self.gaussian_scaled.min(),
            "gaussians": len(self.gaussian),
            "sparse": self.worst["sparse random"],
            "sparse_scaled": self.worst["best-scaled sparse random"],
            "pca": self.worst["best-scaled PCA"],
            "interpolation": self.interpolation,
        }


def compare(problem: Problem, M: Tensor, count: int, seed: int) -> Comparison:
    """M (k, d) beside others to the same dimension: `count` Gaussian ones, one sparse random one, and PCA.

    Where N is so large that each costs seconds, the Gaussian ones are fewer.
    """
    k, source = len(M), gaussian(problem, len(M), seed)
    A, S = next(source), next(sparse(problem, k, seed))
    matrices = {
        "derandomized": M,
        "best-scaled PCA": pca(problem, k),
        "Gaussian": A,
        "best-scaled Gaussian": best_scaled(problem, A),
        "sparse random": S,
        "best-scaled sparse random": best_scaled(problem, S),
    }
    count = min(count, max(20, 2 * 10**8 // problem.N))
    low, high = np.array([extremes(problem, next(source)) for _ in range(count)]).T
    exact = interpolation(problem) if isinstance(problem, Vectors) else None
    reach = np.array([extremes(problem, matrix) for matrix in matrices.values()]) - 1
    edges = np.linspace(reach.min(), reach.max(), int(min(100, max(20, problem.N**0.5))) + 1)
    counts = {
        name: sum(np.histogram((q - 1).cpu().numpy(), edges)[0] for q in distortions(problem, matrix))
        for name, matrix in matrices.items()
    }
    return Comparison(
        worst={name: exact_distortion(problem, matrix) for name, matrix in matrices.items()},
        gaussian=np.maximum(1 - low, high - 1),
        gaussian_scaled=(high - low) / (high + low),
        interpolation=None if exact is None else max(distortion(problem, exact), ROUNDING),
        edges=edges,
        counts=counts,
    )


def gaussian(problem: Problem, k: int, seed: int) -> Iterator[Tensor]:
    """(k, d) matrices of independent N(0, 1/k), one after the other: Johnson and Lindenstrauss' random projections."""
    return _draws("GaussianRandomProjection", problem, k, seed)


def sparse(problem: Problem, k: int, seed: int) -> Iterator[Tensor]:
    """(k, d) matrices of entries ±√(√d/k) with probability 1/(2√d) each, else 0 (Li, Hastie and Church 2006)."""
    return _draws("SparseRandomProjection", problem, k, seed)


def _draws(name: str, problem: Problem, k: int, seed: int) -> Iterator[Tensor]:
    from sklearn import random_projection  # takes a second

    state = np.random.RandomState(np.random.PCG64(seed))
    projection = getattr(random_projection, name)(k, random_state=state)
    while True:
        with warnings.catch_warnings(action="ignore"):  # that k is above d
            A = projection.fit(np.zeros((1, problem.d))).components_
        yield torch.from_numpy(A.toarray() if issparse(A) else A).to(problem.X)


def best_scaled(problem: Problem, M: Tensor) -> Tensor:
    """M (k, d) times the one number that makes the worst distortion least.

    With ‖M x‖² in [a, b] before scaling that is √(2/(a + b)), and the worst distortion is (b − a)/(b + a), below 1.
    """
    low, high = extremes(problem, M)
    return M * (2 / (max(low, 0) + high)) ** 0.5 if high > 0 else M


def pca(problem: Problem, k: int) -> Tensor:
    """(k, d) the principal directions, scaled best; rows beyond the rank are zero.

    `Pairs` are centered already; vectors, whose norms count, are taken as they are, which scikit-learn's PCA can't.
    """
    directions = torch.linalg.svd(problem.X, full_matrices=False)[2][:k]
    return best_scaled(problem, torch.cat([directions, problem.X.new_zeros(k - len(directions), problem.d)]))


def interpolation(vectors: Vectors) -> Tensor | None:
    """M = 1ᵀ X⁺, (1, d): one row keeps all norms where the vectors are independent, as M x = 1 for each; else None."""
    X = vectors.X.cpu()
    if len(X) > vectors.d:
        return None
    solution, _, rank, _ = torch.linalg.lstsq(X, X.new_ones(len(X), 1), driver="gelsy")
    return solution.T.to(vectors.X) if rank == len(X) else None
