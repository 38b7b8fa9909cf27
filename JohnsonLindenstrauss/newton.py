"""The last part of the descent: Newton's method along τ, to a second-order stationary point (SOSP) of F_τ.

The paper's Algorithm 2 with better steps. σ = 0 from here on: f is even in σ, so ∂f/∂σ = 0 there, and `certificate`
measures that ∂²f/∂σ² > 0. Once τ is large the weights p of all but a few thousand pairs are negligible: what is
computed here is computed on these, chosen anew from all pairs for every point that is accepted.

With u_i the unit vectors (unit differences, of pairs), q_i = ‖M u_i‖², p_i± = exp(±τ(q_i − 1) − τF), p = p⁺ + p⁻,
w = p⁺ − p⁻ and J_i = ∂q_i/∂M = 2 (M u_i) u_iᵀ, flattened:

F_τ = (1/τ) log Σ_i (e^{τ(q_i − 1)} + e^{−τ(q_i − 1)}),   ∇F_τ = Jᵀ w,
∇²F_τ = 2 I_k ⊗ Σ_i w_i u_i u_iᵀ + τ (Jᵀ diag(p) J − ∇F_τ ∇F_τᵀ).

f is F_τ plus a ridge tr M G Mᵀ; λ ‖σI‖² is 0. It is the same for M and R M, R orthogonal: k (k − 1)/2 eigenvalues of
∇²f are 0 wherever ∇f is.
"""

from collections.abc import Callable, Iterator
from math import log, sqrt, tanh
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh, qr
from torch import Tensor

from model import Problem, bound, bound_gradient, distortion, row_space, strongest
from pgd import Certificate, lanczos, lipschitz

GROWTH = 1.5
"""factor of τ from one minimum that is followed to the next"""
MARGIN = 30
"""pairs lighter than the heaviest by e^−MARGIN are left out"""
DENSE = 3000
"""most variables for which ∇²f is formed and factorized; twice as many for a proof"""
KRYLOV = 300
"""most dimensions of the Krylov space that stands for more variables"""
LEFT_OUT = 1e-3
"""share of all weight that the Hessian may lack before τ is at its end"""
SETTLED = 1e-3
"""fall of f that a step may still promise, in units of 1/τ, when τ grows"""
NOISE, SEEN = 1e-13, 1e-12
"""differences of f that rounding makes, and those that it can't hide"""


class At(NamedTuple):
    """f = F_τ + tr M G Mᵀ and what its derivatives are made of, at some M."""

    f: float
    w: Tensor
    """(m,) ∂F_τ/∂q"""
    p: Tensor
    """(m,) weights, of sum 1"""
    Z: Tensor
    """(m, k) M u"""
    slope: Tensor
    """(k, r) ∇F_τ"""
    g: Tensor
    """(k, r) ∇f"""


class Step(NamedTuple):
    """A step that may be taken."""

    d: Tensor
    """(k, r) it"""
    expected: float
    """by how much the model says that it lowers f"""
    tangent: Tensor
    """(k, r) dM/dτ of the minimum of f"""


class Model(NamedTuple):
    """The quadratic model of f around M on a subspace: f + g·y + ½ y·H y for M + (up y)."""

    H: Tensor
    g: Tensor
    up: Callable[[Tensor], Tensor]
    """the step (k, r) that y stands for"""
    down: Callable[[Tensor], Tensor]
    """the gradient (k, r) on the subspace"""


def weigh(U: Tensor, M: Tensor, tau: float, G: Tensor) -> At:
    """f at M (k, r) over the unit vectors U (m, r), and its parts; G (r, r) is that of the ridge tr M G Mᵀ."""
    Z, pull = U @ M.T, M @ G
    e = tau * (Z.square().sum(1) - 1)
    top = float(e.abs().max())
    up, down = (e - top).exp_(), (-e - top).exp_()
    total = float(up.sum() + down.sum())
    w = (up - down) / total
    slope = 2 * (w * Z.T) @ U
    return At((log(total) + top) / tau + float((pull * M).sum()), w, (up + down) / total, Z, slope, slope + 2 * pull)


def product(U: Tensor, at: At, tau: float, G: Tensor, v: Tensor) -> Tensor:
    """∇²f v, both (k, r)."""
    dZ = U @ v.T
    dq = 2 * (at.Z * dZ).sum(1)
    pull = at.w[:, None] * dZ + (tau * at.p * dq)[:, None] * at.Z
    return 2 * pull.T @ U + 2 * v @ G - (tau * float((at.slope * v).sum())) * at.slope


def hessian(U: Tensor, at: At, tau: float, G: Tensor, free: Tensor, left_out: float) -> Tensor:
    """∇²f in the `free` (k, r) entries of M, less some of τ Jᵀ diag(p) J, which is positive semidefinite: that of the
    lightest pairs, which have the share `left_out` of all weight. In single precision where that is `LEFT_OUT`.
    """
    p, order = at.p.sort(descending=True)
    heavy = order[: int((p.cumsum(0) < 1 - left_out).sum()) + 1]
    n, sizes = int(free.sum()), free.sum(1).tolist()
    precision = torch.float32 if left_out == LEFT_OUT else U.dtype
    H, rows, columns = U.new_zeros(n, n, dtype=precision), max(256, 2**22 // n), 256
    weighted = (at.Z[heavy] * (4 * tau * at.p[heavy]).sqrt()[:, None]).to(precision)
    units = [U[heavy].to(precision)[:, of] for of in free]
    for some in (slice(start, start + rows) for start in range(0, len(heavy), rows)):
        J = torch.cat([z[some, None] * u[some] for z, u in zip(weighted.T, units, strict=True)], 1)
        for a in range(0, n, columns):  # the upper triangle
            H[a : a + columns, a:].addmm_(J[:, a : a + columns].T, J[:, a:])
    H = (H.triu_() + H.triu(1).T).to(U)
    S, start = 2 * ((at.w * U.T) @ U + G), 0
    for of, size in zip(free, sizes, strict=True):
        H[start : start + size, start : start + size] += S[of][:, of]
        start += size
    return H.addr_(at.slope[free], at.slope[free], alpha=-tau)


def krylov(times: Callable[[Tensor], Tensor], g: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """H on span{g, H g, H² g, …}, by Lanczos: so many dimensions that (H + μI) y = −g is solved to a tenth.

    Returns:
        It, tridiagonal; and the basis (dimensions, variables), the first vector along g.
    """
    most = min(KRYLOV, len(g))
    V, alpha, beta = g.new_empty(most, len(g)), [], []
    V[0] = g / g.norm()
    while True:
        n = len(alpha) + 1
        v = times(V[n - 1])
        alpha.append(float(v @ V[n - 1]))
        for _ in range(2):
            v -= V[:n].T @ (V[:n] @ v)
        beta.append(float(v.norm()))
        full = n == most or beta[-1] < 1e-10 * max(map(abs, alpha))
        if full or n % 10 == 0:
            T = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
            if full or beta[-1] * abs(np.linalg.solve(T + mu * np.eye(n), np.eye(n)[0])[-1]) < 0.1:
                return torch.from_numpy(T), V[:n]
        V[n] = v / beta[-1]


class Newton:
    """A trust-region Newton method for f = F_τ + tr M G Mᵀ at σ = 0, τ growing each time that it is at a minimum.

    A step minimizes the quadratic model plus ½ μ ‖step‖² (that is, within the trust region that has the multiplier μ),
    where H + μI is positive definite; μ falls while f does as the model says and rises where it doesn't, or where
    H + μI has a negative eigenvalue. Where ∇f = 0 and H has one, the step is along its eigenvector.

    f is the same for M and R M, R orthogonal. So M is turned until its pivoted QR factor's Q is the identity, and only
    the entries of the trapezoidal factor are variables: k(k − 1)/2 fewer, and H is not singular.

        newton = Newton(problem, M, tau, 1e4, G)
        while not newton.converged:
            newton.step()

    Args:
        problem: what is to be preserved, best in the coordinates of `metric`.
        M: (k, r) where to start.
        tau: τ at the start.
        tau_end: τ at the end.
        G: (r, r) of the ridge.

    Attributes:
        M, tau: the present ones.
        f: over all pairs.
        worst: the worst distortion of M.
        gradient_norm: ‖∇f‖, in these coordinates.
        converged: whether an SOSP at tau_end is reached, as far as rounding lets be seen.
        escapes: steps along a negative curvature so far.
    """

    _OWN = ("M", "tau", "mu", "converged", "escapes")

    def __init__(self, problem: Problem, M: Tensor, tau: float, tau_end: float, G: Tensor) -> None:
        self.problem, self.tau_end, self.G, self.limit = problem, tau_end, G, 8 * M.numel() + 2**12
        self.M, self.tau, self.mu, self.converged, self.escapes = M, tau, 0.0, False, 0
        self._look()

    @property
    def f(self) -> float:
        """f at M."""
        return self._at.f

    @property
    def gradient_norm(self) -> float:
        """‖∇f‖ at M."""
        return float(self._at.g.norm())

    def state_dict(self) -> dict[str, object]:
        """All that further steps depend on besides the problem, tau_end and G."""
        return {name: getattr(self, name) for name in self._OWN}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where the Newton was whose `state_dict` this is."""
        for name in self._OWN:
            setattr(self, name, state[name])
        self._look()

    def step(self) -> None:
        """One step that lowers f; where it promises little, τ grows, or at tau_end the method has converged."""
        regular, model = self._turn(), self._model()
        largest = float(model.H.abs().max())
        if self.mu == 0:
            self.mu = 1e-4 * float(model.H.diagonal().abs().mean())
        for trial, step in enumerate(self._trials(model, largest)):
            if self._accept(step, easily=trial == 0):
                left = step.expected
                break
            if step.expected <= SEEN:  # shorter steps would gain still less
                left = 0.0
                break
        if left * self.tau > (1e-12 if self.tau == self.tau_end else SETTLED):
            return
        if self.tau < self.tau_end:
            self._raise(step.tangent)
        else:
            self.converged = (regular and self.mu < 1e-6 * largest) or not self._escape()

    def _raise(self, tangent: Tensor) -> None:
        """Let τ grow, and follow M(1/τ) along its `tangent` dM/dτ if that is any better."""
        settled = self.worst * self.tau_end < 0.1  # no distortion is left that τ could tell from another
        before, self.tau = self.tau, min(self.tau_end, self.tau * GROWTH)
        self.tau = self.tau_end if settled else self.tau
        ahead = self.M + before * (1 - before / self.tau) * tangent
        if weigh(self.U, ahead, self.tau, self.G).f < weigh(self.U, self.M, self.tau, self.G).f:
            self.M = ahead
        self._look()

    def _turn(self) -> bool:
        """Turn M, and say which entries are variables; whether those are all that f depends on."""
        k, r = self.M.shape
        R, order = qr(self.M.numpy(), mode="r", pivoting=True)
        self.M = torch.empty_like(self.M)
        self.M[:, order] = torch.from_numpy(R)
        self._at = weigh(self.U, self.M, self.tau, self.G)
        place = torch.empty(r, dtype=torch.long)
        place[torch.from_numpy(order).long()] = torch.arange(r)
        diagonal = np.abs(R.diagonal())
        self.free = place >= torch.arange(k)[:, None]
        return k <= r and diagonal.min() > 1e-4 * diagonal.max()

    def _look(self) -> None:
        """Choose the pairs that matter from all, and value M by them."""
        self.U, self.worst = self._active(self.M)
        self._at = weigh(self.U, self.M, self.tau, self.G)

    def _active(self, M: Tensor) -> tuple[Tensor, float]:
        """The unit vectors that matter at M, and the worst distortion of all."""
        limit = 10**9 if self.tau == self.tau_end else self.limit
        ends, _, worst = strongest(self.problem, M, lambda c: c, limit, MARGIN / self.tau)
        return self.problem.subset(*ends).units(), worst

    def _dense(self) -> bool:
        return self.M.numel() <= DENSE and 4 * len(self.U) > self.M.numel()

    def _model(self) -> Model:
        at, free = self._at, self.free
        if self._dense():
            H = hessian(self.U, at, self.tau, self.G, free, 1e-9 if self.tau == self.tau_end else LEFT_OUT)
            up = lambda y: torch.zeros_like(at.g).masked_scatter_(free, y)  # noqa: E731
            return Model(H, at.g[free], up, lambda g: g[free])
        if not at.g.any():
            return Model(at.g.new_ones(1, 1), at.g.new_zeros(1), lambda _: torch.zeros_like(at.g), lambda g: g[0, :1])
        times = lambda v: product(self.U, at, self.tau, self.G, v.view_as(at.g)).flatten()  # noqa: E731
        T, V = krylov(times, at.g.flatten(), self.mu)
        down = lambda g: V @ g.flatten()  # noqa: E731
        return Model(T, down(at.g), lambda y: (y @ V).view_as(at.g), down)

    def _trials(self, model: Model, largest: float) -> Iterator[Step]:
        """Steps for ever larger μ."""
        at, self.mu = self._at, max(self.mu, 1e-13 * largest)
        change = self._pull(at.Z.square().sum(1) - 1)
        while self.mu < 1e9 * largest:
            A = model.H.clone()
            A.diagonal().add_(self.mu)
            L, failed = torch.linalg.cholesky_ex(A)
            if not failed:
                solve = lambda x, L=L: -torch.cholesky_solve(x[:, None], L)[:, 0]  # noqa: E731
                y = solve(model.g)
                expected = (self.mu * float(y @ y) - float(model.g @ y)) / 2
                # q_i changes by J_i d and by ‖d u_i‖², which H takes no note of in the weights. Where they are sharp f
                # is a curved valley, and the step must bend with it.
                more = (self.U @ model.up(y).T).square().sum(1)
                bent = y + solve(model.down(self.tau * self._pull(more)))
                yield Step(model.up(bent), expected, model.up(solve(model.down(change))))
            self.mu *= 4

    def _pull(self, e: Tensor) -> Tensor:
        """1/τ of what ∇F_τ = Jᵀ w changes by where the exponents ±τ(q_i − 1) of the weights change by ±τ e_i."""
        at = self._at
        return 2 * ((at.p * e - at.w * float(at.w @ e)) * at.Z.T) @ self.U

    def _accept(self, step: Step, easily: bool) -> bool:
        """Go to M + d if that lowers f over all pairs or, where rounding hides it, ‖∇f‖; say whether."""
        M, expected = self.M + step.d, step.expected
        if weigh(self.U, M, self.tau, self.G).f > self.f + NOISE:  # more pairs would only add to it
            return False
        U, worst = self._active(M)
        at = weigh(U, M, self.tau, self.G)
        gained, seen = self.f - at.f, expected > SEEN
        if gained < 1e-3 * expected if seen else float(at.g.norm()) > 0.5 * self.gradient_norm:
            return False
        self.M, self.U, self.worst, self._at = M, U, worst, at
        if not seen or gained > 0.7 * expected:
            self.mu /= 8 if easily else 1
        elif gained < 0.25 * expected:
            self.mu *= 4
        return True

    def _escape(self) -> bool:
        """Step along the most negative curvature, if there is one; whether there is."""
        at, g = self._at, self._at.g
        if self._dense():
            H = hessian(self.U, at, self.tau, self.G, torch.ones_like(g, dtype=torch.bool), 0.0)
            A = H.clone()
            A.diagonal().add_(1e-10 * float(H.abs().max()))
            if not torch.linalg.cholesky_ex(A)[1]:
                return False
            values, vectors = eigh(H.numpy(), subset_by_index=(0, 0))
            least, v = float(values[0]), torch.from_numpy(vectors[:, 0])
        else:
            least, v = _lowest(self.U, at, self.tau, self.G, 1e-4)
            if least > -1e-3:
                return False
        v = v.view_as(self.M)
        v = -v if float((g * v).sum()) > 0 else v
        length = max(1.0, float(self.M.norm()))
        for _ in range(40):
            M = self.M + length * v
            if weigh(self._active(M)[0], M, self.tau, self.G).f < self.f + 0.1 * least * length**2:
                self.M, self.escapes = M, self.escapes + 1
                self._look()
                return True
            length /= 2
        return False


def _lowest(U: Tensor, at: At, tau: float, G: Tensor, tolerance: float) -> tuple[float, Tensor]:
    """A bound on the lowest eigenvalue of ∇²f, and an approximate eigenvector, by Lanczos."""
    times = lambda v: product(U, at, tau, G, torch.from_numpy(v).view_as(at.g)).numpy().ravel()  # noqa: E731
    least, v = lanczos(times, np.random.default_rng(0).standard_normal(at.g.numel()), tolerance)
    return least, torch.from_numpy(v())


def certificate(problem: Problem, M: Tensor, tau: float, lam: float, rho: float, ridge: float = 0.0) -> Certificate:
    """Certificate of f = F_τ + λ ‖σI‖²_F + ridge E‖A‖²_F over M and ‖σI‖_F at σ = 0; λ_min is proven where it fits.

    τ (Jᵀ diag(p) J − ∇F ∇Fᵀ) is positive semidefinite, as |w| ≤ p: so λ_min ≥ −2 Σ |w| ≥ −2 tanh(τ · distortion), which
    is enough where hardly any distortion is left. Else ∇²f + εI, of the pairs that weigh at least e^−50 of the
    heaviest, has a Cholesky factor: λ_min ≥ −ε. Above 2 `DENSE` variables: Lanczos (pgd.py), which is no proof.

    ∂f/∂σ is 0 at σ = 0, and so are the mixed derivatives; with s = ‖σI‖_F,
    ∂²f/∂s² = 2λ + 2 ridge + 2/(kd) (k Σ w + 2τ Σ p q).

    Args:
        problem, M, tau: as in `bound`.
        lam, rho: as in `pgd.certify`, whose thresholds these are.
        ridge: factor of E‖A‖²_F.
    """
    small, V = row_space(problem)
    M, k, threshold = M @ V.T, len(M), min(sqrt(rho), lam)
    G = ridge * torch.eye(len(V), dtype=M.dtype, device=M.device)
    s = M.new_zeros(())
    norm = float((bound_gradient(small, M, s, tau)[1] + 2 * M @ G).norm())
    worst = distortion(small, M)
    exact = 2 * tanh(tau * worst) <= threshold
    few = small.subset(*strongest(small, M, lambda c: c, 10**4 if exact else 10**9, 50 / tau)[0])
    U = few.units()
    at = weigh(U, M, tau, G)
    least = -2 * tanh(tau * worst) if exact else _proven(U, at, tau, G, threshold)
    curvature = 2 * (lam + ridge) + 2 / (k * problem.d) * float(
        k * at.w.sum() + 2 * tau * (at.p @ at.Z.square().sum(1))
    )
    leaves = [M.clone().requires_grad_(), s.clone().requires_grad_()]
    K = lipschitz(lambda: bound(few, *leaves, tau) + lam * leaves[1].square(), leaves, min(1e-3, 0.1 / tau))
    slack = 2 * lam - sqrt(K * rho)
    return Certificate(
        gradient_norm=norm,
        gradient_error=0.0,
        lambda_min=min(least, curvature),
        w_norm=0.0,
        w_norm_bound=0.0 if 2 * lam + least > 0 else None,
        lemma_bound=rho / slack if slack > 0 else None,
        K_estimate=K,
        rho=rho,
        lam=lam,
        is_sosp=norm <= rho and min(least, curvature) >= -threshold,
    )


def _proven(U: Tensor, at: At, tau: float, G: Tensor, threshold: float) -> float:
    """A lower bound on the eigenvalues of ∇²f."""
    if at.g.numel() > 2 * DENSE:
        return _lowest(U, at, tau, G, threshold / 4)[0]
    H = hessian(U, at, tau, G, torch.ones_like(at.g, dtype=torch.bool), 1e-12)  # what is left out is no less than 0
    epsilon = 1e-14 * len(H) * float(H.abs().max())  # what rounding may hide
    while epsilon < threshold:
        A = H.clone()
        A.diagonal().add_(epsilon)
        if not torch.linalg.cholesky_ex(A)[1]:
            return -epsilon
        epsilon *= 10
    return float(eigh(H.numpy(), subset_by_index=(0, 0), eigvals_only=True)[0])
