"""Figures: each function draws one from a finished run's numbers and returns it."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from style import BLUE, GREEN, GREY, ORANGE, RED, STYLE, band, legend_below, perturbations


@rc_context(STYLE)
def distortion(history: dict[str, np.ndarray], final: float, gaussian: np.ndarray, best_of: int | None) -> Figure:
    """Figure 6: worst distortion against iterations, of the mean M and of one draw of A, beside Gaussian matrices.

    Args:
        history: snapshots of `train.derandomize`.
        final: worst distortion of the matrix that is kept: the SOSP, or if none was reached the best.
        gaussian: worst distortions of single Gaussian matrices.
        best_of: draw also the line of the authors' script, the mean of the worst of so many Gaussian matrices.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["drawn_distortion"], ".", color=ORANGE, markersize=5, label="one draw of A")
    axes.plot(history["step"], history["distortion"], color=BLUE, label=f"mean M; kept: {final:.2g}")
    mean, least = gaussian.mean(), gaussian.min()
    axes.axhline(mean, color=RED, linestyle=":", label=f"Gaussian matrix, mean of {len(gaussian)}: {mean:.3g}")
    axes.axhline(least, color=GREEN, linestyle="--", label=f"Gaussian matrix, best of {len(gaussian)}: {least:.3g}")
    if best_of is not None and best_of <= len(gaussian):
        groups = gaussian[: len(gaussian) // best_of * best_of].reshape(-1, best_of)
        worst = groups.max(axis=1).mean()
        axes.axhline(worst, color=GREY, linestyle="-.", label=f"the authors' line, worst of {best_of}: {worst:.3g}")
    axes.set(xlabel="iteration", ylabel=r"worst distortion $\max\,|\|Ax\|^2 - 1|$", ylim=(0, None))
    legend_below(figure)
    return figure


@rc_context(STYLE)
def variance(history: dict[str, np.ndarray], kicks: list[int]) -> Figure:
    """Figure 7: σ² against iterations: the randomness that is left in the projection.

    Args:
        history: snapshots of `train.derandomize`.
        kicks: steps at which perturbations struck; the last one finds no way down, and PGD returns to where it was.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(history["step"], np.maximum(history["sigma"] ** 2, 1e-30), color=BLUE)
    perturbations(axes, kicks)
    axes.set(xlabel="iteration", ylabel=r"variance $\sigma^2$")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def distortions(edges: np.ndarray, counts: dict[str, np.ndarray], worst: dict[str, float], noun: str) -> Figure:
    """Histogram of all distortions ‖A x‖² − 1, of several projections to the same dimension.

    Args:
        edges: (bins + 1,) edges of the bins.
        counts: (bins,) numbers of vectors or pairs, by the projection's name.
        worst: worst distortion, by the same names.
        noun: "vectors" or "pairs".
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, values), color, line in zip(
        counts.items(), (BLUE, RED, ORANGE, GREEN), ("-", ":", "--", "-."), strict=True
    ):
        axes.stairs(values, edges, color=color, linestyle=line, linewidth=2, label=f"{name}: worst {worst[name]:.2g}")
    axes.set(xlabel=r"distortion $\|Ax\|^2 - 1$", ylabel=f"number of {noun}", yscale="log", ylim=(0.7, None))
    legend_below(figure)
    return figure


Panels = dict[str, dict[str, dict[float, tuple[float, float, float]]]]
"""by data set, by the curve's name, by x: quartiles"""


@rc_context(STYLE)
def study_dimensions(panels: Panels, titles: dict[str, str], theory: dict[str, dict[int, float]]) -> Figure:
    """Worst distortion against k, and the k that scikit-learn's theory asks for.

    Args:
        panels: by method and k.
        titles: by data set.
        theory: by data set, the worst distortion that is guaranteed at a k.
    """
    styles = [(BLUE, "o-"), (GREEN, "s-."), (ORANGE, "^--"), (RED, "v:")]
    figure = _bands(panels, titles, styles, "dimensions kept, k")
    for axes, guaranteed in zip(figure.axes, theory.values(), strict=True):
        axes.plot(
            *zip(*guaranteed.items(), strict=True), "*", color="black", markersize=9, label="scikit-learn's bound"
        )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, 5)
    return figure


@rc_context(STYLE)
def study_objectives(panels: Panels, titles: dict[str, str]) -> Figure:
    """Least worst distortion so far against processor time, by data set, objective and seconds."""
    figure = _bands(panels, titles, [(BLUE, "-"), (ORANGE, "--"), (RED, ":")], "processor time (s)")
    legend_below(figure, 5)
    return figure


@rc_context(STYLE)
def study_generalization(panels: Panels, titles: dict[str, str]) -> Figure:
    """Worst distortion of the n points fitted to and of unseen ones, by data set, method and n."""
    styles = [
        (color, style) for color, marker in ((BLUE, "o"), (GREEN, "s"), (RED, "v")) for style in ("--", f"{marker}-")
    ]
    figure = _bands(panels, titles, styles, "points fitted to, n")
    legend_below(figure, 3)
    return figure


def _bands(panels: Panels, titles: dict[str, str], styles: list[tuple[str, str]], xlabel: str) -> Figure:
    """A panel a data set: medians as lines, quartiles as bands; styles: each curve's colour, marker and line."""
    figure = Figure(figsize=(1 + 3.4 * len(panels), 4.2), layout="constrained")
    for axes, (data, curves) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for (name, curve), (color, style) in zip(curves.items(), styles, strict=True):
            band(axes, list(curve), list(curve.values()), color, style, name)
        axes.set(xscale="log", yscale="log", xlabel=xlabel, title=titles[data])
        q1, _, q3 = np.array([x for curve in curves.values() for x in curve.values()]).T
        axes.set_ylim(0.6 * q1[q1 > 1e-13].min(), 1.5 * q3.max())  # PCA at k = d is exact but for rounding
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            if high < 1000 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
    figure.axes[0].set_ylabel("worst distortion")
    return figure
