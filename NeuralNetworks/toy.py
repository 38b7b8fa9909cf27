"""The toy of figures 1 and 2: fit the constant 1 with ReLU³(w x + b), x ~ N(0, 1), at the price of λ w².

The target doesn't depend on x, so w should vanish. With b frozen at 0 it can't unless λ is large; with b trained it
does at the smallest λ. Exact throughout: the risk is 1 − 2 M₃ + M₆, M_k moments of a normal distribution cut off at 0.
"""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np
import torch
from torch import Tensor

from pgd import PGD

LAMBDAS = np.logspace(-6, 1, 29)
"""the λ of the figures"""
FIGURES = {"fig1_toy_frozen_bias": True, "fig2_toy_trained_bias": False}
"""whether b is frozen in them"""


def moments(w: Tensor, b: Tensor, k: int) -> list[Tensor]:
    """M₀ to M_k, k ≥ 1: M_j = E[ReLU(w x + b)^j], elementwise; twice differentiable, at w = 0 too for b ≠ 0.

    With s = |w|: M₀ = Φ(b/s), M₁ = b Φ(b/s) + s φ(b/s) and, by parts, M_j = b M_{j−1} + (j − 1) s² M_{j−2}.
    """
    s = (w.square() + 1e-60).sqrt()  # s³, in the second derivatives, must not underflow
    t = b / s
    P = torch.special.ndtr(t)
    M = [P, b * P + s * (-t * t / 2).exp() / sqrt(2 * pi)]
    for j in range(2, k + 1):
        M.append(b * M[j - 1] + (j - 1) * w.square() * M[j - 2])
    return M


def objective(w: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """f(w, b) = E[(1 − ReLU³(w x + b))²] + λ w², elementwise."""
    M = moments(w, b, 6)
    return 1 - 2 * M[3] + M[6] + lam * w.square()


def gradient(w: Tensor, b: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """∂f/∂w and ∂f/∂b, elementwise: ∂M_j/∂b = j M_{j−1}, and by Stein's lemma ∂M_j/∂w = j (j − 1) w M_{j−2}."""
    M = moments(w, b, 5)
    return (30 * M[4] - 12 * M[1] + 2 * lam) * w, 6 * (M[5] - M[2])


def global_minimizer(lam: float, frozen: bool) -> float:
    """|w*| at the global minimum of f, with b frozen at 0 or trained.

    Frozen: f = 1 − 2√(2/π) w³ + (15/2) w⁶ + λ w² for w ≥ 0, so that w* is 0 or a root of 45 w⁴ − 6√(2/π) w + 2λ.
    Trained: f ≥ 0 with equality at w = 0, b = 1, for every λ > 0.
    """
    if not frozen:
        return 0.0
    c = sqrt(2 / pi)
    roots = np.roots([45, 0, 0, -6 * c, 2 * lam])
    candidates = [0.0, *(r.real for r in roots if abs(r.imag) < 1e-9 and r.real > 0)]
    return min(candidates, key=lambda w: 1 - 2 * c * w**3 + 7.5 * w**6 + lam * w**2)


def descend(lams: np.ndarray, frozen: bool, seed: int = 0, steps: int = 20_000) -> np.ndarray:
    """|w| at the better of two PGD runs for each λ, from w = 0.05 and 0.5, and b = w if it is trained; shape of lams.

    All runs are one: the sum of their objectives is separable, and its SOSPs are theirs.
    """
    lam = torch.from_numpy(lams).expand(2, -1)
    w = torch.tensor([[0.05], [0.5]], dtype=torch.float64).expand_as(lam).clone()
    b = 0 * w if frozen else w.clone()

    def closure() -> Callable[[], Tensor]:
        w.grad, b.grad = gradient(w, b, lam)
        return lambda: objective(w, b, lam).sum()

    generator = torch.Generator().manual_seed(seed)
    pgd = PGD([w] if frozen else [w, b], lr=0.02, rho=1e-6, radius=1e-3, momentum=0.5, generator=generator)
    for _ in range(steps):
        pgd.step(closure)
        if pgd.converged:
            break
    best = objective(w, b, lam).argmin(0, keepdim=True)
    return w.abs().gather(0, best)[0].numpy()
