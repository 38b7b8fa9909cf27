"""A network's first layer keeps only what its teacher uses: structure discovery by perturbed gradient descent.

Run it as it is for the paper's figures 1, 2 and 3; edit the defaults below or override them by flags.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import experiment
import plot
import style
import toy
from activations import ACTIVATIONS, activation
from experiment import Checkpoint, diverged, identity, print_summary, provenance, refuse, whole_files, writable
from model import LOSSES, Batch, Student, Teacher, cosines, effective_rank, quadrature, risk, sampled, sobol
from train import Result, train


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    d: int = 2
    """input dimension; inputs are standard normal"""
    k: int = 1
    """orthonormal directions that the teacher uses, at most d; 0: it is the constant 1"""
    teacher: str = "tanh"
    """link h of the teacher y = Σ_j h(u_j·x)/√k: one of the activations"""
    noise: float = 0.0
    """standard deviation of the noise added to labels"""
    width: int = 1000
    """neurons in each hidden layer"""
    depth: int = 2
    """layers of weights; 2 is one hidden layer"""
    activation: str = "relu_iota"
    """relu_iota, tanh, gelu, sigmoid, relu3, he2, he3 or he4"""
    iota: float = 2.0
    """ι: sharpness of relu_iota, log(1 + e^{ιz})/ι"""
    loss: Literal["squared", "logistic", "huber"] = "squared"
    """loss; for the logistic one, labels are log-odds"""
    trained: Literal["first", "all"] = "first"
    """train the first layer's W and b, as in figure 3, or all parameters"""
    freeze_bias: bool = False
    """keep the first layer's biases as initialized: the theorem then has no hold"""
    risk: Literal["quadrature", "sobol", "sampled"] = "quadrature"
    """population risk: exact (d ≤ 3), over a fixed Sobol set, or over a fresh batch each step"""
    nodes: int | None = None
    """nodes of the trapezoidal rule along each of the teacher's directions, for quadrature; none: 128/k^1.5"""
    nodes_across: int = 8
    """Gauss–Hermite nodes along the others, where little is left to integrate in the end, and for the noise"""
    samples: int = 8192
    """points of the Sobol set, a power of two"""
    batch: int = 50
    """size of a fresh batch"""
    steps: int = 10_000
    """at most so many steps"""
    lr: float | None = None
    """step size; none: 2 width, or width/20 where all parameters are trained"""
    anneal: bool = False
    """let the step size fall to 0 over the second half of the steps, so that fresh batches' noise dies out"""
    lam: float = 1e-5
    """λ: weight of ‖W‖², W the first layer's weights"""
    momentum: float | None = None
    """heavy-ball factor; none: 0.9, and 0 for fresh batches, whose noise it would amplify"""
    rho: float | None = None
    """ρ: the gradient norm that counts as stationary; none: λ/5"""
    radius: float = 1e-3
    """radius of the perturbation, over all parameters as one vector"""
    patience: int = 25
    """steps that a perturbation has to lower the objective"""
    escape: Literal["noise", "curvature"] = "noise"
    """leave saddles by a random kick (Algorithm 1) or along the most negative curvature (Algorithm 2)"""
    toy: bool = True
    """draw figures 1 and 2 as well"""
    seed: int = 0
    """seed of everything random"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes"""
    resume: Path | None = None
    """checkpoint of a run with the same flags to go on from, and to keep"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, weights.npz, history.npz and results.json"""


def check(config: Config) -> None:
    """Raise ValueError, naming flag, value and what is allowed, for a hyperparameter out of its range."""
    least = dict(d=1, k=0, width=1, depth=2, nodes=2, nodes_across=2, samples=2, batch=1, noise=0)
    experiment.check(config, ("iota",), least, most=dict(nodes=1024, nodes_across=64))  # more nodes add nothing
    if config.k > config.d:
        raise ValueError(f"--k is {config.k} and --d is {config.d}; the teacher can use at most d directions")
    for name in ("activation", "teacher"):
        if getattr(config, name) not in ACTIVATIONS:
            raise ValueError(f"--{name} is {getattr(config, name)}; known are {', '.join(ACTIVATIONS)}")
    if config.risk == "quadrature" and config.d > 3:
        raise ValueError(f"--risk quadrature needs --d of at most 3, not {config.d}; take --risk sobol or sampled")
    if config.d + (config.noise > 0) > 21_201:
        raise ValueError(f"--d is {config.d}; Sobol sets, which measure the risk, have at most 21201 dimensions")
    if config.samples & (config.samples - 1):
        raise ValueError(f"--samples is {config.samples}; it must be a power of two")


def complete(config: Config) -> Config:
    """The config with those hyperparameters filled in whose defaults depend on others."""
    defaults = dict(
        lr=(2 if config.trained == "first" else 0.05) * config.width,
        momentum=0.0 if config.risk == "sampled" else 0.9,
        rho=config.lam / 5,
        nodes=round(128 / max(config.k, 1) ** 1.5),
    )
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def read(
    config: Config, generator: torch.Generator
) -> tuple[Teacher, Student, Batch | Callable[[], Batch], Batch, tuple[Batch, Batch]]:
    """The teacher, the student, the data trained on, those held out, and two finer sets: of certificate and test."""
    teacher = Teacher(
        cosines(config.d).to(config.device), config.k, activation(config.teacher, config.iota), config.noise
    )
    student = Student(
        config.d, [config.width] * (config.depth - 1), activation(config.activation, config.iota), generator
    )
    for name, parameter in student.named_parameters():
        kept = config.trained == "first" and name not in ("W", "b")
        parameter.requires_grad_(not (kept or (name == "b" and config.freeze_bias)))

    def labelled(points: tuple[torch.Tensor, torch.Tensor]) -> Batch:
        return teacher.labelled(*(x.to(config.device) for x in points))

    n = teacher.inputs
    if config.d <= 3:
        along, across = config.nodes, config.nodes_across
        sizes = (along, across), (3 * along // 2, across + 4), (2 * along + 3, across + 9)  # which share no error
        rules = [quadrature([a] * config.k + [c] * (n - config.k), trapezoids=config.k) for a, c in sizes]
        held_out, *finer = map(labelled, rules)
    else:
        held_out, *finer = (labelled(sobol(n, 4096, seed=config.seed + i)) for i in (1, 2, 3))
    data: Batch | Callable[[], Batch] = held_out
    if config.risk == "sobol":
        data = labelled(sobol(n, config.samples, seed=config.seed))
    elif config.risk == "sampled":

        def data() -> Batch:
            return labelled(sampled(n, config.batch, generator))

    return teacher, student, data, held_out, tuple(finer)


def descend(
    config: Config,
    student: Student,
    data: Batch | Callable[[], Batch],
    U: torch.Tensor,
    held_out: Batch,
    finer: tuple[Batch, Batch],
    generator: torch.Generator,
    checkpoint: Checkpoint,
) -> Result:
    """The training, with its progress shown."""
    with tqdm(desc="PGD", total=config.steps, unit=" steps", disable=None, leave=False) as bar:

        def progress(step: int, objective: float, w_perp: float) -> None:
            bar.set_postfix_str(f"f {objective:.4g}, ‖W⊥‖ {w_perp:.1e}", refresh=False)
            bar.update(step - bar.n)

        return train(
            student,
            data,
            U,
            LOSSES[config.loss],
            held_out=held_out,
            finer=finer,
            lam=config.lam,
            lr=config.lr,
            rho=config.rho,
            momentum=config.momentum,
            radius=config.radius,
            patience=config.patience,
            escape=config.escape,
            steps=config.steps,
            anneal=config.anneal,
            generator=generator,
            checkpoint=checkpoint,
            progress=progress,
        )


def main(config: Config) -> int:
    """Run the experiment, save its files, print the summary; returns the exit status."""
    try:
        check(config)
        config = complete(config)
        generator = torch.Generator(config.device).manual_seed(config.seed)
        teacher, student, data, held_out, finer = read(config, generator)
        writable(config.out)
        checkpoint = Checkpoint(config.checkpoint, config.resume, identity(config))
    except (ValueError, OSError) as error:
        return refuse(error)
    U, W_initial = teacher.directions, student.W.detach().clone()
    start = time.perf_counter() - checkpoint.elapsed
    try:
        result = descend(config, student, data, U, held_out, finer, generator, checkpoint)
    except FloatingPointError as error:
        return diverged(error, config.lr)
    except ValueError as error:
        return refuse(error)
    seconds, history, certificate = time.perf_counter() - start, result.history, result.certificate

    W, loss = student.W.detach(), LOSSES[config.loss]
    with torch.no_grad():
        train_risk = float(risk(student, loss, data() if callable(data) else data))
        test_risk = float(risk(student, loss, finer[0]))
    _, y, p = finer[0]
    label_variance = float(p @ (y - p @ y).square())
    figures = {"norms": plot.norms(history, result.kicks, certificate.w_norm_bound)}
    if config.d > 1:
        values = (torch.linalg.svdvals(x).cpu().numpy() for x in (W_initial, W))
        figures["spectrum"] = plot.spectrum(*values, k=config.k)
    if config.d == 2:
        u = U[0].cpu().numpy() if config.k == 1 else None
        figures["fig3_weights"] = plot.weights(history, u)
    toys = {}
    if config.toy:
        curve_lams = np.logspace(-6, 1, 500)
        for name, frozen, title in (
            ("fig1_toy_frozen_bias", True, r"ReLU$^3(wx + b)$ fitted to 1, $b = 0$ frozen"),
            ("fig2_toy_trained_bias", False, r"ReLU$^3(wx + b)$ fitted to 1, $b$ trained"),
        ):
            w = toy.descend(toy.LAMBDAS, frozen, config.seed)
            exact_w = np.array([toy.global_minimizer(lam, frozen) for lam in toy.LAMBDAS])
            toys[name] = float(np.abs(w - exact_w).max())
            curve = np.array([toy.global_minimizer(lam, frozen) for lam in curve_lams])
            figures[name] = plot.toy(toy.LAMBDAS, w, curve_lams, curve, title)
    results = {
        "experiment": "NeuralNetworks",
        **provenance(config),
        "seconds": seconds,
        "steps": result.steps,
        "perturbations": len(result.kicks),
        "objective": history["objective"][-1],
        "certificate": asdict(certificate),
        "d": config.d,
        "width": config.width,
        "depth": config.depth,
        "w_perp": history["w_perp"][-1],
        "w_perp_initial": history["w_perp"][0],
        "w_parallel": history["w_parallel"][-1],
        "train_risk": train_risk,
        "test_risk": test_risk,
        "label_variance": label_variance,
        "effective_rank": effective_rank(W),
        "toy_error": toys,
    }
    parameters = {name: x.detach().cpu().numpy() for name, x in student.named_parameters()}
    try:
        with whole_files(config.out) as folder:
            for name, figure in figures.items():
                style.save(figure, folder, name)
            if config.d == 2:
                plot.animate(history, u, folder / "fig3_weights.gif")
            np.savez(folder / "weights.npz", **parameters, U=U.cpu().numpy(), W_initial=W_initial.cpu().numpy())
            np.savez(folder / "history.npz", **history, kicks=result.kicks)
            (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return refuse(error)

    if result.interrupted:
        print(f"interrupted after {result.steps} steps: what follows, and is saved, is where the run was")
    trained = sum(x.numel() for x in student.parameters() if x.requires_grad)
    lines = {
        "student": f"depth {config.depth}, width {config.width}, {config.activation}, {trained} parameters trained",
        "‖W⊥‖": f"{results['w_perp_initial']:.3g} → {results['w_perp']:.2g} after {result.steps} steps "
        f"and {len(result.kicks)} perturbation{'s' * (len(result.kicks) != 1)}",
        "‖W∥‖": f"{history['w_parallel'][0]:.3g} → {results['w_parallel']:.3g}",
        "rank": f"effective rank of W {effective_rank(W_initial):.3f} → {results['effective_rank']:.3f}, "
        f"the teacher's is {config.k}",
        "risk": f"{train_risk:.3g} in training, {test_risk:.3g} in the test; "
        f"the labels' variance is {label_variance:.3g}",
        "certificate": str(certificate).replace("‖W‖", "‖W⊥‖"),
    }
    for name, error in toys.items():
        lines[name.split("_")[0]] = f"PGD's w* is the global minimizer to {error:.0e} for λ from 10⁻⁶ to 10"
    print_summary(
        lines
        | {
            "seconds": f"{seconds:.2f}: PGD {history['seconds'][-1]:.2f}, the rest for the certificate and snapshots",
            "files": str(config.out.resolve()),
        }
    )
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    experiment.command_line(main, Config, __doc__)
