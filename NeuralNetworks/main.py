"""A network's first layer keeps only what its teacher uses: structure discovery by perturbed gradient descent.

Run it as it is for the paper's figures 1, 2 and 3; edit the defaults below or override them by flags.
"""

import json
import os
import platform
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import scipy
import torch
import tyro
from tqdm import tqdm

import plot
import toy
from activations import ACTIVATIONS, activation
from model import LOSSES, Batch, Student, Teacher, cosines, effective_rank, quadrature, risk, sampled, sobol
from train import train


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
    """Gauss–Hermite nodes along each of the teacher's directions, for quadrature; none: 64/k"""
    nodes_across: int = 8
    """the same along the other directions, where little is left to integrate in the end, and for the noise"""
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
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, weights.npz, history.npz and results.json"""


def check(config: Config) -> None:
    """Raise ValueError, naming flag, value and what is allowed, for a hyperparameter out of its range."""
    for name in ("lam", "lr", "rho", "iota"):
        value = getattr(config, name)
        if value is not None and not (value > 0 and isfinite(value)):
            raise ValueError(f"--{name} is {value}; it must be a positive number")
    if config.nodes is not None and config.nodes < 2:
        raise ValueError(f"--nodes is {config.nodes}; it must be at least 2")
    least = dict(d=1, k=0, width=1, depth=2, nodes_across=2, samples=2, batch=1, steps=1, patience=1, radius=0, noise=0)
    for name, bound in least.items():
        if not (getattr(config, name) >= bound and isfinite(getattr(config, name))):
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be at least {bound}")
    if config.k > config.d:
        raise ValueError(f"--k is {config.k} and --d is {config.d}; the teacher can use at most d directions")
    for name in ("activation", "teacher"):
        if getattr(config, name) not in ACTIVATIONS:
            raise ValueError(f"--{name} is {getattr(config, name)}; known are {', '.join(ACTIVATIONS)}")
    if config.risk == "quadrature" and config.d > 3:
        raise ValueError(f"--risk quadrature needs --d of at most 3, not {config.d}; take --risk sobol or sampled")
    if config.samples & (config.samples - 1):
        raise ValueError(f"--samples is {config.samples}; it must be a power of two")
    if config.momentum is not None and not 0 <= config.momentum < 1:
        raise ValueError(f"--momentum is {config.momentum}; it must lie in [0, 1)")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"--seed is {config.seed}; it must be a whole number from 0 to 2^63 − 1")
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {config.device} is not to be had here: {str(error).splitlines()[0]}") from None


def complete(config: Config) -> Config:
    """The config with those hyperparameters filled in whose defaults depend on others."""
    defaults = dict(
        lr=(2 if config.trained == "first" else 0.05) * config.width,
        momentum=0.0 if config.risk == "sampled" else 0.9,
        rho=config.lam / 5,
        nodes=64 // max(config.k, 1),
    )
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def main(config: Config) -> int:
    """Run the experiment, save its files, print the summary; returns the exit status."""
    try:
        check(config)
        config.out.mkdir(parents=True, exist_ok=True)
        if not os.access(config.out, os.W_OK):
            raise PermissionError(f"--out {config.out} can't be written to; give another folder")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    config = complete(config)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    teacher = Teacher(
        cosines(config.d).to(config.device), config.k, activation(config.teacher, config.iota), config.noise
    )
    U, loss, n = teacher.directions, LOSSES[config.loss], teacher.inputs
    student = Student(
        config.d, [config.width] * (config.depth - 1), activation(config.activation, config.iota), generator
    )
    for name, parameter in student.named_parameters():
        kept = config.trained == "first" and name not in ("W", "b")
        parameter.requires_grad_(not (kept or (name == "b" and config.freeze_bias)))
    W_initial = student.W.detach().clone()

    def labelled(points: tuple[torch.Tensor, torch.Tensor]) -> Batch:
        return teacher.labelled(*(x.to(config.device) for x in points))

    start = time.perf_counter()
    if config.d <= 3:
        rules = [[m * config.nodes] * config.k + [m * config.nodes_across] * (n - config.k) for m in (1, 2)]
        exact, test = (labelled(quadrature(rule)) for rule in rules)
    else:
        exact = test = labelled(sobol(n, 4096, seed=config.seed + 1))
    data = {
        "quadrature": exact,
        "sobol": labelled(sobol(n, config.samples, seed=config.seed)),
        "sampled": lambda: labelled(sampled(n, config.batch, generator)),
    }[config.risk]
    try:
        with tqdm(desc="PGD", total=config.steps, unit=" steps", disable=None, leave=False) as bar:

            def progress(step: int, objective: float, w_perp: float) -> None:
                bar.set_postfix_str(f"f {objective:.4g}, ‖W⊥‖ {w_perp:.1e}", refresh=False)
                bar.update(step - bar.n)

            result = train(
                student,
                data,
                U,
                loss,
                held_out=exact,
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
                progress=progress,
            )
    except FloatingPointError as error:
        print(f"error: {error}: the run diverges with --lr {config.lr:g}; try --lr {config.lr / 10:g}", file=sys.stderr)
        return 2
    seconds, history, certificate = time.perf_counter() - start, result.history, result.certificate

    W = student.W.detach()
    with torch.no_grad():
        train_risk = float(risk(student, loss, data() if callable(data) else data))
        test_risk = float(risk(student, loss, test))
    _, y, p = test
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
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (torch, np, scipy, matplotlib)},
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
    with tempfile.TemporaryDirectory(dir=config.out, prefix=".") as staging:
        folder = Path(staging)
        for name, figure in figures.items():
            plot.save(figure, folder, name)
        if config.d == 2:
            plot.animate(history, u, folder / "fig3_weights.gif")
        parameters = {name: x.detach().cpu().numpy() for name, x in student.named_parameters()}
        np.savez(folder / "weights.npz", **parameters, U=U.cpu().numpy(), W_initial=W_initial.cpu().numpy())
        np.savez(folder / "history.npz", **history, kicks=result.kicks)
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for file in folder.iterdir():
            os.replace(file, config.out / file.name)

    if result.interrupted:
        print(f"interrupted after {result.steps} steps: what follows, and is saved, is where the run was")
    print(
        f"student      depth {config.depth}, width {config.width}, {config.activation}, "
        f"{sum(x.numel() for x in student.parameters() if x.requires_grad)} parameters trained\n"
        f"‖W⊥‖         {results['w_perp_initial']:.3g} → {results['w_perp']:.2g} after {result.steps} steps "
        f"and {len(result.kicks)} perturbation{'s' * (len(result.kicks) != 1)}\n"
        f"‖W∥‖         {history['w_parallel'][0]:.3g} → {results['w_parallel']:.3g}\n"
        f"rank         effective rank of W {effective_rank(W_initial):.3f} → {results['effective_rank']:.3f}, "
        f"the teacher's is {config.k}\n"
        f"risk         {train_risk:.3g} in training, {test_risk:.3g} in the test; "
        f"the labels' variance is {label_variance:.3g}\n"
        f"certificate  {str(certificate).replace('‖W‖', '‖W⊥‖')}"
    )
    for name, error in toys.items():
        print(f"{name.split('_')[0]:13}PGD's w* is the global minimizer to {error:.0e} for λ from 10⁻⁶ to 10")
    print(
        f"seconds      {seconds:.2f}: PGD {history['seconds'][-1]:.2f}, the rest for the certificate and snapshots\n"
        f"files        {config.out.resolve()}"
    )
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except KeyboardInterrupt:
        print("interrupted before the files were written: nothing is saved", file=sys.stderr)
        sys.exit(130)
