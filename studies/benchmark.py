"""Benchmarks: cuts of a folder of graphs beside rivals at equal time and best known values, and time per step.

python studies/benchmark.py cuts [FOLDER] --seconds 1 5     cuts, and their gap to the best known against seconds
python studies/benchmark.py steps                           time of a step against edges
"""

import sys
import time
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(1, str(Path(__file__).parents[1] / "MAXCUT"))

import joblib
import networkx as nx
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from kernel import value
from main import Config
from maxcut import planar_graph
from optimizer import Derandomization, Rounding
from rivals import RIVALS
from run import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Count, Positive, legend_below
from sdp import goemans_williamson, solve_sdp, upper_bound
from sweep import FIGURES, Row, Sweep, command_line, report, sweep, whole
from utilities import EXACT_LIMIT, Graph, exact_maxcut, from_networkx, make_graph, random_graph, read_graph

ROUNDINGS = 1000
Sizes = Annotated[tuple[Annotated[float, Field(ge=100, le=1e8)], ...], Field(min_length=1)]


def signed(graph: Graph, seed: int) -> Graph:
    """The same edges with weights ±1 by chance."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], graph.m)
    return make_graph(graph.n, graph.i.numpy(), graph.j.numpy(), signs)


def torus(side: int, seed: int) -> Graph:
    """Square grid on a torus with weights ±1, as the Gset's toroidal graphs are."""
    return signed(from_networkx(nx.grid_2d_graph(side, side, periodic=True)), seed)


def fresh() -> dict[str, Graph]:
    """Graphs of the Gset's families that nobody has, and that nothing in ours was chosen on; the first is small."""
    return {
        "exact-20": random_graph(20, 0.5, 1),
        "dense-1500": random_graph(1500, 0.02, 11),
        "signs-1500": signed(random_graph(1500, 0.02, 12), 12),
        "sparse-4000": random_graph(4000, 0.0015, 13),
        "planar-3000": planar_graph(3000, 14),
        "cubic-6000": from_networkx(nx.random_regular_graph(3, 6000, seed=15)),
        "torus-10000": torus(100, 16),
    }


@cache  # each run asks for its graph
def read_folder(folder: Path | None) -> tuple[dict[str, Graph], dict[str, float]]:
    """The graphs by name, and their cuts in best_known.csv if it is there; without a folder the `fresh` ones.

    Raises:
        ValueError: no such folder, no graphs, two of a name, or a best_known.csv without its columns.
    """
    if folder is None:
        return fresh(), {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of graphs")
    seen = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    files = [file for file in seen if file.suffix not in (".csv", ".md")]
    if not files:
        raise ValueError(f"{folder} holds no graphs")
    names = [file.stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{folder} holds two graphs of the name {twice[0]}; rename one")
    table, columns = folder / "best_known.csv", dict(index_col="instance", usecols=["instance", "best_known"])
    types = {"instance": str, "best_known": float}
    known = pd.read_csv(table, dtype=types, **columns)["best_known"].dropna().to_dict() if table.exists() else {}
    return {file.stem: read_graph(file) for file in sorted(files, key=lambda f: (len(f.stem), f.stem))}, known


def family(graph: Graph) -> str:
    """Gset's family: toroidal, planar (many triangles) or random; ± for signed weights."""
    W = abs(graph.adjacency).sign()
    degree = W.sum(0)
    triangles, wedges = (W @ W).multiply(W).sum(), (degree * (degree - 1)).sum()
    clustered = triangles / max(wedges, 1) > max(0.05, 3 * degree.mean() / graph.n)
    kind = "toroidal" if (degree == 4).all() else "planar" if clustered else "random"
    return kind + (" ±" if float(graph.w.min()) < 0 else "")


def one_descent(graph: Graph, V: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """E[cut] where main.py's descent from these vectors ends, before any rounding, and the cut after it."""
    descent = whole(Derandomization(graph, V, Config(), generator).run())
    return descent.history["expected_cut"][-1], value(graph, descent.round().numpy())


def ratio(cut: float, reference: float) -> float:
    """cut / reference; 1 where both are 0, as where all weights are negative."""
    return cut / reference if reference else float(cut == reference)


def compete(case: Row) -> Row:
    """The rival's curve: when it had which cut."""
    graph = read_folder(Path(case["folder"]) if case["folder"] else None)[0][case["graph"]]
    return {"curve": RIVALS[case["rival"]](graph, case["seconds"], case["seed"])}


def controls(case: Row) -> Row:
    """One descent from the relaxation's vectors and from random ones, its bound, and Goemans–Williamson."""
    graph = read_folder(Path(case["folder"]) if case["folder"] else None)[0][case["graph"]]
    generator = torch.Generator().manual_seed(case["seed"])
    V = solve_sdp(graph, generator=generator)
    X = normalize(torch.randn(V.shape, generator=generator))
    (expected, first), (_, random) = (one_descent(graph, vectors, generator) for vectors in (V, X))
    gw = float(goemans_williamson(graph, V, ROUNDINGS, generator).max())
    optimum = exact_maxcut(graph)[0] if graph.n <= EXACT_LIMIT else None
    return dict(expected=expected, first=first, random=random, gw=gw, bound=upper_bound(graph, V)[0], optimum=optimum)


# --- figures and tables -----------------------------------------------------------------------------------------------

COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY, SKY)
"""of the rivals, in their order"""


def cuts(
    folder: Path | None = None,
    /,
    seconds: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,),
    rivals: tuple[Literal[*RIVALS], ...] = tuple(RIVALS),
    seeds: Count = 1,
    out: Path = FIGURES,
) -> None:
    """Our cuts beside rivals' that get as many seconds, and beside best known values.

    Two cores, but for one_exchange and GW-…; all of the time counts, ours for the relaxation too. Controls: E[cut]
    where our first descent ends, the cut after it, the cut after one from random vectors instead of the relaxation's,
    and Goemans–Williamson's 1000 roundings.

    Args:
        folder: of graphs, in any format that main.py reads; none: those of `fresh`. Its best_known.csv, with
            columns instance (a file's name without suffix) and best_known, has the cuts that others found; where it
            says nothing, the optimum of small graphs or the bound stands in.
        seconds: time for each run.
        rivals: who takes part.
        seeds: so many runs of each; the table has their median.
        out: for the figure and the table, benchmark_<name of the folder>, or benchmark_cuts.
    """
    graphs, known = read_folder(folder)
    where, name = str(folder.resolve()) if folder else "", f"benchmark_{folder.resolve().name if folder else 'cuts'}"
    options = Sweep(seeds=seeds, out=out)
    edges = {name: joblib.hash([x.numpy() for x in (graph.i, graph.j, graph.w)]) for name, graph in graphs.items()}
    base = [dict(folder=where, graph=graph, edges=edges[graph]) for graph in graphs]  # a file may hold another one now
    alone = {row["graph"]: row for row in sweep(controls, [case | dict(seed=0) for case in base], name, options)}
    asked = [dict(rival=rival, seconds=limit) for limit in sorted(seconds) for rival in rivals]
    cases = [case | ask | dict(seed=seed) for case in base for ask in asked for seed in range(seeds)]
    rows = [row | {"cut": row["curve"][-1][1]} for row in sweep(compete, cases, name, options) if row["curve"]]
    header = ["graph", "family", "n", "m", "reference", "E[cut], one descent", "its cut", "the same from random V"]
    header += [f"GW, best of {ROUNDINGS}", *(f"{ask['rival']}, {ask['seconds']:g} s" for ask in asked)]
    body, gaps = [], []
    for graph_name, graph in graphs.items():
        row = alone[graph_name]
        reference, what = (row["bound"], "bound") if row["optimum"] is None else (row["optimum"], "optimum")
        if graph_name in known:
            reference, what = known[graph_name], "best known"
        numbers = [row["first"], row["random"], row["gw"]]
        for ask in asked:
            found = [row for row in rows if (ask | {"graph": graph_name}).items() <= row.items()]
            numbers.append(float(np.median([row["cut"] for row in found])) if found else None)
            for run in found:
                gap = [(t, 1 - ratio(cut, reference)) for t, cut in run["curve"]]
                gaps.append((family(graph), ask["rival"], ask["seconds"], gap))
        shares = ["–" if cut is None else f"{cut:.10g} ({ratio(cut, reference):.2%})" for cut in numbers]
        kinds = [graph_name, family(graph), graph.n, graph.m, f"{reference:.10g} ({what})", f"{row['expected']:.6g}"]
        body.append(kinds + shares)
    at = {(row["graph"], row["seconds"], row["seed"], row["rival"]): row["cut"] for row in rows}
    pairs = [
        (at[*run, rival], at[*run, "annealing"]) for *run, rival in at if rival == "ours" and "annealing" in rivals
    ]
    findings = dict(pairs=len(pairs), behind=sum(ours < annealing for ours, annealing in pairs))
    report(name, header, body, draw_gaps(gaps, max(seconds)), out, findings)


def steps(edges: Sizes = (1e4, 3e4, 1e5, 3e5, 1e6, 5e6), repeats: Count = 5, out: Path = FIGURES) -> None:
    """Time of one gradient against the number of edges, on random graphs with ten edges at a vertex, one thread.

    Args:
        edges: numbers of edges.
        repeats: the best of so many is taken.
        out: folder for the figure benchmark_steps and the table benchmark_steps.md.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    body, config = [], Config()
    for m in tqdm(edges, unit=" sizes", disable=None, leave=False):
        n = round(m / 5)
        graph, generator = random_graph(n, 2 * m / n / n, 1), torch.Generator().manual_seed(0)
        problem, best = Rounding(graph, config.epsilon, torch.float32), float("inf")
        V = normalize(torch.randn(n, config.rank, generator=generator)) * problem.root_d.float()[:, None]
        mu = torch.randn(n, generator=generator) * problem.root_d.float()
        for _ in range(repeats * max(1, round(1e5 / m))):
            start = time.perf_counter()
            problem.gradient(V, mu, config.lam)
            best = min(best, time.perf_counter() - start)
        body.append([n, graph.m, best * 1e3, best / graph.m * 1e9])
    _, counts, times, _ = zip(*body, strict=True)
    slope = np.polyfit(np.log(counts), np.log(times), 1)[0] if len(body) > 1 else float("nan")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(counts, times, "o-", color=BLUE, label=f"one step, one thread: like edges$^{{{slope:.2f}}}$")
    axes.set(xlabel="edges", ylabel="milliseconds")
    legend_below(figure)
    report("benchmark_steps", ["vertices", "edges", "ms a step", "ns an edge"], body, figure, out, {"exponent": slope})


def draw_gaps(gaps: list[tuple[str, str, float, list]], end: float) -> Figure:
    """Relative gap to the reference against seconds: a panel a family, a colour a rival, a line a run of `end` s."""
    families = sorted({kind for kind, *_ in gaps}) or [""]  # no panel has a curve where no rival could take part
    columns, took_part = min(3, len(families)), {rival for _, rival, *_ in gaps}
    least = min((gap for *_, run in gaps for _, gap in run if gap > 1e-12), default=1e-4) / 2  # no gap, on this axis
    height = -(-len(families) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 2.9 * height + 1), layout="constrained")
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, kind in zip(panels, families, strict=False):
        for color, rival in ((color, r) for color, r in zip(COLORS, RIVALS, strict=True) if r in took_part):
            runs = [run for *what, limit, run in gaps if what == [kind, rival] and limit == end]
            how = dict(linewidth=2.2, zorder=3) if rival == "ours" else dict(linewidth=1.2)
            for run in runs:
                t, gap = np.array([*run, (end, run[-1][1])]).T
                axes.step(t, np.maximum(gap, least), where="post", color=color, label=rival, **how)
        axes.axhline(least, color="black", linewidth=0.8, linestyle=":", label="no gap")
        axes.set(xscale="log", yscale="log", title=kind, xlabel="seconds", ylabel="gap to the reference")
        axes.label_outer()
    for axes in panels[len(families) - columns : len(families)]:  # the lowest in each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("seconds")
    for axes in panels[len(families) :]:
        axes.set_axis_off()
    legend_below(figure, columns=3)
    return figure


if __name__ == "__main__":
    sys.exit(command_line({"cuts": cuts, "steps": steps}, __doc__))
