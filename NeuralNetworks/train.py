"""The training loop: PGD on f = risk + λ ‖W‖²_F, W the student's first layer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import hypot, inf, isfinite

import numpy as np
import torch
from torch import Tensor

from experiment import Checkpoint, State, random_state, restore_random_state
from model import Batch, Loss, Student, parallel, perpendicular, risk
from pgd import PGD, Certificate, certify

HISTORY = ("step", "seconds", "objective", "risk", "gradient_norm", "w_perp", "w_parallel")


@dataclass
class Result:
    """What `train` ends with; the weights are in the student."""

    certificate: Certificate
    """on the held-out batch, or the finer ones; its w_norm is ‖W⊥‖_F"""
    history: dict[str, np.ndarray]
    """snapshots, ever farther apart: step, seconds (of training so far), objective and risk (of the held-out batch),
    gradient_norm (of the training step), w_perp, w_parallel, and weights (snapshots, h, d) where d = 2"""
    kicks: list[int]
    """steps at which a perturbation struck"""
    steps: int
    converged: bool
    """whether PGD's stopping rule ended the run"""
    interrupted: bool
    """whether Ctrl-C did"""


def train(
    student: Student,
    data: Batch | Callable[[], Batch],
    U: Tensor,
    loss: Loss,
    *,
    held_out: Batch,
    finer: tuple[Batch, Batch] | None = None,
    lam: float,
    lr: float,
    rho: float,
    momentum: float = 0.0,
    radius: float = 1e-3,
    patience: int = 50,
    escape: str = "noise",
    steps: int = 10_000,
    anneal: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float, float], None] = lambda step, objective, w_perp: None,
) -> Result:
    """Train, in place, every parameter of the student that requires a gradient.

    Args:
        student: any module with first-layer weights W (h, d) and biases b (h,).
        data: a batch that f is the mean over, or a function that draws a fresh one for every step. PGD's stopping rule
            compares values of f, which fresh batches blur: it then sleeps, and the run takes all its steps.
        U: (k, d) the teacher's directions, for W⊥.
        loss: see `model.LOSSES`.
        held_out: the batch on which f is reported; and certified, if that is the f that is meant.
        finer: where the population risk is meant, two further batches for it, each finer than the one trained on. The
            certificate is taken on the first; how far its ∇f is from the second's is the certificate's gradient_error.
        lam: factor of ‖W‖²_F.
        lr, rho, momentum, radius, patience: see `PGD`.
        escape: "noise" (Algorithm 1) or "curvature" (Algorithm 2).
        steps: at most so many.
        anneal: let lr fall linearly to 0 over the second half of the steps.
        generator: of the perturbations.
        checkpoint: keeps the state of the training; a training that it has is gone on with, on one generator's fresh
            batches if that is the same.
        progress: called at every snapshot.

    Raises:
        ValueError: f is not finite where the run starts.
        FloatingPointError: f, its gradient or its Hessian no longer is.
    """
    W, params = student.W, [x for x in student.parameters() if x.requires_grad]
    fresh = callable(data)
    batch = held_out if fresh else data

    def objective(batch: Batch) -> Tensor:
        return risk(student, loss, batch) + lam * W.square().sum()

    def closure() -> Tensor:
        for x in params:
            x.grad = None
        f = objective(data() if fresh else data)
        f.backward()
        return f.detach()

    pgd = PGD(
        params,
        lr=lr,
        rho=rho,
        radius=radius,
        momentum=momentum,
        patience=patience,
        # What descent alone gains in `patience` steps at ‖∇f‖ = rho is no escape. (Jin et al. have rho^1.5.)
        f_decrease=-inf if fresh else patience * lr / (1 - momentum) * rho * rho,
        objective=(lambda: objective(batch)) if escape == "curvature" else None,
        generator=generator,
    )
    kicks, interrupted, step, due = [], False, 0, 0
    history: dict[str, list] = {name: [] for name in (*HISTORY, "weights")}
    start, idle = time.perf_counter(), 0.0

    def require_finite(name: str, value: float) -> None:
        if not isfinite(value):
            if step == 0:
                raise ValueError(f"{name} is {value} where the run starts: the labels, λ or the network are too large")
            raise FloatingPointError(f"{name} is {value} at step {step}")

    @torch.no_grad()
    def snapshot() -> None:
        nonlocal idle
        now = time.perf_counter()
        held_out_risk, W_ = float(risk(student, loss, held_out)), W.detach()
        f, perp = held_out_risk + lam * float(W_.square().sum()), float(perpendicular(W_, U).norm())
        require_finite("the objective", f)
        row = (step, now - start - idle, f, held_out_risk, pgd.gradient_norm, perp, float(parallel(W_, U).norm()))
        for name, value in zip(HISTORY, row, strict=True):
            history[name].append(value)
        if W.shape[1] == 2:
            history["weights"].append(W_.cpu().clone())
        progress(step, f, perp)
        idle += time.perf_counter() - now

    def state() -> State:
        numbers = dict(step=step, due=due, kicks=kicks, history=history, seconds=time.perf_counter() - start - idle)
        return numbers | dict(student=student.state_dict(), pgd=pgd.state_dict(), random=random_state(generator))

    checkpoint = checkpoint or Checkpoint()
    if (kept := checkpoint.resumed("training")) is not None:
        step, due, kicks, history = (kept[name] for name in ("step", "due", "kicks", "history"))
        start -= kept["seconds"]
        student.load_state_dict(kept["student"])
        pgd.load_state_dict(kept["pgd"])
        restore_random_state(generator, kept["random"])
    try:
        while step < steps and not pgd.converged:
            if step >= due:
                snapshot()
                due = max(step + 1, round(1.05 * step))
            if anneal:
                pgd.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / steps))
            pgd.step(closure)
            require_finite("the gradient", pgd.gradient_norm)
            step += 1
            if pgd.perturbations > len(kicks):
                kicks.append(step)
            checkpoint.keep("training", state)
        checkpoint.keep("training", state, finished=True)
    except KeyboardInterrupt:
        interrupted = True
    snapshot()
    b_trained = student.b.requires_grad
    student.b.requires_grad_()  # the lemma's bound needs the Hessian in b, trained or not
    certified, error = held_out, 0.0
    if finer is not None:
        certified = finer[0]
        gradients = [torch.autograd.grad(objective(batch), params, materialize_grads=True) for batch in finer]
        error = hypot(*(float((g - h).norm()) for g, h in zip(*gradients, strict=True)))
    certificate = certify(
        lambda: objective(certified),
        params,
        W,
        student.b,
        lam,
        rho,
        project=lambda W: perpendicular(W, U),
        gradient_error=error,
    )
    student.b.requires_grad_(b_trained)
    require_finite("the gradient", certificate.gradient_norm)
    return Result(
        certificate=certificate,
        history={name: np.array(values) for name, values in history.items()},
        kicks=kicks,
        steps=step,
        converged=pgd.converged,
        interrupted=interrupted,
    )
