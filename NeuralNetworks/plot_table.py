"""Figures of a table: each function draws one from a fitted estimator and returns it."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import plot
from model import effective_rank
from run import BLUE, GREEN, GREY, ORANGE, RED, STYLE, legend_below

if TYPE_CHECKING:
    from explore import Estimator
    from table import Table

SHOWN = 3000
"""points in a panel, at most"""


@rc_context(STYLE)
def figures(model: "Estimator", table: "Table") -> dict[str, Figure]:
    """All of them, by file name; without directions there is no answer to draw against them."""
    drawn = {"table_spectrum": spectrum(model), "table_path": path(model)}
    return drawn | ({"table_answer": answer(model, table)} if model.n_directions_ else {})


def answer(model: "Estimator", table: "Table") -> Figure:
    """The answers against the leading direction, with the network's curve; and against two, as colour, if there are.

    With more directions than one, the curve is the mean of the network over the rows' other coordinates (partial
    dependence, Friedman 2001); in the plane, further coordinates are at their mean.
    """
    t = model.transform(table.X)
    several = t.shape[1] > 1
    figure = Figure(figsize=(10, 4.4) if several else (6.4, 4.4), layout="constrained")
    panels, rng = np.atleast_1d(figure.subplots(1, 1 + several)), np.random.default_rng(0)
    rows = rng.permutation(len(t))[:SHOWN]
    y = table.y[rows] + (rng.uniform(-0.04, 0.04, len(rows)) if table.classes else 0)
    label = f"P({table.target} = {table.classes[1]})" if table.classes else table.target
    label = label.replace("$", r"\$")  # else Matplotlib takes what is between two for a formula
    panels[0].scatter(t[rows, 0], y, s=8, color=GREY, alpha=0.5, linewidths=0, label="rows", rasterized=True)
    grid = np.linspace(*np.quantile(t[:, 0], [0.002, 0.998]), 200)
    points = np.repeat(t[None, rows[:500]], len(grid), axis=0)
    points[:, :, 0] = grid[:, None]
    curve = model.answers_along(points.reshape(-1, t.shape[1])).reshape(len(grid), -1).mean(1)
    name = "the network, mean over the other directions" if several else "the network"
    panels[0].plot(grid, curve, color=BLUE, label=name)
    unit = "" if model.inputs == "raw" else ", standard deviations"
    panels[0].set(xlabel=f"leading direction{unit}", ylabel=label, xlim=_range(t[:, 0]), ylim=_range(y))
    if several:
        _plane(panels[1], model, table, t[rows], rows, label)
    legend_below(figure, columns=2)
    return figure


def _plane(axes: Axes, model: "Estimator", table: "Table", t: NDArray, rows: NDArray, label: str) -> None:
    low, high = np.quantile(table.y, [0.02, 0.98])  # where all but the outermost 4 % lie
    low, high = (low, high) if low < high else (table.y.min(), table.y.max())  # all, where nearly all are the same
    sides = [np.linspace(*_range(t[:, i]), 80) for i in (0, 1)]
    mesh = np.tile(t.mean(0), (80 * 80, 1))
    mesh[:, :2] = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    values = model.answers_along(mesh).reshape(80, 80)
    color = {"cmap": "viridis", "vmin": low, "vmax": high}
    axes.contourf(*sides, np.clip(values, low, high), levels=np.linspace(low, high, 15), alpha=0.45, **color)
    white = dict(s=9, linewidths=0.2, edgecolors="white", rasterized=True)
    points = axes.scatter(*t[:, :2].T, c=table.y[rows], **white, **color)
    axes.figure.colorbar(points, ax=axes).set_label(label)
    axes.set(xlabel="first direction", ylabel="second direction", xlim=sides[0][[0, -1]], ylim=sides[1][[0, -1]])
    axes.set_title("rows as points, the network as ground", fontsize=10)


def _range(values: NDArray) -> tuple[float, float]:
    """Where all but the outermost 0.4 % lie, and a bit more."""
    low, high = np.quantile(values, [0.002, 0.998])
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def spectrum(model: "Estimator") -> Figure:
    """Singular values of W: as drawn, at the chosen λ, and fitted anew on the directions that are kept."""
    discovery, k = model.discovery_, model.n_directions_
    trained = np.maximum(model.spectrum_, 1e-4 * discovery.initial[0])
    less = "; the lowest, or less" * bool((trained > model.spectrum_).any())
    label = rf"trained, all directions, $\lambda$ = {discovery.full.lam:.2g}{less}"
    curves = {"as drawn": (discovery.initial, "o-", RED, 5), label: (trained, "s-", BLUE, 5)}
    if k:
        curves["fitted on those that are kept"] = model.network_.spectrum(), "D", GREEN, 6
    return plot.spectrum(curves, k, f"{k} kept", columns=2)


def path(model: "Estimator") -> Figure:
    """Along the path of λ: the risks, and W's effective rank; then the risk against the number of directions."""
    discovery = model.discovery_
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    risks, rank, number = figure.subplots(1, 3)
    lams = [s.lam for s in discovery.path]
    risks.plot(lams, [s.training for s in discovery.path], "s--", color=ORANGE, markersize=5, label="training rows")
    risks.plot(lams, [s.validation for s in discovery.path], "o-", color=BLUE, markersize=5, label="validation rows")
    ranks = [effective_rank(s.network.weights.detach()) for s in discovery.path]
    rank.plot(lams, ranks, "o-", color=GREEN, markersize=5)
    for axes, title in ((risks, "risk"), (rank, "effective rank of $W$")):
        axes.axvline(discovery.full.lam, color=GREY, linestyle=":", label="chosen")
        axes.set(xscale="log", xlabel=r"$\lambda$", ylabel=title)
        axes.invert_xaxis()  # as the path goes
    k, best = [s.directions for s in discovery.ranks], min(discovery.ranks, key=lambda s: s.validation)
    number.plot(k, [s.training for s in discovery.ranks], "s--", color=ORANGE, markersize=5)
    bars = [(s.losses - best.losses).std(ddof=1) / np.sqrt(len(s.losses)) for s in discovery.ranks]
    validation = [s.validation for s in discovery.ranks]
    number.errorbar(k, validation, yerr=bars, fmt="o-", color=BLUE, markersize=5, capsize=3)
    number.axvline(discovery.chosen.directions, color=GREY, linestyle=":")
    number.set(xlabel="directions kept", ylabel="risk; bars: error of the difference to the least")
    number.yaxis.label.set_fontsize(9)
    number.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, columns=3)
    return figure
