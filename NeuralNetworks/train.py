"""The training: PGD on f = risk + λ ‖W‖²_F, W the student's first layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, nan
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from model import LOSSES, Batch, Level, finer, parallel, perpendicular, risk
from pgd import Certificate, certify, norm
from run import Descent, State, perturbed

if TYPE_CHECKING:
    from main import Config


@dataclass
class Result:
    """What a training ends with; the weights are in the student."""

    certificate: Certificate | None
    """on the rule one level above the one trained on; its w_norm is ‖W⊥‖_F; None where Ctrl-C came before"""
    history: dict[str, np.ndarray]
    """snapshots, ever farther apart: step, seconds, objective and risk (on the rule), gradient_norm (of the
    training step), w_perp, w_parallel, curvature (see `Training`; nan where W⊥ is but a rounding error),
    weights (snapshots, h, d) where d = 2, and kicks, the steps at which a perturbation struck"""
    steps: int
    converged: bool
    """whether PGD's stopping rule ended the run"""
    interrupted: bool
    """whether Ctrl-C did"""


def complete(config: "Config") -> "Config":
    """The config with those hyperparameters filled in whose defaults depend on others."""
    pure = config.risk == "sampled" or config.algorithm != "default"
    momentum = (0.0 if pure else 0.9) if config.momentum is None else config.momentum
    lr = config.width * (0.05 if config.trained == "all" else 2 if momentum else 1)
    # λ's own curvature is 2λ: the heavy ball is stable below (1 + momentum)/λ, and half of 1/λ is one step to W = 0.
    most = max((1 if momentum else 0.5) / max(config.lam, 1e-30), 1e-30)
    defaults = dict(lr=min(lr, most), momentum=momentum, rho=max(config.lam / 5, 1e-30) if config.lam else 1e-6)
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


OFF = 0.02
"""share of ‖∇f‖, or of ρ where that is larger, by which the rule trained on may be off, along and across each"""
FINEST, MOST = 8, 2**25
"""level, and numbers, points times neurons, from which on a rule is not refined: a quarter of a gigabyte a layer. (Of
n inputs the last step may have made them √2ⁿ times as many, and the certificate takes 2ⁿ times as many again.)"""


class Training(Descent):
    """Trains, in place, every parameter of the student that requires a gradient.

    Its history shows what the loss does to W⊥: curvature is ⟨W⊥, ∇_W risk⟩/‖W⊥‖², by Stein's identity the Rayleigh
    quotient ⟨W⊥, H W⊥⟩/‖W⊥‖² of H = ∇²_b risk. Small steps shrink W⊥ at the rate curvature + 2λ: where curvature is
    −2λ the loss holds W⊥ up, which the theorem rules out at an SOSP in which b is trained.

    Args:
        student: any module with first-layer weights W (h, d) and biases b (h,).
        data: a batch that f is the mean over, or a function that draws a fresh one for every step. PGD's stopping rule
            compares values of f, which fresh batches blur: it then sleeps, and the run takes all its steps. None: the
            rule, as finely as it takes (see `refined`).
        U: (k, d) the teacher's directions, for W⊥.
        config: λ, ρ, the step size and how PGD goes; what defaults to a multiple of the width is config's, too.
        generator: of the perturbations.
        rule: where the population risk is meant, rule(level) is a batch for it, the finer the higher the level. f is
            reported on the present level, the certificate taken on one finer along and across; how far its ∇f is from
            that of one finer still is the certificate's gradient_error. None: the data are all that is meant.

    Raises:
        ValueError: fresh batches or no data, and no rule.
    """

    def __init__(
        self,
        student: torch.nn.Module,
        data: Batch | Callable[[], Batch] | None,
        U: Tensor,
        config: "Config",
        generator: torch.Generator,
        rule: Callable[[Level], Batch] | None = None,
    ) -> None:
        config, self._fresh = complete(config), callable(data)
        self.student, self.data, self.U, self.config = student, data, U, config
        if rule is None and (self._fresh or data is None):
            given = "fresh batches are" if self._fresh else "without data there is"
            raise ValueError(f"{given} no f to be certified: give a rule for the population too")
        self.level, self.rule = (0, 0), rule or (lambda level: data)
        self.loss, self.W_initial, self._start = LOSSES[config.loss], student.W.detach().clone(), perf_counter()
        params = {name: x for name, x in student.named_parameters() if x.requires_grad}
        # Descent alone lowers f by so much in `patience` steps at ‖∇f‖ = ρ: no theory, nor Jin et al.'s √(ρ³/K), which
        # is far less here, and takes progress along a flat valley for an escape. Algorithm 1 has theirs.
        fall = config.patience * config.lr / (1 - config.momentum) * config.rho**2
        fall = -inf if self._fresh else None if config.algorithm == "1" else fall
        rho = config.rho * (1 if self._fresh or rule is None else 1 - OFF)  # ∇f on a finer rule differs
        how = dict(rho=rho, f_decrease=fall)
        pgd = perturbed(params.values(), config, lambda: self.objective(self.batch()), generator, **how)
        super().__init__(params, pgd, config.steps, generator)

    def objective(self, batch: Batch) -> Tensor:
        """f = risk + λ‖W‖²_F on the batch."""
        return risk(self.student, self.loss, batch) + self.config.lam * self.student.W.square().sum()

    def batch(self) -> Batch:
        """What a step is trained on."""
        if self._fresh:
            return self.data()
        return self.rule(self.level) if self.data is None else self.data

    def gradient(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """f and ∇f on the batch."""
        f = self.objective(batch)
        return f.detach(), list(torch.autograd.grad(f, list(self.params.values()), materialize_grads=True))

    def refined(self, f: Tensor, slope: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """f and ∇f, the level raised, along or across, until the next ones' ∇f differ by no more than `OFF` allows."""
        untried = steps = [(1, 0), (0, 1)]
        while untried and len(self.rule(self.level)[0]) * len(self.student.W) < MOST:
            level, untried = finer(self.level, *untried[0]), untried[1:]
            if max(level) > FINEST:
                continue
            finer_f, finer_slope = self.gradient(self.rule(level))
            difference = norm([g - h for g, h in zip(slope, finer_slope, strict=True)])
            if difference > OFF * max(norm(finer_slope), self.config.rho):
                self.level, f, slope, untried = level, finer_f, finer_slope, steps
        return f, slope

    def step(self) -> None:
        """One step of PGD; its size falls to 0 where it is to anneal.

        The rule is put to the test at steps 0, 1, 2, 4, 8, … and before each kick.
        """

        def closure() -> Tensor:
            f, slope = self.gradient(self.batch())
            if self.data is None and (self.t & (self.t - 1) == 0 or self.pgd.kicks_at(norm(slope))):
                f, slope = self.refined(f, slope)
            for x, g in zip(self.params.values(), slope, strict=True):
                x.grad = g
            return f

        if self.config.anneal:
            self.pgd.param_groups[0]["lr"] = self.config.lr * min(1, 2 * (1 - self.t / self.steps))
        self.pgd.step(closure)

    def due(self) -> bool:
        """At 0 and at ever larger distances, a twentieth of the way."""
        last = self.history["step"][-1] if self.history else -1
        return self.t >= max(last + 1, round(1.05 * last))

    def row(self) -> dict[str, Any]:
        """See `Result.history`.

        Raises:
            ValueError: f is not finite where the run starts.
            FloatingPointError: it no longer is.
        """
        seconds = perf_counter() - self._start
        expected = risk(self.student, self.loss, self.rule(self.level))
        (slope,) = torch.autograd.grad(expected, self.student.W)
        W, expected = self.student.W.detach(), float(expected.detach())
        perp = perpendicular(W, self.U)
        f = expected + self.config.lam * float(W.square().sum())
        grown = f > 1e9 * self.history.get("objective", [inf])[0] and not self.kicks  # a kick may raise f by any factor
        if grown or not isfinite(f):
            if self.t:
                raise FloatingPointError(f"the objective is {f:.3g} at step {self.t}")
            raise ValueError(f"the objective is {f} where the run starts: the labels, λ or the network are too large")
        row = dict(step=self.t, seconds=seconds, objective=f, risk=expected, gradient_norm=self.pgd.gradient_norm)
        row |= dict(w_perp=float(perp.norm()), w_parallel=float(parallel(W, self.U).norm()))
        # slope∥ is far larger, and must not enter through the rounding errors of W⊥
        curvature = float((perpendicular(slope, self.U) * perp).sum() / perp.square().sum())
        row["curvature"] = curvature if perp.norm() > 1e-13 * W.norm() else nan
        return row | ({"weights": W.cpu().clone()} if W.shape[1] == 2 else {})

    def says(self) -> str:
        """See `Descent`."""
        return f"f {self.history['objective'][-1]:.4g}, ‖W⊥‖ {self.history['w_perp'][-1]:.1e}"

    def state_dict(self) -> State:
        """All that further steps depend on."""
        return super().state_dict() | dict(level=self.level, seconds=perf_counter() - self._start)

    def load_state_dict(self, state: State) -> None:
        """Go on where the training was."""
        super().load_state_dict(state)
        self.level = state["level"]
        self._start = perf_counter() - state["seconds"]

    @property
    def direction(self) -> np.ndarray | None:
        """(d,) the teacher's direction; None if it has not one."""
        return self.U[0].cpu().numpy() if len(self.U) == 1 else None

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, W as initialized, and U."""
        tensors = dict(self.student.named_parameters()) | {"U": self.U, "W_initial": self.W_initial}
        return {name: x.detach().cpu().numpy() for name, x in tensors.items()}

    def result(self) -> Result:
        """The certificate of where the training is, and what it has left.

        Raises:
            FloatingPointError: the gradient or the Hessian is not finite.
        """
        W, b, params = self.student.W, self.student.b, list(self.params.values())
        b_trained = b.requires_grad

        def measure() -> Certificate:
            certified, check = (self.rule(finer(self.level, i, i)) for i in (1, 2))
            gradients = (self.gradient(batch)[1] for batch in (certified, check))
            errors = [g - h for g, h in zip(*gradients, strict=True)]
            f, project = partial(self.objective, certified), partial(perpendicular, U=self.U)
            across = [project(error) for x, error in zip(params, errors, strict=True) if x is W]
            off = dict(gradient_error=norm(errors), slope_error=norm(across))
            return certify(f, params, W, b, self.config.lam, self.config.rho, project=project, **off)

        b.requires_grad_()  # the lemma's bound needs the Hessian in b, trained or not
        try:
            certificate = self.certified(measure)
        finally:
            b.requires_grad_(b_trained)
        if certificate and not isfinite(certificate.gradient_norm):
            raise FloatingPointError(f"the gradient is {certificate.gradient_norm} at step {self.t}")
        return Result(certificate, self.arrays(), self.t, self.pgd.converged, self.interrupted)
