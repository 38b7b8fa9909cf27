"""Figures: each function draws one from a finished run's numbers and returns it; `save` writes it."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from optimizer import Result
from utilities import Graph

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as folder/name.png and folder/name.pdf, the same bytes for the same figure."""
    with rc_context(STYLE):
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})


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
    _legend_below(figure)
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
    for kick in kicks:
        axes.axvline(kick, color=ORANGE, linewidth=1.5, zorder=0, label="perturbation")
    axes.set(xlabel="iteration", ylabel=r"$\sigma = \max_i \|v_i\|$")
    _legend_below(figure)
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
            axes.annotate(name[:4], (x, y), ha="center", va="center", fontsize=8, color="black", zorder=4)
    axes.set_axis_off()
    axes.set_aspect("equal")
    _legend_below(figure)
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
        for kick in run.kicks:
            axes.axvline(kick, color=ORANGE, linewidth=1.5, zorder=0, label="perturbation")
    panels[0].set(ylabel=r"objective $f(V, \mu)$")
    panels[1].set(ylabel=r"$\|\nabla f\|$", xlabel="iteration", yscale="log")
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    columns = 1 if len(unique) < 4 else 2
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=columns, fontsize=9)
