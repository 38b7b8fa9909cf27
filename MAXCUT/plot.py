"""Figures of a finished run, each function draws one from its numbers and returns it; and its summary in words."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from optimizer import Result
from run import BLUE, GREEN, GREY, ORANGE, RED, STYLE, legend_below, perturbations, print_summary
from search import Search
from utilities import Graph

if TYPE_CHECKING:
    from main import Config

warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of vertex names: a box will do

SOMETIMES = ("graph.png", "graph.pdf", "search.png", "search.pdf", "vertices.txt")
"""files that not every run writes"""
DRAWN = 200
"""Graphs of up to so many vertices are drawn, and run a second time without perturbations for the figure `saddle`."""


@rc_context(STYLE)
def figures(
    graph: Graph, result: Result, still: Result | None, found: Search | None, results: dict, gw: np.ndarray
) -> dict[str, Figure]:
    """All figures of a run by name: results is what results.json holds, still the run without perturbations."""
    bounded = results["optimum"] is None
    ceiling = (results["upper_bound"], "upper bound") if bounded else (results["optimum"], "optimum")
    drawn = {
        "fig4_cut": cut(result.history, gw, *ceiling),
        "fig5_sigma": sigma(result.history),
        "saddle": saddle(replace(result, certificate=None) if found else result, still),  # it is of the planted end
    }
    if graph.n <= DRAWN:
        drawn["graph"] = draw(graph, result.s.cpu().numpy(), result.cut)
    if found is not None:
        drawn["search"] = search(found, results["seconds"], gw.max(), *ceiling)
    return drawn


def summary(config: "Config", results: dict, result: Result, found: Search | None, interrupted: bool) -> None:
    """Print what the user reads; the arguments as in `figures`."""
    r, bound = results, results["upper_bound"]
    share = f", {r['cut'] / bound:.2%} of the bound" if bound else ""
    beside = share if r["optimum"] is None else f", the optimum is {r['optimum']:.10g}"
    proof = "Lanczos', not proven" if r["upper_bound_proof"] == "Lanczos" else f"proven by {r['upper_bound_proof']}"
    after = "after" if found is None else "where the search's cut was planted; the first descent took"
    lines = {
        "graph": f"{r['n']} vertices, {r['m']} edges",
        "cut": f"{r['cut']:.10g}{beside}" + (": the best so far, interrupted" if interrupted else ""),
        "E[cut]": f"{r['expected_cut']:.10g} where the descent ended, before any rounding",
        "upper bound": f"{bound:.10g} (SDP value {r['sdp_value']:.10g}; {proof})",
        "Goemans–W.": f"mean {r['gw_mean']:.6g}, best of {r['roundings']} {r['gw_best']:.10g}",
        "rounding": f"σ = {r['sigma']:.1e} {after} {r['steps']} steps and {r['perturbations']} perturbations",
    }
    if found is not None:
        gains = f"{found.best[0]:.10g} at its start → {found.best[-1]:.10g} after {found.descents} more descents"
        lines["search"] = f"{gains}, the last gain after {found.seconds[-1]:.1f} s"
    seconds = f"{r['seconds']:.2f}, of which PGD, search and certificate {r['seconds_pgd']:.2f}"
    certificate = str(result.certificate or "none: " + ("interrupted" if interrupted else "memory ran out"))
    print_summary(lines | {"certificate": certificate, "seconds": seconds, "files": str(config.out.resolve())})


def cut(history: dict[str, np.ndarray], gw: np.ndarray, ceiling: float, ceiling_name: str) -> Figure:
    """Figure 4: cut against iterations, beside Goemans–Williamson and the optimum or its upper bound.

    Args:
        history: see `optimizer.Result`.
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


def sigma(history: dict[str, np.ndarray]) -> Figure:
    """Figure 5: σ, the largest ‖v_i‖, against iterations: the randomness that is left in the rounding."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(history["step"], history["sigma"], color=BLUE)
    perturbations(axes, history["kicks"])
    axes.set(xlabel="iteration", ylabel=r"$\sigma = \max_i \|v_i\|$")
    legend_below(figure)
    return figure


def saddle(run: Result, still: Result | None = None) -> Figure:
    """Objective and gradient norm, where the perturbations struck, and what becomes of a run without any.

    Args:
        run: the run.
        still: the default algorithm without perturbations, with smaller steps: μ stays 0 and it ends at a saddle.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    panels: np.ndarray = figure.subplots(2, sharex=True)
    for axes, name in zip(panels, ("objective", "gradient_norm"), strict=True):
        for result, color, style, label in ((still, RED, "--", "no perturbation"), (run, BLUE, "-", "PGD")):
            if result is not None:
                if proof := result.certificate:
                    stationary = "a saddle" if proof.gradient_norm <= proof.rho else "no stationary point"
                    end = "an SOSP" if proof.is_sosp else stationary
                    label += rf", ends at {end}: $\lambda_{{\min}}$ = {proof.lambda_min:.1g}"
                axes.plot(result.history["step"], result.history[name], color=color, linestyle=style, label=label)
        perturbations(axes, run.history["kicks"])
    panels[0].set(ylabel=r"objective $f(V, \mu)$")
    panels[1].set(ylabel=r"$\|\nabla f\|$", xlabel="iteration", yscale="log")
    legend_below(figure)
    return figure


def draw(graph: Graph, s: np.ndarray, value: float) -> Figure:
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
    alpha = max(0.1, min(0.9, 7.5 / np.sqrt(graph.m)))
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


def search(found: Search, end: float, gw: float, ceiling: float, ceiling_name: str) -> Figure:
    """Best cut against time up to `end`, for runs with `--seconds`; gw: the best of Goemans–Williamson's roundings."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes, best = figure.subplots(), found.best
    label = f"best cut so far: {best[-1]:.10g}"
    axes.step([*found.seconds, end], [*best, best[-1]], where="post", color=BLUE, label=label)
    axes.plot(found.seconds, best, "o", color=BLUE, markersize=4)
    # Out of the way of the cuts' own small differences.
    share = f" ({best[-1] / ceiling:.2%})" if ceiling else ""
    axes.plot([], [], " ", label=f"{ceiling_name}: {ceiling:.10g}{share}")
    axes.plot([], [], " ", label=f"Goemans–Williamson's best: {gw:.10g}")
    axes.set(xlabel="seconds, the relaxation included", ylabel="cut value", xlim=(0, None))
    axes.ticklabel_format(useOffset=False)
    legend_below(figure)
    return figure
