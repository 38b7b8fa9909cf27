"""Derandomized rounding: from Goemans–Williamson's random cut to one deterministic cut, by PGD (section 5.1).

Vertex i is rounded to the sign of a_i = v_i·z + μ_i + ε ξ_i, with z ~ N(0, I_k) shared by all vertices and its own
ξ_i ~ N(0, 1). V = the SDP's vectors and μ = 0 is Goemans–Williamson; V = 0 and μ → ±∞ is a deterministic cut. Between
them PGD minimizes f(V, μ) = −Σ w̃_ij P[sign a_i ≠ sign a_j] + λ ‖V‖², w̃ = w / Σ|w|.

All variables are degree-scaled, V ← √d V and μ ← √d μ with d_i = Σ_j |w̃_ij|: one step size is then right for every
vertex. Signs don't mind the scaling, so that the lemma holds for the scaled variables as it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt

import numpy as np
import torch
from scipy.special import owens_t
from torch import Tensor
from torch.nn.functional import normalize

from pgd import PGD, Certificate, certify
from utilities import Graph, cut_values


class Disagreement(torch.autograd.Function):
    """D(α, β, r) = P[sign a ≠ sign b] for standard normal a, b with correlation r, shifted by α and β.

    D = Φ(α) + Φ(β) − 2 Φ₂(α, β; r), through Owen's T (1956):
    D = 2 T(α, (β − rα)/(α√(1−r²))) + 2 T(β, (α − rβ)/(β√(1−r²))) + [αβ < 0]. At α = β = 0 it is arccos(r)/π.
    The derivatives need only exp and erf, and can be differentiated again.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, alpha: Tensor, beta: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(alpha, beta, r)
        a, b, c = (x.detach().double().cpu().numpy() for x in (alpha, beta, r))
        a, b = (np.where(x == 0, 1e-150, x) for x in (a, b))  # the limits at 0 are right
        q = np.sqrt((1 - c) * (1 + c))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # 0/0 is r = ±1 with a = ± b, the same variable twice: T(·, 0) = 0
            D = 2 * owens_t(a, np.nan_to_num((b - c * a) / (a * q), nan=0, posinf=np.inf, neginf=-np.inf))
            D += 2 * owens_t(b, np.nan_to_num((a - c * b) / (b * q), nan=0, posinf=np.inf, neginf=-np.inf))
        return torch.from_numpy(D + ((a < 0) != (b < 0))).to(alpha)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_alpha, d_beta, d_r = disagreement_gradient(*ctx.saved_tensors)
        return grad * d_alpha, grad * d_beta, grad * d_r


def disagreement_gradient(alpha: Tensor, beta: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Partial derivatives of D(α, β, r) (`Disagreement`), for |r| < 1:

    ∂D/∂α = −φ(α) erf((β − rα)/√(2(1−r²))), likewise ∂D/∂β, and
    ∂D/∂r = −exp(−(α² + β² − 2rαβ)/(2(1−r²))) / (π√(1−r²)).
    """
    q = (2 * (1 - r) * (1 + r)).rsqrt()
    a, b = (beta - r * alpha) * q, (alpha - r * beta) * q
    e_alpha, e_beta = (alpha * alpha / -2).exp(), (beta * beta / -2).exp()
    # (α² + β² − 2rαβ)/(2(1−r²)) = α²/2 + a², without cancellation
    d_r = e_alpha * (-a * a).exp() * q * (-sqrt(2) / pi)
    return e_alpha * a.erf() / -sqrt(2 * pi), e_beta * b.erf() / -sqrt(2 * pi), d_r


class Rounding:
    """The objective f and its gradients on one graph; V (n × k) and mu (n,) are degree-scaled everywhere.

    Args:
        graph: the graph.
        epsilon: ε > 0, the standard deviation of each vertex's own noise; it smooths the sign. Dimensionless, beside
            the vectors' initial length 1.
    """

    def __init__(self, graph: Graph, epsilon: float) -> None:
        self.graph, self.total = graph, graph.w.abs().sum()
        self.w = graph.w / self.total  # w̃
        d = graph.degree / self.total
        self.root_d = torch.where(d > 0, d, 2 / graph.n).sqrt()  # an isolated vertex gets the mean degree
        self.noise = epsilon * self.root_d  # ε of the degree-scaled variables
        # Each edge stands twice in the symmetric CSR matrix; _edge_of says which edge an entry belongs to.
        numbers = graph.symmetric(np.arange(graph.m))
        self._crow, self._col, self._edge_of = (
            torch.from_numpy(x).to(graph.w.device) for x in (numbers.indptr, numbers.indices, numbers.data)
        )

    def lengths(self, V: Tensor) -> Tensor:
        """‖v_i‖ of the vectors before degree scaling: (n,), 1 at the start. Its largest is σ."""
        return V.norm(dim=1) / self.root_d.to(V)

    def _standardized(self, V: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s_i = √(‖v_i‖² + ε²) of the scaled variables, u_i = v_i / s_i and α_i = μ_i / s_i."""
        s = (V.square().sum(1) + self.noise.to(V).square()).sqrt()
        return s, V / s[:, None], mu / s

    def expected_cut(self, V: Tensor, mu: Tensor) -> Tensor:
        """E[cut] = Σ w_ij D_ij in the weights' unit; exact, twice differentiable in V and mu."""
        _, U, alpha = self._standardized(V, mu)
        (alpha_i, alpha_j), (U_i, U_j) = (
            (x.index_select(0, self.graph.i), x.index_select(0, self.graph.j)) for x in (alpha, U)
        )
        D = Disagreement.apply(alpha_i, alpha_j, (U_i * U_j).sum(1))
        return (self.graph.w * D).sum()

    def objective(self, V: Tensor, mu: Tensor, lam: float) -> Tensor:
        """f = −E[cut] / Σ|w| + lam ‖V‖²_F; dimensionless."""
        return lam * V.square().sum() - self.expected_cut(V, mu) / self.total

    def gradient(self, V: Tensor, mu: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """∇f in closed form, without f itself: what autograd gives for `objective`, in one pass over the edges."""
        i, j, w = self.graph.i, self.graph.j, self.w.to(V)
        s, U, alpha = self._standardized(V, mu)
        r = (U.index_select(0, i) * U.index_select(0, j)).sum(1)
        d_i, d_j, d_r = disagreement_gradient(alpha.index_select(0, i), alpha.index_select(0, j), r)
        g_alpha = torch.zeros_like(alpha).index_add_(0, i, w * d_i).index_add_(0, j, w * d_j)
        coupling = torch.sparse_csr_tensor(
            self._crow, self._col, (w * d_r)[self._edge_of], size=(len(s), len(s)), check_invariants=False
        )
        # ∂r/∂v_i = (u_j − r u_i)/s_i, ∂α_i/∂v_i = −α_i u_i/s_i, ∂α_i/∂μ_i = 1/s_i
        g_U = coupling @ U
        radial = (g_U * U).sum(1) + g_alpha * alpha
        return 2 * lam * V - (g_U - radial[:, None] * U) / s[:, None], -g_alpha / s

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

    def round(self, V: Tensor, mu: Tensor, draws: int = 32, generator: torch.Generator | None = None) -> Tensor:
        """One deterministic cut no worse than the average over the draws: s (n,) of ±1, float64.

        Given z, vertices are independent, with means erf((v_i·z + μ_i)/(ε√2)); the best of a few z is taken (at V = 0
        they are all the same) and the method of conditional expectations does the rest.
        """
        z = torch.randn(V.shape[1], draws, generator=generator, dtype=V.dtype, device=V.device)
        means = ((V @ z + mu[:, None]) / (sqrt(2) * self.noise.to(V)[:, None])).erf().double()
        best = means[:, cut_values(self.graph, means).argmax()]
        return torch.from_numpy(conditional_expectations(self.graph, best.cpu().numpy()))


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


HISTORY = ("step", "expected_cut", "drawn_cut", "sigma", "gradient_norm", "objective", "lam")


@dataclass
class Result:
    """What `derandomize` ends with."""

    s: Tensor
    """(n,) sides ±1"""
    cut: float
    """value of the cut s, in the weights' unit"""
    sigma: float
    """largest ‖v_i‖ at the end; 1 at the start"""
    objective: float
    """f at the end; dimensionless"""
    certificate: Certificate
    history: dict[str, np.ndarray]
    """snapshots: step, expected_cut, drawn_cut (of one draw), sigma, gradient_norm, objective, lam"""
    kicks: list[int]
    """steps at which a perturbation struck"""
    steps: int
    interrupted: bool
    """whether Ctrl-C ended the run"""


def derandomize(
    graph: Graph,
    V: Tensor,
    *,
    epsilon: float = 0.03,
    lam: float = 0.1,
    growth: float = 50.0,
    rank: int = 8,
    steps: int = 1500,
    lr: float = 0.15,
    momentum: float = 0.9,
    rho: float = 1e-6,
    radius: float = 0.1,
    patience: int = 50,
    escape: str = "noise",
    draws: int | None = None,
    snapshots: int = 100,
    generator: torch.Generator | None = None,
    progress: Callable[[int, dict[str, list[float]]], None] = lambda step, history: None,
) -> Result:
    """PGD on f from the SDP's vectors V and μ = 0, with λ growing from lam/growth to lam over the first 60 % of steps.

    At μ = 0 the gradient in μ vanishes for every V: the start is kicked off this saddle at once. While λ grows, f
    changes under PGD and its stopping rule sleeps.

    Args:
        graph: the graph.
        V: (n, k) unit vectors.
        epsilon: see `Rounding`.
        lam: λ at the end.
        growth: factor by which λ grows.
        rank: columns of V that are kept, its principal ones.
        steps: at most so many.
        lr, momentum, rho, radius, patience: see `PGD`.
        escape: "noise" (Algorithm 1) or "curvature" (Algorithm 2).
        draws: None for the exact gradient, else the number of sampled cuts a step.
        snapshots: number of points in the history, about.
        generator: of all randomness.
        progress: called after every step with its number and the history so far.
    """
    problem = Rounding(graph, epsilon)
    principal = torch.linalg.eigh(V.T @ V)[1][:, -rank:]
    # Single precision nearly halves the time of a step on a large graph; on a small one it saves nothing.
    V = normalize(V @ principal).to(torch.float32 if graph.m > 10_000 else torch.float64)
    V = (V * problem.root_d.to(V)[:, None]).requires_grad_()
    mu = torch.zeros_like(V[:, 0]).requires_grad_()
    lam_t, ramp = lam, max(1, round(0.6 * steps))

    def objective() -> Tensor:
        return problem.objective(V.double(), mu.double(), lam_t)

    @torch.no_grad()
    def closure() -> Callable[[], Tensor]:
        if draws is None:
            V.grad, mu.grad = problem.gradient(V, mu, lam_t)
        else:
            V.grad, mu.grad = problem.sampled_gradient(V, mu, lam_t, draws, generator)
        return objective

    pgd = PGD(
        [V, mu],
        lr=lr,
        rho=rho,
        radius=radius,
        momentum=momentum,
        patience=patience,
        objective=objective if escape == "curvature" else None,
        generator=generator,
    )
    pgd.perturb()
    kicks, interrupted, step = [0], False, 0
    history: dict[str, list[float]] = {name: [] for name in HISTORY}

    @torch.no_grad()
    def snapshot() -> None:
        f, sigma = float(objective()), float(problem.lengths(V).max())
        expected_cut = float(problem.total) * (lam_t * float(V.double().square().sum()) - f)
        drawn_cut = float(cut_values(graph, problem.draw(V, mu, 1, generator)[0].sign()))
        values = (step, expected_cut, drawn_cut, sigma, pgd.gradient_norm, f, lam_t)
        for name, value in zip(HISTORY, values, strict=True):
            history[name].append(value)

    try:
        while step < steps and not pgd.converged:
            lam_t = lam * growth ** (min(1, step / ramp) - 1)
            pgd.param_groups[0]["rho"] = rho if step >= ramp else 0
            pgd.step(closure)
            if step % max(1, steps // snapshots) == 0:
                snapshot()
            step += 1
            progress(step, history)
            if pgd.perturbations > len(kicks):
                kicks.append(step)
    except KeyboardInterrupt:
        interrupted = True
    lam_t = lam
    closure()
    snapshot()
    V, mu = (x.detach().double().requires_grad_() for x in (V, mu))
    with torch.no_grad():
        s = problem.round(V, mu, generator=generator)
    certificate = certify(objective, [V, mu], V, mu, lam, rho)
    return Result(
        s=s,
        cut=float(cut_values(graph, s)),
        sigma=history["sigma"][-1],
        objective=history["objective"][-1],
        certificate=certificate,
        history={name: np.array(values) for name, values in history.items()},
        kicks=kicks,
        steps=step,
        interrupted=interrupted,
    )
