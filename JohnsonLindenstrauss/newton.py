"""The last part of the descent: along τ to a second-order stationary point (SOSP) of F_τ, by a primal-dual method.

The paper's Algorithm 2 with better steps. σ = 0 from here on: f is even in σ, so ∂f/∂σ = 0 there, and `certificate`
measures that ∂²f/∂σ² > 0. Once τ is large the weights p of all but a few thousand pairs are negligible: what is
computed here is computed on these, chosen anew from all pairs for every point that is accepted.

With u_i the unit vectors (unit differences, of pairs), q_i = ‖M u_i‖², p_i± = exp(±τ(q_i − 1) − τF), p = p⁺ + p⁻,
w = p⁺ − p⁻ and J_i = ∂q_i/∂M = 2 (M u_i) u_iᵀ, flattened:

F_τ = (1/τ) log Σ_i (e^{τ(q_i − 1)} + e^{−τ(q_i − 1)}),   ∇F_τ = Jᵀ w,
∇²F_τ = 2 I_k ⊗ Σ_i w_i u_i u_iᵀ + τ (Jᵀ diag(p) J − ∇F_τ ∇F_τᵀ).

When τ has grown, the weights p are far from what they are going to be, and p', those at the τ before, are near to it:
the slope τ p of a weight in its exponent is replaced by that of the secant, D = τ (p − p')/(log p − log p'). (That of
p s = m is p'/s: what primal-dual interior-point methods put in the place of m/s².)

f is F_τ plus a ridge tr M G Mᵀ; λ ‖σI‖² is 0. It is the same for M and R M, R orthogonal: k (k − 1)/2 eigenvalues of
∇²f are 0 wherever ∇f is.
"""

from collections.abc import Callable, Iterator
from math import inf, log, sqrt, tanh
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh, qr
from torch import Tensor

from model import Problem, bound, bound_gradient, exact_distortion, row_space, strongest
from pgd import Certificate, certify, lanczos
from run import threads

GROWTH = 2.0
"""factor of τ from one minimum that is followed to the next"""
MARGIN = 30
"""pairs lighter than the heaviest by e^−MARGIN are left out"""
DENSE = 10**4
"""most variables for which ∇²f is formed and factorized"""
PAIRS = 10**4
"""most pairs that a step's model takes note of where ∇²f is not formed: a matrix has as many rows and columns"""
CERTIFIABLE = 10**6
"""most pairs that a certificate looks at one by one: λ_min of more would take minutes, and memory"""
LEFT_OUT = 1e-3
"""share of all weight that the Hessian may lack before the end is near"""
SETTLED = 0.06
"""fall of f, in units of 1/τ, below which τ grows"""
WALK, LOOK, MOMENTUM = 600, 50, 0.95
"""most steps in the metric of one Hessian, those between two looks at all pairs, and the heavy ball's factor"""
NOISE, SEEN = 1e-13, 1e-12
"""differences of f that rounding makes, and those that it can't hide"""


class At(NamedTuple):
    """f = F_τ + tr M G Mᵀ and what its derivatives are made of, at some M."""

    f: float
    p: Tensor
    """(2, m) weights p⁺ and p⁻, of sum 1"""
    log_p: Tensor
    Z: Tensor
    """(m, k) M u"""
    g: Tensor
    """(k, r) ∇f"""


def weigh(U: Tensor, M: Tensor, tau: float, G: Tensor) -> At:
    """f at M (k, r) over the unit vectors U (m, r), and its parts; G (r, r) is that of the ridge tr M G Mᵀ."""
    Z, pull = U @ M.T, M @ G
    c = Z.square().sum(1) - 1
    e = tau * torch.stack([c, -c])
    top = float(e.max())
    log_p = e - (top + log(float((e - top).exp_().sum())))
    p = log_p.exp()
    f = float(e[0, 0] - log_p[0, 0]) / tau + float((pull * M).sum())
    return At(f, p, log_p, Z, 2 * ((p[0] - p[1]) * Z.T) @ U + 2 * pull)


def outer(U: Tensor, Z: Tensor, D: Tensor, e: Tensor) -> Tensor:
    """Jᵀ (diag(D⁺ + D⁻) − δ δᵀ / ΣD) e, (k, r), with δ = D⁺ − D⁻: by what ∇F_τ changes where q does by e (m,)."""
    delta = D[0] - D[1]
    return 2 * ((D.sum(0) * e - delta * (float(delta @ e) / float(D.sum()))) * Z.T) @ U


def product(U: Tensor, at: At, tau: float, G: Tensor, v: Tensor) -> Tensor:
    """∇²f v, both (k, r)."""
    dZ = U @ v.T
    curve = 2 * (dZ * (at.p[0] - at.p[1])[:, None]).T @ U + 2 * v @ G
    return curve + outer(U, at.Z, tau * at.p, 2 * (at.Z * dZ).sum(1))


def hessian(
    U: Tensor, Z: Tensor, D: Tensor, w: Tensor, G: Tensor, free: Tensor, left_out: float, single: bool = False
) -> Tensor:
    """2 I_k ⊗ (Σ w_i u_i u_iᵀ + G) + Jᵀ (diag(D⁺ + D⁻) − δ δᵀ / ΣD) J in the `free` (k, r) entries of M: ∇²f where
    D = τ p. It may lack the lightest pairs, which have the share `left_out` of all D, of Jᵀ diag J, which is positive
    semidefinite. In single precision if `single`.
    """
    weight, order = D.sum(0).sort(descending=True)
    heavy = order[: int((weight.cumsum(0) < (1 - left_out) * weight.sum()).sum()) + 1]
    n, sizes = int(free.sum()), free.sum(1).tolist()
    precision = torch.float32 if single else U.dtype
    H, rows, columns = U.new_zeros(n, n, dtype=precision), max(256, 2**22 // n), 256
    weighted = (Z[heavy] * (4 * weight[: len(heavy)]).sqrt()[:, None]).to(precision)
    for some in (slice(start, start + rows) for start in range(0, len(heavy), rows)):
        units = U[heavy[some]].to(precision)
        J = torch.cat([z[some, None] * units[:, of] for z, of in zip(weighted.T, free, strict=True)], 1)
        for a in range(0, n, columns):  # the lower triangle
            H[a:, a : a + columns].addmm_(J[:, a:].T, J[:, a : a + columns])
    S, start = (2 * ((w * U.T) @ U + G)).to(precision), 0
    for of, size in zip(free, sizes, strict=True):
        H[start : start + size, start : start + size] += S[of][:, of]
        start += size
    slope = (2 * ((D[0] - D[1]) * Z.T) @ U)[free].to(precision)
    H.addr_(slope, slope, alpha=-1 / float(D.sum()))
    return H.tril_().add_(H.tril(-1).T)


class Newton:
    """Descent of f = F_τ + tr M G Mᵀ at σ = 0, τ growing each time that little is left to gain, to an SOSP at tau_end.

    A step is Newton's by K = H + μI ≻ 0, H being ∇²f with secants D; μ falls while f does as the model says and rises
    where it doesn't, or where K is not positive definite. Then, as K is dear, and no Newton step leads far along the
    negative curvature of a bent valley: a walk, PGD's heavy ball in the metric of K. Where ∇f = 0 and H has a negative
    eigenvalue, the step is along its eigenvector.

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
        worst: the worst distortion of M.
        converged: whether an SOSP at tau_end is reached, as far as rounding lets be seen.
        escapes, steps: those along a negative curvature so far, and all.
        before: τ of the last step: when τ has just grown, the one before. Secants reach back to the weights there, so
            pairs are kept that are heavy enough at that τ.
        mu: μ that the next step begins with; 0 before the first.
        left: the fall of f in the last step, or the model's where that is more, in units of 1/τ: 0 if none was taken,
            inf once τ has grown.
    """

    _OWN = ("M", "tau", "before", "mu", "left", "ends", "worst", "converged", "escapes", "steps")

    def __init__(self, problem: Problem, M: Tensor, tau: float, tau_end: float, G: Tensor) -> None:
        self.problem, self.tau_end, self.G, self.limit = problem, tau_end, G, 8 * M.numel() + 2**12
        self.M, self.tau, self.before, self.mu, self.left = M, tau, tau, 0.0, inf
        self.converged, self.escapes, self.steps = False, 0, 0
        self._take(M, *self._look(M))

    @property
    def f(self) -> float:
        """f at M, over the pairs that matter there."""
        return self._at.f

    @property
    def gradient_norm(self) -> float:
        """‖∇f‖ at M, in these coordinates."""
        return float(self._at.g.norm())

    def state_dict(self) -> dict[str, object]:
        """All that further steps depend on besides the problem, tau_end and G."""
        return {name: getattr(self, name) for name in self._OWN}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where the Newton was whose `state_dict` this is."""
        for name in self._OWN:
            setattr(self, name, state[name])
        self.U = self.problem.subset(*self.ends).units()
        self._at = weigh(self.U, self.M, self.tau, self.G)

    def step(self) -> None:
        """A step that lowers f, and a walk; where they gain little, τ grows, or at tau_end the method has converged."""
        regular, coarse, start, fall, largest = self._turn(), self._coarse(), self.f, 0.0, 0.0
        self.steps += 1
        for trial, (solve, largest, expected, d) in enumerate(self._trials()):  # noqa: B007
            if self._accept(d, expected, easily=trial == 0):
                if expected * self.tau > 1e-7:
                    self._walk(solve)
                fall = max(expected, start - self.f)
                break
            if expected <= SEEN:  # shorter steps would gain still less
                break
        self.before, self.left = self.tau, fall * self.tau
        if self.left > (1e-12 if self.tau == self.tau_end else SETTLED):
            return
        if self.tau < self.tau_end:
            settled = self.worst * self.tau_end < 0.1  # no distortion is left that τ could tell from another
            self.tau, self.left = self.tau_end if settled else min(self.tau_end, self.tau * GROWTH), inf
            self._at = weigh(self.U, self.M, self.tau, self.G)
        elif not coarse:
            self.converged = (regular and self.mu < 1e-6 * largest) or not self._escape()

    def _turn(self) -> bool:
        """Turn M, and say which entries are variables; whether those are all that f depends on."""
        k, r = self.M.shape
        R, order = qr(self.M.cpu().numpy(), mode="r", pivoting=True)
        M = torch.empty_like(self.M)
        M[:, order] = torch.from_numpy(R).to(M)
        self.M = M  # whole, whenever Ctrl-C comes
        self._at = weigh(self.U, self.M, self.tau, self.G)
        diagonal = np.abs(R.diagonal())
        self.free = torch.from_numpy(np.argsort(order) >= np.arange(k)[:, None]).to(self.M.device)
        return k <= r and diagonal.min() > 1e-4 * diagonal.max()

    def _look(self, M: Tensor) -> tuple[tuple[Tensor, ...], Tensor, float, At]:
        """Those of all that matter at M, before tau_end the `limit` heaviest at most; their unit vectors; the worst
        distortion of all; and f.
        """
        limit = 10**9 if self.tau == self.tau_end else self.limit
        with threads(1):  # tile by tile
            ends, _, worst = strongest(self.problem, M, torch.abs, limit, MARGIN / self.before)
        U = self.problem.subset(*ends).units()
        return ends, U, worst, weigh(U, M, self.tau, self.G)

    def _take(self, M: Tensor, ends: tuple[Tensor, ...], U: Tensor, worst: float, at: At) -> None:
        self.M, self.ends, self.U, self.worst, self._at = M, ends, U, worst, at

    def _dense(self) -> bool:
        return self.M.numel() <= DENSE and 4 * len(self.U) > self.M.numel()

    def _coarse(self) -> bool:
        """Whether H may be in single precision, and lack some of the light pairs."""
        return self._dense() and (self.left > 1e-2 or self.tau < self.tau_end)

    def _secants(self) -> tuple[Tensor, Tensor]:
        """D (2, m), and w of the τ before."""
        at, last = self._at, weigh(self.U, self.M, self.before, self.G)
        x = at.log_p - last.log_p
        near = x.abs() < 1e-6
        return self.tau * torch.where(near, at.p, (at.p - last.p) / x.masked_fill(near, 1)), last.p[0] - last.p[1]

    def _trials(self) -> Iterator[tuple[Callable[[Tensor], Tensor], float, float, Tensor]]:
        """For ever larger μ: x ↦ −K⁻¹ x, the largest entry of H, by how much the model falls with a step, the step."""
        at, U = self._at, self.U
        D, w = self._secants()
        coarse = self._coarse()
        if self._dense():
            H = hessian(U, at.Z, D, w, self.G, self.free, LEFT_OUT if coarse else 1e-9, single=coarse)
        else:
            H = 2 * ((w * U.T) @ U + self.G)
        largest = float(H.abs().max()) + (0 if self._dense() else 4 * float(D.sum(0) @ at.Z.square().sum(1)) / len(H))
        self.mu = max(self.mu or 1e-4 * largest, (1e-7 if coarse else 1e-13) * largest)
        while self.mu < 1e9 * largest:
            L, failed = torch.linalg.cholesky_ex(H.diagonal_scatter(H.diagonal() + self.mu))  # of K = H + μI
            if not failed:
                solve = self._solver(L, D)
                d = solve(at.g)
                expected = (self.mu * float((d * d).sum()) - float((at.g * d).sum())) / 2
                # q_i changes by J_i d and by ‖d u_i‖², which H takes no note of in the weights. Where they are sharp f
                # is a curved valley, and the step must bend with it.
                yield solve, largest, expected, d + solve(outer(U, at.Z, D, (U @ d.T).square().sum(1)))
            self.mu *= 4

    def _solver(self, L: Tensor, D: Tensor) -> Callable[[Tensor], Tensor]:
        """x ↦ −K⁻¹ x, both (k, r), from the Cholesky factor L of K or, where pairs are few, of one of the k equal
        blocks of A: K = A + Jᵀ C J, and K⁻¹ = A⁻¹ − A⁻¹ Jᵀ (I + C J A⁻¹ Jᵀ)⁻¹ C J A⁻¹ (Woodbury), J of the `PAIRS`
        heaviest at most.
        """
        if self._dense():
            inverse, free = torch.cholesky_inverse(L), self.free
            return lambda x: torch.zeros_like(x).masked_scatter_(free, -(inverse @ x[free].to(L)).to(x))
        heavy = D.sum(0).topk(min(PAIRS, len(self.U)))[1].sort()[0]  # by the others K is only larger
        U, Z, D = self.U[heavy], self._at.Z[heavy], D[:, heavy]
        delta = D[0] - D[1]
        C = torch.diag(D.sum(0)) - delta[:, None] * delta / D.sum()
        inner = torch.linalg.lu_factor(
            torch.eye(len(U)).to(C) + C @ (4 * (Z @ Z.T) * (U @ torch.cholesky_solve(U.T, L)))
        )

        def solve(x: Tensor) -> Tensor:
            y = torch.cholesky_solve(x.T, L).T
            v = torch.linalg.lu_solve(*inner, (C @ (2 * (Z * (U @ y.T)).sum(1)))[:, None])[:, 0]
            return torch.cholesky_solve((2 * (v * Z.T) @ U).T, L).T - y

        return solve

    def _accept(self, d: Tensor, expected: float, easily: bool) -> bool:
        """Go to M + d if that lowers f, over what matters there, or where rounding hides it, ‖∇f‖; say whether."""
        M = self.M + d
        if weigh(self.U, M, self.tau, self.G).f > self.f + NOISE:  # more pairs would only add to it
            return False
        there = self._look(M)
        gained, seen = self.f - there[-1].f, expected > SEEN
        if gained < 1e-3 * expected if seen else float(there[-1].g.norm()) > 0.5 * self.gradient_norm:
            return False
        self._take(M, *there)
        if not seen or gained > 0.7 * expected:
            self.mu /= (8 if seen else 64) if easily else 1
        elif gained < 0.25 * expected:
            self.mu *= 4
        return True

    def _walk(self, solve: Callable[[Tensor], Tensor]) -> None:
        """A heavy ball in the metric of K, on those that mattered at its start, and those by which f turned out to have
        risen where it got to. A step that would raise f is not taken, stops it and halves the rate.
        """
        start, rate, velocity, some, U = self.f, 0.2, torch.zeros_like(self.M), self.ends, self.U
        for _ in range(0, WALK, LOOK):
            M, at = self.M, weigh(U, self.M, self.tau, self.G)
            for _ in range(LOOK):
                velocity = MOMENTUM * velocity + rate * solve(at.g)
                ahead = weigh(U, M + velocity, self.tau, self.G)
                if ahead.f < at.f:
                    M, at, rate = M + velocity, ahead, min(1.0, 1.02 * rate)
                else:
                    velocity, rate = torch.zeros_like(M), rate / 2
            before, there = self.f, self._look(M)
            if there[-1].f < before:
                self._take(M, *there)
            if before - there[-1].f < 0.7 * (before - at.f):
                some = tuple(torch.stack([torch.cat(x) for x in zip(some, there[0], strict=True)]).unique(dim=1))
                U, velocity = self.problem.subset(*some).units(), torch.zeros_like(M)
            elif before - self.f <= 0.05 * (start - self.f):
                return

    def _escape(self) -> bool:
        """Step along the most negative curvature, if there is one; whether there is."""
        at, g = self._at, self._at.g
        if self._dense():
            everything = torch.ones_like(g, dtype=torch.bool)
            H = hessian(self.U, at.Z, self.tau * at.p, at.p[0] - at.p[1], self.G, everything, 0.0)
            H.diagonal().add_(1e-10 * float(H.abs().max()))
            if not torch.linalg.cholesky_ex(H)[1]:
                return False
        v = _lowest(self.U, at, self.tau, self.G, 1e-4)[1]
        curvature = float((v * product(self.U, at, self.tau, self.G, v)).sum())
        if curvature > -1e-6:
            return False
        v = -v if float((g * v).sum()) > 0 else v
        length = max(1.0, float(self.M.norm()))
        for _ in range(40):
            there = self._look(self.M + length * v)
            if there[-1].f < self.f + 0.1 * curvature * length**2:
                self._take(self.M + length * v, *there)
                self.escapes += 1
                return True
            length /= 2
        return False


def _lowest(U: Tensor, at: At, tau: float, G: Tensor, tolerance: float) -> tuple[float, Tensor]:
    """A bound on the lowest eigenvalue of ∇²f, and an approximate eigenvector (k, r), by Lanczos."""

    def times(v: np.ndarray) -> np.ndarray:
        return product(U, at, tau, G, torch.from_numpy(v).to(at.g).view_as(at.g)).cpu().numpy().ravel()

    least, v = lanczos(times, np.random.default_rng(0).standard_normal(at.g.numel()), tolerance)
    return least, torch.from_numpy(v()).to(at.g).view_as(at.g)


def certificate(problem: Problem, M: Tensor, tau: float, lam: float, rho: float, ridge: float = 0.0) -> Certificate:
    """Certificate of f = F_τ + λ ‖σI‖²_F + ridge E‖A‖²_F over M and ‖σI‖_F at σ = 0; λ_min is proven where it fits.

    τ (Jᵀ diag(p) J − ∇F ∇Fᵀ) is positive semidefinite, as |w| ≤ p: so λ_min ≥ −2 Σ |w| ≥ −2 tanh(τ · distortion), which
    is enough where hardly any distortion is left. Else ∇²f + εI, of the pairs that weigh at least e^−50 of the
    heaviest, has a Cholesky factor: λ_min ≥ −ε. Above `DENSE` variables: Lanczos (pgd.py), which is no proof.

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
    worst = exact_distortion(small, M)
    cheap = 2 * tanh(tau * worst) <= threshold
    cheap |= small.N > CERTIFIABLE and 50 / tau >= worst  # all would matter: the tanh has to do
    few = small.subset(*strongest(small, M, torch.abs, 10**4 if cheap else 10**9, 50 / tau)[0])
    U = few.units()
    at = weigh(U, M, tau, G)
    # By differences, if all that matter are there; of all, distances are less exact where points are near.
    norm = float((bound_gradient(small, M, s, tau)[1] + 2 * M @ G if cheap else at.g).norm())
    least = -2 * tanh(tau * worst) if cheap else _proven(U, at, tau, G, threshold)
    of_q = (at.p[0] - at.p[1]).sum() * k + 2 * tau * (at.p.sum(0) @ at.Z.square().sum(1))
    curvature = 2 * (lam + ridge) + 2 / (k * problem.d) * float(of_q)
    known, radius = (norm, min(least, curvature), least), min(1e-3, 0.1 / tau)
    for x in (M, s):
        x.requires_grad_()
    return certify(lambda: bound(few, M, s, tau) + lam * s.square(), [M, s], s, M, lam, rho, radius=radius, known=known)


def _proven(U: Tensor, at: At, tau: float, G: Tensor, threshold: float) -> float:
    """A lower bound on the eigenvalues of ∇²f."""
    if at.g.numel() > DENSE:
        return _lowest(U, at, tau, G, threshold / 4)[0]
    everything = torch.ones_like(at.g, dtype=torch.bool)  # what is left out is no less than 0
    H = hessian(U, at.Z, tau * at.p, at.p[0] - at.p[1], G, everything, 1e-12)
    epsilon = rounding = (1e-14 * len(H) + 4e-16 * tau) * float(H.abs().max())  # what it may hide, in H and in weights
    while epsilon < threshold:
        if not torch.linalg.cholesky_ex(H.diagonal_scatter(H.diagonal() + epsilon))[1]:
            return -epsilon
        epsilon *= 10
    return float(eigh(H.cpu().numpy(), subset_by_index=(0, 0), eigvals_only=True)[0]) - rounding
