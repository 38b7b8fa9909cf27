"""The sampler A ~ N(M, σ²I), what it is to preserve, and the objectives that PGD minimizes (section 5.2 of the paper).

A = M + σZ maps ℝ^d to ℝ^k, Z of independent standard normals; M = 0, σ = 1/√k is the classical random projection and
σ = 0 one deterministic matrix. For a unit vector x the distortion is |‖A x‖² − 1|. Its law depends on M only through
q = ‖M x‖²: ‖A x‖²/σ² is noncentral χ² with k degrees of freedom and noncentrality q/σ².

All quantities are dimensionless: vectors are scaled to length 1 before anything else, and so are differences of points.
"""

from collections.abc import Iterator
from math import inf, log

import numpy as np
import torch
from scipy.special import chndtr
from torch import Tensor

BLOCK = 2**16
"""pairs handled at a time: what keeps memory small, and the processor's cache warm"""


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
        self.blocks = [slice(None)]

    def q(self, Y: Tensor, block: slice) -> Tensor:
        """‖M x‖² of the block's vectors: (N,), from Y = M Xᵀ (k, N)."""
        return Y[:, block].square().sum(0)

    def add_gradient(self, w: Tensor, Y: Tensor, block: slice, out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_i q_i over the block in Y."""
        out[:, block] += 2 * w * Y[:, block]


class Pairs:
    """All pairs of n points, whose distances are to be preserved: q_ij = ‖M (x_i − x_j)‖² / ‖x_i − x_j‖².

    The differences are never built: with Y = M Xᵀ, ‖y_i − y_j‖² = ‖y_i‖² + ‖y_j‖² − 2 y_i·y_j, block by block.

    Args:
        X: (n, d) the points.

    Attributes:
        N: number of pairs that are preserved.
        duplicates: number of pairs left out, as they are closer than 10⁻⁵ of their distance to the mean point.

    Raises:
        ValueError: there is no pair left.
    """

    def __init__(self, X: Tensor) -> None:
        X = X.double()
        X = X / max(float(X.abs().max()), np.finfo(np.float64).tiny)  # squares neither overflow nor underflow
        self.X = X - X.mean(0)
        n, self.d = X.shape
        self.blocks, start, squares = [], 0, self.X.square().sum(1)
        while start < n - 1:
            rows = slice(start, min(n, start + max(1, BLOCK // (n - start))))
            D = _squared_distances(self.X[rows].T, self.X[start:].T)
            apart = D > 1e-10 * (squares[rows, None] + squares[start:])  # closer ones drown in rounding
            keep = apart.triu(1).flatten().nonzero()[:, 0]
            if len(keep):
                self.blocks.append((rows, keep, 1 / D.flatten()[keep]))
            start = rows.stop
        self.N = sum(len(keep) for _, keep, _ in self.blocks)
        self.duplicates = n * (n - 1) // 2 - self.N
        if self.N == 0:
            raise ValueError(f"all {n} points are the same: there is no distance to preserve")

    def q(self, Y: Tensor, block: tuple[slice, Tensor, Tensor]) -> Tensor:
        """q_ij of the block's pairs, flat, from Y = M Xᵀ (k, n)."""
        rows, keep, inverse = block
        return _squared_distances(Y[:, rows], Y[:, rows.start :]).flatten().index_select(0, keep) * inverse

    def add_gradient(self, w: Tensor, Y: Tensor, block: tuple[slice, Tensor, Tensor], out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_ij q_ij over the block in Y: 2 Y L, L the Laplacian of the weights w/D."""
        rows, keep, inverse = block
        a, b = Y[:, rows], Y[:, rows.start :]
        W = w.new_zeros(a.shape[1] * b.shape[1]).index_copy_(0, keep, w * inverse).view(a.shape[1], b.shape[1])
        out[:, rows] += 2 * (W.sum(1) * a - b @ W.T)
        out[:, rows.start :] += 2 * (W.sum(0) * b - a @ W)

    def heavy(self, M: Tensor, least: float) -> "SomePairs":
        """The pairs whose distortion |q − 1| under M is at least `least`."""
        Y, chosen = M @ self.X.T, []
        for rows, keep, inverse in self.blocks:
            heavy = ((self.q(Y, (rows, keep, inverse)) - 1).abs() >= least).nonzero()[:, 0]
            ends, width = keep[heavy], len(self.X) - rows.start
            chosen.append((ends // width + rows.start, ends % width + rows.start, inverse[heavy]))
        return SomePairs(self.X, *(torch.cat(part) for part in zip(*chosen, strict=True)))


class SomePairs:
    """A few of the `Pairs`: those that still matter once τ is large.

    Args:
        X: (n, d) the points.
        i, j: (N,) the ends of the pairs.
        inverse: (N,) 1/‖x_i − x_j‖².
    """

    def __init__(self, X: Tensor, i: Tensor, j: Tensor, inverse: Tensor) -> None:
        self.X, self.i, self.j, self.inverse = X, i, j, inverse
        self.N, self.d, self.blocks = len(i), X.shape[1], [slice(None)]

    def _differences(self, Y: Tensor) -> Tensor:
        points = Y.T.contiguous()
        return points.index_select(0, self.i) - points.index_select(0, self.j)

    def q(self, Y: Tensor, block: slice) -> Tensor:
        """q_ij of these pairs, from Y = M Xᵀ (k, n)."""
        return self._differences(Y).square().sum(1) * self.inverse

    def add_gradient(self, w: Tensor, Y: Tensor, block: slice, out: Tensor) -> None:
        """Add to `out` the gradient of Σ w_ij q_ij in Y."""
        pull = self._differences(Y) * (2 * w * self.inverse)[:, None]
        out += torch.zeros_like(Y.T).index_add_(0, self.i, pull).index_add_(0, self.j, pull, alpha=-1).T


Problem = Vectors | Pairs | SomePairs


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between the columns of a and of b."""
    return (a.square().sum(0)[:, None] + b.square().sum(0)).addmm(a.T, b, alpha=-2)


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

    def moments(q: Tensor) -> tuple[Tensor, Tensor]:
        return log_moments(q, s.square() / (len(M) * problem.d), tau, len(M))

    with torch.no_grad():
        top = max(float(torch.maximum(*moments(q)).max()) for q in distortions(problem, M))
    total = sum((x - top).exp().sum() for q in distortions(problem, M) for x in moments(q))
    return (total.log() + top) / tau


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
        up, down = log_moments(q, variance, tau, k)
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


class BallProbability(torch.autograd.Function):
    """P[‖A x‖² ≤ c] with k rows, as a function of q = ‖M x‖² and variance = σ² > 0: noncentral χ², exact.

    With f_k for the density of ‖A x‖²/σ² at c/σ²: ∂P/∂q = −f_{k+2}/σ² and ∂P/∂σ² = (q f_{k+2} − c f_k)/σ⁴.
    Differentiable any number of times.
    """

    @staticmethod
    def forward(ctx, q: Tensor, variance: Tensor, c: float, k: int) -> Tensor:
        ctx.save_for_backward(q, variance)
        ctx.c, ctx.k = c, k
        below, open_ = _sides(q, variance, c, k)
        probability, v = below.to(q), float(variance)
        probability[open_] = torch.from_numpy(chndtr(c / v, k, q[open_].clamp(min=0).cpu().numpy() / v)).to(q)
        return probability

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, variance = ctx.saved_tensors
        f, f2 = (BallDensity.apply(q, variance, ctx.c, ctx.k + more) for more in (0, 2))
        d_variance = (q * f2 - ctx.c * f) / variance.square()
        return -grad * f2 / variance, (grad * d_variance).sum(), None, None


class BallDensity(torch.autograd.Function):
    """The density f_k of ‖A x‖²/σ² at c/σ²; arguments as in `BallProbability`.

    ∂f_k/∂q = (f_{k+2} − f_k)/(2σ²), and ∂f_k/∂σ² = ((c + q − (k − 2)σ²) f_k − 2q f_{k+2})/(2σ⁴).
    """

    @staticmethod
    def forward(ctx, q: Tensor, variance: Tensor, c: float, k: int) -> Tensor:
        from scipy.stats import ncx2  # takes half a second

        ctx.save_for_backward(q, variance)
        ctx.c, ctx.k = c, k
        _, open_ = _sides(q, variance, c, k)
        density, v = torch.zeros_like(q), float(variance)
        density[open_] = torch.from_numpy(ncx2.pdf(c / v, k, q[open_].clamp(min=0).cpu().numpy() / v)).to(q)
        return density

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, variance = ctx.saved_tensors
        f, f2 = (BallDensity.apply(q, variance, ctx.c, ctx.k + more) for more in (0, 2))
        d_variance = ((ctx.c + q - (ctx.k - 2) * variance) * f - 2 * q * f2) / (2 * variance.square())
        return grad * (f2 - f) / (2 * variance), (grad * d_variance).sum(), None, None


def _sides(q: Tensor, variance: Tensor, c: float, k: int) -> tuple[Tensor, Tensor]:
    """Where ‖A x‖² ≤ c is sure, and where it is open, both but for a probability under 10⁻³¹."""
    q, sigma = q.detach().clamp(min=0), variance.sqrt()  # of pairs that M brings together rounding can leave −10⁻¹⁷
    # ‖A x‖ is within 12σ of its mean but for such a probability, and its mean within [√q, √(q + kσ²)].
    below = c**0.5 > (q + k * variance).sqrt() + 12 * sigma
    return below, ~below & (c**0.5 >= q.sqrt() - 12 * sigma)


def ball_probability(q: Tensor, variance: Tensor, c: float, k: int) -> Tensor:
    """`BallProbability`; where σ < 10⁻⁴ √c by its normal limit, which is off by O(kσ³) and holds down to σ = 0."""
    if variance > 1e-8 * c:
        return BallProbability.apply(q, variance, c, k)
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
    worst = [
        torch.stack([(problem.q(Y, block) - 1).abs().max() for block in problem.blocks]).max() for Y in A @ problem.X.T
    ]
    return torch.stack(worst).mean()
