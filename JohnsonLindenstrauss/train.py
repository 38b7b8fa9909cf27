"""From a random projection to one deterministic matrix: PGD on the sampler's mean M and its σ (section 5.2).

f(M, σ) = objective(M, σ) + λ ‖σI‖²_F + ridge E‖A‖²_F starts at the random projection itself, M = 0 and σ = 1/√k. The
gradient in M is exactly zero there, and remains so while σ shrinks and M = 0 turns into a saddle: hence the kick. F_τ
is followed while τ grows, as far as σ allows (it is finite for 2τσ² < 1), on the pairs that weigh something, or a
sample of them. Once few are left σ is set to 0, and Newton's method (newton.py) follows the minimum as τ grows on, to
an SOSP of the last f. The ridge, 0 for the paper's problem, is for points that are not seen.

Algorithms 1 and 2 pure do nothing of that: f is F_τ at one τ from start to end, the largest that the random projection
allows, and PGD takes it as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import (
    Problem,
    bound,
    bound_gradient,
    distortion,
    distortions,
    exact_distortion,
    log_moments,
    metric,
    row_space,
    sampled,
    strongest,
    tail,
)
from newton import CERTIFIABLE, DENSE, Newton, certificate
from pgd import PGD, Certificate, certify
from run import Descent, State, perturbed, threads

if TYPE_CHECKING:
    from main import Config

STAGE = 10
"""steps between two values of τ and, of up to `WHOLE` pairs, two choices of those that matter and two snapshots"""
ROOM = 0.3
"""τσ² is kept below; at ½ F_τ is infinite"""
MARGIN = 25
"""pairs lighter than the heaviest by e^−MARGIN are left out while τ grows, by e^−2·MARGIN at the end"""
FEW = 10**5
"""most pairs that are handled one by one without being a sample"""
ANYWAY = 2**13
"""so many are few, whatever the number of all"""
WHOLE = 2**18
"""most pairs that are all handled at every step, in blocks"""
SAMPLE = 2 * 10**4
"""pairs that stand for all where these are more and too many matter; at least five for each variable"""
SWITCH = 300.0
"""τ from which Newton's method takes over once the pairs that matter are at most `PER_VARIABLE` for each variable"""
PER_VARIABLE = 2
STEPS = 150
"""steps of it after which it is given up: more than any run in the README takes"""
LARGE, CORES = 2000, torch.get_num_threads()
"""variables from which a step of it is work for more than one thread, and the threads that this process was given"""


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
    """of the last f; None after Ctrl-C, where memory runs out, where more than `CERTIFIABLE` pairs still matter at the
    end of a descent that is not Newton's, and for the sampled objective, which has kinks and no exact gradient"""
    history: dict[str, np.ndarray]
    """snapshots, see `Derandomization.row`, and kicks, the steps at which a perturbation struck"""
    steps: int
    cut_short: bool
    """whether Ctrl-C ended the descent"""
    interrupted: bool
    """whether it ended the descent, or what came after it"""


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

    _OWN = ("tau", "scale", "value", "best", "least", "escapes")

    def __init__(self, problem: Problem, config: "Config", generator: torch.Generator) -> None:
        self.problem, self.config, self.pure = problem, config, config.algorithm != "default"
        self.small, self.basis = (row_space if self.pure or config.objective == "sampled" else metric)(problem)
        # A changes with each coordinate of M by so much; ∇f over A itself is longer by at most the least one's inverse.
        self.lengths = self.basis.norm(dim=1)
        self.rho = config.rho * min(1.0, float(self.lengths.min()))
        self.few = self.small  # those that matter
        # Steps between looks at all: a stage, above `WHOLE` two, and from 3·10⁷ on one for every 10⁷.
        self.period = STAGE * max(1 + (problem.N > WHOLE), problem.N // 10**7)
        self.newton: Newton | None = None
        self.kd, self.scale, self.value, self.escapes = config.k * problem.d, 1.0, nan, 0
        free = config.problem == "pairs" and config.objective == "bound" and config.k < len(self.basis)
        self.growth = config.growth or (1.05 if config.problem == "vectors" else 1.003)
        self.ridge = (1e-4 if free and not self.pure else 0.0) if config.ridge is None else config.ridge
        self.lam = config.lam + self.ridge  # E‖A‖² = ‖M‖² + ‖σI‖²,
        self.G = self.ridge * self.basis @ self.basis.T  # and ridge ‖M‖² = tr M G Mᵀ in the coordinates that M moves in
        M = self.small.X.new_zeros(config.k, self.small.X.shape[1])
        t = M.new_tensor(sqrt(problem.d))  # σ = 1/√k
        pgd = perturbed([M, t], config, lambda: self.of(M, t), generator)
        super().__init__({"M": M, "t": t}, pgd, config.steps, generator)
        self.monotone = None if self.pure or config.objective == "sampled" else Monotone(pgd, self.evaluate)
        if self.pure:
            for x in (M, t):
                x.requires_grad_(config.algorithm == "2")
        else:
            pgd.perturb()
            self.kicks = [0] * pgd.perturbations
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
        """f at s = ‖σI‖_F, less ridge ‖M‖², of `tail` the mean; twice differentiable, but for the sampled objective."""
        if self.config.objective == "bound":
            value = bound(problem, M, s, tau)
        elif self.config.objective == "tail":
            value = tail(problem, M, s, self.config.epsilon) / problem.N
        else:
            value = sampled(problem, M, s, self.config.draws, self.generator)
        return value + self.lam * s.square()

    def of(self, M: Tensor, t: Tensor) -> Tensor:
        """f where PGD's parameters are these."""
        return self.f(self.small, M, self.scale * t, self.tau) + ((M @ self.G) * M).sum()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, list[Tensor]]:
        """f over the pairs that matter, and its gradients in M and t."""
        M, t = self.params.values()
        if self.config.objective == "bound":
            s, pull = self.scale * t, M @ self.G
            with threads(CORES if is_sample(self.few) else None):
                value, f_M, f_s = bound_gradient(self.few, M, s, self.tau)
            value += self.lam * s.square().item() + float((pull * M).sum())
            return value, [f_M + 2 * pull, self.scale * (f_s + 2 * self.lam * s)]
        leaves = [x.clone().requires_grad_() for x in (M, t)]
        with torch.enable_grad():
            value = self.of(*leaves)
        return value.item(), list(torch.autograd.grad(value, leaves))

    def closure(self) -> float:
        """f, and its gradients where PGD takes them from: all there is to a step of the paper's algorithms."""
        value, (self.params["M"].grad, self.params["t"].grad) = self.evaluate()
        if not isfinite(value):
            raise FloatingPointError(f"f is {value} at step {self.t}")
        return value

    def step(self) -> None:
        """One step of PGD or of Newton's method. But for the pure algorithms, PGD's rule sleeps while f changes."""
        if self.newton is None and not self.pure and self.config.objective == "bound" and self.t % STAGE == 0:
            self.next_stage()
        if self.pgd.converged:
            return
        if self.newton is not None:
            return self.newton_step()
        self.pgd.param_groups[0]["rho"] = self.rho if self.pure or self.tau == self.config.tau else 0
        self.value = self.pgd.step(self.monotone or self.closure)

    @torch.no_grad()
    def next_stage(self) -> None:
        """Raise τ if σ allows it; once σ has begun to vanish, rescale t; once few pairs matter, go on with Newton."""
        config = self.config
        raised = min(config.tau, self.tau * self.growth**STAGE)
        if raised * self.variance < ROOM:
            self.tau = raised
        if config.k >= len(self.basis) and not self.ridge and self.history["distortion"][-1] < 0.5:
            return self.isometry()
        if self.newtons_turn():
            self.newton = Newton(self.small, self.params["M"].clone(), self.tau, config.tau, self.G)
        elif self.scale == 1 and self.variance * config.k < 0.1:
            # All that is left to do for σ is to vanish: with the scale halfway to σ itself one step size suits t
            # and M. (Before, it would make the barrier at 2τσ² = 1 too steep for M to leave the saddle.)
            self.scale = self.kd**0.25
            for t in (self.params["t"], *self.pgd._x[1:]):  # as it is, and as PGD may go back to
                t /= self.scale
            self.pgd.state.clear()
            self.monotone = Monotone(self.pgd, self.evaluate)
        else:
            self.monotone.f_changed()

    def newtons_turn(self) -> bool:
        """Whether pairs that matter and variables are few enough for Newton's method, or pairs far fewer than these."""
        variables, pairs = self.params["M"].numel(), self.few.N
        few = pairs <= PER_VARIABLE * variables + ANYWAY // 2 and not is_sample(self.few)
        # A matrix has the fewer of both as sides; later at most `newton.PAIRS`.
        fits = variables <= DENSE or 4 * pairs < min(variables, 2 * DENSE)
        return few and fits and self.tau >= min(SWITCH, self.config.tau)

    def isometry(self) -> None:
        """End the descent where k ≥ r: there f is convex in MᵀM, and least where MᵀM is the identity on the span of
        the data, which keeps everything. That is what the descent goes to, and it is known without it.
        """
        V = row_space(self.problem)[1]
        self.params["M"].zero_()[: len(V)] = torch.linalg.lstsq(self.basis.T, V.T).solution.T
        self.params["t"].zero_()
        self.tau = self.config.tau
        self.value, gradient, _ = bound_gradient(self.small, *self.point(), self.tau)
        self.pgd.gradient_norm, self.pgd.converged = float(gradient.norm()), True

    @torch.no_grad()
    def newton_step(self) -> None:
        """One step of Newton's method, at σ = 0."""
        with threads(CORES if self.newton.M.numel() > LARGE else None):
            self.newton.step()
        self.tau, self.value = self.newton.tau, self.newton.f
        self.pgd.gradient_norm, self.pgd.converged = self.newton.gradient_norm, self.newton.converged
        self.pgd.perturbations += self.newton.escapes - self.escapes
        self.escapes = self.newton.escapes
        if self.newton.steps == STEPS:
            self.steps = self.t + 1

    @torch.no_grad()
    def look(self) -> float:
        """Look at all pairs or vectors: choose those that matter; returns the worst distortion of M."""
        if self.newton is not None:  # Ctrl-C may have come within a step of it
            self.params["M"].copy_(self.newton.M)
            self.params["t"].zero_()
            return self.newton.worst
        M, s = self.point()
        if self.pure or self.config.objective != "bound":
            return distortion(self.small, M)
        worst = self.history["distortion"][-1] if self.history else 1.0
        self.few, worst = matter(self.small, M, s, self.tau, worst, self.few, self.generator)
        return worst

    def due(self) -> bool:
        """Whether a snapshot is due at time t."""
        return self.newton is not None or self.t % self.period == 0

    @torch.no_grad()
    def row(self) -> dict[str, Any]:
        """Worst distortion of M, and of one draw of A (above `WHOLE` pairs: of those that matter); σ, ‖∇f‖, f, τ."""
        worst, (M, s) = self.look(), self.point()
        sigma, drawn = abs(s.item()) / sqrt(self.kd), worst
        if self.newton is None:  # rows of basis/lengths are orthonormal: σ Z basis is A's own noise in the data's span
            Z = torch.randn(M.shape, generator=self.generator, dtype=M.dtype, device=M.device) / self.lengths
            drawn = distortion(self.small if self.problem.N <= WHOLE else self.few, M + sigma * Z)
        found = dict(step=self.t, distortion=worst, drawn_distortion=drawn, sigma=sigma)
        return found | dict(gradient_norm=self.pgd.gradient_norm, objective=self.value, tau=self.tau)

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
        own = {name: getattr(self, name) for name in self._OWN}
        own |= dict(few=self.few.chosen, log_weight=self.few.log_weight)
        parts = {x: getattr(self, x) and getattr(self, x).state_dict() for x in ("monotone", "newton")}
        return super().state_dict() | own | parts

    def load_state_dict(self, state: State) -> None:
        """Go on where the descent was whose `state_dict` this is."""
        super().load_state_dict(state)
        for name in self._OWN:
            setattr(self, name, state[name])
        if state["few"] is not None:
            self.few = self.small.subset(*state["few"], log_weight=state["log_weight"])
        if state["newton"] is not None:
            self.newton = Newton(self.small, self.params["M"].clone(), self.tau, self.config.tau, self.G)
            self.newton.load_state_dict(state["newton"])
        if self.monotone is not None:
            self.monotone.load_state_dict(state["monotone"])

    def result(self) -> Result:
        """The matrix of the SOSP, or if none was reached the best one, and the certificate of f there."""
        config, tau, proof, cut_short = self.config, self.tau, None, self.interrupted
        M, s = self.point() if self.pgd.converged else self.best
        if config.objective == "bound" and not self.pgd.converged:
            tau = min(tau, ROOM * self.kd / max(s.square().item(), 1e-300))  # τ may have outgrown the best point

        def f() -> Tensor:
            return self.f(few, M, s, tau) + self.ridge * M.square().sum()

        with self.unbroken():
            M = M @ self.basis
            few, worst = self.problem, exact_distortion(self.problem, M)
            if config.objective == "bound":
                few, _ = heavy(few, M, s, tau, worst, 2 * MARGIN)
            objective = f().item()
        wanted = not self.interrupted and config.objective != "sampled"
        if wanted and config.objective == "bound" and self.pgd.converged and not s.any():
            proof = self.certified(certificate, self.problem, M, tau, config.lam, config.rho, self.ridge)
        elif wanted and few.N <= CERTIFIABLE:
            radius = min(1e-3, 0.1 * sqrt(self.kd / tau))  # F_τ is finite so far around s
            M.requires_grad_()
            s.requires_grad_()
            proof = self.certified(certify, f, [M, s], s, M, config.lam, config.rho, radius=radius)
        M, s = M.detach(), s.detach()
        return Result(
            M=M,
            distortion=worst,
            sigma=abs(s.item()) / sqrt(self.kd),
            tau=tau,
            objective=objective,
            certificate=proof,
            history=self.arrays(),
            steps=self.t,
            cut_short=cut_short,
            interrupted=self.interrupted,
        )


def log_weights(M: Tensor, s: Tensor, tau: float, d: int) -> Callable[[Tensor], Tensor]:
    """Signed distortions ‖M x‖² − 1 ↦ logarithms of what the pairs or vectors weigh in F_τ; arguments as in `bound`."""
    variance = min(s.square().item() / (len(M) * d), 0.49 / tau)  # that of a step yet to be undone may be larger
    return lambda c: torch.maximum(*log_moments(c + 1, variance, tau, len(M)))


def heavy(problem: Problem, M: Tensor, s: Tensor, tau: float, worst: float, margin: float) -> tuple[Problem, float]:
    """The pairs or vectors that are lighter than the heaviest by no more than e^−margin, if they are few; else all.

    Args:
        problem, M, s, tau: as in `bound`.
        worst: worst distortion of M, or nearly.
        margin: logarithm of the weight that may be left out.

    Returns:
        They, and the worst distortion.
    """
    key, most = log_weights(M, s, tau, problem.d), min(max(problem.N // 8, ANYWAY), FEW)
    up, down, none = key(M.new_tensor([worst, -worst, 0.0]))
    if max(up, down) - none <= margin:  # even what isn't distorted matters
        return problem, distortion(problem, M)
    ends, keys, worst = strongest(problem, M, key, most + 1, margin)
    return (problem.subset(*ends) if len(keys) <= min(most, problem.N - 1) else problem), worst


def sample(problem: Problem, M: Tensor, tau: float, size: int, generator: torch.Generator) -> tuple[Problem, float]:
    """A sample in which each pair is the likelier the heavier it would be at τ/2 (as M moves until the next one), and
    stands for the more others the less likely it was: priority sampling (Duffield, Lund and Thorup 2007), unbiased.

    Returns:
        It, and the worst distortion.
    """

    def key(c: Tensor) -> Tensor:
        u = torch.rand(c.shape, generator=generator, dtype=c.dtype, device=c.device)
        # −log of a uniform number: a third of what exponential_ takes
        return c.abs().mul_(tau / 2).sub_(u.neg_().log1p_())

    ends, keys, worst = strongest(problem, M, key, size + 1)
    least, last = keys.min(0)
    kept = torch.arange(len(keys), device=keys.device) != last
    few = problem.subset(*(x[kept] for x in ends))
    c = torch.cat([(q - 1).abs() for q in distortions(few, M)])
    few.log_weight = (least - tau / 2 * c).clamp(min=0)
    return few, worst


def matter(
    problem: Problem, M: Tensor, s: Tensor, tau: float, worst: float, before: Problem, generator: torch.Generator
) -> tuple[Problem, float]:
    """The pairs or vectors on which F_τ is descended: the heavy ones if they are few, else all, or a sample of them.

    Args:
        problem, M, s, tau: as in `bound`.
        worst: worst distortion of M, or nearly.
        before: those that mattered last.
        generator: of the sample.

    Returns:
        They, and the worst distortion.
    """
    many = False
    if is_sample(before):  # it says how many would be heavy
        keys = log_weights(M, s, tau, problem.d)(torch.cat(list(distortions(before, M))) - 1)
        many = float(before.log_weight[keys >= keys.max() - MARGIN].exp().sum()) > FEW
    if not many:
        few, worst = heavy(problem, M, s, tau, worst, MARGIN)
        if few is not problem or problem.N <= WHOLE:
            return few, worst
    return sample(problem, M, tau, max(SAMPLE, 5 * M.numel()), generator)


def is_sample(problem: Problem) -> bool:
    """Whether its pairs or vectors stand for others."""
    return torch.is_tensor(problem.log_weight)
