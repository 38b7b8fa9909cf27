"""Perturbed gradient descent (PGD) and the certificate of a second-order stationary point (SOSP).

This file is the same to the byte in MAXCUT/, JohnsonLindenstrauss/ and NeuralNetworks/, so that each folder
runs on its own. Change all of them together; a test compares them.

A rho-SOSP of f is a point with ‖∇f‖ ≤ rho and λ_min(∇²f) ≥ −√(K rho), K the Lipschitz constant of the Hessian
(Definition 2.2). PGD finds one; `certify` proves that a given point is one, and evaluates the bound of Lemma 3.1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import hypot, inf, sqrt

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor


class PGD(torch.optim.Optimizer):
    """Perturbed gradient descent, Algorithm 1 of the paper (Jin et al. 2017), as a PyTorch optimizer.

    Gradient descent; where ‖∇f‖ ≤ rho it remembers the point and kicks it, uniformly in a ball. If `patience` steps
    later f has not fallen by `f_decrease`, no direction leads down: it returns to the remembered point and sets
    `converged`. With momentum it is perturbed accelerated descent (Jin, Netrapalli, Jordan 2018). With `objective`
    it is Hessian descent (Algorithm 2): no kick, but a step of length `radius` along the most negative curvature,
    and `converged` where λ_min(∇²f) ≥ −√(K rho).

        pgd = PGD([W, b], lr=0.1, rho=1e-6, radius=1e-2)
        while not pgd.converged:
            pgd.step(closure)  # clears the gradients, calls backward(), returns f

    Args:
        params: tensors to optimize; one group only.
        lr: step size, > 0.
        rho: gradient norm under which a point counts as stationary, ≥ 0; at 0 the rule sleeps (no kick, no stop).
        radius: radius of the ball, or length of the curvature step, ≥ 0.
        momentum: heavy-ball factor in [0, 1).
        patience: steps after a kick before f is compared, ≥ 1.
        f_decrease: fall of f that counts as an escape; default rho^1.5, the order in Jin et al. with K = 1.
        objective: f as a function without arguments, twice differentiable in params; chooses Algorithm 2.
        K: Lipschitz constant of the Hessian, for Algorithm 2's stopping rule.
        generator: source of the kicks' randomness.

    Attributes:
        gradient_norm: ‖∇f‖ over all parameters, at the last step.
        perturbations: number of kicks so far.
        converged: whether the stopping rule has fired; further steps leave the parameters alone.

    Raises:
        ValueError: an argument out of its range.
    """

    _OWN = ("gradient_norm", "perturbations", "converged", "_t", "_t_noise", "_x", "_f")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        rho: float,
        radius: float,
        momentum: float = 0.0,
        patience: int = 50,
        f_decrease: float | None = None,
        objective: Callable[[], Tensor] | None = None,
        K: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr is {lr}; it must be positive")
        if not (rho >= 0 and radius >= 0):
            raise ValueError(f"rho is {rho} and radius is {radius}; neither may be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1")
        super().__init__(params, dict(lr=lr, rho=rho, momentum=momentum))
        self.radius, self.patience, self.f_decrease = radius, patience, f_decrease
        self.objective, self.K, self.generator = objective, K, generator
        self.gradient_norm, self.perturbations, self.converged = float("nan"), 0, False
        self._t, self._t_noise, self._x, self._f = 0, -float("inf"), [], float("nan")

    def add_param_group(self, param_group: dict) -> None:
        """Take the one group there is. (PyTorch's own version imports its compiler, which takes two seconds.)"""
        if self.param_groups:
            raise ValueError("PGD takes one parameter group: ‖∇f‖ and the kick are over all parameters")
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        self.param_groups.append(self.defaults | param_group | {"params": params})

    def state_dict(self) -> dict[str, object]:
        """All that further steps depend on besides the parameters, the closure and the generator."""
        group = self.param_groups[0]
        return {
            "group": {name: value for name, value in group.items() if name != "params"},
            "velocity": [self.state[x].get("velocity") for x in group["params"]],
            "own": {name: getattr(self, name) for name in self._OWN},
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on where the PGD was whose `state_dict` this is."""
        self.param_groups[0].update(state_dict["group"])
        for x, velocity in zip(self.param_groups[0]["params"], state_dict["velocity"], strict=True):
            self.state[x] = {} if velocity is None else {"velocity": velocity.clone()}
        for name in self._OWN:
            setattr(self, name, state_dict["own"][name])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | Callable[[], float]]) -> Tensor | Callable[[], float]:
        """One iteration. `closure` clears the gradients, computes them anew, and returns f.

        Where f costs far more than ∇f, the closure may return a function that computes f instead: it is called
        only for the stopping rule, twice a kick. Returns what the closure returned.
        """
        group, params = self.param_groups[0], self.param_groups[0]["params"]
        f = self._evaluate(closure)
        if self.converged:
            return f
        waited = self._t - self._t_noise
        if self.gradient_norm <= group["rho"] > 0 and (self.objective or waited > self.patience):
            if self.objective:
                threshold = sqrt(self.K * group["rho"])
                curvature, direction = lambda_min(self.objective, params, accuracy=threshold / 10)
                if curvature >= -threshold:
                    self.converged = True
                    return f
                self._curvature_step(direction)
            else:
                self._x, self._f, self._t_noise = [x.clone() for x in params], _value(f), self._t
                self.perturb()
            f = self._evaluate(closure)  # the gradient at the perturbed point
        elif waited == self.patience:
            f_decrease = group["rho"] * sqrt(group["rho"]) if self.f_decrease is None else self.f_decrease
            if _value(f) - self._f > -f_decrease:
                for x, remembered in zip(params, self._x, strict=True):
                    x.copy_(remembered)
                self.converged = True
                return self._evaluate(closure)
        for x in params:
            if x.grad is not None:
                v = self.state[x].setdefault("velocity", torch.zeros_like(x))
                x += v.mul_(group["momentum"]).sub_(x.grad, alpha=group["lr"])
        self._t += 1
        return f

    @torch.no_grad()
    def perturb(self) -> None:
        """Kick: add to the parameters, as one vector, a point drawn uniformly from the ball of radius `radius`."""
        params = self.param_groups[0]["params"]
        noise = [torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device) for x in params]
        uniform = torch.rand((), generator=self.generator, dtype=params[0].dtype, device=params[0].device)
        n = sum(x.numel() for x in params)
        scale = self.radius * uniform ** (1 / n) / _norm(noise)
        for x, z in zip(params, noise, strict=True):
            x += scale * z
        self.perturbations += 1

    def _curvature_step(self, direction: list[Tensor]) -> None:
        params = self.param_groups[0]["params"]
        slope = sum(float((u * x.grad).sum()) for x, u in zip(params, direction, strict=True) if x.grad is not None)
        for x, u in zip(params, direction, strict=True):
            x += (-self.radius if slope > 0 else self.radius) * u
        self.perturbations += 1

    def _evaluate(self, closure: Callable[[], Tensor | Callable[[], float]]) -> Tensor | Callable[[], float]:
        with torch.enable_grad():
            f = closure()
        self.gradient_norm = _norm([x.grad for x in self.param_groups[0]["params"] if x.grad is not None])
        return f


def lambda_min(
    objective: Callable[[], Tensor], params: Sequence[Tensor], accuracy: float = inf, seed: int = 0
) -> tuple[float, list[Tensor]]:
    """Smallest eigenvalue of ∇²f over all of `params` as one vector, and its unit eigenvector.

    Lanczos (ARPACK) on Hessian-vector products; the Hessian is not formed, but for up to 20 variables, where it takes
    no more products. A Ritz value lies above the eigenvalue that it approximates, by at most the norm of its residual:
    the residual is subtracted, so the figure is cautious.

    Args:
        objective: f as a function without arguments, twice differentiable in params.
        params: tensors that require gradients.
        accuracy: absolute, in f's unit, as far as the precision of params allows; about 10⁻⁴ of the spectrum's width
            if that is better.
        seed: of Lanczos' start vector.

    Returns:
        λ_min, and the eigenvector in the shapes of `params`.

    Raises:
        FloatingPointError: a product overflows, or would when it is squared.
    """
    with torch.enable_grad():
        gradient = torch.autograd.grad(objective(), params, create_graph=True, materialize_grads=True)
    sizes = [x.numel() for x in params]

    def unflatten(v: np.ndarray) -> list[Tensor]:
        parts = torch.as_tensor(v).split(sizes)
        return [part.view(x.shape).to(x) for part, x in zip(parts, params, strict=True)]

    @torch.enable_grad()
    def product(v: np.ndarray) -> np.ndarray:
        slope = sum((g * u).sum() for g, u in zip(gradient, unflatten(v.ravel()), strict=True))
        if not slope.requires_grad:  # f is linear
            return np.zeros(v.size)
        Hv = torch.autograd.grad(slope, params, retain_graph=True, materialize_grads=True)
        Hv = torch.cat([h.detach().reshape(-1) for h in Hv]).double().cpu().numpy()
        if not np.abs(Hv).max() < 1e150:  # or it is nan
            raise FloatingPointError("the Hessian overflows")
        return Hv

    n = sum(sizes)
    if n <= 20:
        values, vectors = np.linalg.eigh([product(v) for v in np.eye(n)])
        return float(values[0]), unflatten(vectors[:, 0])
    start = np.random.default_rng(seed).standard_normal(n)
    if not product(start).any():  # H = 0, on which ARPACK gives up
        return 0.0, unflatten(start / np.linalg.norm(start))
    # Few vectors can settle on the second eigenvalue where the first is alone; many fill the memory where n is large.
    ncv = min(n, 40) if n < 10**6 else 20
    hessian = LinearOperator((n, n), matvec=product, dtype=np.float64)
    # ARPACK's accuracy is relative to the eigenvalue sought; the shift makes that the width of the spectrum, not 0.
    width = abs(eigsh(hessian, k=1, which="LM", v0=start, tol=0.1, return_eigenvectors=False)[0])
    shift = 1.5 * width
    shifted = LinearOperator((n, n), matvec=lambda v: product(v) - shift * v, dtype=np.float64)
    finest = 1e-9 if all(x.dtype == torch.float64 for x in params) else 1e-6
    tol = max(finest, min(1e-4, accuracy / (2.5 * width)))  # relative to what is sought, up to shift + width
    _, u = eigsh(shifted, k=1, which="LM", v0=start, tol=tol, ncv=ncv)
    u = u[:, 0]
    Hu = product(u)
    ritz = u @ Hu
    return float(ritz - np.linalg.norm(Hu - ritz * u)), unflatten(u)


@dataclass(frozen=True)
class Certificate:
    """What was measured where a run ended; see `certify`. All dimensionless."""

    gradient_norm: float
    """‖∇f‖ over all parameters"""
    lambda_min: float
    """smallest eigenvalue of the Hessian over all parameters"""
    w_norm: float
    """‖W‖_F"""
    w_norm_bound: float | None
    """the bound of Lemma 3.1 on ‖W‖_F; None where 2 lam + λ_min(∇²_b E[g]) is not positive, so that it says nothing"""
    rho: float
    """the gradient norm that the run was asked to reach"""
    is_sosp: bool
    """whether ‖∇f‖ ≤ rho and λ_min ≥ −√(K rho)"""

    def __str__(self) -> str:
        bound = "no bound" if self.w_norm_bound is None else f"≤ {self.w_norm_bound:.1e} by the lemma"
        return (
            f"{'SOSP' if self.is_sosp else 'not an SOSP'}: ‖∇f‖ = {self.gradient_norm:.1e} (rho {self.rho:.0e}), "
            f"λ_min = {self.lambda_min:.1e}, ‖W‖ = {self.w_norm:.1e} ({bound})"
        )


def certify(
    objective: Callable[[], Tensor],
    params: Sequence[Tensor],
    W: Tensor,
    b: Tensor,
    lam: float,
    rho: float,
    K: float = 1.0,
    project: Callable[[Tensor], Tensor] = lambda W: W,
) -> Certificate:
    """Certificate of f = E[g(W x + b)] + lam ‖W‖²_F at the present parameters.

    The proof of Lemma 3.1 reads ∇_W f = (H + 2 lam I) W with H = ∇²_b E[g] (Stein's lemma), so that
    ‖W‖_F ≤ ‖∇_W f‖_F / (2 lam + λ_min(H)): measured, this bound needs no K.

    Args:
        objective: f as a function without arguments, twice differentiable in params.
        params: all parameters, W and b among them.
        W: the weights of the random part, b: the shifts that stand beside them.
        lam: factor of ‖W‖²_F in f.
        rho: gradient norm that counts as stationary.
        K: Lipschitz constant of the Hessian.
        project: the part of W that the lemma speaks of, where that is not the whole (linear, acts from the right).
    """
    with torch.enable_grad():
        gradients = torch.autograd.grad(objective(), [*params, W], materialize_grads=True)
    gradient_norm, w_norm = _norm(gradients[:-1]), float(project(W.detach()).norm())
    threshold, stationary = sqrt(K * rho), gradient_norm <= rho
    accuracies = (threshold / 10, lam / 10) if stationary else (inf, inf)  # it takes long where the spectrum is wide
    smallest = lambda_min(objective, params, accuracies[0])[0]
    denominator = (2 * lam + lambda_min(objective, [b], accuracies[1])[0]) * (1 - 1e-6)  # rounds the bound up
    return Certificate(
        gradient_norm=gradient_norm,
        lambda_min=smallest,
        w_norm=w_norm,
        w_norm_bound=float(project(gradients[-1]).norm()) / denominator if denominator > 0 else None,
        rho=rho,
        is_sosp=stationary and smallest >= -threshold,
    )


def _norm(tensors: Sequence[Tensor]) -> float:
    return hypot(*(float(torch.linalg.vector_norm(x)) for x in tensors))


def _value(f: Tensor | Callable[[], float]) -> float:
    return float(f() if callable(f) else f)
