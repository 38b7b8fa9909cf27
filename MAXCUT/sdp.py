"""The semidefinite relaxation of MAXCUT, a true upper bound from it, and Goemans–Williamson's rounding.

The relaxation: maximize ½ Σ_{i<j} w_ij (1 − v_i·v_j) over unit vectors v_i; the v_i are the rows of V (n × k).
"""

from contextlib import suppress
from math import ceil, inf, sqrt
from multiprocessing import TimeoutError
from multiprocessing.pool import ThreadPool

import numpy as np
import qdldl
import scipy.sparse as sp
import torch
from scipy.linalg.lapack import dpotrf
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from utilities import LARGE, Graph, cut_values, weighted_sums

MAX_RANK = 32
"""Rank beyond which V is not taken by default. ⌈√(2n)⌉ makes every second-order point global (Boumal, Voroninski,
Bandeira 2016); far less does in practice, and `upper_bound` says for each graph how much was lost."""


def solve_sdp(graph: Graph, tol: float = 3e-4, generator: torch.Generator | None = None) -> Tensor:
    """Vectors of the relaxation (Burer and Monteiro 2003), by accelerated projected gradient with restart.

    A step is v_i ← (θ d_i y_i − (W Y)_i) normalized, with d_i = Σ_j |w_ij| and θ = λ_max(D^−½ W D^−½): the objective
    is concave along θ D − W ⪰ 0, so that without acceleration no step makes it worse. Y extrapolates V (Nesterov), and
    falls back to V where that points uphill (O'Donoghue and Candès 2015).

    Args:
        graph: the graph.
        tol: stops where the Riemannian gradient's norm is at most tol ‖W V‖_F.
        generator: of the random start.

    Returns:
        V, (n, k) float32, unit rows; k = min(⌈√(2n)⌉, MAX_RANK).
    """
    n = graph.n
    rank = min(ceil(sqrt(2 * n)), MAX_RANK)
    unit = float(graph.w.abs().max())  # in which the weights fit single precision
    d = torch.where(graph.degree > 0, graph.degree, unit)
    small = torch.where(d > 1e-15 * unit, 1.0, d / unit)  # squares of a row so small would underflow: it is made larger
    crow, column, w = graph.matrix.crow_indices(), graph.matrix.col_indices(), graph.matrix.values() / unit
    W = crow, column, (w / small.repeat_interleave(crow.diff())).float()
    scale = sp.diags_array(1 / np.sqrt(d.cpu().numpy()))
    start = np.random.default_rng(0).standard_normal(n)
    theta = eigsh(scale @ graph.adjacency @ scale, k=1, which="LA", tol=1e-2, v0=start)[0][0]
    majorizer = (1.02 * theta * d / unit / small).float()[:, None]  # 1.02: θ is known to one percent

    V = normalize(torch.randn(n, rank, generator=generator, device=graph.w.device))
    Y, t = V.clone(), 1.0
    for step in tqdm(range(1, 10_001), desc="SDP", unit=" steps", disable=None, leave=False):
        # In place, because on large graphs new memory takes as long as the arithmetic.
        V_next = weighted_sums(*W, Y).neg_().addcmul_(majorizer, Y)
        V_next /= V_next.norm(dim=1, keepdim=True).clamp_min_(1e-30)
        difference = torch.sub(V_next, V, out=V)
        if torch.dot(Y.sub_(V_next).view(-1), difference.view(-1)) > 0:
            Y.copy_(V_next)
            t = 1.0
        else:
            before, t = t, (1 + sqrt(1 + 4 * t * t)) / 2
            torch.add(V_next, difference, alpha=(before - 1) / t, out=Y)
        V = V_next
        if step % 10 == 0:
            WV = weighted_sums(*W, V)
            residual = float((WV - (V * WV).sum(1, keepdim=True) * V).norm() / WV.norm())
            if residual <= tol:
                break
    return V


def principal(V: Tensor, rank: int) -> Tensor:
    """The unit vectors V (n × k) in their `rank` principal directions, normalized again."""
    return normalize(V @ torch.linalg.eigh(V.T @ V)[1][:, -rank:])


def sdp_value(graph: Graph, V: Tensor) -> float:
    """½ Σ_{i<j} w_ij (1 − v_i·v_j), in the weights' unit."""
    V = V.to(graph.w)
    return float(graph.w.sum() / 2 - (V * (graph.matrix @ V)).sum() / 4)


def upper_bound(graph: Graph, V: Tensor) -> tuple[float, str]:
    """A bound on every cut of the graph, from any unit vectors V, tight where V solves the relaxation.

    Weak duality: with y_i = −v_i·(W V)_i and S = W + Diag(y), every cut is at most
    ½ Σ_{i<j} w_ij + ¼ (Σ_i y_i + n δ) for each δ with S + δI ⪰ 0. Lanczos proposes δ, a factorization proves it, where
    one fits: one that succeeds in floating point on S + (δ − c)I, c = 2 n u tr with u the unit roundoff, proves
    S + δI ⪰ 0 (Rump 2006); a δ that is refuted is doubled.

    Returns:
        The bound, and what stands behind it: "Cholesky", "LDL" (a proof) or "Lanczos" (that eigenvalue less its
        residual: right unless Lanczos' random start missed an eigenvector).
    """
    n, unit = graph.n, float(graph.w.abs().max())  # in which ARPACK's norms neither overflow nor underflow
    W, identity = graph.adjacency / unit, sp.eye_array(n)
    V = V.double().cpu().numpy()
    y = -(V * (W @ V)).sum(1)
    S = W + sp.diags_array(y)
    # eigsh's tolerance is relative to the eigenvalue, which is near 0 here: the shift makes it relative to y.
    shift = 1e-2 * np.abs(y).mean()
    start = np.random.default_rng(0).standard_normal(n)
    u = eigsh(S - shift * identity, k=1, which="SA", tol=1e-2, v0=start)[1][:, 0]
    Su = S @ u
    delta = max(0.0, np.linalg.norm(Su - (u @ Su) * u) - u @ Su) + 1e-9 * max(1.0, np.abs(y).max())
    while (found := positive_definite(S + delta * identity))[0] is False:
        delta *= 2
    delta += n * np.finfo(float).eps * (np.abs(y).sum() + n * delta)  # c, for S + δI as it was factorized
    return unit * float(W.sum() / 4 + (y.sum() + n * delta) / 4), found[1]


DENSE = 4000
"""vertices up to which the bound's matrix is factorized as a dense one: 128 MB, and about a second"""
SPARSE = 25_000
"""vertices up to which it is factorized as a sparse one, if a vertex has no more than 4.5 neighbours in the mean: a
torus of so many takes a tenth of a second, and random graphs of more fill a dense core"""


def positive_definite(S: sp.csr_array) -> tuple[bool | None, str]:
    """Whether the symmetric S is positive definite, and by which factorization; None, "Lanczos" if none would fit.

    Dense: Cholesky. Sparse: L D Lᵀ, where by Sylvester's law of inertia D has the signs of S's eigenvalues.
    """
    n = S.shape[0]
    if n <= DENSE:
        return dpotrf(S.toarray(), lower=1, overwrite_a=1)[1] == 0, "Cholesky"
    if n > SPARSE or S.nnz > 5.5 * n:
        return None, "Lanczos"
    try:
        return bool((qdldl.Solver(sp.csc_matrix(sp.triu(S)), upper=True).factors()[1] > 0).all()), "LDL"
    except (RuntimeError, ValueError):  # a zero pivot
        return False, "LDL"


def goemans_williamson(graph: Graph, V: Tensor, draws: int = 1000, generator: torch.Generator | None = None) -> Tensor:
    """Cut values of independent random-hyperplane roundings sign(V z), z ~ N(0, I_k): (draws,) float64."""
    z = torch.randn(V.shape[1], draws, generator=generator, dtype=V.dtype, device=V.device)
    return torch.cat([cut_values(graph, (V @ block).sign()) for block in z.split(ceil(2**22 / graph.n), dim=1)])


class Baselines:
    """The upper bound, then Goemans–Williamson's cuts, made in a thread beside the run, which no end of it awaits.

    Args:
        graph, V: the graph, and the relaxation's vectors.
        roundings: cuts to draw.
        generator: of their randomness, which nobody else uses.

    Attributes:
        bound: see `upper_bound`; the sum of the positive weights until `wait` has it.
        cuts: (roundings,) values; one until `wait` has them.
    """

    def __init__(self, graph: Graph, V: Tensor, roundings: int, generator: torch.Generator) -> None:
        self.large = graph.m >= LARGE
        self.bound = float(graph.w.clamp(min=0).sum()), "the weights' sum"
        self.cuts = goemans_williamson(graph, V, 1, generator.clone_state())
        pool = ThreadPool(1)
        self._bound = pool.apply_async(upper_bound, (graph, V))
        self._cuts = pool.apply_async(goemans_williamson, (graph, V, roundings, generator))
        pool.close()

    def ceiling(self, timed: bool) -> float:
        """What no cut is above; inf if that failed, or while nobody knows.

        If not `timed`, nothing depends on when it is known: it is awaited, or from `LARGE` edges on inf, as it may take
        minutes.
        """
        if not timed:
            if self.large:
                return inf
            self._bound.wait()
        return self._bound.get()[0] if self._bound.ready() and self._bound.successful() else inf

    def wait(self, seconds: float | None) -> bool:
        """Take in what is there after so many seconds for each, or for as long as it takes; False after Ctrl-C."""
        lost = TimeoutError, MemoryError, RuntimeError  # they may take more than there is: the cut is what counts
        try:
            with suppress(*lost):
                self.bound = self._bound.get(seconds)
            with suppress(*lost):
                self.cuts = self._cuts.get(seconds)
        except KeyboardInterrupt:
            return False
        return True
