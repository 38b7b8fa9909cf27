"""Classical ways to find the directions that an answer depends on, each from its paper; all are told their number.

Each takes whitened inputs z (n, d) and answers y (n,) and returns orthonormal rows (k, d), spanning what it found.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from discover import Network, descend
from model import squared


def _leading(M: NDArray, k: int) -> NDArray:
    """Eigenvectors of the symmetric M of the k eigenvalues largest in size, as rows."""
    values, vectors = np.linalg.eigh(M)
    return vectors[:, np.argsort(-np.abs(values))[:k]].T


def _slices(y: NDArray, slices: int) -> list[NDArray]:
    return np.array_split(np.argsort(y, kind="stable"), slices)


def least_squares(z: NDArray, y: NDArray, k: int) -> NDArray:
    """The slope E[z y], one direction whatever k is (Brillinger 1982): right if the link has a linear part."""
    slope = (z * (y - y.mean())[:, None]).mean(0)
    return slope[None] / np.linalg.norm(slope)


def sliced_inverse_regression(z: NDArray, y: NDArray, k: int, slices: int = 10) -> NDArray:
    """Covariance of E[z | y] over slices of y (Li 1991); blind to links that are even."""
    means = np.array([z[rows].mean(0) for rows in _slices(y, slices)])
    return _leading(means.T @ means, k)


def sliced_average_variance(z: NDArray, y: NDArray, k: int, slices: int = 10) -> NDArray:
    """SAVE: mean of (I − Cov[z | y])² over slices of y (Cook and Weisberg 1991)."""
    differences = [np.eye(z.shape[1]) - np.cov(z[rows].T) for rows in _slices(y, slices)]
    return _leading(sum(D @ D for D in differences), k)


def principal_hessian_directions(z: NDArray, y: NDArray, k: int) -> NDArray:
    """pHd: E[(y − ȳ − least squares) z zᵀ], the mean Hessian (Li 1992); blind to what is linear."""
    residual = y - y.mean() - z @ np.linalg.lstsq(z, y - y.mean())[0]
    return _leading((z * residual[:, None]).T @ z / len(z), k)


def outer_product_of_gradients(z: NDArray, y: NDArray, k: int, anchors: int = 300, rounds: int = 8) -> NDArray:
    """Refined OPG (Xia, Tong, Li and Zhu 2002): slopes of local linear fits, near in the directions found so far.

    Gaussian kernel of width √p n^(−1/(p+4)) in p coordinates of variance 1, √2 n^(−1/(k+4)) at p = k; p falls from d
    to k over the rounds. Fits are made around so many of the rows.
    """
    n, d = z.shape
    around = np.random.default_rng(0).permutation(n)[:anchors]
    B = np.eye(d)
    for p in np.unique(np.geomspace(d, k, rounds).round().astype(int))[::-1].tolist() + [k, k]:
        t = z @ B[:p].T
        M = np.zeros((d, d))
        for i in around:
            distance = ((t - t[i]) ** 2).sum(1) * n ** (2 / (p + 4)) / (2 if p == k else p)
            weight = np.sqrt(np.exp(-(distance - distance.min()) / 2))
            near = weight > 1e-6
            design = np.column_stack([np.ones(near.sum()), z[near] - z[i]]) * weight[near, None]
            penalty = 1e-3 * np.trace(design.T @ design) / d * np.eye(d + 1)
            slope = np.linalg.solve(design.T @ design + penalty, design.T @ (y[near] * weight[near]))[1:]
            M += np.outer(slope, slope)
        vectors = np.linalg.eigh(M)[1]
        B = vectors[:, ::-1].T
    return B[:k]


def gradients_of_a_network(z: NDArray, y: NDArray, k: int, steps: int = 4000, width: int = 100) -> NDArray:
    """AGOP: mean of ∇ŷ ∇ŷᵀ over the rows, ŷ the same network without a regularizer (Radhakrishnan et al. 2024)."""
    generator = torch.Generator().manual_seed(0)
    rows = tuple(torch.as_tensor(v, dtype=torch.float32) for v in (z, (y - y.mean()) / y.std()))
    network = descend(Network(z.shape[1], width, generator), rows, squared, 0.0, steps, generator)
    x = rows[0].requires_grad_()
    (gradients,) = torch.autograd.grad(network(x).sum(), x)
    return _leading((gradients.T @ gradients).double().numpy() / len(z), k)


PEERS = {
    "least squares": least_squares,
    "SIR": sliced_inverse_regression,
    "SAVE": sliced_average_variance,
    "pHd": principal_hessian_directions,
    "OPG": outer_product_of_gradients,
    "AGOP": gradients_of_a_network,
}
