"""The paper's open questions about MAXCUT, answered by many runs: one subcommand a study.

`python studies/maxcut.py graphs --jobs 2`, and so on; each prints a table of medians and quartiles.
"""

import sys
import time
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Annotated

sys.path.insert(1, str(Path(__file__).parents[1] / "MAXCUT"))

import networkx as nx
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from networkx.algorithms.approximation import one_exchange
from pydantic import Field
from scipy.spatial import Delaunay

from main import Config
from optimizer import Derandomization, conditional_expectations
from run import BLUE, GREEN, ORANGE, PURPLE, RED, legend_below
from sdp import goemans_williamson, solve_sdp, upper_bound
from sweep import Row, Sweep, band, command_line, quartiles, report, sweep, whole
from utilities import Graph, cut_values, exact_maxcut, from_networkx, make_graph, random_graph

DEGREE = 6
"""mean degree of every random graph (a planar graph's is below 6, however large): families differ in structure only"""
Sizes = Annotated[tuple[Annotated[int, Field(gt=DEGREE)], ...], Field(min_length=1)]
EXACT = 22
"""graphs of up to so many vertices are measured against the exact optimum"""
EXCHANGE = 200
"""networkx's one_exchange recounts the whole cut for every vertex, at every move: time grows like n³, and reaches
seconds a graph here"""
MAX_STEPS = 5000
"""a run that has not converged by then has not reached an SOSP"""
EPSILONS, LAMS = (1e-3, 1e-2, 1e-1, 1.0), (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PURE = Config(lr=0.05, rho=1e-5, steps=20_000)
"""with which the paper's algorithms settle at the saddle, where the curvature is of order 1/ε, and leave it"""
WAYS = {
    "no perturbation": dict(algorithm="1", radius=0.0),
    "random kick, patience 50": dict(algorithm="1", patience=50),
    "random kick, patience 200": dict(algorithm="1", patience=200),
    "negative curvature": dict(algorithm="2"),
}
"""ways to leave the saddle: Algorithm 1 of the paper, with the steps that a kick has to lower the objective, and 2"""


class Constant(Derandomization):
    """At a constant λ, so that the stopping rule is awake from the first step on."""

    ramp = 0


def to_sosp(graph: Graph, config: Config, kind: type[Derandomization] = Derandomization) -> Row:
    """A descent from the SDP's vectors: steps, processor's seconds, cut, E[cut] before the last rounding, SOSP or not.

    Cuts are fractions of the SDP's upper bound.
    """
    source = torch.Generator().manual_seed(config.seed)
    V = solve_sdp(graph, generator=source)
    bound, start = upper_bound(graph, V)[0], time.process_time()
    descent = kind(graph, V, config, source).run()
    seconds, result = time.process_time() - start, whole(descent.result())
    cuts = {"cut": result.cut / bound, "expected_cut": result.history["expected_cut"][-1] / bound}
    ends = {"lambda_min": result.certificate.lambda_min, "is_sosp": result.certificate.is_sosp}
    return {"steps": result.steps, "seconds": seconds, "sigma": result.sigma} | cuts | ends


def smoothing_run(case: Row) -> Row:
    """One run of `smoothing`: epsilon, lam and a seed, which also draws the graph."""
    return to_sosp(random_graph(100, DEGREE / 100, case["seed"]), Config(steps=MAX_STEPS, **case), Constant)


def escape_run(case: Row) -> Row:
    """One run of `escape`: n, a way and a seed, which also draws the graph."""
    graph = random_graph(case["n"], DEGREE / case["n"], case["seed"])
    return to_sosp(graph, replace(PURE, seed=case["seed"], **WAYS[case["way"]]))


def planar_graph(n: int, seed: int) -> Graph:
    """Delaunay triangulation of n points drawn uniformly in the unit square."""
    triangles = Delaunay(np.random.default_rng(seed).random((n, 2))).simplices
    edges = np.sort(np.concatenate([triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]), axis=1)
    return make_graph(n, *np.unique(edges, axis=0).T)


FAMILIES = {
    "G(n, p)": lambda n, seed: random_graph(n, DEGREE / n, seed),
    "regular": lambda n, seed: from_networkx(nx.random_regular_graph(DEGREE, n, seed)),
    "power-law": lambda n, seed: from_networkx(nx.barabasi_albert_graph(n, DEGREE // 2, seed)),
    "planar": planar_graph,
}
"""random graphs, from n and a seed; power-law: Barabási and Albert's"""


def graphs_run(case: Row) -> Row:
    """One graph of `graphs`, of a family, n and a seed: each method's cut over the optimum (n ≤ EXACT) or the SDP's
    upper bound.
    """
    n, seed = case["n"], case["seed"]
    graph, source = FAMILIES[case["family"]](n, seed), torch.Generator().manual_seed(seed)
    V = solve_sdp(graph, generator=source)
    ceiling = exact_maxcut(graph)[0] if n <= EXACT else upper_bound(graph, V)[0]
    gw = goemans_williamson(graph, V, 1000, source)
    result = whole(Derandomization(graph, V, Config(), source).run().result())
    expectations = conditional_expectations(graph, np.zeros(n))  # of the cut that puts each vertex on a random side
    cuts = {
        "ours": result.cut,
        "expected": result.history["expected_cut"][-1],
        "gw_best": float(gw.max()),
        "gw_mean": float(gw.mean()),
        "exchange": one_exchange(nx.from_scipy_sparse_array(graph.adjacency), seed=seed)[0] if n <= EXCHANGE else nan,
        "expectations": float(cut_values(graph, torch.from_numpy(expectations))),
    }
    return {name: cut / ceiling for name, cut in cuts.items()}


# --- figures ----------------------------------------------------------------------------------------------------------

METHODS = {"ours": "ours", "gw_best": "GW, best of 1000", "gw_mean": "GW, mean", "exchange": "one_exchange"}
METHODS |= {"expectations": "conditional expectations"}
LINES = ((BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^-."), (RED, "D:"), (PURPLE, "v-"))
"""colour and style of each method, ε or way"""
RANGES = {f"≤ {EXACT}": (0, EXACT), f"{EXACT + 1} – {EXCHANGE}": (EXACT, EXCHANGE), f"> {EXCHANGE}": (EXCHANGE, inf)}
"""sizes, by what they are measured against and by which methods"""


def bands(axes: Axes, x: tuple, lines: dict[str, list], logarithmic: str = "x", **how: object) -> None:
    """A line with its quartiles a label; logarithmic: directions with plain numbers at their ticks."""
    for place, ((label, quartile), (color, style)) in enumerate(zip(lines.items(), LINES, strict=False)):
        band(axes, x, quartile, style, color=color, label=label, zorder=3 - place / 10)
    axes.set(**how, **{f"{direction}scale": "log" for direction in logarithmic})
    for direction in logarithmic:
        ticks = dict(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
        getattr(axes, f"{direction}axis").set(**ticks)


def smoothing(options: Sweep) -> None:
    """What the smoothing ε and the weight λ cost: cut, steps to an SOSP and λ_min; λ constant, graphs G(100, 0.06)."""
    settings = [dict(epsilon=epsilon, lam=lam) for epsilon in EPSILONS for lam in LAMS]
    cases = [setting | dict(seed=seed) for setting in settings for seed in range(options.seeds)]
    rows = sweep(smoothing_run, cases, "smoothing", options)
    header = ["ε", "λ", "cut / bound", "E[cut] / bound", "steps", "λ_min", "share at an SOSP"]
    columns = ("cut", "expected_cut", "steps", "lambda_min")
    body = [[*s.values(), *(quartiles(rows, c, **s) for c in columns), share(rows, **s)] for s in settings]
    figure = Figure(figsize=(6.4, 8), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    labels = ("cut / upper bound", f"steps to an SOSP\n({MAX_STEPS}: not reached)", r"$\max(-\lambda_{\min}, 10^{-9})$")
    for axes, column, label in zip(panels, ("cut", "steps", "lambda_min"), labels, strict=True):
        lines = {f"ε = {x:g}": [quartiles(rows, column, epsilon=x, lam=lam) for lam in LAMS] for x in EPSILONS}
        if column == "lambda_min":
            lines = {name: np.maximum(-np.array(line), 1e-9)[:, ::-1] for name, line in lines.items()}
        bands(axes, LAMS, lines, "y" if column == "steps" else "", ylabel=label)
    panels[2].set(xlabel=r"$\lambda$", xscale="log", yscale="log")
    legend_below(figure)
    findings = {f"{c}_{lam:g}": quartiles(rows, c, epsilon=0.01, lam=lam)[1] for c in ("cut", "steps") for lam in LAMS}
    report("study_smoothing", header, body, figure, options.out, findings)


def share(rows: list[Row], **where: object) -> float:
    """Share of the runs with these values that ended at an SOSP."""
    return float(np.mean([row["is_sosp"] for row in rows if where.items() <= row.items()]))


def graphs(options: Sweep, sizes: Sizes = (20, 22, 32, 50, 100, 200, 400, 700, 1000, 2000)) -> None:
    """Four families of random graphs: ours against Goemans–Williamson, local search and conditional expectations.

    Each seed is one graph of each family and size. Ratios are to the optimum up to n = 22, to the SDP's bound above.
    """
    cases = [dict(family=family, n=n, seed=seed) for family in FAMILIES for n in sizes for seed in range(options.seeds)]
    rows = sweep(graphs_run, cases, "graphs", options)
    header = ["family", "n", "graphs", "ours, E[cut]", *METHODS.values(), "ours, least", "GW mean, least"]
    body, medians = [], {name: [] for name in METHODS}
    for family in FAMILIES:
        for name, (low, high) in RANGES.items():
            group = [row for row in rows if row["family"] == family and low < row["n"] <= high]
            if group:
                ratios = {m: quartiles(group, m) for m in METHODS if np.isfinite(group[0][m])}
                least = [min(row[method] for row in group) for method in ("ours", "gw_mean")]
                cells = [ratios.get(method, "–") for method in METHODS]
                body.append([family, name, len(group), quartiles(group, "expected"), *cells, *least])
            if group and low:
                for method, (_, median, _) in ratios.items():
                    medians[method].append(median)
    small = [row for row in rows if row["n"] <= EXACT]
    findings = {"graphs": len(rows), "small": len(small)}
    findings |= {"optimal": sum(row["ours"] == 1 for row in small), "gw_optimal": sum(r["gw_best"] == 1 for r in small)}
    medians["others"] = medians["exchange"] + medians["expectations"]
    for end, of in (("low", min), ("high", max)):
        findings |= {f"{m}_{end}": of(medians[m], default=nan) for m in ("ours", "gw_mean", "others")}
    report("study_graphs", header, body, draw_graphs(rows, sizes), options.out, findings)


def draw_graphs(rows: list[Row], sizes: tuple[int, ...]) -> Figure:
    """Cuts against the number of vertices, a panel a family; the lines break where the reference changes."""
    figure = Figure(figsize=(9, 7.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, family in zip(panels.flat, FAMILIES, strict=True):
        for part in ([n for n in sizes if n <= EXACT], [n for n in sizes if n > EXACT]):
            lines = {name: [quartiles(rows, m, family=family, n=n) for n in part] for m, name in METHODS.items()}
            bands(axes, part, lines, title=family)
        axes.axhline(0.87856, color="black", linewidth=1.2, label="Goemans–Williamson's guarantee 0.878")
    for axes in panels[1]:
        axes.set(xlabel="vertices")
    for axes in panels[:, 0]:
        axes.set(ylabel=f"cut / optimum (n ≤ {EXACT})\ncut / upper bound (n > {EXACT})")
    legend_below(figure)
    return figure


def escape(options: Sweep, sizes: Sizes = (20, 50, 100, 200, 500)) -> None:
    """From the saddle μ = 0: random kicks (Algorithm 1), the negative-curvature step (Algorithm 2), no perturbation.

    Both algorithms pure; graphs G(n, 6/n), one a seed.
    """
    cases = [dict(n=n, way=way, seed=seed) for n in sizes for way in WAYS for seed in range(options.seeds)]
    rows = sweep(escape_run, cases, "escape", options)
    header = ["n", "way", "E[cut] / bound", "cut / bound", "σ", "λ_min", "steps", "CPU seconds", "share at an SOSP"]
    columns = ("expected_cut", "cut", "sigma", "lambda_min", "steps", "seconds")
    settings = [dict(n=n, way=way) for n in sizes for way in WAYS]
    body = [[*s.values(), *(quartiles(rows, c, **s) for c in columns), share(rows, **s)] for s in settings]
    figure = Figure(figsize=(9, 6.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    lines = {c: {way: [quartiles(rows, c, n=n, way=way) for n in sizes] for way in WAYS} for c in columns}
    lines["sosp"] = {way: [(share(rows, n=n, way=way),) * 3 for n in sizes] for way in WAYS}
    bands(panels[0, 0], sizes, lines["expected_cut"], ylabel="E[cut] / upper bound")
    bands(panels[0, 1], sizes, lines["sosp"], ylabel="share of runs that end at an SOSP")
    bands(panels[1, 0], sizes, lines["steps"], "xy", ylabel="steps until the rule stops it", xlabel="vertices")
    bands(panels[1, 1], sizes, lines["seconds"], "xy", ylabel="CPU seconds", xlabel="vertices")
    legend_below(figure)
    findings = {}
    named = {"saddle": "no perturbation", "kick_200": "random kick, patience 200", "curvature": "negative curvature"}
    for name, way in named.items():
        here = dict(n=max(sizes), way=way)
        findings |= {f"{c}_{name}": quartiles(rows, c, **here)[1] for c in ("cut", "steps")}
        findings[f"sosp_{name}"] = share(rows, **here)
    report("study_escape", header, body, figure, options.out, findings)


if __name__ == "__main__":
    sys.exit(command_line({"smoothing": smoothing, "graphs": graphs, "escape": escape}, __doc__))
