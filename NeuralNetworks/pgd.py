"""Perturbed gradient descent (PGD) and the certificate of a second-order stationary point (SOSP).

Each experiment's folder has this file, the same to the byte, so that it runs on its own; a test compares them.

A rho-SOSP of f is a point with ‖∇f‖ ≤ rho and λ_min(∇²f) ≥ −√(K rho), K the Lipschitz constant of the Hessian
(Definition 2.2). PGD finds one; `certify` measures whether a given point is one, and what the lemma makes of it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import hypot, inf, log, sqrt

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal
from scipy.linalg import norm as length_of  # of squares that would underflow too, unlike numpy's
from scipy.special import betaincinv
from torch import Tensor


class PGD(torch.optim.Optimizer):
    """Perturbed gradient descent, Algorithm 1 of the paper (Jin et al. 2017), as a PyTorch optimizer.

    Gradient descent; where ‖∇f‖ ≤ rho it remembers the point and kicks it, uniformly in a ball. If `patience` steps
    later f has not fallen by `f_decrease`, no direction leads down: it returns to the remembered point and sets
    `converged`. That is all at momentum 0; momentum adds Polyak's heavy ball, which Algorithm 1 has not. With
    `objective` it is Hessian descent (Algorithm 2): no kick, but a step of length `radius` along the most negative
    curvature, and `converged` where λ_min(∇²f) ≥ −`curvature`.

        pgd = PGD([W, b], lr=0.1, rho=1e-6, radius=1e-2)
        while not pgd.converged:
            pgd.step(closure)  # clears the gradients, calls backward(), returns f

    Args:
        params: tensors to optimize; one group only.
        lr: step size, > 0.
        rho: gradient norm under which a point counts as stationary, ≥ 0; at 0 the rule sleeps (no kick, no stop).
        radius: radius of the ball, ≥ 0, or length of the curvature step, > 0.
        momentum: heavy-ball factor in [0, 1).
        patience: steps after a kick before f is compared, ≥ 1.
        f_decrease: fall of f that counts as an escape; default √(rho³/K), the order in Jin et al.
        objective: f as a function without arguments, twice differentiable in params; chooses Algorithm 2.
        curvature: how far below 0 Algorithm 2 takes λ_min for flat, > 0; default √(K rho).
        K: Lipschitz constant of the Hessian that the defaults of f_decrease and curvature take.
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
        curvature: float | None = None,
        K: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr is {lr}; it must be positive")
        if not (rho >= 0 and radius >= 0):
            raise ValueError(f"rho is {rho} and radius is {radius}; neither may be negative")
        if objective is not None and not radius > 0:
            raise ValueError("radius is 0; Algorithm 2's steps along negative curvature are of that length")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        if patience < 1:
            raise ValueError(f"patience is {patience}; it must be at least 1")
        super().__init__(params, dict(lr=lr, rho=rho, momentum=momentum))
        self.radius, self.patience, self.f_decrease = radius, patience, f_decrease
        self.objective, self.curvature, self.K, self.generator = objective, curvature, K, generator
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
        if self.kicks_at(self.gradient_norm):
            if self.objective:
                threshold = sqrt(self.K * group["rho"]) if self.curvature is None else self.curvature
                least, direction = lambda_min(self.objective, params, accuracy=threshold / 4)
                if least >= -threshold:
                    self.converged = True
                    return f
                self._curvature_step(direction())
            else:
                self._x, self._f, self._t_noise = [x.clone() for x in params], _value(f), self._t
                self.perturb()
            f = self._evaluate(closure)  # the gradient at the perturbed point
        elif self._t - self._t_noise == self.patience and group["rho"] > 0:
            f_decrease = sqrt(group["rho"] ** 3 / self.K) if self.f_decrease is None else self.f_decrease
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

    def kicks_at(self, gradient_norm: float) -> bool:
        """Whether the next step, where ‖∇f‖ is that, kicks; of Algorithm 2, whether it looks at the curvature."""
        waited = self.objective is not None or self._t - self._t_noise > self.patience
        return waited and gradient_norm <= self.param_groups[0]["rho"] > 0

    @torch.no_grad()
    def perturb(self) -> None:
        """Kick: add to the parameters, as one vector, a point drawn uniformly from the ball of radius `radius`."""
        params = self.param_groups[0]["params"]
        noise = [torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device) for x in params]
        uniform = torch.rand((), generator=self.generator, dtype=params[0].dtype, device=params[0].device)
        n = sum(x.numel() for x in params)
        scale = self.radius * uniform ** (1 / n) / norm(noise)
        for x, z in zip(params, noise, strict=True):
            x += scale * z
        self.perturbations += self.radius > 0

    def _curvature_step(self, direction: list[Tensor]) -> None:
        params = self.param_groups[0]["params"]
        slope = sum(float((u * x.grad).sum()) for x, u in zip(params, direction, strict=True) if x.grad is not None)
        for x, u in zip(params, direction, strict=True):
            x += (-self.radius if slope > 0 else self.radius) * u
        self.perturbations += 1

    def _evaluate(self, closure: Callable[[], Tensor | Callable[[], float]]) -> Tensor | Callable[[], float]:
        with torch.enable_grad():
            f = closure()
        self.gradient_norm = norm([x.grad for x in self.param_groups[0]["params"] if x.grad is not None])
        return f


FAILURE = 1e-6
"""probability, over Lanczos' random start, that an eigenvalue lies below the λ_min that is given"""
REMEMBERED = 2**26
"""numbers that Lanczos keeps of its vectors, half a gigabyte"""
MOST_PRODUCTS = 5000


def lambda_min(
    objective: Callable[[], Tensor], params: Sequence[Tensor], accuracy: float = inf, seed: int = 0
) -> tuple[float, Callable[[], list[Tensor]]]:
    """A lower bound on the eigenvalues of ∇²f over all of `params` as one vector, and the direction nearest to it.

    Lanczos on Hessian-vector products; the Hessian is not formed, but for up to 20 variables, where it takes no more
    products and the bound is the eigenvalue, less rounding errors. A Ritz value lies above λ_min, and no number of
    them proves that nothing lies below: a random start can miss an eigenvector. How likely that is, the run itself
    tells (`lanczos`): the bound fails with probability `FAILURE`. It is evidence, no proof.

    Args:
        objective: f as a function without arguments, twice differentiable in params; its value is not looked at.
        params: tensors that require gradients.
        accuracy: how far, in f's unit, the bound may lie below the least Ritz value, as far as the precision of params
            allows; by default 10⁻⁴ of the largest ‖H v‖ seen.
        seed: of Lanczos' start vector.

    Returns:
        The bound, and a function that computes the unit Ritz vector in the shapes of `params`.

    Raises:
        FloatingPointError: a product overflows, or would when it is squared.
    """
    product, unflatten, n = _hessian(objective, params)
    finest = 1e-12 if all(x.dtype == torch.float64 for x in params) else 1e-6
    if n <= 20:
        values, vectors = np.linalg.eigh([product(v) for v in np.eye(n)])
        return float(values[0] - finest * np.abs(values).max()), lambda: unflatten(vectors[:, 0])
    start = np.random.default_rng(seed).standard_normal(n)
    bound, ritz_vector = lanczos(product, start, accuracy, finest)
    return bound, lambda: unflatten(ritz_vector())


def lanczos(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, accuracy: float, finest: float = 1e-12
) -> tuple[float, Callable[[], np.ndarray]]:
    """A lower bound on the spectrum of a symmetric H, by Lanczos from a start that is uniform in direction.

    Let p_j be the orthonormal polynomials of the run, q_j = p_j(H) q_0 its vectors. For a unit eigenvector u of the
    eigenvalue λ, Σ_j p_j(λ)² (u·q_0)² = Σ_j (u·q_j)² ≤ 1. Below the least Ritz value θ the sum grows as λ falls: an
    eigenvalue below ℓ < θ needs a start with (u·q_0)² ≤ 1/Σ_j p_j(ℓ)², which has the probability that a Beta(½,
    (n − 1)/2) variable is so small. That is Kuczyński and Woźniakowski's (1992) event, measured after the run instead
    of bounded before it: 1.648 √n exp(−√ε (2j − 1)) for λ_min to within ε of the width, true for every H.

    Args:
        product: v ↦ H v.
        start: (n,) a sample of N(0, I).
        accuracy: stops where the bound is so near to θ; inf: 10⁻⁴ of the largest ‖H v‖ seen.
        finest: relative to the same, the accuracy that rounding allows.

    Returns:
        ℓ, that all eigenvalues exceed but for the probability `FAILURE`, and a function that computes θ's Ritz vector.
    """
    n = len(start)
    needed = -log(betaincinv(0.5, (n - 1) / 2, FAILURE))  # logarithm of Σ_j p_j(ℓ)²
    alpha, beta, look, scale = [], [], 5, 0.0
    for a, b, length, _ in _recurrence(product, start):
        alpha.append(a)
        beta.append(b)
        scale = max(scale, length)
        # all that the start can see is seen
        exhausted = b <= max(1e-14 * scale, 1e-290) or len(alpha) in (n, MOST_PRODUCTS)
        if exhausted or len(alpha) >= look:
            look = max(20, int(1.1 * len(alpha)) + 5)
            theta = eigvalsh_tridiagonal(alpha, beta[:-1])[0]
            gap = max(1e-4 * scale if accuracy == inf else accuracy, finest * scale)
            if exhausted or _log_growth(alpha, beta, theta - gap) >= needed:
                break
    low, high = 0.0, max(gap, 1e-250)
    while _log_growth(alpha, beta, theta - high) < needed:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _log_growth(alpha, beta, theta - middle) >= needed else (middle, high)

    def ritz_vector() -> np.ndarray:
        weights = eigh_tridiagonal(alpha, beta[:-1], select="i", select_range=(0, 0))[1][:, 0]
        u = sum(w * v for w, (*_, v) in zip(weights, _recurrence(product, start), strict=False))
        return u / np.linalg.norm(u)

    return float(theta - high), ritz_vector


def _recurrence(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> Iterator[tuple[float, float, float, np.ndarray]]:
    """Lanczos' α_j, β_j, ‖H v_j‖ and v_j, one after the other.

    As many v_j as `REMEMBERED` allows are kept; later ones stay orthogonal to these, and locally by the recurrence.
    """
    n = len(start)
    basis = np.empty((min(n, MOST_PRODUCTS, REMEMBERED // n), n))  # the system gives memory where it is written to
    v, before, beta = start / np.linalg.norm(start), np.zeros(n), 0.0
    for j in range(MOST_PRODUCTS):
        basis[j : j + 1] = v  # nothing, once it is full
        rest = product(v)
        alpha, length = v @ rest, length_of(rest)
        rest -= alpha * v  # in place, as a vector may take a tenth of a gigabyte
        rest -= beta * before
        rest -= basis[: j + 1].T @ (basis[: j + 1] @ rest)
        beta = max(length_of(rest), 1e-290)
        yield alpha, beta, length, v
        before, v = v, rest / beta


def _log_growth(alpha: Sequence[float], beta: Sequence[float], x: float) -> float:
    """log Σ_j p_j(x)², j = 0, …, len(alpha), of the orthonormal polynomials with this recurrence."""
    before, p, total, scale = 0.0, 1.0, 1.0, 0.0
    for j, (a, b) in enumerate(zip(alpha, beta, strict=True)):
        before, p = p, ((x - a) * p - (beta[j - 1] * before if j else 0.0)) / b
        if not abs(p) < 1e150:  # an invariant subspace
            return inf
        total += p * p
        if total > 1e50:
            shrink, scale = 1 / sqrt(total), scale + log(total)
            before, p, total = before * shrink, p * shrink, 1.0
    return scale + log(total)


def _hessian(
    objective: Callable[[], Tensor], params: Sequence[Tensor]
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], list[Tensor]], int]:
    """v ↦ ∇²f v on flat float64 vectors, what brings such a vector into the shapes of params, and its length."""
    with torch.enable_grad():
        gradient = torch.autograd.grad(objective(), params, create_graph=True, materialize_grads=True)
    sizes = [x.numel() for x in params]

    def unflatten(v: np.ndarray) -> list[Tensor]:
        parts = torch.as_tensor(v).split(sizes)
        return [part.view(x.shape).to(x) for part, x in zip(parts, params, strict=True)]

    @torch.enable_grad()
    def product(v: np.ndarray) -> np.ndarray:
        slope = sum((g * u).sum() for g, u in zip(gradient, unflatten(v), strict=True))
        if not slope.requires_grad:  # f is linear
            return np.zeros(v.size)
        Hv = torch.autograd.grad(slope, params, retain_graph=True, materialize_grads=True)
        Hv = torch.cat([h.detach().reshape(-1) for h in Hv]).double().cpu().numpy()
        if not np.abs(Hv).max() < 1e150:  # or it is nan
            raise FloatingPointError("the Hessian overflows")
        return Hv

    return product, unflatten, sum(sizes)


@torch.no_grad()
def lipschitz(objective: Callable[[], Tensor], params: Sequence[Tensor], radius: float, rounds: int = 5) -> float:
    """An estimate of K from below: the largest ‖(∇²f(x + ru) − ∇²f(x − ru)) u‖ / 2r found over unit vectors u.

    K, the Lipschitz constant of the Hessian, bounds every such quotient, here and everywhere else. u follows the power
    iteration for the third derivative, which the difference quotient stands for.

    Args:
        objective, params: as in `lambda_min`; params are moved and put back.
        radius: r > 0, in the parameters' unit.
        rounds: of the power iteration.
    """
    at, u = [x.clone() for x in params], np.random.default_rng(0).standard_normal(sum(x.numel() for x in params))
    largest = 0.0
    u /= np.linalg.norm(u)
    try:
        for _ in range(rounds):
            products = []
            for r in (radius, -radius):
                for x, x0, part in zip(params, at, torch.from_numpy(u).split([x.numel() for x in params]), strict=True):
                    x.copy_(x0 + r * part.view(x.shape).to(x))
                products.append(_hessian(objective, params)[0](u))
            u = products[0] - products[1]
            length = length_of(u)
            if not length > 1e-290:
                break
            largest, u = max(largest, length / (2 * radius)), u / length
    finally:
        for x, x0 in zip(params, at, strict=True):
            x.copy_(x0)
    return largest


@dataclass(frozen=True)
class Certificate:
    """What was measured where a run ended; see `certify`. All dimensionless."""

    gradient_norm: float
    """‖∇f‖ over all parameters"""
    gradient_error: float
    """how far ∇f, as it was computed, may be from that of the f that is meant; 0 for a closed form"""
    lambda_min: float
    """below all eigenvalues of the Hessian over all parameters, but for a probability of `FAILURE`"""
    w_norm: float
    """‖W‖_F"""
    w_norm_bound: float | None
    """(‖∇_W f‖ + its error) / (2 lam + λ_min(∇²_b E[g])), the identity in the lemma's proof, at any point;
    None where the denominator is not positive, or so small that a rule's errors make the bound less than ‖W‖"""
    lemma_bound: float | None
    """rho / (2 lam − √(K_estimate rho)), Lemma 3.1's own bound on ‖W‖ at a rho-SOSP, with rho + gradient_error for rho,
    and −λ_min for the root where it is more; None where it says nothing, and where b is not among the parameters"""
    K_estimate: float
    """estimate of the Hessian's Lipschitz constant from below, see `lipschitz`"""
    rho: float
    """the gradient norm that the run was asked to reach"""
    lam: float
    """factor of ‖W‖²_F in f"""
    is_sosp: bool
    """whether ‖∇f‖ ≤ rho, known to rho/10, and λ_min ≥ −min(√(K rho), lam); −√(K rho) at lam = 0, which is no unit"""

    def __str__(self) -> str:
        bounds = "no bound" if self.w_norm_bound is None else f"≤ {self.w_norm_bound:.1e} by Stein's identity"
        lemma = f"says ≤ {self.lemma_bound:.1e}" if self.lemma_bound is not None and self.is_sosp else "is silent"
        error = f" ± {self.gradient_error:.0e}" if self.gradient_error else ""
        gradient = f"‖∇f‖ = {self.gradient_norm:.1e}{error} (rho {self.rho:.0e})"
        share = f" ({self.lambda_min / (2 * self.lam):.1%} of 2λ)" if self.lam else ""
        return (
            f"{'SOSP' if self.is_sosp else 'not an SOSP'}: {gradient}, "
            f"λ_min ≥ {self.lambda_min:.1e}{share}, "
            f"‖W‖ = {self.w_norm:.1e} ({bounds}; Lemma 3.1 with K ≈ {self.K_estimate:.0e} {lemma})"
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
    gradient_error: float = 0.0,
    slope_error: float | None = None,
    radius: float = 1e-3,
    known: tuple[float, float, float] | None = None,
) -> Certificate:
    """Certificate of f = E[g(W x + b)] + lam ‖W‖²_F at the present parameters.

    The proof of Lemma 3.1 reads ∇_W f = (H + 2 lam I) W with H = ∇²_b E[g] (Stein's lemma), so that
    ‖W‖_F ≤ ‖∇_W f‖_F / (2 lam + λ_min(H)): measured, this bound needs neither K nor an SOSP. Of an SOSP it is asked
    that λ_min ≥ −min(√(K rho), lam): then 2 lam + λ_min(H) ≥ lam, and the bound is finite, whatever K is.

    Args:
        objective: f as a function without arguments, twice differentiable in params; its value is not looked at.
        params: all parameters, W and b among them.
        W: the weights of the random part, b: the shifts that stand beside them.
        lam: factor of ‖W‖²_F in f.
        rho: gradient norm that counts as stationary.
        K: what Definition 2.2's threshold takes for the Lipschitz constant of the Hessian, 1 in the experiments: below
            the true one (`K_estimate`) it asks for more than the definition, above it lam takes over.
        project: the part of W that the lemma speaks of, where that is not the whole (linear, acts from the right).
        gradient_error: how far ∇f, as it is computed, may be from that of the f that is meant.
        slope_error: the same of project(∇_W f) alone; gradient_error if it is not known.
        radius: of `lipschitz`.
        known: ‖∇f‖, λ_min(∇²f) and λ_min(∇²_b f), where they are better known than by derivatives of `objective`.
    """
    with torch.enable_grad():
        gradients = torch.autograd.grad(objective(), [*params, W], materialize_grads=True)
    threshold, w_norm = min(sqrt(K * rho), lam or inf), float(project(W.detach()).norm())
    if known is None:
        gradient_norm = norm(gradients[:-1])
        # Lanczos takes long on wide spectra: it is exact only where an SOSP is claimed
        fine = (threshold / 4, (lam or threshold) / 4) if gradient_norm <= rho else (inf, inf)
        known = gradient_norm, lambda_min(objective, params, fine[0])[0], lambda_min(objective, [b], fine[1])[0]
    gradient_norm, smallest, of_b = known
    denominator = (2 * lam + of_b) * (1 - 1e-6)  # rounds the bound up
    slope = float(project(gradients[-1]).norm()) + (gradient_error if slope_error is None else slope_error)
    bound = slope / denominator if denominator > 0 else 0.0
    K_estimate = lipschitz(objective, params, radius)
    slack = 2 * lam - max(sqrt(K_estimate * rho), -smallest)  # an SOSP for this K may be none for the definition's
    return Certificate(
        gradient_norm=gradient_norm,
        gradient_error=gradient_error,
        lambda_min=smallest,
        w_norm=w_norm,
        w_norm_bound=bound if denominator > 0 and w_norm <= bound + 1e-12 else None,
        lemma_bound=(rho + gradient_error) / slack if slack > 0 and any(x is b for x in params) else None,
        K_estimate=K_estimate,
        rho=rho,
        lam=lam,
        is_sosp=gradient_norm <= rho and gradient_error <= rho / 10 and smallest >= -threshold,
    )


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all of them as one vector."""
    return hypot(*(float(torch.linalg.vector_norm(x)) for x in tensors))


def _value(f: Tensor | Callable[[], float]) -> float:
    return float(f() if callable(f) else f)
