"""From a random projection to one deterministic matrix: PGD on the sampler's mean M and its σ (section 5.2).

f(M, σ) = objective(M, σ) + λ ‖σI‖²_F starts at the random projection itself, M = 0 and σ = 1/√k. The gradient in M is
exactly zero there, and remains so while σ shrinks and M = 0 turns into a saddle: hence the kick. F_τ is followed while
τ grows, as far as σ allows (it is finite for 2τσ² < 1). Once τ has arrived, f is fixed and PGD runs on to an SOSP,
where Lemma 3.1 says that σ = 0.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
import torch
from torch import Tensor

from experiment import Checkpoint, State, random_state, restore_random_state
from model import Pairs, Problem, bound, bound_gradient, distortion, log_moments, sampled, tail
from pgd import PGD, Certificate, certify

HISTORY = ("step", "distortion", "drawn_distortion", "sigma", "gradient_norm", "objective", "tau")
STAGE = 10
"""steps between two values of τ, two choices of the pairs that matter, and two snapshots"""
MARGIN = 25
"""pairs lighter than the heaviest by e^−MARGIN are left out while τ grows"""

FEW = 10**5
"""most pairs that are handled one by one instead of all in blocks, which would take too much memory"""
CERTIFIABLE = 10**6
"""most pairs that may still matter at the end: with more the run was stopped early, and λ_min would take minutes"""


@dataclass
class Result:
    """What `derandomize` ends with."""

    M: Tensor
    """(k, d) the projection"""
    distortion: float
    """worst distortion of M, max |‖M x‖² − 1|"""
    sigma: float
    """σ at the end; 1/√k at the start"""
    objective: float
    """f at the end; dimensionless"""
    certificate: Certificate | None
    """of the last f; None after Ctrl-C, with more than `CERTIFIABLE` pairs that still matter, and for the sampled
    objective, which has kinks and no exact gradient"""
    history: dict[str, np.ndarray]
    """snapshots: step, distortion (of M), drawn_distortion (of one draw of A, over the pairs that matter
    for M), sigma, gradient_norm, objective, tau"""
    kicks: list[int]
    """steps at which a perturbation struck"""
    steps: int
    interrupted: bool
    """whether Ctrl-C ended the run"""


class Monotone:
    """PGD's closure that never lets f rise, but for a kick.

    A step that raises f is undone, the step size divided by 1.5 and the velocity cleared; one that lowers f lets the
    step size grow by 2 %.

    Args:
        pgd: the optimizer.
        evaluate: returns f, and its gradients in PGD's parameters, at their present values.
    """

    def __init__(self, pgd: PGD, evaluate: Callable[[], tuple[float, list[Tensor]]]) -> None:
        self.pgd, self.evaluate, self.kicks = pgd, evaluate, -1
        self.params = pgd.param_groups[0]["params"]
        self.x, self.f, self.gradients = [x.clone() for x in self.params], inf, []

    def __call__(self) -> float:
        """f and the gradients at the present point, or at the one before, to which PGD then is taken back."""
        f, gradients = self.evaluate()
        if f <= self.f or self.kicks != self.pgd.perturbations or self.pgd.converged:
            self.x, self.f, self.gradients = [x.clone() for x in self.params], f, gradients
            self.kicks = self.pgd.perturbations
            self.pgd.param_groups[0]["lr"] *= 1.02
        else:
            self._return()
            self.pgd.param_groups[0]["lr"] /= 1.5
            for state in self.pgd.state.values():
                state["velocity"].zero_()
        for x, gradient in zip(self.params, self.gradients, strict=True):
            x.grad = gradient
        return self.f

    def state_dict(self) -> State:
        """All that further calls depend on besides PGD and its parameters."""
        return dict(kicks=self.kicks, x=self.x, f=self.f, gradients=self.gradients)

    def load_state_dict(self, state: State) -> None:
        """Go on where the closure was whose `state_dict` this is."""
        self.kicks, self.x, self.f, self.gradients = (state[name] for name in ("kicks", "x", "f", "gradients"))

    def f_changed(self) -> None:
        """f is another function from now on: value the point last reached by it."""
        ahead = [x.clone() for x in self.params]
        self._return()
        self.f, self.gradients = self.evaluate()
        for x, there in zip(self.params, ahead, strict=True):
            x.copy_(there)

    def _return(self) -> None:
        for x, last in zip(self.params, self.x, strict=True):
            x.copy_(last)


def row_space(problem: Problem) -> tuple[Problem, Tensor | None]:
    """The same problem with its n < d vectors or points in an orthonormal basis of their span: n columns, not d.

    Rows of A matter only on that span. Returns the problem, and the basis (d, n) or, where n ≥ d, None.
    """
    n, d = problem.X.shape
    if n >= d:
        return problem, None
    basis, coordinates = torch.linalg.qr(problem.X.T)
    small = copy.copy(problem)
    small.X = coordinates.T.contiguous()
    return small, basis


@torch.no_grad()
def derandomize(
    problem: Problem,
    k: int,
    *,
    objective: str = "bound",
    tau: float = 1e4,
    growth: float = 1.005,
    epsilon: float = 0.5,
    draws: int = 20,
    lam: float = 1e-3,
    steps: int = 5000,
    lr: float = 0.01,
    momentum: float = 0.97,
    rho: float = 1e-6,
    radius: float = 1e-2,
    patience: int = 50,
    generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float, float], None] = lambda step, distortion, sigma: None,
) -> Result:
    """PGD on f from the random projection M = 0, σ = 1/√k.

    Args:
        problem: what is to be preserved.
        k: rows of the projection.
        objective: "bound" (F_τ), "tail" (mean probability of a distortion above ε) or "sampled" (mean worst distortion
            of `draws` draws of A, the authors' way; steps of fixed size, as f is only estimated).
        tau: τ at the end.
        growth: factor by which τ grows, a step.
        epsilon: ε of the tail objective.
        draws: samples of A a step, of the sampled objective.
        lam: λ.
        steps: at most so many.
        lr: step size, the first one for the objectives that are exact.
        momentum, rho, radius, patience: see `PGD`.
        generator: of all randomness.
        checkpoint: keeps the state of the descent; a descent that it has is gone on with.
        progress: called at every snapshot.
    """
    small, basis = (problem, None) if objective == "sampled" else row_space(problem)
    few = small  # of pairs, those that matter
    M = small.X.new_zeros(k, small.X.shape[1])
    kd = k * problem.d
    scale = 1.0  # PGD works with t = ‖σI‖_F / scale, ‖σI‖_F = σ √(kd)
    t = M.new_tensor(sqrt(problem.d))  # σ = 1/√k
    pgd = PGD([M, t], lr=lr, rho=rho, radius=radius, momentum=momentum, patience=patience, generator=generator)

    def f(problem: Problem, M: Tensor, s: Tensor) -> Tensor:
        if objective == "bound":
            value = bound(problem, M, s, tau_t)
        elif objective == "tail":
            value = tail(problem, M, s, epsilon) / problem.N
        else:
            value = sampled(problem, M, s, draws, generator)
        return value + lam * s.square()

    def evaluate() -> tuple[float, list[Tensor]]:
        if objective == "bound":
            s = scale * t
            value, f_M, f_s = bound_gradient(few, M, s, tau_t)
            return value + lam * s.square().item(), [f_M, scale * (f_s + 2 * lam * s)]
        leaves = [x.clone().requires_grad_() for x in (M, t)]
        with torch.enable_grad():
            value = f(small, leaves[0], scale * leaves[1])
            return value.item(), list(torch.autograd.grad(value, leaves))

    def sampled_closure() -> float:
        value, (M.grad, t.grad) = evaluate()
        return value

    def sigma() -> float:
        return abs(t.item()) * scale / sqrt(kd)

    def variance() -> float:
        return (scale * t).square().item() / kd

    def point() -> tuple[Tensor, Tensor]:
        return M.clone(), scale * t

    descent = Monotone(pgd, evaluate)
    closure = sampled_closure if objective == "sampled" else descent
    kicks, interrupted, step, value = [0], False, 0, nan
    best, least_distortion = point(), inf
    history: dict[str, list[float]] = {name: [] for name in HISTORY}

    def snapshot() -> None:
        nonlocal best, least_distortion
        worst, spread = distortion(small, M), sigma()
        if worst <= least_distortion:
            best, least_distortion = point(), worst
        noise = torch.randn(M.shape, generator=generator, dtype=M.dtype, device=M.device)
        values = (step, worst, distortion(few, M + spread * noise), spread, pgd.gradient_norm, value, tau_t)
        for name, number in zip(HISTORY, values, strict=True):
            history[name].append(number)
        progress(step, worst, spread)

    def matter() -> Problem:
        if objective == "bound" and isinstance(small, Pairs):
            return heavy(small, M, scale * t, tau_t, history["distortion"][-1], MARGIN)
        return small

    def state() -> State:
        numbers = dict(step=step, value=value, tau=tau_t, scale=scale, kicks=kicks, history=history)
        tensors = dict(M=M, t=t, best=best, least=least_distortion, random=random_state(generator))
        return numbers | tensors | dict(pgd=pgd.state_dict(), descent=descent.state_dict())

    pgd.perturb()
    tau_t = tau if objective != "bound" else min(tau, 0.3 / variance())
    checkpoint, resumed_at = checkpoint or Checkpoint(), -1
    if (kept := checkpoint.resumed("descent")) is not None:
        step, value, tau_t, scale = (kept[name] for name in ("step", "value", "tau", "scale"))
        kicks, history, best, least_distortion = (kept[name] for name in ("kicks", "history", "best", "least"))
        M.copy_(kept["M"])
        t.copy_(kept["t"])
        pgd.load_state_dict(kept["pgd"])
        descent.load_state_dict(kept["descent"])
        restore_random_state(generator, kept["random"])
        few, resumed_at = matter(), step
    try:
        while step < steps and not pgd.converged:
            if step % STAGE == 0 and step != resumed_at:
                snapshot()
                raised = min(tau, tau_t * min(growth, 1e30) ** STAGE)  # which overflows beyond
                if raised * variance() < 0.3:
                    tau_t = raised
                few = matter()
                if objective == "bound" and scale == 1 and variance() * k < 0.1:
                    # All that is left to do for σ is to vanish: with the scale halfway to σ itself one step size suits
                    # t and M. (Before, it would make the barrier at 2τσ² = 1 too steep for M to leave the saddle.)
                    scale = kd**0.25
                    t /= scale
                    pgd.state.clear()
                    closure = descent = Monotone(pgd, evaluate)
                elif objective != "sampled":
                    descent.f_changed()
                checkpoint.keep("descent", state)
            pgd.param_groups[0]["rho"] = rho if tau_t == tau else 0  # while f changes the stopping rule sleeps
            value = pgd.step(closure)
            step += 1
            if pgd.perturbations > len(kicks):
                kicks.append(step)
        snapshot()
    except KeyboardInterrupt:
        interrupted = True
    M, s = point() if pgd.converged else best
    if objective == "bound" and not pgd.converged:
        # τ may have grown beyond what the best point allows.
        tau_t = min(tau_t, 0.3 * kd / max(s.square().item(), 1e-300))
    M = M if basis is None else M @ basis.T
    worst, certificate = distortion(problem, M), None
    few = (
        heavy(problem, M, s, tau_t, worst, 2 * MARGIN)
        if objective == "bound" and isinstance(problem, Pairs)
        else problem
    )
    if objective != "sampled" and not interrupted and few.N <= CERTIFIABLE:
        M, s = M.requires_grad_(), s.requires_grad_()
        certificate = certify(lambda: f(few, M, s), [M, s], s, M, lam, rho)
        M, s = M.detach(), s.detach()
    return Result(
        M=M,
        distortion=worst,
        sigma=abs(s.item()) / sqrt(kd),
        objective=f(few, M, s).item(),
        certificate=certificate,
        history={name: np.array(values) for name, values in history.items()},
        kicks=kicks,
        steps=step,
        interrupted=interrupted,
    )


def heavy(problem: Pairs, M: Tensor, s: Tensor, tau: float, worst: float, margin: float) -> Problem:
    """The pairs whose moments are within e^−margin of the heaviest, if they are few; else all.

    Args:
        problem, M, s, tau: as in `bound`.
        worst: worst distortion of M; 1 + worst or 1 − worst is therefore the q of some pair.
        margin: logarithm of the weight that may be left out.
    """
    variance = s.square().item() / (len(M) * problem.d)
    up, down = 1 - 2 * tau * variance, 1 + 2 * tau * variance
    if up <= 0:
        return problem
    above, below = log_moments(torch.tensor([1 + worst, 1 - worst], dtype=M.dtype), variance, tau, len(M))
    excess = float(above[0] - below[1])  # only one of the two need be there: the lighter
    least = worst - max((margin + max(excess, 0)) * up, (margin + max(-excess, 0)) * down) / tau
    if least <= 0:
        return problem
    few = problem.heavy(M, least)
    return few if few.N < min(problem.N / 8, FEW) else problem
