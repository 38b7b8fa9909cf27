"""Derandomized rounding: from Goemans–Williamson's random cut to one deterministic cut, by PGD (section 5.1).

Vertex i is rounded to the sign of a_i = v_i·z + μ_i + ε ξ_i, with z ~ N(0, I_k) shared by all vertices and its own
ξ_i ~ N(0, 1). V = the SDP's vectors and μ = 0 is Goemans–Williamson; V = 0 and μ → ±∞ is a deterministic cut. Between
them PGD minimizes f(V, μ) = −Σ w̃_ij P[sign a_i ≠ sign a_j] + λ ‖V‖², w̃ = w / Σ|w|.

All variables are degree-scaled, V ← √d V and μ ← √d μ with d_i = Σ_j |w̃_ij|: one step size is then right for every
vertex. Signs don't mind the scaling, so that the lemma holds for the scaled variables as it stands.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import hypot, isfinite, log, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import owens_t
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pgd import Certificate, certify
from run import Descent, perturbed
from sdp import principal
from utilities import Graph, cut_values, trim, weighted_sums

if TYPE_CHECKING:
    from main import Config
    from population import Search


def disagreement(alpha: Tensor, beta: Tensor, r: Tensor) -> Tensor:
    """D(α, β, r) = P[sign a ≠ sign b] for standard normal a, b with correlation r, shifted by α and β; float64.

    D = Φ(α) + Φ(β) − 2 Φ₂(α, β; r), through Owen's T (1956):
    D = 2 T(α, (β − rα)/(α√(1−r²))) + 2 T(β, (α − rβ)/(β√(1−r²))) + [αβ < 0]. At α = β = 0 it is arccos(r)/π.
    """
    a, b, c = (x.detach().double().cpu().numpy() for x in (alpha, beta, r))
    a, b = (np.where(x == 0, 1e-150, x) for x in (a, b))  # the limits at 0 are right
    c = np.clip(c, -1, 1)  # rounding errors
    q = np.sqrt((1 - c) * (1 + c))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # 0/0 is r = ±1 with a = ± b, the same variable twice: T(·, 0) = 0
        D = 2 * owens_t(a, np.nan_to_num((b - c * a) / (a * q), nan=0, posinf=np.inf, neginf=-np.inf))
        D += 2 * owens_t(b, np.nan_to_num((a - c * b) / (b * q), nan=0, posinf=np.inf, neginf=-np.inf))
    return torch.from_numpy(D + ((a < 0) != (b < 0))).to(alpha.device)


def _row_sums(x: Tensor) -> Tensor:
    """Faster than x.sum(1) where rows are short."""
    return x @ x.new_ones(x.shape[1])


class Rounding:
    """The objective f and its gradients on one graph; V (n × k) and mu (n,) are degree-scaled everywhere.

    Args:
        graph: the graph.
        epsilon: ε > 0, the standard deviation of each vertex's own noise; it smooths the sign. Dimensionless, beside
            the vectors' initial length 1.
        dtype: of the V and mu that `gradient` takes; the objective, its derivatives by autograd and what is built on
            them take float64.
    """

    def __init__(self, graph: Graph, epsilon: float, dtype: torch.dtype = torch.float64) -> None:
        self.graph, self.total = graph, graph.w.abs().sum()
        self.w = (graph.w / self.total).to(dtype)  # w̃
        d = graph.degree / self.total
        # An isolated vertex gets the mean degree; the least is one that the square of the noise doesn't underflow at.
        self.root_d = torch.where(d > 0, d.clamp_min(1e-30), 2 / graph.n).sqrt()
        self.noise = epsilon * self.root_d  # ε of the degree-scaled variables
        # The edges as entries of a sparse matrix, and each twice in a symmetric one: _edge_of says which edge an entry
        # belongs to. Short integers, as the gradient's time is spent on fetching.
        both, device = graph.symmetric(np.arange(graph.m)), graph.w.device
        self._crow, self._col, self._edge_of = (
            torch.from_numpy(x.astype(np.int32)).to(device) for x in (both.indptr, both.indices, both.data)
        )
        self._i, self._j = graph.i.int(), graph.j.int()
        start = torch.searchsorted(graph.i, torch.arange(graph.n + 1, device=device)).int()
        self._edges = torch.sparse_csr_tensor(
            start, self._j, torch.zeros_like(self.w), size=(graph.n, graph.n), check_invariants=False
        )

    def lengths(self, V: Tensor) -> Tensor:
        """‖v_i‖ of the vectors before degree scaling: (n,), 1 at the start. Its largest is σ."""
        return V.norm(dim=1) / self.root_d.to(V)

    def _standardized(self, V: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s_i = √(‖v_i‖² + ε²) of the scaled variables, u_i = v_i / s_i and α_i = μ_i / s_i."""
        s = (_row_sums(V.square()) + self.noise.to(V).square()).clamp_min(torch.finfo(V.dtype).tiny).sqrt()
        return s, V / s[:, None], mu / s

    def expected_cut(self, V: Tensor, mu: Tensor) -> Tensor:
        """E[cut] = Σ w_ij D_ij in the weights' unit; exact, twice differentiable in V and mu."""
        return self.total * _Share.apply(V, mu, self)

    def objective(self, V: Tensor, mu: Tensor, lam: float, valued: bool = True) -> Tensor:
        """f = −E[cut] / Σ|w| + lam ‖V‖²_F; dimensionless. Not `valued`, what has its derivatives, for half the time."""
        return lam * V.square().sum() - _Share.apply(V, mu, self, valued)

    def _correlations(self, U: Tensor, X: Tensor) -> Tensor:
        """u_i·x_j of every edge, without a temporary of edges × k: (m,)."""
        return torch.sparse.sampled_addmm(self._edges, U, X.T, beta=0).values()

    def _neighbour_sums(self, values: Tensor, U: Tensor) -> Tensor:
        """Σ_j values_ij u_j of every vertex: (n, k)."""
        return weighted_sums(self._crow, self._col, values.index_select(0, self._edge_of), U)

    def _edge_sums(self, at_i: Tensor, at_j: Tensor) -> Tensor:
        """Of what the edges give their two ends, each vertex's sum: (n,)."""
        return at_i.new_zeros(self.graph.n).index_add_(0, self._i, at_i).index_add_(0, self._j, at_j)

    def _edge_terms(self, U: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        """α_i, α_j, r = u_i·u_j, q = 1/√(2(1 − r²)), a = (α_j − r α_i) q and b = (α_i − r α_j) q of every edge.

        In them ∂D/∂α_i = −φ(α_i) erf(a), ∂D/∂α_j = −φ(α_j) erf(b) and ∂D/∂r = −(√2/π) q exp(−α_i²/2 − a²), as
        α_i²/2 + a² = (α_i² + α_j² − 2 r α_i α_j)/(2(1 − r²)).
        """
        alpha_i, alpha_j = alpha.index_select(0, self._i), alpha.index_select(0, self._j)
        r = self._correlations(U, U)
        q = (1 - r).mul_(1 + r).clamp_min_(torch.finfo(r.dtype).eps).mul_(2).rsqrt_()
        a = torch.addcmul(alpha_j, r, alpha_i, value=-1).mul_(q)
        b = torch.addcmul(alpha_i, r, alpha_j, value=-1).mul_(q)
        return alpha_i, alpha_j, r, q, a, b

    def gradient(self, V: Tensor, mu: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """∇f in closed form, without f itself, in one pass over the edges, done in place: here the time goes.

        ∂r/∂v_i = (u_j − r u_i)/s_i, ∂α_i/∂v_i = −α_i u_i/s_i, ∂α_i/∂μ_i = 1/s_i.
        """
        s, U, alpha = self._standardized(V, mu)
        alpha_i, _, _, q, a, b = self._edge_terms(U, alpha)
        # exp2 is several times faster than exp; exp(−α_i²/2) is left to the vertices where that can be
        d_r = alpha_i.square_().div_(2).addcmul_(a, a).mul_(-1 / log(2)).exp2_().mul_(q).mul_(self.w)
        g_U = self._neighbour_sums(d_r, U).mul_(-sqrt(2) / pi)
        g_alpha = self._edge_sums(a.erf_().mul_(self.w), b.erf_().mul_(self.w))
        g_alpha *= (alpha.square() / -2).exp() / -sqrt(2 * pi)
        radial = _row_sums(g_U * U) + g_alpha * alpha
        return torch.addcmul(V * (2 * lam + radial / s**2)[:, None], g_U, 1 / s[:, None], value=-1), -g_alpha / s

    def hessian(self, V: Tensor, mu: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """∇² of −E[cut] / Σ|w| at V and mu, as a function that multiplies it by a direction (n × k and n).

        The derivative of `gradient`, line by line; d is along the direction.
        """
        s, U, alpha = self._standardized(V, mu)
        alpha_i, alpha_j, r, q, a, b = self._edge_terms(U, alpha)
        d_r = (alpha_i.square() / -2 - a * a).exp() * q * self.w
        slope_a, slope_b = (2 / sqrt(pi) * (-x * x).exp() * self.w for x in (a, b))  # of w erf
        phi = (alpha.square() / -2).exp() / -sqrt(2 * pi)
        g_U = -sqrt(2) / pi * self._neighbour_sums(d_r, U)
        g_alpha = phi * self._edge_sums(a.erf() * self.w, b.erf() * self.w)
        radial = _row_sums(g_U * U) + g_alpha * alpha
        g_V = (g_U - radial[:, None] * U) / s[:, None]

        def product(X: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            ds = _row_sums(U * X)
            dU, dalpha = (X - ds[:, None] * U) / s[:, None], (m - ds * alpha) / s
            dalpha_i, dalpha_j = dalpha.index_select(0, self._i), dalpha.index_select(0, self._j)
            dr = self._correlations(dU, U) + self._correlations(U, dU)
            dlog_q = 2 * r * q * q * dr
            da = (dalpha_j - r * dalpha_i - alpha_i * dr) * q + a * dlog_q
            db = (dalpha_i - r * dalpha_j - alpha_j * dr) * q + b * dlog_q
            dd_r = d_r * (dlog_q - alpha_i * dalpha_i - 2 * a * da)
            dg_U = -sqrt(2) / pi * (self._neighbour_sums(dd_r, U) + self._neighbour_sums(d_r, dU))
            dg_alpha = phi * self._edge_sums(slope_a * da, slope_b * db) - alpha * dalpha * g_alpha
            dradial = _row_sums(dg_U * U + g_U * dU) + dg_alpha * alpha + g_alpha * dalpha
            dg_V = (dg_U - dradial[:, None] * U - radial[:, None] * dU - ds[:, None] * g_V) / s[:, None]
            return -dg_V, -(dg_alpha - ds * g_alpha / s) / s

        return product

    def draw(
        self, V: Tensor, mu: Tensor, draws: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of a = V z + μ + ε ξ (n, draws), whose signs are cuts, with their z (k, draws) and ξ (n, draws)."""
        (n, k), options = V.shape, dict(generator=generator, dtype=V.dtype, device=V.device)
        z, xi = torch.randn(k, draws, **options), torch.randn(n, draws, **options)
        return V @ z + mu[:, None] + self.noise.to(V)[:, None] * xi, z, xi

    def sampled_gradient(
        self, V: Tensor, mu: Tensor, lam: float, draws: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unbiased estimate of ∇f from `draws` sampled cuts, the authors' way: the score function of ξ.

        ∇_μ E[cut] = E[cut ξ]/ε and ∇_V E[cut] = E[cut ξ zᵀ]/ε; the draws' mean cut is subtracted as a baseline.
        """
        a, z, xi = self.draw(V, mu, draws, generator)
        cuts = (cut_values(self.graph, a.sign()) / self.total).to(V)
        score = (cuts - cuts.mean()) / (draws - 1) * xi / self.noise.to(V)[:, None]
        return 2 * lam * V - score @ z.T, -score.sum(1)

    def means(self, V: Tensor, mu: Tensor) -> Tensor:
        """E[sign a_i]: (n,) float64 in [−1, 1]."""
        return (self._standardized(V, mu)[2] / sqrt(2)).erf().double()

    def round(self, V: Tensor, mu: Tensor, draws: int = 32, generator: torch.Generator | None = None) -> Tensor:
        """One deterministic cut no worse than the average over the draws: s (n,) of ±1, float64.

        Given z, vertices are independent, with means erf((v_i·z + μ_i)/(ε√2)); the best of a few z is taken (at V = 0
        they are all the same) and the method of conditional expectations does the rest.
        """
        z = torch.randn(V.shape[1], draws, generator=generator, dtype=V.dtype, device=V.device)
        means = ((V @ z + mu[:, None]) / (sqrt(2) * self.noise.to(V)[:, None])).erf().double()
        best = means[:, cut_values(self.graph, means).argmax()]
        return torch.from_numpy(conditional_expectations(self.graph, best.cpu().numpy()))


class _Share(torch.autograd.Function):
    """E[cut] / Σ|w| for autograd, with the closed forms of its gradient and Hessian."""

    @staticmethod
    def forward(ctx: FunctionCtx, V: Tensor, mu: Tensor, problem: Rounding, valued: bool = True) -> Tensor:
        ctx.save_for_backward(V, mu)
        ctx.problem, graph = problem, problem.graph
        if not valued:
            return V.new_zeros(())
        _, U, alpha = problem._standardized(V, mu)
        ends = alpha.index_select(0, graph.i), alpha.index_select(0, graph.j)
        return (problem.w * disagreement(*ends, problem._correlations(U, U))).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        g_V, g_mu = _Slope.apply(*ctx.saved_tensors, ctx.problem)
        return -grad * g_V, -grad * g_mu, None, None


class _Slope(torch.autograd.Function):
    """∇ of −E[cut] / Σ|w| for autograd."""

    @staticmethod
    def forward(ctx: FunctionCtx, V: Tensor, mu: Tensor, problem: Rounding) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(V, mu)
        ctx.problem, ctx.product = problem, None
        return problem.gradient(V, mu, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: FunctionCtx, X: Tensor, m: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.product = ctx.product or ctx.problem.hessian(*ctx.saved_tensors)  # once for all directions
        return *ctx.product(X, m), None


def conditional_expectations(graph: Graph, s: np.ndarray) -> np.ndarray:
    """Sides ±1 whose cut is at least the expected cut of independent sides with means s in [−1, 1].

    The expected cut is linear in each s_i, so that setting s_i to the better of ±1 keeps it or raises it. Goes on until
    every vertex is set and no flip of one vertex helps: a cut s is returned locally optimal. Vertices that share no
    edge are set together, larger gains first.
    """
    W, i, j = graph.adjacency, graph.i.cpu().numpy(), graph.j.cpu().numpy()
    s, tolerance = s.astype(np.float64), 1e-12 * graph.degree.cpu().numpy()
    tie_break = (1 + np.random.default_rng(0).permutation(graph.n)) * 1e-9 * graph.degree.cpu().numpy().max() / graph.n
    while True:
        field = W @ s
        gain = np.abs(field) + s * field  # twice the expected cut won by s_i ← −sign(field_i)
        key = np.where((gain > tolerance) | (np.abs(s) < 1), gain + tie_break, 0)
        chosen = key > 0
        if not chosen.any():
            return s
        chosen[np.where(key[i] < key[j], i, j)] = False  # of two neighbours the smaller gain waits
        s[chosen] = np.where(field == 0, np.where(s < 0, -1, 1), -np.sign(field))[chosen]


@dataclass
class Result:
    """What a descent ends with."""

    s: Tensor
    """(n,) sides ±1"""
    cut: float
    """value of the cut s, in the weights' unit"""
    sigma: float
    """largest ‖v_i‖ at the end; 1 at the start"""
    objective: float
    """f at the end; dimensionless"""
    certificate: Certificate | None
    """of where the descent is; None where Ctrl-C came before it was measured"""
    history: dict[str, np.ndarray]
    """snapshots: step, expected_cut, drawn_cut (of one draw), sigma, gradient_norm, objective, lam; and kicks, the
    steps at which a perturbation struck"""
    steps: int
    interrupted: bool
    """whether Ctrl-C ended the run"""


SECONDS_PER_STEP = 1e-7, 2e-4
"""times edges and twice the vertices, about, on one core; and the least. Plans a descent with --seconds, the same for
every run."""


class Derandomization(Descent):
    """PGD on f from the SDP's vectors V and μ = 0, with λ growing from lam/growth to lam over the first 60 % of steps.

    At μ = 0 the gradient in μ vanishes for every V: the start is kicked off this saddle at once. While λ grows, f
    changes under PGD and its stopping rule sleeps. With `algorithm` 1 or 2 none of this: no momentum, λ constant, and
    the first kick, or step along negative curvature, is where the rule asks for one.

    Args:
        graph: the graph.
        V: (n, k) unit vectors.
        config: hyperparameters.
        generator: of all randomness.
    """

    def __init__(self, graph: Graph, V: Tensor, config: "Config", generator: torch.Generator) -> None:
        self.graph, self.config, self.pure = graph, config, config.algorithm != "default"
        self.exact = Rounding(graph, config.epsilon)
        # Single precision nearly halves the time of a step on a large graph; on a small one it saves nothing.
        self.problem = Rounding(graph, config.epsilon, torch.float32) if graph.m > 10_000 else self.exact
        root_d = self.problem.root_d.to(self.problem.w)
        self.V = (principal(V, config.rank).to(root_d) * root_d[:, None]).requires_grad_()
        self.mu = torch.zeros_like(root_d).requires_grad_()
        steps, self.pace = config.steps, max(SECONDS_PER_STEP[0] * (graph.m + 2 * graph.n), SECONDS_PER_STEP[1])
        if config.seconds is not None:  # of which the first descent shall take a tenth
            steps = int(min(steps, max(100, config.seconds / 10 / self.pace)))
        pgd = perturbed([self.V, self.mu], config, self.objective, generator)
        super().__init__({"V": self.V, "mu": self.mu}, pgd, steps, generator)
        if not self.pure:
            self.pgd.perturb()
            self.kicks = [0] * self.pgd.perturbations

    @property
    def ramp(self) -> int:
        """Number of steps over which λ grows."""
        return 0 if self.pure else round(0.6 * self.steps)

    @property
    def lam(self) -> float:
        """λ at time t."""
        growing = min(1.0, self.t / self.ramp) if self.ramp else 1.0
        return self.config.lam * self.config.growth ** (growing - 1)

    def objective(self) -> Tensor:
        """f with the λ of time t."""
        return self.exact.objective(self.V.double(), self.mu.double(), self.lam)

    @torch.no_grad()
    def _closure(self) -> Callable[[], Tensor]:
        c, at = self.config, (self.V, self.mu, self.lam)
        if c.gradient == "exact":
            self.V.grad, self.mu.grad = self.problem.gradient(*at)
        else:
            self.V.grad, self.mu.grad = self.problem.sampled_gradient(*at, c.draws, self.generator)
        return self.objective

    def step(self) -> None:
        """One step of PGD."""
        start = time.perf_counter()
        self.pgd.param_groups[0]["rho"] = self.config.rho if self.t >= self.ramp else 0
        self.pgd.step(self._closure)
        self.pace += 0.02 * (min(time.perf_counter() - start, 10 * self.pace) - self.pace)  # it may have been stopped

    def due(self) -> bool:
        """About a hundred times a run; thirty, and in thirty steps once, where E[cut] takes as long as some steps."""
        least, most = (1, 100) if self.graph.m <= 10_000 else (30, 30)
        return self.t % max(least, self.steps // most) == 0

    @torch.no_grad()
    def row(self) -> dict[str, float]:
        """See `Result.history`."""
        V, mu, lam = self.V.double(), self.mu.double(), self.lam
        expected_cut = float(self.exact.expected_cut(V, mu))
        return {
            "step": self.t,
            "expected_cut": expected_cut,
            "drawn_cut": float(cut_values(self.graph, self.exact.draw(V, mu, 1, self.generator)[0].sign())),
            "sigma": float(self.exact.lengths(V).max()),
            "gradient_norm": hypot(*(float(g.norm()) for g in self.exact.gradient(V, mu, lam))),
            "objective": lam * float(V.square().sum()) - expected_cut / float(self.exact.total),
            "lam": lam,
        }

    def says(self) -> str:
        """For the progress bar."""
        return f"E[cut] {self.history['expected_cut'][-1]:.6g}, σ {self.history['sigma'][-1]:.1e}"

    @torch.no_grad()
    def round(self) -> Tensor:
        """One cut from where the descent is, no worse than the average of 32 draws of z: (n,) sides ±1."""
        with self.unbroken():
            return self.exact.round(self.V.double(), self.mu.double(), generator=self.generator)

    @torch.no_grad()
    def plant(self, found: "Search") -> Tensor:
        """Put V = 0, and μ where the search's best cut is as good as certain; returns its sides ±1, (n,).

        Every cut, however bad, is an SOSP there; of the search's cut the certificate shows no more.
        """
        with self.unbroken():
            trim()  # of what the search has left
            self.interrupted |= found.interrupted
            s = torch.from_numpy(found.best_cut()).to(self.exact.w)
            self.V.zero_()
            self.mu.copy_(8 * self.problem.noise * s)
            return s

    def result(self, s: Tensor | None = None) -> Result:
        """The cut s, else that of `round`, and the certificate of where the descent is.

        Raises:
            FloatingPointError: the objective is not finite.
        """
        s = self.round() if s is None else s
        V, mu = (x.detach().double().requires_grad_() for x in (self.V, self.mu))
        lam = self.config.lam
        slope = partial(self.exact.objective, V, mu, lam, valued=False)
        with self.unbroken(), torch.no_grad():
            f, sigma = float(self.exact.objective(V, mu, lam)), float(self.exact.lengths(V).max())
        if not isfinite(f):
            raise FloatingPointError(f"the objective is {f} at step {self.t}")
        return Result(
            s=s,
            cut=float(cut_values(self.graph, s)),
            sigma=sigma,
            objective=f,
            certificate=self.certified(certify, slope, [V, mu], V, mu, lam, self.config.rho),
            history=self.arrays(),
            steps=self.t,
            interrupted=self.interrupted,
        )


def unperturbed(graph: Graph, V: Tensor, config: "Config", generator: torch.Generator) -> Result:
    """Where the default algorithm ends without a perturbation, and with smaller steps, as the curvature at the saddle
    is of order 1/ε; after 5000 at most.
    """
    plain = dict(radius=0.0, algorithm="default", seconds=None, descents=None)
    smaller = replace(config, lr=max(config.lr / 3, 1e-30), steps=min(config.steps, 5000), **plain)
    return Derandomization(graph, V, smaller, generator).run().result()
