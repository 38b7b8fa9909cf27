"""What a run amounts to: the numbers of results.json, the toy beside it, its files, and what the user reads."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import plot
import run
import toy
from model import effective_rank, finer, risk
from run import State, print_summary
from train import Result, Training

if TYPE_CHECKING:
    from main import Config


SOMETIMES = ("fig3_weights.png", "fig3_weights.pdf", "fig3_weights.gif", "spectrum.png", "spectrum.pdf")
"""files that not every run writes"""


def toys(seed: int) -> dict[str, np.ndarray]:
    """For each of the toy's figures |w*| by PGD and at the global minimum, (2, len(toy.LAMBDAS))."""
    return {
        name: np.array([toy.descend(toy.LAMBDAS, frozen, seed), [toy.global_minimizer(x, frozen) for x in toy.LAMBDAS]])
        for name, frozen in toy.FIGURES.items()
    }


@torch.no_grad()
def results(config: "Config", training: Training, result: Result, toys: dict[str, np.ndarray]) -> State:
    """The content of results.json, but for seconds, hyperparameters and versions."""
    history, batch, test = result.history, training.batch(), training.rule(finer(training.level, 2, 2))
    student, loss, certificate, (_, y, p) = training.student, training.loss, result.certificate, test
    curvature = [x if isfinite(x) else None for x in history["curvature"].tolist()]  # None: W⊥ is but rounding
    last, least = curvature[-1], min((x for x in curvature if x is not None), default=None)
    found = dict(experiment="NeuralNetworks", steps=result.steps, perturbations=len(result.history["kicks"]))
    found |= dict(interrupted=result.interrupted)
    found |= dict(certificate=certificate and asdict(certificate), rate=2 * config.lam, curvature=last)
    found |= dict(curvature_least=least, objective=float(history["objective"][-1]))
    found |= {name: getattr(config, name) for name in ("d", "width", "depth")}
    found |= {"completed": {name: getattr(config, name) for name in ("lr", "momentum", "rho")}}
    for name in ("w_perp", "w_parallel"):
        found |= {name: float(history[name][-1]), f"{name}_initial": float(history[name][0])}
    found |= dict(train_risk=float(risk(student, loss, batch)), points=len(batch[0]))
    found |= dict(test_risk=float(risk(student, loss, test)), label_variance=float(p @ (y - p @ y).square()))
    found |= dict(effective_rank=effective_rank(student.W), effective_rank_initial=effective_rank(training.W_initial))
    found |= dict(parameters=sum(x.numel() for x in training.params.values()))
    return found | {"toy_error": {name: float(np.abs(w - exact).max()) for name, (w, exact) in toys.items()}}


def save(
    folder: Path, config: "Config", training: Training, result: Result, results: State, toys: dict[str, np.ndarray]
) -> None:
    """Write figures, arrays and results.json into the folder."""
    figures = plot.figures(training, result) | plot.toys(toys)
    run.save(folder, config, results, figures, weights=training.weights(), history=result.history)
    if config.d == 2:
        plot.animate(result.history, training.direction, folder / "fig3_weights.gif")


def say(config: "Config", result: Result, numbers: State) -> None:
    """Print the summary."""
    if result.interrupted:
        print(f"interrupted after {result.steps} steps: what follows, and is saved, is where the run was")
    n, kicks = numbers, numbers["perturbations"]
    lines = {
        "student": f"depth {n['depth']}, width {n['width']}, {config.activation}, {n['parameters']} parameters trained",
        "‖W⊥‖": f"{n['w_perp_initial']:.3g} → {n['w_perp']:.2g} after {result.steps} steps "
        f"and {kicks} perturbation{'s' * (kicks != 1)}",
        "‖W∥‖": f"{n['w_parallel_initial']:.3g} → {n['w_parallel']:.3g}",
        "curvature": "unknown at the end, as W⊥ is but a rounding error",
        "rank": f"effective rank of W {n['effective_rank_initial']:.3f} → {n['effective_rank']:.3f}, "
        f"the teacher's is {config.k}",
        "risk": f"{n['train_risk']:.3g} in training, {n['test_risk']:.3g} in the test; "
        f"the labels' variance is {n['label_variance']:.3g}",
        "certificate": str(
            result.certificate or f"none: {'interrupted' if result.interrupted else 'memory ran out'}"
        ).replace("‖W‖", "‖W⊥‖"),
    }
    if n["curvature"] is not None:
        adds = f"{n['curvature']:.1e} is what the loss adds to the rate 2λ = {2 * config.lam:.1e} at which W⊥ shrinks"
        lines["curvature"] = f"{adds}; along the run at least {n['curvature_least']:.1e}"
    for name, error in n["toy_error"].items():
        text = f"the better of two PGD runs ends at the global minimizer w* to {error:.0e}, for λ from 10⁻⁶ to 10"
        lines[name.split("_")[0]] = text
    lines["seconds"] = f"{n['seconds']:.2f}: PGD {result.history['seconds'][-1]:.2f}, the rest for the certificate"
    print_summary(lines | {"files": str(config.out.resolve())})
