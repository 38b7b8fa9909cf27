"""Benchmarks: cuts of a folder of graphs beside rivals at equal time and best known values, and time per step.

python studies/benchmark.py cuts [FOLDER] --seconds 1 5     cuts, and their gap to the best known against seconds
python studies/benchmark.py steps                           time of a step against edges
"""

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "MAXCUT"))

import networkx as nx
import numpy as np
import torch
from dwave.samplers import SimulatedAnnealingSampler
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from main import Config
from optimizer import Derandomization, Rounding, conditional_expectations
from run import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, legend_below
from sdp import goemans_williamson, solve_sdp, upper_bound
from search import Search, search, two_flips
from sweep import FIGURES, command_line, report, whole
from utilities import EXACT_LIMIT, Graph, cut_values, exact_maxcut, from_networkx, make_graph, random_graph, read_graph

ROUNDINGS = 1000
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)


def torus(side: int, seed: int) -> Graph:
    """Square grid on a torus with weights ±1, as the Gset's toroidal graphs are."""
    graph = from_networkx(nx.grid_2d_graph(side, side, periodic=True))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], graph.m)
    return make_graph(graph.n, graph.i.numpy(), graph.j.numpy(), signs)


def read_folder(folder: Path | None, best_known: Path | None) -> tuple[dict[str, Graph], dict[str, float]]:
    """The graphs by name, and what the CSV file knows of their cuts; without a folder a few small random graphs."""
    if folder is None:
        cubic = from_networkx(nx.random_regular_graph(3, 2000, seed=1))
        some = {"exact-20": random_graph(20, 0.5, 1), "random-800": random_graph(800, 0.06, 1)}
        return some | {"torus-1024": torus(32, 1), "regular-2000": cubic}, {}
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of graphs")
    best_known = best_known or folder / "best_known.csv"
    files = [file for file in folder.iterdir() if file.suffix not in (".csv", ".md") and file.is_file()]
    if not files:
        raise ValueError(f"{folder} holds no graphs")
    known = {}
    if best_known.exists():
        with best_known.open(encoding="utf-8", newline="") as file:
            known = {row["instance"]: float(row["best_known"]) for row in csv.DictReader(file)}
    return {file.stem: read_graph(file) for file in sorted(files, key=lambda f: (len(f.stem), f.stem))}, known


def family(graph: Graph) -> str:
    """Gset's family: toroidal, planar (many triangles) or random; ± for signed weights."""
    W = abs(graph.adjacency).sign()
    degree = W.sum(0)
    triangles, wedges = (W @ W).multiply(W).sum(), (degree * (degree - 1)).sum()
    clustered = triangles / max(wedges, 1) > max(0.05, 3 * degree.mean() / graph.n)
    kind = "toroidal" if (degree == 4).all() else "planar" if clustered else "random"
    return kind + (" ±" if float(graph.w.min()) < 0 else "")


def value(graph: Graph, s: np.ndarray) -> float:
    """Cut value of sides s (n,) of ±1."""
    return float(cut_values(graph, torch.from_numpy(s)))


def flipped(graph: Graph, V: Tensor, flips: Callable, seconds: float, generator: torch.Generator) -> float:
    """Best of as many Goemans–Williamson roundings as the time allows, each improved by `flips`."""
    best, end = 0.0, time.perf_counter() + seconds
    while True:
        s = (V @ torch.randn(V.shape[1], generator=generator)).sign().double().numpy()
        best = max(best, value(graph, flips(graph, s)))
        if time.perf_counter() > end:
            return best


def annealed(graph: Graph, seconds: float, seed: int) -> float:
    """Simulated annealing of dwave-samplers, its own defaults but for the sweeps: one run that takes all of the time.

    Energies Σ w_ij s_i s_j; the time a sweep takes is measured before, and does not count.
    """
    sampler = SimulatedAnnealingSampler()
    edges = zip(zip(graph.i.tolist(), graph.j.tolist(), strict=True), graph.w.tolist(), strict=True)
    problem = (dict.fromkeys(range(graph.n), 0.0), dict(edges))

    def run(sweeps: int) -> tuple[float, float]:
        start = time.perf_counter()
        sample = sampler.sample_ising(*problem, num_reads=1, num_sweeps=sweeps, seed=seed)
        s = np.array([sample.first.sample[v] for v in range(graph.n)], dtype=float)
        return value(graph, s), time.perf_counter() - start

    few, many = run(10)[1], run(110)[1]
    return run(max(10, int(100 * (seconds - few) / max(many - few, 1e-6))))[0]


def one_descent(graph: Graph, V: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """E[cut] where main.py's descent from these vectors ends, before any rounding, and the cut after it."""
    descent = whole(Derandomization(graph, V, Config(), generator).run())
    return descent.history["expected_cut"][-1], value(graph, descent.round().numpy())


def ours(graph: Graph, V: Tensor, config: Config, generator: torch.Generator) -> Search:
    """A descent and the search from its cut, within config.seconds, as in main.py with one thread."""
    since = time.perf_counter()
    descent = whole(Derandomization(graph, V, config, generator).run())
    return whole(search(graph, V, descent.round(), config, generator, since, upper_bound(graph, V)[0]))


def cuts(
    folder: Path | None = None,
    /,
    seconds: tuple[float, ...] = (1.0,),
    best_known: Path | None = None,
    seed: int = 0,
    out: Path = FIGURES,
) -> None:
    """Our cuts beside rivals that get as many seconds, all of them one thread, and beside best known values.

    Rivals: Goemans–Williamson (1000 roundings), the same with our flips of one and of two vertices after each rounding,
    simulated annealing (dwave-samplers). Controls: our first descent, and the one from random vectors instead of the
    relaxation's. The relaxation's own time is not counted.

    Args:
        folder: of graphs, in any format that main.py reads; none: a few small random ones.
        seconds: time for each run; the rivals' columns are for the largest.
        best_known: CSV file with columns instance (a file's name without suffix) and best_known; default
            best_known.csv in the folder. Where it says nothing, the optimum of small graphs or the bound stands in.
        seed: of everything random.
        out: for the figure and the table, benchmark_<name of the folder>, or benchmark_cuts.
    """
    if not seconds or not min(seconds) > 0:
        raise ValueError(f"--seconds is {seconds}; give one or more positive numbers")
    graphs, known = read_folder(folder, best_known)
    seconds, longest = sorted(seconds), max(seconds)
    header = ["graph", "family", "n", "m", "reference", "E[cut], one descent", "its cut", "the same from random V"]
    header += [f"ours, {s:g} s" for s in seconds] + [f"annealing, {longest:g} s"]
    header += ["GW", f"GW and 1-flips, {longest:g} s", f"GW and 2-flips, {longest:g} s"]
    body, lines, points = [], defaultdict(list), defaultdict(list)
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    for name, graph in tqdm(graphs.items(), unit=" graphs", disable=None, leave=False):
        generator = torch.Generator().manual_seed(seed)
        V = solve_sdp(graph, generator=generator)
        X = normalize(torch.randn(V.shape, generator=generator))
        reference, what = upper_bound(graph, V)[0], "bound"
        if name in known:
            reference, what = known[name], "best known"
        elif graph.n <= EXACT_LIMIT:
            reference, what = exact_maxcut(graph)[0], "optimum"
        (expected, first), (_, random) = (one_descent(graph, vectors, generator) for vectors in (V, X))
        runs = [ours(graph, V, Config(seconds=limit), generator) for limit in seconds]
        rivals = {
            "simulated annealing": annealed(graph, longest, seed),
            "Goemans–Williamson": float(goemans_williamson(graph, V, ROUNDINGS, generator).max()),
            "and 1-flips": flipped(graph, V, conditional_expectations, longest, generator),
            "and 2-flips": flipped(graph, V, two_flips, longest, generator),
        }
        for rival, cut in rivals.items():
            points[rival].append(1 - cut / reference)
        lines[family(graph)].append((runs[-1].seconds, [1 - cut / reference for cut in runs[-1].best]))
        kinds = [name, family(graph), graph.n, graph.m, f"{reference:.10g} ({what})", f"{expected:.6g}"]
        numbers = [first, random, *(run.best[-1] for run in runs), *rivals.values()]
        body.append(kinds + [f"{cut:.10g} ({cut / reference:.2%})" for cut in numbers])
    name = f"benchmark_{folder.name if folder else 'cuts'}"
    report(name, header, body, draw_gaps(lines, points, longest), out)


def steps(edges: tuple[float, ...] = (1e4, 3e4, 1e5, 3e5, 1e6, 5e6), repeats: int = 5, out: Path = FIGURES) -> None:
    """Time of one gradient against the number of edges, on random graphs with ten edges at a vertex, one thread.

    Args:
        edges: numbers of edges.
        repeats: the best of so many is taken.
        out: folder for the figure benchmark_steps and the table benchmark_steps.md.
    """
    if not edges or min(edges) < 100 or repeats < 1:
        raise ValueError(f"--edges {edges} --repeats {repeats}: at least 100 and 1")
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


def draw_gaps(lines: dict[str, list], points: dict[str, list[float]], end: float) -> Figure:
    """Relative gap to the reference against seconds, a line a graph, a colour a family; rivals at the end."""
    figure, least = Figure(figsize=(6.4, 5.2), layout="constrained"), 1e-5  # a gap of 0, on a logarithmic axis
    axes = figure.subplots()
    for color, (name, graphs) in zip(COLORS, sorted(lines.items()), strict=False):
        for seconds, gap in graphs:
            left = np.maximum([*gap, gap[-1]], least)
            axes.step([*seconds, end], left, where="post", color=color, linewidth=1.5, label=f"ours, {name}")
    for place, (marker, (name, gap)) in enumerate(zip("x+v^", points.items(), strict=True)):
        x = np.full(len(gap), end * 1.15 ** (place + 1))
        axes.plot(x, np.maximum(gap, least), marker, color=GREY, label=name)
    axes.axhline(least, color="black", linewidth=0.8, linestyle=":", label="no gap")
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="gap to the reference")
    legend_below(figure)
    return figure


if __name__ == "__main__":
    sys.exit(command_line({"cuts": cuts, "steps": steps}, __doc__))
