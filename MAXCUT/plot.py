"""Figures: each function draws one from a finished run's numbers and returns it."""

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from optimizer import Result
from style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLE, band, legend_below, perturbations
from utilities import Graph

warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of vertex names: a box will do

LINES = ((BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^-."), (RED, "D:"), (PURPLE, "v-"))
"""colour and style of each line of a study's figure"""
GUARANTEE = 0.87856
"""Goemans and Williamson's: their expected cut over the relaxation's value"""


@rc_context(STYLE)
def cut(history: dict[str, np.ndarray], gw: np.ndarray, ceiling: float, ceiling_name: str) -> Figure:
    """Figure 4: cut against iterations, beside Goemans–Williamson and the optimum or its upper bound.

    Args:
        history: snapshots of `optimizer.derandomize`.
        gw: cut values of Goemans–Williamson's roundings.
        ceiling: the optimum, or an upper bound.
        ceiling_name: its name in the legend.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["drawn_cut"], ".", color=ORANGE, markersize=5, label="one draw of the rounding")
    axes.plot(history["step"], history["expected_cut"], color=BLUE, label="expected cut (exact)")
    axes.axhline(ceiling, color="black", linewidth=1.2, label=f"{ceiling_name}: {ceiling:.10g}")
    axes.axhline(gw.max(), color=GREEN, linestyle="--", label=f"Goemans–Williamson, best of {len(gw)}: {gw.max():.10g}")
    axes.axhline(gw.mean(), color=RED, linestyle=":", label=f"Goemans–Williamson, mean: {gw.mean():.6g}")
    axes.set(xlabel="iteration", ylabel="cut value")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def sigma(history: dict[str, np.ndarray], kicks: list[int]) -> Figure:
    """Figure 5: σ, the largest ‖v_i‖, against iterations: the randomness that is left in the rounding.

    Args:
        history: snapshots of `optimizer.derandomize`.
        kicks: steps at which perturbations struck; the last one finds no way down, and PGD returns to where it was.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(history["step"], history["sigma"], color=BLUE)
    perturbations(axes, kicks)
    axes.set(xlabel="iteration", ylabel=r"$\sigma = \max_i \|v_i\|$")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def graph(graph: Graph, s: np.ndarray, value: float) -> Figure:
    """The graph, its two sides left and right, the cut edges drawn between them; for up to about 200 vertices."""
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    position = np.empty((graph.n, 2))
    for side, centre in ((-1, np.pi), (1, 0)):
        members = np.flatnonzero(s == side)
        angle = centre + np.linspace(-1, 1, len(members) + 2)[1:-1] * 1.25
        position[members] = np.stack([1.5 * np.cos(angle), np.sin(angle)], axis=1)
    i, j = graph.i.cpu().numpy(), graph.j.cpu().numpy()
    crossing = s[i] != s[j]
    alpha = max(0.1, min(0.9, 30 / np.sqrt(graph.m) / 4))
    for chosen, color, width, label in (
        (~crossing, GREY, 0.8, f"{(~crossing).sum()} edges within a side"),
        (crossing, BLUE, 1.2, f"{crossing.sum()} edges cut, of total weight {value:.10g}"),
    ):
        lines = np.stack([position[i[chosen]], position[j[chosen]]], axis=1)
        axes.add_collection(LineCollection(lines, colors=color, linewidths=width, alpha=alpha, label=label))
    size = 260 if graph.n <= 40 else 40
    axes.scatter(*position.T, s=size, c=np.where(s > 0, ORANGE, GREEN), edgecolors="white", zorder=3)
    if graph.n <= 40:
        for v, (x, y) in enumerate(position):
            name = graph.names[v] if graph.names else str(v)
            axes.annotate(name[:4], (x, y), ha="center", va="center", fontsize=8, zorder=4, parse_math=False)
    axes.set_axis_off()
    axes.set_aspect("equal")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def search(seconds: list[float], best: list[float], end: float, gw: float, ceiling: float, ceiling_name: str) -> Figure:
    """Best cut against time, for runs with `--seconds`.

    Args:
        seconds, best: when the best cut grew, and to what; the first is the first descent's.
        end: seconds at the end.
        gw: the best of Goemans–Williamson's roundings.
        ceiling: the optimum, or an upper bound.
        ceiling_name: its name in the legend.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.step([*seconds, end], [*best, best[-1]], where="post", color=BLUE, label=f"best cut so far: {best[-1]:.10g}")
    axes.plot(seconds, best, "o", color=BLUE, markersize=4)
    # Out of the way of the cuts' own small differences.
    share = f" ({best[-1] / ceiling:.2%})" if ceiling else ""
    axes.plot([], [], " ", label=f"{ceiling_name}: {ceiling:.10g}{share}")
    axes.plot([], [], " ", label=f"Goemans–Williamson's best: {gw:.10g}")
    axes.set(xlabel="seconds, the relaxation included", ylabel="cut value", xlim=(0, None))
    axes.ticklabel_format(useOffset=False)
    legend_below(figure)
    return figure


@rc_context(STYLE)
def gaps(
    families: dict[str, list[tuple[list[float], list[float]]]],
    baselines: dict[str, list[tuple[float, float]]],
    end: float,
) -> Figure:
    """Benchmark `cuts`: relative gap to the reference against seconds, a line a graph, a colour a family.

    Args:
        families: of each graph of a family, when its best cut grew and the gaps that were left.
        baselines: of each method, seconds and gap of each graph.
        end: seconds at the end.
    """
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    least = 1e-5  # a gap of 0, on a logarithmic axis
    for color, (name, lines) in zip((BLUE, ORANGE, GREEN, RED, PURPLE, SKY), sorted(families.items()), strict=False):
        for seconds, gap in lines:
            left = np.maximum([*gap, gap[-1]], least)
            axes.step([*seconds, end], left, where="post", color=color, linewidth=1.5, label=f"ours, {name}")
    for marker, (name, points) in zip("x+", baselines.items(), strict=False):
        seconds, gap = np.array(points).T
        axes.plot(seconds, np.maximum(gap, least), marker, color=GREY, label=name)
    axes.axhline(least, color="black", linewidth=0.8, linestyle=":", label="no gap")
    axes.set(xscale="log", yscale="log", xlabel="seconds, the relaxation included", ylabel="gap to the reference")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def steps(edges: Sequence[int], seconds: Sequence[float]) -> Figure:
    """Benchmark `steps`: time of a step against edges, beside a straight line through the largest."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(edges, seconds, "o-", color=BLUE, label="one step")
    linear = np.array(edges) * seconds[-1] / edges[-1]
    axes.loglog(edges, linear, "--", color=GREY, linewidth=1.2, label="proportional to the edges")
    axes.set(xlabel="edges", ylabel="seconds")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def saddle(run: Result, still: Result | None = None) -> Figure:
    """Objective and gradient norm, where the perturbations struck, and what becomes of a run without any.

    Args:
        run: the run.
        still: the same without perturbations, with smaller steps: μ stays 0 and it ends at a saddle.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    panels: np.ndarray = figure.subplots(2, sharex=True)
    for axes, name in zip(panels, ("objective", "gradient_norm"), strict=True):
        for result, color, style, label in ((still, RED, "--", "no perturbation"), (run, BLUE, "-", "PGD")):
            if result is not None:
                proof = result.certificate
                stationary = "a saddle" if proof.gradient_norm <= proof.rho else "no stationary point"
                end = "an SOSP" if proof.is_sosp else stationary
                label += rf", ends at {end}: $\lambda_{{\min}}$ = {proof.lambda_min:.1g}"
                axes.plot(result.history["step"], result.history[name], color=color, linestyle=style, label=label)
        perturbations(axes, run.kicks)
    panels[0].set(ylabel=r"objective $f(V, \mu)$")
    panels[1].set(ylabel=r"$\|\nabla f\|$", xlabel="iteration", yscale="log")
    legend_below(figure)
    return figure


Bands = dict[str, list[tuple[float, float, float]]]
"""first quartile, median and third quartile at each x, by the line's label"""


@rc_context(STYLE)
def smoothing(lams: Sequence[float], cut: Bands, steps: Bands, curvature: Bands, max_steps: int) -> Figure:
    """Study `smoothing`: cut, steps to an SOSP and −λ_min against λ, a line for each ε.

    Args:
        lams: λ.
        cut: the cut as a fraction of the upper bound.
        steps: of the descent.
        curvature: λ_min where it ended.
        max_steps: at which the descent was stopped.
    """
    figure = Figure(figsize=(6.4, 8), layout="constrained")
    panels: np.ndarray = figure.subplots(3, sharex=True)
    floor = 1e-9  # where nothing is left of the curvature but rounding errors
    sizes = {label: np.maximum(-np.array(band), floor)[:, ::-1] for label, band in curvature.items()}
    for axes, bands in zip(panels, (cut, steps, sizes), strict=True):
        _bands(axes, lams, bands)
    panels[0].set(ylabel="cut / upper bound")
    panels[1].set(ylabel=f"steps to an SOSP\n({max_steps}: not reached)")
    _plain_log(panels[1], "y")
    panels[2].set(ylabel=r"$\max(-\lambda_{\min}, 10^{-9})$ at the end", yscale="log")
    panels[2].set(xlabel=r"$\lambda$", xscale="log")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def graphs(sizes: Sequence[int], families: dict[str, Bands], exact: int) -> Figure:
    """Study `graphs`: cuts against the number of vertices, a panel for each family, a line for each method.

    Args:
        sizes: numbers of vertices.
        families: the cuts as fractions of the optimum up to `exact` vertices, of the upper bound above.
        exact: see `families`.
    """
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    panels: np.ndarray = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (family, bands) in zip(panels.flat, families.items(), strict=True):
        for chosen in (np.array(sizes) <= exact, np.array(sizes) > exact):
            _bands(axes, np.array(sizes)[chosen], {label: np.array(band)[chosen] for label, band in bands.items()})
        axes.axhline(GUARANTEE, color="black", linewidth=1.2, label="Goemans–Williamson's guarantee 0.878")
        axes.set(title=family)
    for axes in panels[1]:
        axes.set(xlabel="vertices")
        _plain_log(axes, "x")
    for axes in panels[:, 0]:
        axes.set(ylabel=f"cut / optimum (n ≤ {exact})\ncut / upper bound (n > {exact})")
    legend_below(figure)
    return figure


@rc_context(STYLE)
def escape(sizes: Sequence[int], cut: Bands, sosp: dict[str, list[float]], steps: Bands, seconds: Bands) -> Figure:
    """Study `escape`: where each way to leave the saddle ends and what it costs, against the number of vertices.

    Args:
        sizes: numbers of vertices.
        cut: the expected cut as a fraction of the upper bound.
        sosp: share of the runs that end at an SOSP.
        steps, seconds: of the descent; processor time.
    """
    figure = Figure(figsize=(9, 6.8), layout="constrained")
    panels: np.ndarray = figure.subplots(2, 2, sharex=True)
    shares = {way: [(share, share, share) for share in line] for way, line in sosp.items()}
    for axes, bands in zip(panels.flat, (cut, shares, steps, seconds), strict=True):
        _bands(axes, sizes, bands)
    panels[0, 0].set(ylabel="E[cut] / upper bound")
    panels[0, 1].set(ylabel="share of runs that end at an SOSP")
    panels[1, 0].set(ylabel="steps until the rule stops it", xlabel="vertices")
    panels[1, 1].set(ylabel="CPU seconds", xlabel="vertices")
    panels[1, 0].set_ylim(bottom=0)
    _plain_log(panels[1, 0], "x")
    _plain_log(panels[1, 1], "y")
    legend_below(figure)
    return figure


def _bands(axes: Axes, x: Sequence[float], bands: Bands) -> None:
    for place, ((label, quartiles), (color, style)) in enumerate(zip(bands.items(), LINES, strict=False)):
        band(axes, x, quartiles, color, style, label, zorder=3 - place / 10)


def _plain_log(axes: Axes, directions: str) -> None:
    for direction in directions:
        axes.set(**{f"{direction}scale": "log"})
        axis = getattr(axes, f"{direction}axis")
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
