"""The last part of the descent: Newton's method along τ, to a second-order stationary point (SOSP) of F_τ.

The paper's Algorithm 2 with better steps. σ = 0 from here on: f is even in σ, so ∂f/∂σ = 0 there, and `certificate`
measures that ∂²f/∂σ² > 0. Once τ is large the weights p of all but a few thousand pairs are negligible: what is
computed here is computed on these, chosen anew from all pairs for every point that is accepted.

With u_i the unit vectors (unit differences, of pairs), q_i = ‖M u_i‖², p_i± = exp(±τ(q_i − 1) − τF), p = p⁺ + p⁻,
w = p⁺ − p⁻ and J_i = ∂q_i/∂M = 2 (M u_i) u_iᵀ, flattened:

F_τ = (1/τ) log Σ_i (e^{τ(q_i − 1)} + e^{−τ(q_i − 1)}),   ∇F_τ = Jᵀ w,
∇²F_τ = 2 I_k ⊗ Σ_i w_i u_i u_iᵀ + τ (Jᵀ diag(p) J − ∇F_τ ∇F_τᵀ).

F_τ is the same for M and R M, R orthogonal: k (k − 1)/2 eigenvalues of ∇²F_τ are 0 wherever ∇F_τ is.
"""

from collections.abc import Callable, Iterator
from math import log, sqrt, tanh
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from model import Problem, bound, bound_gradient, distortion, row_space, strongest
from pgd import Certificate, lanczos, lipschitz

GROWTH = 1.5
"""factor of τ from one minimum that is followed to the next"""
MARGIN = 30
"""pairs lighter than the heaviest by e^−MARGIN are left out"""
DENSE = 4500
"""most variables for which ∇²F_τ is formed and factorized"""
MOST_DENSE = 9000
"""most variables for which a proof of λ_min may take that memory and time"""
KRYLOV = 300
"""most dimensions of the Krylov space that stands for more variables"""
LIGHT = 1e-6
"""weight, of the heaviest, under which a pair is left out of the Hessian before τ is at its end"""
SETTLED = 1e-3
"""fall of F_τ that a step may still promise, in units of 1/τ, when τ grows"""
NOISE, SEEN = 1e-13, 1e-12
"""differences of F_τ that rounding makes, and those that it can't hide"""


class At(NamedTuple):
    """F_τ and what its derivatives are made of, at some M."""

    f: float
    w: Tensor
    """(m,) ∂F_τ/∂q"""
    p: Tensor
    """(m,) weights, of sum 1"""
    Z: Tensor
    """(m, k) M u"""


class Model(NamedTuple):
    """The quadratic model of F_τ around M on a subspace: f + g·y + ½ y·H y for M + (lift y)."""

    H: Tensor
    g: Tensor
    lift: Tensor | None
    """(variables, dimensions) orthonormal; None: the subspace is everything"""

    def up(self, y: Tensor) -> Tensor:
        """The step that y stands for."""
        return y if self.lift is None else self.lift @ y

    def down(self, g: Tensor) -> Tensor:
        """The gradient g on the subspace."""
        return g if self.lift is None else self.lift.T @ g


def weigh(U: Tensor, M: Tensor, tau: float) -> At:
    """F_τ at M (k, r) over the unit vectors U (m, r), and its parts."""
    Z = U @ M.T
    e = tau * (Z.square().sum(1) - 1)
    top = float(e.abs().max())
    up, down = (e - top).exp_(), (-e - top).exp_()
    total = float(up.sum() + down.sum())
    return At((log(total) + top) / tau, (up - down) / total, (up + down) / total, Z)


def gradient(U: Tensor, at: At) -> Tensor:
    """∇F_τ: (k, r)."""
    return 2 * (at.w * at.Z.T) @ U


def product(U: Tensor, at: At, g: Tensor, tau: float, v: Tensor) -> Tensor:
    """∇²F_τ v, of v's length k r."""
    dZ = U @ v.view_as(g).T
    dq = 2 * (at.Z * dZ).sum(1)
    pull = at.w[:, None] * dZ + (tau * at.p * dq)[:, None] * at.Z
    return (2 * pull.T @ U - (tau * float((g * v.view_as(g)).sum())) * g).reshape(-1)


def hessian(U: Tensor, at: At, g: Tensor, tau: float) -> Tensor:
    """∇²F_τ: (k r, k r)."""
    (m, r), k = U.shape, len(g)
    H, rows = U.new_zeros(k * r, k * r), max(256, 2**22 // (k * r))
    weighted = at.Z * (4 * tau * at.p).sqrt()[:, None]
    for some in (slice(start, start + rows) for start in range(0, m, rows)):
        J = (weighted[some, :, None] * U[some, None, :]).view(-1, k * r)
        for a in range(0, k * r, r):  # the upper triangle
            H[a : a + r, a:].addmm_(J[:, a : a + r].T, J[:, a:])
    S = 2 * (at.w * U.T) @ U
    for a in range(0, k * r, r):
        H[a : a + r, a : a + r] += S
        H[a + r :, a : a + r] = H[a : a + r, a + r :].T
    return H.addr_(g.reshape(-1), g.reshape(-1), alpha=-tau)


def krylov(times: Callable[[Tensor], Tensor], g: Tensor, mu: float) -> Model:
    """The model on span{g, H g, H² g, …}, by Lanczos: so many dimensions that (H + μI) y = −g is solved to a tenth."""
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
            first = np.eye(n)[0]
            if full or beta[-1] * abs(np.linalg.solve(T + mu * np.eye(n), first)[-1]) < 0.1:
                return Model(torch.from_numpy(T), g.norm() * torch.from_numpy(first), V[:n].T)
        V[n] = v / beta[-1]


class Newton:
    """A trust-region Newton method for F_τ at σ = 0, τ growing each time that it has come to a minimum.

    A step minimizes the quadratic model plus ½ μ ‖step‖² (that is, within the trust region that has the multiplier μ),
    where H + μI is positive definite; μ falls while F_τ does as the model says and rises where it doesn't, or where
    H + μI has a negative eigenvalue. Where ∇F_τ = 0 and H has one, the step is along its eigenvector.

        newton = Newton(problem, M, tau, 1e4)
        while not newton.converged:
            newton.step()

    Args:
        problem: what is to be preserved, best in the coordinates of `metric`.
        M: (k, r) where to start.
        tau: τ at the start.
        tau_end: τ at the end.

    Attributes:
        M, tau: the present ones.
        f: F_τ(M), over all pairs.
        worst: the worst distortion of M.
        gradient_norm: ‖∇F_τ‖, in these coordinates.
        converged: whether an SOSP at tau_end is reached, as far as rounding lets be seen.
        escapes: steps along a negative curvature so far.
    """

    _OWN = ("M", "tau", "mu", "converged", "escapes")

    def __init__(self, problem: Problem, M: Tensor, tau: float, tau_end: float) -> None:
        self.problem, self.tau_end, self.limit = problem, tau_end, 8 * M.numel() + 2**12
        self.M, self.tau, self.mu, self.converged, self.escapes = M, tau, 0.0, False, 0
        self._look()

    def state_dict(self) -> dict[str, object]:
        """All that further steps depend on besides the problem and tau_end."""
        return {name: getattr(self, name) for name in self._OWN}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where the Newton was whose `state_dict` this is."""
        for name in self._OWN:
            setattr(self, name, state[name])
        self._look()

    def step(self) -> None:
        """One step that lowers F_τ; where none does, τ grows, or at tau_end the method has converged."""
        at, g = self._at, gradient(self.U, self._at)
        model = self._model(at, g)
        if self.mu == 0:
            self.mu = 1e-4 * float(model.H.diagonal().abs().mean())
        for trial, (d, expected) in enumerate(self._trials(model)):
            if self._accept(d, expected, easily=trial == 0):
                break
            if expected <= SEEN:  # shorter steps would gain still less
                expected = 0.0
                break
        if expected * self.tau > (1e-16 if self.tau == self.tau_end else SETTLED):
            return
        if self.tau < self.tau_end:
            settled = self.worst * self.tau_end < 0.1  # no distortion is left that τ could tell from another
            self.tau = self.tau_end if settled else min(self.tau_end, self.tau * GROWTH)
            self._look()
        elif expected * self.tau <= 1e-24 or expected == 0:
            self.converged = not self._escape()

    def _look(self) -> None:
        """Choose the pairs that matter from all, and value M by them."""
        self.U, self.worst = self._active(self.M)
        self._at = weigh(self.U, self.M, self.tau)
        self.f, self.gradient_norm = self._at.f, float(gradient(self.U, self._at).norm())

    def _active(self, M: Tensor) -> tuple[Tensor, float]:
        """The unit vectors that matter at M, and the worst distortion of all."""
        limit = 10**9 if self.tau == self.tau_end else self.limit
        ends, _, worst = strongest(self.problem, M, lambda c: c, limit, MARGIN / self.tau)
        return self.problem.subset(*ends).units(), worst

    def _dense(self) -> bool:
        return self.M.numel() <= DENSE and 4 * len(self.U) > self.M.numel()

    def _model(self, at: At, g: Tensor) -> Model:
        if self._dense():
            kept = at.p > (1e-12 if self.tau == self.tau_end else LIGHT) * at.p.max()
            return Model(hessian(self.U[kept], At(at.f, *(x[kept] for x in at[1:])), g, self.tau), g.reshape(-1), None)
        if not self.gradient_norm:
            return Model(g.new_ones(1, 1), g.new_zeros(1), g.new_zeros(g.numel(), 1))
        return krylov(lambda v: product(self.U, at, g, self.tau, v), g.reshape(-1), self.mu)

    def _trials(self, model: Model) -> Iterator[tuple[Tensor, float]]:
        """Steps for ever larger μ, and by how much the model says that they lower F_τ."""
        largest = float(model.H.abs().max())
        self.mu = max(self.mu, 1e-13 * largest)
        while self.mu < 1e9 * largest:
            A = model.H.clone()
            A.diagonal().add_(self.mu)
            L, failed = torch.linalg.cholesky_ex(A)
            if not failed:
                solve = lambda x, L=L: -torch.cholesky_solve(x[:, None], L)[:, 0]  # noqa: E731
                y = solve(model.g)
                expected = (self.mu * float(y @ y) - float(model.g @ y)) / 2
                bent = y + solve(model.down(self._bend(model.up(y))))
                yield model.up(bent).view_as(self.M), expected
            self.mu *= 4

    def _bend(self, d: Tensor) -> Tensor:
        """What the step d adds to the gradient beyond H d: q_i changes by J_i d and by ‖d u_i‖², which H takes no note
        of in the weights. Where the weights are sharp F_τ is a curved valley, and the step must bend with it.
        """
        at, more = self._at, (self.U @ d.view_as(self.M).T).square().sum(1)
        return (2 * self.tau * ((at.p * more - at.w * float(at.w @ more)) * at.Z.T) @ self.U).reshape(-1)

    def _accept(self, d: Tensor, expected: float, easily: bool) -> bool:
        """Go to M + d if that lowers F_τ over all pairs or, where rounding hides it, ‖∇F_τ‖; say whether."""
        M, before = self.M + d, (self.f, self.gradient_norm)
        if weigh(self.U, M, self.tau).f > self.f + NOISE:  # more pairs would only add to it
            return False
        U, worst = self._active(M)
        at = weigh(U, M, self.tau)
        gained, norm = before[0] - at.f, float(gradient(U, at).norm())
        seen = expected > SEEN
        if gained < 1e-3 * expected if seen else norm > 0.5 * before[1]:
            return False
        self.M, self.U, self.worst, self._at, self.f, self.gradient_norm = M, U, worst, at, at.f, norm
        if not seen or gained > 0.7 * expected:
            self.mu /= 8 if easily else 1
        elif gained < 0.25 * expected:
            self.mu *= 4
        return True

    def _escape(self) -> bool:
        """Step along the most negative curvature, if there is one; whether there is."""
        at, g = self._at, gradient(self.U, self._at)
        if self._dense():
            H = hessian(self.U, at, g, self.tau)
            A = H.clone()
            A.diagonal().add_(1e-10 * float(H.abs().max()))
            if not torch.linalg.cholesky_ex(A)[1]:
                return False
            values, vectors = eigh(H.numpy(), subset_by_index=(0, 0))
            least, v = float(values[0]), torch.from_numpy(vectors[:, 0])
        else:
            times = lambda v: product(self.U, at, g, self.tau, torch.from_numpy(v)).numpy()  # noqa: E731
            least, v = lanczos(times, np.random.default_rng(0).standard_normal(g.numel()), 1e-4)
            if least > -1e-3:
                return False
            v = torch.from_numpy(v())
        v = v.view_as(self.M)
        v = -v if float((g * v).sum()) > 0 else v
        length = max(1.0, float(self.M.norm()))
        for _ in range(40):
            f = weigh(self._active(self.M + length * v)[0], self.M + length * v, self.tau).f
            if f < self.f + 0.1 * least * length**2:
                self.M, self.escapes = self.M + length * v, self.escapes + 1
                self._look()
                return True
            length /= 2
        return False


def certificate(problem: Problem, M: Tensor, tau: float, lam: float, rho: float) -> Certificate:
    """Certificate of f = F_τ + λ ‖σI‖²_F over M and ‖σI‖_F at σ = 0; λ_min is proven by a factorization where one fits.

    τ (Jᵀ diag(p) J − ∇F ∇Fᵀ) is positive semidefinite, as |w| ≤ p: so λ_min ≥ −2 Σ |w| ≥ −2 tanh(τ · distortion), which
    is enough where hardly any distortion is left. Else ∇²F_τ + εI, of the pairs that weigh at least e^−50 of the
    heaviest, has a Cholesky factor: λ_min ≥ −ε. Above `MOST_DENSE` variables: Lanczos (pgd.py), which is no proof.

    ∂f/∂σ is 0 at σ = 0, and so are the mixed derivatives; with s = ‖σI‖_F, ∂²f/∂s² = 2λ + 2/(kd) (k Σ w + 2τ Σ p q).

    Args:
        problem, M, tau: as in `bound`.
        lam, rho: as in `pgd.certify`, whose thresholds these are.
    """
    small, V = row_space(problem)
    M, k, threshold = M @ V.T, len(M), min(sqrt(rho), lam)
    s = M.new_zeros(())
    norm = float(bound_gradient(small, M, s, tau)[1].norm())
    worst = distortion(small, M)
    exact = 2 * tanh(tau * worst) <= threshold
    few = small.subset(*strongest(small, M, lambda c: c, 10**4 if exact else 10**9, 50 / tau)[0])
    U = few.units()
    at = weigh(U, M, tau)
    least = -2 * tanh(tau * worst) if exact else _proven(U, at, gradient(U, at), tau, threshold)
    curvature = 2 * lam + 2 / (k * problem.d) * float(k * at.w.sum() + 2 * tau * (at.p @ at.Z.square().sum(1)))
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


def _proven(U: Tensor, at: At, g: Tensor, tau: float, threshold: float) -> float:
    """A lower bound on the eigenvalues of ∇²F_τ."""
    if g.numel() > MOST_DENSE:
        times = lambda v: product(U, at, g, tau, torch.from_numpy(v)).numpy()  # noqa: E731
        return lanczos(times, np.random.default_rng(0).standard_normal(g.numel()), threshold / 4)[0]
    H = hessian(U, at, g, tau)
    epsilon = 1e-14 * len(H) * float(H.abs().max())  # what rounding may hide
    while epsilon < threshold:
        A = H.clone()
        A.diagonal().add_(epsilon)
        if not torch.linalg.cholesky_ex(A)[1]:
            return -epsilon
        epsilon *= 10
    return float(eigh(H.numpy(), subset_by_index=(0, 0), eigvals_only=True)[0])
