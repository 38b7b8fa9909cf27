"""What people project with otherwise: Gaussian matrices, sparse random matrices, best-scaled principal components."""

from math import sqrt

import torch
from torch import Tensor

from model import Problem, distortion, distortions


def gaussian(k: int, d: int, generator: torch.Generator) -> Tensor:
    """(k, d) independent N(0, 1/k): the random projection of Johnson and Lindenstrauss."""
    return torch.randn(k, d, generator=generator, dtype=torch.float64, device=generator.device) / sqrt(k)


def gaussian_distortions(problem: Problem, k: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) worst distortions of single Gaussian matrices."""
    return torch.tensor(
        [distortion(problem, gaussian(k, problem.d, generator)) for _ in range(count)], dtype=torch.float64
    )


def sparse(k: int, d: int, generator: torch.Generator) -> Tensor:
    """(k, d) independent entries, ±√(√d/k) with probability 1/(2√d) each, else 0 (Li, Hastie and Church 2006)."""
    u = torch.rand(k, d, generator=generator, dtype=torch.float64, device=generator.device) * sqrt(d)
    return sqrt(sqrt(d) / k) * ((u < 0.5).double() - ((u >= 0.5) & (u < 1)).double())


def best_scaled(problem: Problem, M: Tensor) -> Tensor:
    """M (k, d) times the one number that makes the worst distortion least.

    With q in [a, b] before scaling that is √(2/(a + b)), and the worst distortion is (b − a)/(b + a).
    """
    q = list(distortions(problem, M))
    return M * sqrt(2 / (min(float(x.min()) for x in q) + max(float(x.max()) for x in q)))


def scaled_pca(problem: Problem, k: int) -> Tensor:
    """(k, d) the principal directions, scaled best.

    Pairs are centered already; vectors are taken as they are. Rows beyond the rank are zero.
    """
    _, _, directions = torch.linalg.svd(problem.X, full_matrices=False)
    M = problem.X.new_zeros(k, problem.d)
    M[: len(directions)] = directions[:k]
    return best_scaled(problem, M)
