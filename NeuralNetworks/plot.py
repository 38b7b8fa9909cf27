"""Figures: each function draws one from a finished run's numbers and returns it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from style import BLUE, GREEN, GREY, ORANGE, RED, STYLE, band, legend_below, perturbations

FADE = LinearSegmentedColormap.from_list("fade", [RED, BLUE])
Band = Sequence[tuple[float, float, float]]
"""first quartile, median and third quartile at each x"""
LEFT = r"$\|W_\perp\|_F$ / $\|W_\perp\|_F$ at the start"


@rc_context(STYLE)
def toy(lams: np.ndarray, w: np.ndarray, curve_lams: np.ndarray, curve: np.ndarray, title: str) -> Figure:
    """Figures 1 and 2: |w*| against λ, on log axes (|w*| on a linear one below 10⁻³, so that 0 can be seen).

    Args:
        lams, w: where PGD ended, for each λ.
        curve_lams, curve: the exact global minimizer.
        title: what is done with the bias.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve_lams, curve, color=BLUE, label="global minimizer, exact")
    axes.plot(lams, w, "o", color=ORANGE, markersize=5, label="PGD")
    axes.set(xscale="log", xlabel=r"$\lambda$", ylabel=r"$|w^*|$", title=title)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(-2e-4, 1)
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def weights(history: dict[str, np.ndarray], u: np.ndarray | None, trajectories: int = 150) -> Figure:
    """Figure 3: every neuron's weights in the plane, as initialized and as trained, with some of the ways between.

    Args:
        history: snapshots of `train.train`, for d = 2.
        u: (2,) the teacher's direction; None if it has not one.
        trajectories: of so many neurons the way is drawn.
    """
    figure = Figure(figsize=(6.4, 6), layout="constrained")
    axes = figure.subplots()
    W = history["weights"]
    paths = W[:, :: max(1, W.shape[1] // trajectories)].transpose(1, 0, 2)
    segments = np.stack([paths[:, :-1], paths[:, 1:]], axis=2)
    travelled = np.cumsum(np.linalg.norm(paths[:, 1:] - paths[:, :-1], axis=2).mean(0))
    colors = np.broadcast_to(FADE(travelled / max(travelled[-1], 1e-300)), (*segments.shape[:2], 4))
    axes.add_collection(
        LineCollection(
            segments.reshape(-1, 2, 2), colors=colors.reshape(-1, 4), linewidths=0.5, alpha=0.35, rasterized=True
        )
    )
    _line(axes, u)
    axes.scatter(*W[0].T, s=9, color=RED, linewidths=0, alpha=0.6, label="initialized", rasterized=True)
    axes.scatter(*W[-1].T, s=9, color=BLUE, linewidths=0, label="trained", zorder=3, rasterized=True)
    _square(axes, max(np.abs(W[[0, -1]]).max(), np.quantile(np.abs(paths), 0.9995)))
    legend_below(figure, columns=3)
    return figure


def animate(history: dict[str, np.ndarray], u: np.ndarray | None, path: Path, frames: int = 30) -> None:
    """Figure 3 in motion, as a GIF: frames equally far apart in log ‖W⊥‖, or in snapshots where that is not falling."""
    with rc_context(STYLE):
        W, progress = history["weights"], -np.log(np.maximum(history["w_perp"], 1e-2))
        progress = np.maximum.accumulate(progress)
        chosen = np.unique(np.searchsorted(progress, np.linspace(progress[0], progress[-1], frames)))
        figure = Figure(figsize=(4.4, 4.4), dpi=80)
        axes = figure.subplots()
        figure.subplots_adjust(0.13, 0.11, 0.97, 0.93)
        _line(axes, u)
        axes.scatter(*W[0].T, s=5, color=RED, linewidths=0, alpha=0.25)
        points = axes.scatter(*W[0].T, s=6, color=BLUE, linewidths=0, zorder=3)
        _square(axes, np.abs(W[chosen]).max())
        writer = PillowWriter(fps=12)
        with writer.saving(figure, path, dpi=80):
            for frame in [0] * 3 + list(chosen) + [-1] * 12:
                points.set_offsets(W[frame])
                axes.set_title(
                    rf"step {history['step'][frame]}, $\|W_\perp\|$ = {history['w_perp'][frame]:.1e}", fontsize=10
                )
                writer.grab_frame()


@rc_context(STYLE)
def norms(history: dict[str, np.ndarray], kicks: list[int], bound: float | None) -> Figure:
    """‖W⊥‖_F and ‖W∥‖_F against steps, with the lemma's bound on ‖W⊥‖_F at the end.

    Args:
        history: snapshots of `train.train`.
        kicks: steps at which perturbations struck.
        bound: the certificate's, None where the lemma says nothing.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["w_parallel"], color=GREEN, label=r"$\|W_\parallel\|_F$")
    axes.plot(history["step"], history["w_perp"], color=BLUE, label=r"$\|W_\perp\|_F$")
    if bound is not None:
        axes.axhline(
            bound, color="black", linestyle="--", linewidth=1.2, label=rf"the lemma: $\|W_\perp\|_F$ ≤ {bound:.1e} here"
        )
    perturbations(axes, kicks)
    axes.set(yscale="log", xlabel="step", ylabel="norm of the first layer's weights")
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def spectrum(before: np.ndarray, after: np.ndarray, k: int) -> Figure:
    """Singular values of W before and after training; the teacher uses k directions.

    Args:
        before, after: singular values, largest first.
        k: number of the teacher's directions.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    i = np.arange(1, len(before) + 1)
    floor = 1e-16 * before[0]
    axes.plot(i, before, "o-", color=RED, markersize=5, linewidth=1, label="initialized")
    axes.plot(i, np.maximum(after, floor), "s-", color=BLUE, markersize=5, linewidth=1, label="trained")
    axes.axvline(k + 0.5, color=GREY, linestyle=":", label=f"the teacher uses {k} direction{'s' * (k != 1)}")
    axes.set(yscale="log", xlabel="index", ylabel=r"singular value of $W$")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, columns=3)
    return figure


@rc_context(STYLE)
def study_lemma(
    xs: Sequence[Sequence[float]],
    w_perp: Sequence[Band],
    measured: Sequence[Band],
    lemma: Sequence[Sequence[float]],
    labels: Sequence[str],
    start: float,
) -> Figure:
    """Study `lemma`: ‖W⊥‖ where PGD ended and the lemma's bound, a panel for what varies.

    Args:
        xs: λ or ρ, for each panel; and so on.
        w_perp: the norm.
        measured: the bound with the measured gradient and Hessian.
        lemma: the bound from λ and ρ alone, K = 1; nan where it says nothing.
        labels: what varies.
        start: ‖W⊥‖ as initialized.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels: np.ndarray = figure.subplots(1, len(xs), sharey=True)
    for axes, x, norm, bound, line, label in zip(panels, xs, w_perp, measured, lemma, labels, strict=True):
        band(axes, x, norm, BLUE, "o-", r"$\|W_\perp\|_F$")
        axes.axhline(start, color=GREY, linestyle=":", label=r"$\|W_\perp\|_F$ as initialized")
        band(axes, x, bound, ORANGE, "s--", "the lemma's bound, gradient and Hessian measured")
        axes.plot(x, line, color="black", linewidth=1.2, label=r"the lemma's bound, $K = 1$, where there is one")
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_ylim(bottom=1e-6)  # at the smallest λ the band goes on, to rounding errors
    panels[0].set(ylabel=r"$\|W_\perp\|_F$ at the end")
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def study_inputs(left: dict[str, tuple[float, float, float]], covered: int) -> Figure:
    """Study `inputs`: what is left of ‖W⊥‖, median and quartiles, for each distribution of the inputs.

    Args:
        left: by the distribution's name.
        covered: for so many of them, the first, the theorem holds.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    q1, median, q3 = np.array(list(left.values())).T
    places = np.arange(len(left))
    for chosen, color, label in (
        (places < covered, BLUE, "the theorem holds"),
        (places >= covered, ORANGE, "it does not"),
    ):
        errors = median[chosen] - q1[chosen], q3[chosen] - median[chosen]
        axes.errorbar(median[chosen], places[chosen], xerr=errors, fmt="o", color=color, capsize=4, label=label)
    axes.set(xscale="log", xlabel=LEFT, yticks=places, yticklabels=list(left))
    axes.invert_yaxis()
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def study_architecture(xs: dict[str, list[int]], left: dict[str, Band], base: dict[str, object]) -> Figure:
    """Study `architecture`: what is left of ‖W⊥‖ against each factor, the others as in the base setting.

    Args:
        xs: the factor's values.
        left: of each.
        base: the setting that all panels share.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels: np.ndarray = figure.subplots(1, len(xs), sharey=True)
    for axes, (name, x) in zip(panels, xs.items(), strict=True):
        band(axes, x, left[name], BLUE, "o-", "median, quartiles")
        axes.axvline(base[name], color=GREY, linestyle=":", zorder=1, label="the setting that the panels share")
        axes.set(yscale="log", xlabel={"k": "directions $k$", "d": "dimension $d$"}.get(name, name))
        _whole_numbers(axes, x, log=name != "depth")
    panels[0].set(ylabel=LEFT)
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def study_iota(iotas: Sequence[float], left: Band, risk: Band) -> Figure:
    """Study `iota`: what is left of ‖W⊥‖, and the risk, against ι; the last of each is plain ReLU's."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    panels: np.ndarray = figure.subplots(1, 2)
    for axes, values, ylabel in zip(panels, (left, risk), (LEFT, "excess risk / label variance"), strict=True):
        _level(axes, values[-1], ORANGE, "ReLU")
        band(axes, iotas, values[:-1], BLUE, "o-", r"ReLU$_\iota$")
        axes.set(xlabel=r"$\iota$", ylabel=ylabel)
        axes.set_ylim(bottom=0)
        _whole_numbers(axes, iotas, log=True)
    legend_below(figure, columns=2)
    return figure


@rc_context(STYLE)
def study_samples(points: Sequence[int], left: dict[float, Band]) -> Figure:
    """Study `samples`: what is left of ‖W⊥‖ against N; the last of each band is with fresh points.

    Args:
        points: N.
        left: by the standard deviation of the labels' noise.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for (noise, values), color, style in zip(left.items(), (BLUE, ORANGE), ("o-", "s-"), strict=True):
        _level(axes, values[-1], color, f"label noise {noise:g}, fresh points")
        band(axes, points, values[:-1], color, style, f"label noise {noise:g}, the same $N$ points")
    axes.set(xscale="log", yscale="log", xlabel="$N$", ylabel=LEFT)
    legend_below(figure, columns=2)
    return figure


def _level(axes: Axes, quartiles: tuple[float, float, float], color: str, label: str) -> None:
    q1, median, q3 = quartiles
    axes.axhline(median, color=color, linestyle="--", linewidth=1.2, label=label)
    axes.axhspan(q1, q3, color=color, alpha=0.15, linewidth=0)


def _whole_numbers(axes: Axes, x: Sequence[float], log: bool) -> None:
    if log:
        axes.set(xscale="log")
    axes.xaxis.set(major_locator=FixedLocator(x), minor_locator=NullLocator(), major_formatter="{x:g}")


def _line(axes: Axes, u: np.ndarray | None) -> None:
    if u is not None:
        axes.axline((0, 0), tuple(u), color="black", linewidth=1, zorder=2, label=r"span$(u)$")


def _square(axes: Axes, limit: float) -> None:
    limit = 1.05 * limit
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=r"$w_1$", ylabel=r"$w_2$")
