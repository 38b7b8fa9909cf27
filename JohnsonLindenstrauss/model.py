"""The sampler A ~ N(M, σ²I), what it is to preserve, and the objectives that PGD minimizes (section 5.2 of the paper).

A = M + σZ maps ℝ^d to ℝ^k, Z of independent standard normals; M = 0, σ = 1/√k is the classical random projection and
σ = 0 one deterministic matrix. For a unit vector x the distortion is |‖A x‖² − 1|. Its law depends on M only through
q = ‖M x‖²: ‖A x‖²/σ² is noncentral χ² with k degrees of freedom and noncentrality q/σ².

All quantities are dimensionless: vectors are scaled to length 1 before anything else, and so are differences of points.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from math import inf, log

import numpy as np
import torch
from scipy.special import chndtr
from torch import Tensor

TILE = 256
"""side of a tile of pairs, points against points: what keeps memory small, and the processor's cache warm"""
KEPT = 2**25
"""pairs whose distances are kept (a quarter of a gigabyte): of more they are computed anew in every pass"""


class Vectors:
    """N vectors whose norms are to be preserved: the paper's problem.

    Args:
        X: (N, d) the vectors, scaled to length 1 here; none of length 0.

    Raises:
        ValueError: a vector of length 0.
    """

    def __init__(self, X: Tensor) -> None:
        X = X.double()
        largest = X.abs().amax(1, keepdim=True)
        if not largest.all():
            row = int((largest == 0).flatten().nonzero()[0])
            raise ValueError(f"row {row} is the zero vector: it has no norm to preserve; leave it out")
        X = X / largest  # squares neither overflow nor underflow
        self.X = X / X.norm(dim=1, keepdim=True)
        self.N, self.d = self.X.shape
        self.blocks, self.log_weight, self.chosen = [slice(None)], 0.0, None

    def q(self, Y: Tensor, block: slice) -> Tensor:
        """‖M x‖² of the block's vectors: (N,), from Y = M Xᵀ (k, N)."""
        return Y[:, block].square().sum(0)

    def add_gradient(self, w: Tensor, Y: Tensor, block: slice, out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_i q_i over the block in Y."""
        out[:, block] += 2 * w * Y[:, block]

    def ends(self, block: slice, chosen: Tensor) -> tuple[Tensor]:
        """Which vectors the chosen ones of the block are."""
        return (chosen,)

    def subset(self, i: Tensor, log_weight: Tensor | float = 0.0) -> "Vectors":
        """The vectors i alone, each in the place of exp(log_weight)."""
        few = copy.copy(self)
        few.X, few.N = self.X[i], len(i)
        few.log_weight, few.chosen = log_weight, (i,)
        return few

    def units(self) -> Tensor:
        """(N, r) the vectors in the coordinates of X."""
        return self.X


Tile = tuple[slice, slice, Tensor | None, Tensor | None]
"""rows, columns, which entries of their submatrix, flat, are pairs (None: all), and their 1/‖x_i − x_j‖², if kept"""


class Pairs:
    """All pairs of n points, whose distances are to be preserved: q_ij = ‖M (x_i − x_j)‖² / ‖x_i − x_j‖².

    The differences are never built: with Y = M Xᵀ, ‖y_i − y_j‖² = ‖y_i‖² + ‖y_j‖² − 2 y_i·y_j, tile by tile of the
    n × n matrix; of that, `KEPT` numbers at most are kept (and, where duplicates are left out, which the others are).

    Args:
        X: (n, d) the points.

    Attributes:
        N: number of pairs that are preserved.
        duplicates: number of pairs left out: at most 10⁻⁵ (‖x_i‖² + ‖x_j‖²)^½ apart, x about the mean point. Those that
            are apart at all are warned of.
        points: (n, d) the points again: distances that are not kept are measured between these, whatever X is then.

    Raises:
        ValueError: there is no pair left.
    """

    def __init__(self, X: Tensor) -> None:
        X = X.double()
        X = X / max(float(X.abs().max()), np.finfo(np.float64).tiny)  # squares neither overflow nor underflow
        self.points = self.X = X - X.mean(0)
        n, self.d = X.shape
        self.blocks, self.log_weight, self.chosen, squares = [], 0.0, None, self.X.square().sum(1)
        tiles = [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]
        self.N = apart_at_all = 0
        for i, rows in enumerate(tiles):
            for columns in tiles[i:]:
                D = _squared_distances(self.X[rows].T, self.X[columns].T)
                apart = D > 1e-10 * (squares[rows, None] + squares[columns])  # closer ones drown in rounding
                near = ((~apart).triu(1) if rows == columns else ~apart).nonzero()
                for some in near.split(TILE):
                    apart_at_all += int((X[rows][some[:, 0]] != X[columns][some[:, 1]]).any(1).sum())
                apart = (apart.triu(1) if rows == columns else apart).flatten()
                count = int(apart.sum())
                self.N += count
                if count:  # indices only where some are left out: on the diagonal, and of duplicates
                    pairs = None if count == len(apart) else apart.nonzero()[:, 0].int()
                    kept = _entries(D, pairs).reciprocal_() if self.N <= KEPT else None
                    self.blocks.append((rows, columns, pairs, kept))
        self.duplicates = n * (n - 1) // 2 - self.N
        if self.N == 0:
            raise ValueError(f"all {n} points are the same: there is no distance to preserve")
        if apart_at_all:
            why = "rounding would drown their distances; are the columns' units that different?"
            warnings.warn(
                f"{apart_at_all} pairs of points that differ are too near to be preserved: {why}", stacklevel=2
            )

    def _inverse(self, block: Tile) -> Tensor:
        """1/‖x_i − x_j‖² of the block's pairs, flat."""
        rows, columns, pairs, kept = block
        if kept is not None:
            return kept
        return _entries(_squared_distances(self.points[rows].T, self.points[columns].T), pairs).reciprocal_()

    def q(self, Y: Tensor, block: Tile) -> Tensor:
        """q_ij of the block's pairs, flat, from Y = M Xᵀ (k, n)."""
        rows, columns, pairs, _ = block
        return _entries(_squared_distances(Y[:, rows], Y[:, columns]), pairs) * self._inverse(block)

    def add_gradient(self, w: Tensor, Y: Tensor, block: Tile, out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_ij q_ij over the block in Y: 2 Y L, L the Laplacian of the weights w/D."""
        rows, columns, pairs, _ = block
        a, b = Y[:, rows], Y[:, columns]
        W = w * self._inverse(block)
        if pairs is not None:
            W = w.new_zeros(a.shape[1] * b.shape[1]).index_copy_(0, pairs.long(), W)
        W = W.view(a.shape[1], b.shape[1])
        out[:, rows] += 2 * (W.sum(1) * a - b @ W.T)
        out[:, columns] += 2 * (W.sum(0) * b - a @ W)

    def ends(self, block: Tile, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The ends i, j of the chosen pairs of a block."""
        rows, columns, pairs, _ = block
        flat = chosen if pairs is None else pairs.index_select(0, chosen).long()
        width = columns.stop - columns.start
        return flat // width + rows.start, flat % width + columns.start

    def subset(self, i: Tensor, j: Tensor, log_weight: Tensor | float = 0.0) -> "SomePairs":
        """The pairs (i, j) alone, each in the place of exp(log_weight)."""
        return SomePairs(self, i, j, log_weight)


class SomePairs:
    """A few of the `Pairs`, each perhaps in the place of many.

    Args:
        pairs: what they are of.
        i, j: (N,) the ends of the pairs.
        log_weight: (N,) logarithm of how many pairs each stands for.
    """

    def __init__(self, pairs: Pairs, i: Tensor, j: Tensor, log_weight: Tensor | float = 0.0) -> None:
        self.X, self.log_weight, self.chosen = pairs.X, log_weight, (i, j)
        self.N, self.d, self.blocks = len(i), pairs.d, [slice(None)]
        # All differences at once may be gigabytes.
        parts = [
            (pairs.points.index_select(0, a) - pairs.points.index_select(0, b)).square().sum(1)
            for a, b in zip(i.split(TILE), j.split(TILE), strict=True)
        ]
        D = torch.cat(parts)
        # One row a pair: row i minus row j, over the distance. A product with it costs a third of picking the rows.
        pair, ends = torch.arange(self.N, device=i.device), torch.cat([i, j])
        signs = torch.cat([D.rsqrt(), -D.rsqrt()])
        self._difference = _sparse(torch.cat([pair, pair]), ends, signs, (self.N, len(pairs.X)))
        self._last: tuple[Tensor | None, ...] = (None,)  # Y and M u, of the latest q
        self._back = _sparse(ends, torch.cat([pair, pair]), signs, (len(pairs.X), self.N))

    def _differences(self, Y: Tensor) -> Tensor:
        """(N, k) M u of the unit differences u, from Y = M Xᵀ (k, n)."""
        return Differences.apply(Y, self._difference, self._back)

    def q(self, Y: Tensor, block: slice) -> Tensor:
        """q_ij of these pairs, from Y = M Xᵀ (k, n)."""
        Z = self._differences(Y)
        self._last = Y, Z.detach()
        return Z.square().sum(1)

    def add_gradient(self, w: Tensor, Y: Tensor, block: slice, out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_ij q_ij in Y."""
        Z = self._last[1] if self._last[0] is Y else self._differences(Y)
        out += (self._back @ (Z * (2 * w)[:, None])).T

    def units(self) -> Tensor:
        """(N, r) the unit differences in the coordinates of X."""
        return self._differences(self.X.T)


class Differences(torch.autograd.Function):
    """E Yᵀ for a sparse E whose transpose is given; differentiable any number of times."""

    @staticmethod
    def forward(ctx, Y: Tensor, E: Tensor, back: Tensor) -> Tensor:
        ctx.E, ctx.back = E, back
        return E @ Y.T.contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return Differences.apply(grad.T, ctx.back, ctx.E).T, None, None


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sparse matrix with these entries, no two in one place, by rows."""
    order = (rows * shape[1] + columns).argsort()
    starts = torch.cat([rows.new_zeros(1), rows.bincount(minlength=shape[0]).cumsum(0)])
    with warnings.catch_warnings(action="ignore"):  # PyTorch calls such matrices beta
        return torch.sparse_csr_tensor(starts, columns[order], values[order], shape)


Problem = Vectors | Pairs | SomePairs


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between the columns of a and of b."""
    return (a.square().sum(0)[:, None] + b.square().sum(0)).addmm(a.T, b, alpha=-2)


def _entries(matrix: Tensor, some: Tensor | None) -> Tensor:
    """Those entries of the matrix, flat; None: all."""
    return matrix.flatten() if some is None else matrix.flatten().index_select(0, some)


def distortions(problem: Problem, M: Tensor) -> Iterator[Tensor]:
    """‖M x‖² of all vectors or pairs, block by block."""
    Y = M @ problem.X.T
    return (problem.q(Y, block) for block in problem.blocks)


def extremes(problem: Problem, M: Tensor) -> tuple[float, float]:
    """The least and the largest ‖M x‖²."""
    lows, highs = zip(*((float(q.min()), float(q.max())) for q in distortions(problem, M)), strict=True)
    return min(lows), max(highs)


def distortion(problem: Problem, M: Tensor) -> float:
    """max |‖M x‖² − 1|, the worst distortion of the matrix M (k, d)."""
    low, high = extremes(problem, M)
    return max(1 - low, high - 1)


def exact_distortion(problem: Problem, M: Tensor) -> float:
    """`distortion` by differences of the points, of the 10⁴ pairs where it is largest by their Gram matrix.

    Where two points are near, that is off by up to 10⁻⁵ of it.
    """
    ends, _, _ = strongest(problem, M, torch.abs, 10**4, 1e-3)
    return distortion(problem.subset(*ends), M)


def row_space(problem: Problem) -> tuple[Problem, Tensor]:
    """The same problem in coordinates of the span of its rows, r of them, r the rank of X.

    Returns:
        The problem, with X and points (n, r); and an orthonormal basis V (r, d): M' (k, r) there is M' V here.
    """
    _, S, V = torch.linalg.svd(problem.X, full_matrices=False)
    V = V[S > 1e-10 * S[0]]
    small = copy.copy(problem)
    small.points = small.X = problem.X @ V.T
    return small, V


@torch.no_grad()
def metric(problem: Problem) -> tuple[Problem, Tensor]:
    """The same problem in coordinates of its `row_space` in which C, the mean of u uᵀ over its unit vectors u, is I/r,
    but for directions in which they hardly differ, of less than a thousandth of the mean variance: there it is less.

    f is the same function of A; its descent is one on M (r C)^{1/2}, for which it is about as steep in all directions.
    (C of scikit-learn's digits has condition 10⁵.) The distances are those of before.

    Returns:
        The problem, with X (n, r) in the new coordinates and points (n, r) in an orthonormal basis; and B (r, d), with
        which M' (k, r) there is M' B here.
    """
    small, V = row_space(problem)
    Y, out = small.X.T.contiguous(), torch.zeros_like(small.X.T)
    for block in small.blocks:
        small.add_gradient(torch.ones_like(small.q(Y, block)), Y, block, out)
    C = out @ small.X
    # C of unit vectors is diagonal up to rounding, which would choose the signs: other draws on another processor.
    C[C.abs() < 1e-12 * C.diagonal().max()] = 0
    variances, directions = torch.linalg.eigh(C)
    variances = variances.clamp(min=1e-3 * variances.mean())
    scale = (variances.sum() / (len(V) * variances)).sqrt()  # trace C = 1: like this M keeps its size
    small.X = (small.X @ directions) * scale
    return small, (directions * scale).T @ V


def strongest(
    problem: Problem, M: Tensor, key: Callable[[Tensor], Tensor], limit: int, margin: float = inf
) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """The pairs or vectors of largest key, in one pass with the memory of a block and of what is chosen.

    Args:
        problem, M: as in `distortion`.
        key: of the signed distortions ‖M x‖² − 1 of a block.
        limit: at most so many.
        margin: none whose key is so far below the largest.

    Returns:
        Their ends (`problem.subset` takes them), their keys, and the worst distortion of all.

    Raises:
        FloatingPointError: no key is a number.
    """
    worst, top, least, parts, count = 0.0, -inf, -inf, [], 0

    def prune() -> None:
        nonlocal least, parts, count
        keys, *ends = (torch.cat(part) for part in zip(*parts, strict=True))
        if len(keys) > limit:
            least = max(least, float(keys.kthvalue(len(keys) - limit + 1)[0]))
        kept = (keys >= least).nonzero()[:, 0]
        if len(kept) > limit:  # of equal ones not all
            kept = keys.topk(limit)[1].sort()[0]
        parts, count = [tuple(x.index_select(0, kept) for x in (keys, *ends))], len(kept)

    Y = M @ problem.X.T
    for block in problem.blocks:
        c = problem.q(Y, block).sub_(1)
        worst, keys = max(worst, float(c.max()), -float(c.min())), key(c)
        top = max(top, float(keys.max()))
        least = max(least, top - margin)
        chosen = (keys >= least).nonzero()[:, 0]
        parts.append((keys.index_select(0, chosen), *problem.ends(block, chosen)))
        count += len(chosen)
        if count > 4 * limit + 2**16:
            prune()
    prune()
    keys, *ends = parts[0]
    if not len(keys):
        raise FloatingPointError("the distortions overflow")
    return tuple(ends), keys, worst


def log_moments(q: Tensor, variance: Tensor | float, tau: float, k: int) -> tuple[Tensor, Tensor]:
    """log E exp(±τ(‖A x‖² − 1)) for ‖x‖ = 1, q = ‖M x‖² and variance = σ², in closed form:

    −(k/2) log(1 ∓ 2τσ²) ± τ q/(1 ∓ 2τσ²) ∓ τ, for 2τσ² < 1.

    Returns:
        The two, of q's shape: with the upper signs and with the lower.
    """
    variance = torch.as_tensor(variance, dtype=q.dtype, device=q.device)
    up, down = 1 - 2 * tau * variance, 1 + 2 * tau * variance
    return q * (tau / up) - (tau + k / 2 * up.log()), q * (-tau / down) + (tau - k / 2 * down.log())


def bound(problem: Problem, M: Tensor, s: Tensor, tau: float) -> Tensor:
    """F_τ = (1/τ) log Σ_i [E e^{τ(‖A x_i‖² − 1)} + E e^{−τ(‖A x_i‖² − 1)}], for 2τσ² < 1; twice differentiable.

    Being the logarithm of an expectation, it has ∇_W F_τ = (∇²_M F_τ + τ ∇_M F_τ ∇_M F_τᵀ) W for A = M + W Z: what is
    added to Stein's identity is positive semidefinite, and Lemma 3.1 holds all the more.

    It lies above E max_i |‖A x_i‖² − 1|, the expected worst distortion, and at σ = 0 within log(2N)/τ of the worst
    distortion of M.

    Args:
        problem: what is to be preserved.
        M: (k, d) the mean of A.
        s: ‖σI‖_F = σ√(kd), a scalar: the lemma's ‖W‖_F.
        tau: τ > 0.
    """
    k, variance = len(M), s.square() / (len(M) * problem.d)
    blocks = [torch.cat(log_moments(q, variance, tau, k)).logsumexp(0) for q in distortions(problem, M)]
    return torch.stack(blocks).logsumexp(0) / tau


def bound_gradient(problem: Problem, M: Tensor, s: Tensor, tau: float) -> tuple[float, Tensor, Tensor]:
    """F_τ and its gradients in M and s, what autograd gives for `bound`, in one pass over the blocks.

    F_τ is inf where 2τσ² ≥ 1; the gradients are given as 0 there.
    """
    k, d = len(M), problem.d
    variance = float(s.square()) / (k * d)
    up_scale, down_scale = 1 - 2 * tau * variance, 1 + 2 * tau * variance
    if up_scale <= 0:
        return inf, torch.zeros_like(M), torch.zeros_like(s)
    Y = M @ problem.X.T
    top, total, by_variance, out = -inf, 0.0, 0.0, torch.zeros_like(Y)
    for block in problem.blocks:
        q = problem.q(Y, block)
        up, down = (x + problem.log_weight for x in log_moments(q, variance, tau, k))
        highest = max(float(up.max()), float(down.max()))
        if highest > top:  # everything so far is relative to exp(top)
            shrink = np.exp(top - highest)
            top, total, by_variance = highest, total * shrink, by_variance * shrink
            out *= shrink
        up, down = up.sub_(top).exp_(), down.sub_(top).exp_()
        up_sum, down_sum = float(up.sum()), float(down.sum())
        total += up_sum + down_sum
        by_variance += k * (up_sum / up_scale - down_sum / down_scale)
        by_variance += 2 * tau * (float(up @ q) / up_scale**2 + float(down @ q) / down_scale**2)
        problem.add_gradient(up.div_(up_scale).sub_(down, alpha=1 / down_scale), Y, block, out)
    f = (log(total) + top) / tau
    return f, (out @ problem.X) / total, 2 * s / (k * d) * (by_variance / total)


class Ball(torch.autograd.Function):
    """P[‖A x‖² ≤ c] with k rows or, if `density`, the density f_k of ‖A x‖²/σ² at c/σ², as a function of q = ‖M x‖² and
    variance = σ² > 0: noncentral χ², exact. Differentiable any number of times:

    ∂P/∂q = −f_{k+2}/σ²,             ∂P/∂σ² = (q f_{k+2} − c f_k)/σ⁴,
    ∂f_k/∂q = (f_{k+2} − f_k)/(2σ²),  ∂f_k/∂σ² = ((c + q − (k − 2)σ²) f_k − 2q f_{k+2})/(2σ⁴).
    """

    @staticmethod
    def forward(ctx, q: Tensor, variance: Tensor, c: float, k: int, density: bool) -> Tensor:
        ctx.save_for_backward(q, variance)
        ctx.c, ctx.k, ctx.density = c, k, density
        law = chndtr
        if density:
            from scipy.stats import ncx2  # takes half a second

            law = ncx2.pdf
        below, open_ = _sides(q, variance, c, k)
        value, v = torch.zeros_like(q) if density else below.to(q), float(variance)
        value[open_] = torch.from_numpy(law(c / v, k, q[open_].clamp(min=0).cpu().numpy() / v)).to(q)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, variance), c, k = ctx.saved_tensors, ctx.c, ctx.k
        f, f2 = (Ball.apply(q, variance, c, k + more, True) for more in (0, 2))
        if ctx.density:
            d_q = (f2 - f) / (2 * variance)
            d_variance = ((c + q - (k - 2) * variance) * f - 2 * q * f2) / (2 * variance.square())
        else:
            d_q, d_variance = -f2 / variance, (q * f2 - c * f) / variance.square()
        return grad * d_q, (grad * d_variance).sum(), None, None, None


def _sides(q: Tensor, variance: Tensor, c: float, k: int) -> tuple[Tensor, Tensor]:
    """Where ‖A x‖² ≤ c is sure, and where it is open, both but for a probability under 10⁻³¹."""
    q, sigma = q.detach().clamp(min=0), variance.sqrt()  # of pairs that M brings together rounding can leave −10⁻¹⁷
    # ‖A x‖ is within 12σ of its mean but for such a probability, and its mean within [√q, √(q + kσ²)].
    below = c**0.5 > (q + k * variance).sqrt() + 12 * sigma
    return below, ~below & (c**0.5 >= q.sqrt() - 12 * sigma)


def ball_probability(q: Tensor, variance: Tensor, c: float, k: int) -> Tensor:
    """P of `Ball`; where σ < 10⁻⁴ √c by its normal limit, which is off by O(kσ³) and holds down to σ = 0."""
    if variance > 1e-8 * c:
        return Ball.apply(q, variance, c, k, False)
    y, sigma = q.clamp(min=c / 4).sqrt(), variance.clamp(min=1e-30).sqrt()
    return torch.special.ndtr((c**0.5 - y) / sigma - (k - 1) * sigma / (2 * (c**0.5 * y).sqrt()))


def tail(problem: Problem, M: Tensor, s: Tensor, epsilon: float) -> Tensor:
    """Σ_i P[|‖A x_i‖² − 1| > ε], the paper's objective: above the probability that any distortion exceeds ε.

    Args:
        problem, M, s: as in `bound`.
        epsilon: ε in (0, 1), the distortion that is allowed.
    """
    k, variance = len(M), s.square() / (len(M) * problem.d)

    def within(q: Tensor) -> Tensor:
        return ball_probability(q, variance, 1 + epsilon, k) - ball_probability(q, variance, 1 - epsilon, k)

    return sum((1 - within(q)).sum() for q in distortions(problem, M))


def sampled(problem: Problem, M: Tensor, s: Tensor, draws: int, generator: torch.Generator | None = None) -> Tensor:
    """Mean over `draws` samples of A of the worst distortion max_i |‖A x_i‖² − 1|: the authors' objective.

    Differentiable in M and s for the draws that were made (A = M + σZ).
    """
    Z = torch.randn(draws, *M.shape, generator=generator, dtype=M.dtype, device=M.device)
    A = M + s / (len(M) * problem.d) ** 0.5 * Z
    worst = [strongest(problem, one, torch.abs, 1)[0] for one in A.detach()]  # no gradient of the others is kept
    U = problem.subset(*map(torch.cat, zip(*worst, strict=True))).units()
    return ((A @ U[:, :, None]).square().sum((1, 2)) - 1).abs().mean()
