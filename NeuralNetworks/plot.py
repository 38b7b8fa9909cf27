"""Figures: each function draws one from a finished run's numbers and returns it."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

import toy
from run import BLUE, GREEN, GREY, ORANGE, RED, STYLE, legend_below, perturbations
from train import Result, Training

FADE = LinearSegmentedColormap.from_list("fade", [RED, BLUE])
FRAMES, WAYS = 30, 150
"""of the animation, and neurons whose way is drawn"""


@rc_context(STYLE)
def figures(training: Training, result: Result) -> dict[str, Figure]:
    """The figures of a run, by name."""
    drawn = {"norms": norms(result, training.config.lam)}
    U, W = training.U, training.student.W.detach()
    if W.shape[1] > 2:
        before, after = (torch.linalg.svdvals(x).cpu().numpy() for x in (training.W_initial, W))
        trained = np.maximum(after, 1e-16 * before[0])
        curves = {"initialized": (before, "o-", RED, 5), "trained": (trained, "s-", BLUE, 5)}
        told = f"the teacher uses {len(U)} direction{'s' * (len(U) != 1)}"
        drawn["spectrum"] = spectrum(curves, len(U), told, columns=3)
    if W.shape[1] == 2:
        drawn["fig3_weights"] = weights(result.history, training.direction)
    return drawn


@rc_context(STYLE)
def toys(ends: dict[str, np.ndarray]) -> dict[str, Figure]:
    """Figures 1 and 2: |w*| against λ, on log axes (|w*| on a linear one below 10⁻³, so that 0 can be seen).

    Args:
        ends: for each figure |w| where PGD ended and at the global minimum, for toy.LAMBDAS.
    """
    drawn, lams = {}, np.logspace(-6, 1, 500)
    for name, (w, _) in ends.items():
        frozen = toy.FIGURES[name]
        curve = [toy.global_minimizer(lam, frozen) for lam in lams]
        drawn[name] = Figure(figsize=(6.4, 4), layout="constrained")
        axes = drawn[name].subplots()
        axes.plot(lams, curve, color=BLUE, label="global minimizer, exact")
        axes.plot(toy.LAMBDAS, w, "o", color=ORANGE, markersize=5, label="PGD, the better of two starts")
        title = r"ReLU$^3(wx + b)$ fitted to 1, " + ("$b = 0$ frozen" if frozen else "$b$ trained")
        axes.set(xscale="log", xlabel=r"$\lambda$", ylabel=r"$|w^*|$", title=title)
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(-2e-4, 1)
        legend_below(drawn[name], columns=2)
    return drawn


def weights(history: dict[str, np.ndarray], u: np.ndarray | None) -> Figure:
    """Figure 3: every neuron's weights in the plane, as initialized and as trained, with some of the ways between.

    Args:
        history: of a training with d = 2.
        u: (2,) the teacher's direction; None if it has not one.
    """
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axes = figure.subplots()
    W = history["weights"]
    paths = W[:, :: max(1, W.shape[1] // WAYS)].transpose(1, 0, 2)
    segments = np.stack([paths[:, :-1], paths[:, 1:]], axis=2)
    travelled = np.cumsum(np.linalg.norm(paths[:, 1:] - paths[:, :-1], axis=2).mean(0))
    colors = np.broadcast_to(FADE(travelled / travelled.max(initial=1e-300)), (*segments.shape[:2], 4)).reshape(-1, 4)
    thin = dict(linewidths=0.5, alpha=0.35, rasterized=True)
    axes.add_collection(LineCollection(segments.reshape(-1, 2, 2), colors=colors, **thin))
    _line(axes, u)
    axes.scatter(*W[0].T, s=9, color=RED, linewidths=0, alpha=0.6, label="initialized", rasterized=True)
    axes.scatter(*W[-1].T, s=9, color=BLUE, linewidths=0, label="trained", zorder=3, rasterized=True)
    _square(axes, max(np.abs(W[[0, -1]]).max(), np.quantile(np.abs(paths), 0.9995)))
    legend_below(figure, columns=3)
    return figure


@rc_context(STYLE)
def animate(history: dict[str, np.ndarray], u: np.ndarray | None, path: Path) -> None:
    """Figure 3 in motion, as a GIF: frames equally far apart in log ‖W⊥‖, and in snapshots where that is not falling.

    Only the points and the title are drawn anew, on one background.
    """
    W, progress = history["weights"], -np.log(np.maximum(history["w_perp"], 1e-2))
    progress = np.maximum.accumulate(progress) + 1e-2 * np.arange(len(progress))
    chosen = np.unique(np.searchsorted(progress, np.linspace(progress[0], progress[-1], FRAMES)))
    figure = Figure(figsize=(4.4, 4.4), dpi=80)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    figure.subplots_adjust(0.13, 0.11, 0.97, 0.93)
    _line(axes, u)
    axes.scatter(*W[0].T, s=5, color=RED, linewidths=0, alpha=0.25)
    _square(axes, np.abs(W[chosen]).max())
    (points,) = axes.plot([], [], ".", color=BLUE, markersize=3.2, markeredgewidth=0, zorder=3, animated=True)
    title = axes.set_title(" ", fontsize=10, animated=True)
    canvas.draw()
    background, images = canvas.copy_from_bbox(figure.bbox), []
    for frame in [*chosen, -1]:
        canvas.restore_region(background)
        points.set_data(*W[frame].T)
        title.set_text(f"step {history['step'][frame]}, ‖W⊥‖ = {history['w_perp'][frame]:.1e}")
        axes.draw_artist(points)
        axes.draw_artist(title)
        images.append(Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB"))
    palette = images[-1].quantize(64, method=Image.Quantize.FASTOCTREE)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [320] + [80] * (len(images) - 2) + [1000]  # milliseconds
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def norms(result: Result, lam: float) -> Figure:
    """‖W⊥‖_F and ‖W∥‖_F against steps, with the bound on ‖W⊥‖_F at the end; below, what shrinks W⊥."""
    history, bound = result.history, result.certificate and result.certificate.w_norm_bound
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes, rate = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    axes.plot(history["step"], history["w_parallel"], color=GREEN, label=r"$\|W_\parallel\|_F$")
    axes.plot(history["step"], history["w_perp"], color=BLUE, label=r"$\|W_\perp\|_F$")
    if bound is not None:
        label = rf"Stein's identity: $\|W_\perp\|_F$ ≤ {bound:.1e} at the end"
        axes.axhline(bound, color="black", linestyle="--", linewidth=1.2, label=label)
    axes.set(yscale="log", ylabel="norm of the first layer's weights")
    unit = max(2 * lam, 1e-30) if lam else 1
    limit = dict(color=RED, linestyle="--", linewidth=1.2, label=r"from here down the loss holds $W_\perp$ up")
    rate.plot(history["step"], history["curvature"] / unit, color=BLUE)
    rate.axhline(-1 if lam else 0, **limit)
    label = r"$\langle W_\perp, H W_\perp\rangle / \|W_\perp\|^2$" + (r"$\; / \; 2\lambda$" if lam else "")
    rate.set(xlabel="step", ylabel=label)
    rate.set_yscale("symlog", linthresh=1 if lam else 1e-6)
    rate.yaxis.set(major_formatter="{x:g}")
    for panel in (axes, rate):
        perturbations(panel, history["kicks"])
    legend_below(figure, columns=2)
    return figure


def spectrum(curves: dict[str, tuple[np.ndarray, str, str, int]], k: int, told: str, columns: int) -> Figure:
    """Singular values of W, largest first.

    Args:
        curves: values, style, colour and size, by label.
        k: number of directions that there are; a line after the k-th says so.
        told: the line's label.
        columns: of the legend.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for label, (values, style, color, size) in curves.items():
        i = np.arange(1, len(values) + 1)
        axes.plot(i, values, style, color=color, markersize=size, linewidth=1, label=label)
    axes.axvline(k + 0.5, color=GREY, linestyle=":", label=told)
    axes.set(yscale="log", xlabel="index", ylabel=r"singular value of $W$")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, columns=columns)
    return figure


def _line(axes: Axes, u: np.ndarray | None) -> None:
    if u is not None:
        axes.axline((0, 0), tuple(u), color="black", linewidth=1, zorder=2, label=r"span$(u)$")


def _square(axes: Axes, limit: float) -> None:
    limit = 1.05 * limit
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=r"$w_1$", ylabel=r"$w_2$")
