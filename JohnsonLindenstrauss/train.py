"""From a random projection to one deterministic matrix: PGD on the sampler's mean M and its σ (section 5.2).

f(M, σ) = objective(M, σ) + λ ‖σI‖²_F starts at the random projection itself, M = 0 and σ = 1/√k. The gradient in M is
exactly zero there, and remains so while σ shrinks and M = 0 turns into a saddle: hence the kick. F_τ is followed while
τ grows, as far as σ allows (it is finite for 2τσ² < 1). Once τ has arrived, f is fixed and PGD runs on to an SOSP,
where Lemma 3.1 says that σ = 0.

Algorithms 1 and 2 pure do nothing of that: f is F_τ at one τ from start to end, the largest that the random projection
allows, and PGD takes it as it is.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import Pairs, Problem, SomePairs, bound, bound_gradient, distortion, log_moments, sampled, tail
from pgd import PGD, Certificate, certify
from run import Descent, State

if TYPE_CHECKING:
    from main import Config

STAGE = 10
"""steps between two values of τ, two choices of the pairs that matter, and two snapshots"""
ROOM = 0.3
"""τσ² is kept below; at ½ F_τ is infinite"""
MARGIN = 25
"""pairs lighter than the heaviest by e^−MARGIN are left out while τ grows, by e^−2·MARGIN at the end"""
FEW = 10**5
"""most pairs that are handled one by one instead of all in blocks, which would take too much memory"""
CERTIFIABLE = 10**6
"""most pairs that may still matter at the end: with more the run was stopped early, and λ_min would take minutes"""


@dataclass
class Result:
    """What a `Derandomization` ends with."""

    M: Tensor
    """(k, d) the projection"""
    distortion: float
    """worst distortion of M, max |‖M x‖² − 1|"""
    sigma: float
    """σ at the end; 1/√k at the start"""
    tau: float
    """τ of the last f"""
    objective: float
    """f at the end; dimensionless"""
    certificate: Certificate | None
    """of the last f; None after Ctrl-C, with more than `CERTIFIABLE` pairs that still matter, and for the sampled
    objective, which has kinks and no exact gradient"""
    history: dict[str, np.ndarray]
    """snapshots, see `Derandomization.row`, and the kicks"""
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

    def state_dict(self) -> State:
        """All that further calls depend on besides PGD and its parameters."""
        return dict(kicks=self.kicks, x=self.x, f=self.f, gradients=self.gradients)

    def load_state_dict(self, state: State) -> None:
        """Go on where the closure was whose `state_dict` this is."""
        self.kicks, self.x, self.f, self.gradients = (state[name] for name in ("kicks", "x", "f", "gradients"))


class Derandomization(Descent):
    """PGD on f from the random projection M = 0, σ = 1/√k.

    PGD moves M, in the span of the data, and t = ‖σI‖_F / scale.

    Args:
        problem: what is to be preserved.
        config: the hyperparameters.
        generator: of all randomness.
    """

    def __init__(self, problem: Problem, config: "Config", generator: torch.Generator) -> None:
        self.problem, self.config, self.pure = problem, config, config.algorithm != "default"
        self.small, self.basis = (problem, None) if config.objective == "sampled" else row_space(problem)
        self.few = self.small  # of pairs, those that matter
        self.kd, self.scale, self.value = config.k * problem.d, 1.0, nan
        M = self.small.X.new_zeros(config.k, self.small.X.shape[1])
        t = M.new_tensor(sqrt(problem.d))  # σ = 1/√k
        pgd = PGD(
            [M, t],
            lr=config.lr,
            rho=config.rho,
            radius=config.radius,
            momentum=0 if self.pure else config.momentum,
            patience=config.patience,
            objective=self._of_params if config.algorithm == "2" else None,
            curvature=min(sqrt(config.rho), config.lam),  # what the certificate asks
            generator=generator,
        )
        super().__init__({"M": M, "t": t}, pgd, config.steps, generator)
        self.monotone = None if self.pure or config.objective == "sampled" else Monotone(pgd, self.evaluate)
        if self.pure:
            for x in (M, t):
                x.requires_grad_(config.algorithm == "2")
        else:
            pgd.perturb()
            self.kicks = [0]
        self.tau = min(config.tau, ROOM / self.variance) if config.objective == "bound" else config.tau
        self.best, self.least = self.point(), inf

    @property
    def variance(self) -> float:
        """σ²."""
        return (self.scale * self.params["t"]).square().item() / self.kd

    def point(self) -> tuple[Tensor, Tensor]:
        """M, in the span of the data, and ‖σI‖_F, as they are now."""
        return self.params["M"].detach().clone(), self.scale * self.params["t"].detach()

    def f(self, problem: Problem, M: Tensor, s: Tensor, tau: float) -> Tensor:
        """The objective at s = ‖σI‖_F, plus λ s²; twice differentiable, but for the sampled one."""
        if self.config.objective == "bound":
            value = bound(problem, M, s, tau)
        elif self.config.objective == "tail":
            value = tail(problem, M, s, self.config.epsilon) / problem.N
        else:
            value = sampled(problem, M, s, self.config.draws, self.generator)
        return value + self.config.lam * s.square()

    def _of_params(self) -> Tensor:
        return self.f(self.small, self.params["M"], self.scale * self.params["t"], self.tau)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, list[Tensor]]:
        """f over the pairs that matter, and its gradients in M and t."""
        M, t = self.params.values()
        if self.config.objective == "bound":
            s, lam = self.scale * t, self.config.lam
            value, f_M, f_s = bound_gradient(self.few, M, s, self.tau)
            return value + lam * s.square().item(), [f_M, self.scale * (f_s + 2 * lam * s)]
        leaves = [x.clone().requires_grad_() for x in (M, t)]
        with torch.enable_grad():
            value = self.f(self.small, leaves[0], self.scale * leaves[1], self.tau)
            return value.item(), list(torch.autograd.grad(value, leaves))

    def closure(self) -> float:
        """f, and its gradients where PGD takes them from: all there is to a step of the paper's algorithms."""
        value, (self.params["M"].grad, self.params["t"].grad) = self.evaluate()
        if not isfinite(value):
            raise FloatingPointError(f"f is {value} at step {self.t}")
        return value

    def step(self) -> None:
        """One step of PGD. But for the pure algorithms, its stopping rule sleeps while f changes."""
        if self.monotone is not None and self.t % STAGE == 0:
            self.next_stage()
        self.pgd.param_groups[0]["rho"] = self.config.rho if self.pure or self.tau == self.config.tau else 0
        self.value = self.pgd.step(self.monotone or self.closure)

    @torch.no_grad()
    def next_stage(self) -> None:
        """Raise τ if σ allows it, choose the pairs that matter, and, once σ has begun to vanish, rescale t."""
        config = self.config
        if config.objective == "bound":
            growth = config.growth or (1.05 if config.problem == "vectors" else 1.003)
            raised = min(config.tau, self.tau * growth**STAGE)
            if raised * self.variance < ROOM:
                self.tau = raised
            if isinstance(self.small, Pairs):
                worst = self.history["distortion"][-1]
                self.few = heavy(self.small, *self.point(), self.tau, worst, MARGIN)
            if self.scale == 1 and self.variance * config.k < 0.1:
                # All that is left to do for σ is to vanish: with the scale halfway to σ itself one step size suits t
                # and M. (Before, it would make the barrier at 2τσ² = 1 too steep for M to leave the saddle.)
                self.scale = self.kd**0.25
                self.params["t"] /= self.scale
                self.pgd.state.clear()
                self.monotone = Monotone(self.pgd, self.evaluate)
                return
        self.monotone.f_changed()

    def due(self) -> bool:
        """Whether a snapshot is due at time t."""
        return self.t % STAGE == 0

    @torch.no_grad()
    def row(self) -> dict[str, Any]:
        """Worst distortion of M, and of one draw of A over the pairs that matter for M; σ, ‖∇f‖, f, τ."""
        M, s = self.point()
        sigma = abs(s.item()) / sqrt(self.kd)
        noise = torch.randn(M.shape, generator=self.generator, dtype=M.dtype, device=M.device)
        return dict(
            step=self.t,
            distortion=distortion(self.small, M),
            drawn_distortion=distortion(self.few, M + sigma * noise),
            sigma=sigma,
            gradient_norm=self.pgd.gradient_norm,
            objective=self.value,
            tau=self.tau,
        )

    def snapshot(self) -> None:
        """Append a row to the history, and remember the best M so far."""
        super().snapshot()
        if self.history["distortion"][-1] <= self.least:
            self.best, self.least = self.point(), self.history["distortion"][-1]

    def says(self) -> str:
        """The latest snapshot, for the progress bar."""
        return f"distortion {self.history['distortion'][-1]:.4g}, σ {self.history['sigma'][-1]:.1e}"

    def state_dict(self) -> State:
        """All that further steps depend on."""
        few = (self.few.i, self.few.j, self.few.inverse) if isinstance(self.few, SomePairs) else None
        numbers = dict(tau=self.tau, scale=self.scale, value=self.value, best=self.best, least=self.least, few=few)
        return super().state_dict() | numbers | dict(monotone=self.monotone and self.monotone.state_dict())

    def load_state_dict(self, state: State) -> None:
        """Go on where the descent was whose `state_dict` this is."""
        super().load_state_dict(state)
        for name in ("tau", "scale", "value", "best", "least"):
            setattr(self, name, state[name])
        if state["few"] is not None:
            self.few = SomePairs(self.small.X, *state["few"])
        if self.monotone is not None:
            self.monotone.load_state_dict(state["monotone"])

    def end(self) -> tuple[Tensor, Tensor, float]:
        """Where the descent ended, as M (k, d), ‖σI‖_F and τ: the SOSP, or if none was reached the best M."""
        (M, s), tau = self.point() if self.pgd.converged else self.best, self.tau
        if self.config.objective == "bound" and not self.pgd.converged:
            tau = min(tau, ROOM * self.kd / max(s.square().item(), 1e-300))  # τ may have outgrown the best point
        return M if self.basis is None else M @ self.basis.T, s, tau

    def result(self) -> Result:
        """The matrix, and the certificate of f there."""
        config, (M, s, tau) = self.config, self.end()
        few, worst, certificate = self.problem, distortion(self.problem, M), None
        if config.objective == "bound" and isinstance(few, Pairs):
            few = heavy(few, M, s, tau, worst, 2 * MARGIN)
        if config.objective != "sampled" and not self.interrupted and few.N <= CERTIFIABLE:
            radius = min(1e-3, 0.1 * sqrt(self.kd / tau))  # F_τ is finite so far around s
            M.requires_grad_()
            s.requires_grad_()
            certificate = certify(lambda: self.f(few, M, s, tau), [M, s], s, M, config.lam, config.rho, radius=radius)
        M, s = M.detach(), s.detach()
        return Result(
            M=M,
            distortion=worst,
            sigma=abs(s.item()) / sqrt(self.kd),
            tau=tau,
            objective=self.f(few, M, s, tau).item(),
            certificate=certificate,
            history=self.arrays(),
            kicks=self.kicks,
            steps=self.t,
            interrupted=self.interrupted,
        )


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
