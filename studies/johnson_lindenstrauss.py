"""Studies of the projection: the dimensions that it needs, its three objectives, what its start is to its end, points
that it was not fitted to, the nearest neighbours that are left, and the time that many points take.

python studies/johnson_lindenstrauss.py dimensions --jobs 2, and so on; each saves its table, figure and finished runs
(`scale` only draws what results/ has).
"""

import json
import sys
import time
from bisect import bisect_right as bisect
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pydantic import Field
from sklearn.neighbors import NearestNeighbors
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from torch import Tensor

sys.path.insert(1, str(Path(__file__).parents[1] / "JohnsonLindenstrauss"))
from compare import best_scaled, gaussian, pca, sparse
from data import random_data, read_matrix
from main import Config
from model import Pairs, Problem, Vectors, distortion, row_space, strongest
from run import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Positive, legend_below, save_figure, whole_files, writable
from sweep import RESULTS, Row, Sweep, band, command_line, quartiles, report, sweep, whole
from train import Derandomization

DATA = {"vectors": 500, "Gaussian points": 64, "digits": 64}
"""dimension d: the paper's random vectors; standard normal points, which have no structure; scikit-learn's digits"""
METHODS = ("derandomized", "best-scaled PCA", "best-scaled Gaussian", "Gaussian", "sparse random")
SEARCHED = ("derandomized", "best-scaled PCA", "Gaussian", "sparse random")
"""methods that neighbours are looked for by"""
SEEING = METHODS[:2]
"""methods that look at the data; the others don't, but for their scale"""
GENERAL = ("derandomized", "without ridge", *METHODS[1:3])
"""methods that points not seen are projected by; the paper's vectors have no ridge in either"""
FIT = dict(lam=0.01, growth=1.004)
"""at main.py's λ = 0.001 σ lingers where k nears d; its growth for vectors, 1.05, ends in poor corners with more than
the paper's 100"""
DIMENSIONS = [round(2 ** (i / 2)) for i in range(2, 27)]
"""k from 2 to 8192: so far do random matrices have to go"""
LARGEST = 64
"""last k for the methods that look at the data"""
EPSILONS = (0.5, 0.2, 0.1)
"""worst distortions to reach"""
OBJECTIVES_ON = {"vectors": dict(k=30), "digits": dict(k=10)}
"""what the objectives are compared on; with main.py's hyperparameters"""
STARTS, STARTS_K = ("a kick", "best-scaled PCA", "Gaussian"), (5, 8, 10)
"""matrices from which the descent starts, but for a kick, and the dimensions in which ours is not below half of PCA"""
HELD_OUT, HELD_OUT_K = 200, 20
"""points that nothing is fitted to, and the dimensions that they are projected to"""
NEIGHBOURS, NEIGHBOURS_K = 10, (5, 10, 20)
"""nearest neighbours that are asked for, and the dimensions that they are looked for in"""
SCALE = (500, 1000, 2000, 5000, 10_000)
"""numbers of points for which results/ has what main.py took"""
Size = Annotated[int, Field(ge=2, le=1797 - HELD_OUT)]


def problem_of(data: str, X: np.ndarray) -> Problem:
    """What a projection is to preserve: the norms of vectors, all distances between points."""
    return (Vectors if data == "vectors" else Pairs)(torch.from_numpy(X))


def points(data: str, n: int, seed: int) -> np.ndarray:
    """(n, d) points: random ones, or a random choice of the digits or of the standardized breast cancer table."""
    if data in ("digits", "breast cancer"):
        X = read_matrix(data.replace(" ", "_"))
        return X[np.random.default_rng(seed).permutation(len(X))[:n]]
    return random_data("vectors" if data == "vectors" else "pairs", n, DATA[data], seed)


def descent(kind: type[Derandomization], problem: Problem, seed: int, **options: object) -> Derandomization:
    """A descent of this kind, with main.py's hyperparameters but for the options."""
    config = Config(problem="vectors" if isinstance(problem, Vectors) else "pairs", **options)
    return kind(problem, config, torch.Generator().manual_seed(10**6 + seed))  # data has the smaller seeds


def projection(method: str, problem: Problem, k: int, seed: int, **options: object) -> Tensor:
    """(k, d) projection that the method makes for the problem."""
    if method in GENERAL[:2]:
        options |= {} if method == "derandomized" else dict(ridge=0.0)
        return whole(descent(Derandomization, problem, seed, k=k, **FIT | options).run().result()).M
    if method == "best-scaled PCA":
        return pca(problem, k)
    A = next((sparse if method == "sparse random" else gaussian)(problem, k, 10**6 + seed))
    return best_scaled(problem, A) if method == "best-scaled Gaussian" else A


def run_dimensions(case: Row) -> Row:
    """Worst distortion by each method."""
    problem, k = problem_of(case["data"], points(case["data"], case["n"], case["seed"])), case["k"]
    methods = [method for method in METHODS if k <= LARGEST or method not in SEEING]
    return {method: distortion(problem, projection(method, problem, k, case["seed"])) for method in methods}


def needed(worst: dict[int, float], epsilon: float) -> float:
    """Whole k from which the worst distortion is at most ε, linear between those given (by k); inf if none."""
    least = np.minimum.accumulate(list(worst.values()))
    return float(np.ceil(np.interp(epsilon, least[::-1], list(worst)[::-1], left=inf)))


def numax(problem: Pairs, delta: float, rounds: int = 1000) -> Tensor:
    """NuMax (Hegde, Sankaranarayanan, Yin and Baraniuk 2015): P ⪰ 0 of least trace, its nuclear norm, subject to
    |uᵀP u − 1| ≤ δ for all unit differences u, by over-relaxed ADMM.

    Returns:
        (r, d) its eigenvectors times the roots of their eigenvalues, falling: P = MᵀM. Rows of 0 are beyond its rank.
    """
    small, V = row_space(problem)
    U = small.subset(*strongest(small, small.X.new_zeros(1, len(V)), torch.abs, problem.N)[0]).units()
    i, j = torch.triu_indices(len(V), len(V))
    twice = torch.where(i == j, 1.0, 2**0.5).to(U)  # ‖P‖_F is the norm of the entries above the diagonal times this
    A = U[:, i] * U[:, j] * twice
    K = torch.linalg.cholesky(A.T @ A + torch.eye(len(i), dtype=U.dtype))
    low_rank, rest, within, excess = U.new_zeros(len(i)), U.new_zeros(len(i)), U.new_ones(len(U)), U.new_zeros(len(U))
    for _ in range(rounds):
        p = torch.cholesky_solve((low_rank - rest + A.T @ (within - excess))[:, None], K)[:, 0]
        rest, excess = rest + 1.6 * p - 0.6 * low_rank, excess + 1.6 * A @ p - 0.6 * within
        P = U.new_zeros(len(V), len(V)).index_put_((i, j), rest / twice)
        values, vectors = torch.linalg.eigh(P, UPLO="U")
        values = (values - 1).clamp(min=0)  # the trace's part
        low_rank = ((vectors * values) @ vectors.T)[i, j] * twice
        within = excess.clamp(1 - delta, 1 + delta)
        rest, excess = rest - low_rank, excess - within
    return ((vectors * values.sqrt()).T @ V).flip(0)


def run_numax(case: Row) -> Row:
    """Dimensions that are needed for δ: by ours and by PCA; by NuMax, the rank of P, and how many of its eigenvectors
    are enough, best-scaled; by how much P misses δ.
    """
    problem, delta = problem_of(case["data"], points(case["data"], case["n"], case["seed"])), case["delta"]
    M = numax(problem, delta)

    def least(project: Callable[[int], Tensor]) -> int:
        """By bisection: more dimensions are no worse."""
        return 1 + bisect(range(1, len(M)), False, key=lambda k: distortion(problem, project(k)) <= delta)

    rank = int((M.norm(dim=1) > 1e-3).sum())
    row = {x: least(lambda k, x=x: projection(x, problem, k, case["seed"])) for x in SEEING}
    row |= {"NuMax": rank, "NuMax, truncated": min(rank, least(lambda k: best_scaled(problem, M[:k])))}
    return row | dict(missed=distortion(problem, M) - delta)


class Timed(Derandomization):
    """Notes when it was how good; ends after `limit` seconds of processor time, whatever else runs on the machine."""

    def snapshot(self) -> None:
        """Append a row to the history."""
        super().snapshot()
        self.history.setdefault("spent", []).append(time.process_time() - self.start)
        if self.history["spent"][-1] > self.limit:
            raise TimeoutError


def times(seconds: float) -> list[float]:
    """When the objectives are compared, in seconds: the last after `seconds`, each fifth after twice as many."""
    return [seconds * 2 ** (i / 5) for i in range(-30, 1)]


def run_objectives(case: Row) -> Row:
    """Least worst distortion of M by each of the `times`, and the steps and σ that the descent came to."""
    problem = problem_of(case["data"], points(case["data"], case["n"], case["seed"]))
    options = OBJECTIVES_ON[case["data"]] | dict(objective=case["objective"], steps=10**9)
    timed = descent(Timed, problem, case["seed"], **options)
    timed.start, timed.limit = time.process_time(), case["seconds"]
    with suppress(TimeoutError):
        whole(timed.run())
    # M = 0 before the first snapshot: distortion 1.
    least = np.minimum.accumulate([1.0, *timed.history["distortion"]])
    by_then = np.searchsorted(timed.history["spent"], times(case["seconds"]), side="right")
    curve = {str(t): float(least[i]) for t, i in zip(times(case["seconds"]), by_then, strict=True)}
    return curve | dict(steps=timed.t, sigma=timed.history["sigma"][-1])


def run_starts(case: Row) -> Row:
    """Worst distortion where the descent ends from the case's start, and whether that is an SOSP."""
    problem, k = Pairs(torch.from_numpy(read_matrix("digits")[: case["n"]])), case["k"]
    run = descent(Derandomization, problem, case["seed"], k=k)
    if case["start"] != "a kick":
        start = projection(case["start"], problem, k, case["seed"])
        run.params["M"] += torch.linalg.lstsq(run.basis.T, start.T).solution.T
    result = whole(run.run().result())
    sosp = float(result.certificate.is_sosp)
    return dict(distortion=result.distortion, sosp=sosp, pca=distortion(problem, pca(problem, k)))


def run_generalization(case: Row) -> Row:
    """Worst distortion by each method that sees the data: of the n points that it sees, and of the held-out points."""
    X = points(case["data"], HELD_OUT + case["n"], case["seed"])
    unseen, seen = problem_of(case["data"], X[:HELD_OUT]), problem_of(case["data"], X[HELD_OUT:])
    row = {}
    for method in GENERAL:
        M = projection(method, seen, HELD_OUT_K, case["seed"])
        row |= {f"{method}, seen": distortion(seen, M), f"{method}, unseen": distortion(unseen, M)}
    return row


def recall(X: np.ndarray, Y: np.ndarray) -> float:
    """Share of each point's nearest neighbours among X (n, d) that are among its nearest in Y (n, k); the mean."""
    near = [NearestNeighbors(n_neighbors=NEIGHBOURS).fit(Z).kneighbors(return_distance=False) for Z in (X, Y)]
    return float(np.mean([np.isin(*rows).mean() for rows in zip(*near, strict=True)]))


def run_neighbours(case: Row) -> Row:
    """Recall of true neighbours by each method; a scale makes no difference to it."""
    X = points(case["data"], case["n"], case["seed"])
    methods = {method: projection(method, problem_of("points", X), case["k"], case["seed"]) for method in SEARCHED}
    return {method: recall(X, X @ M.numpy().T) for method, M in methods.items()}


# --- figures and tables -----------------------------------------------------------------------------------------------


def needed_quartiles(runs: list[dict[int, float]], epsilon: float) -> object:
    """Quartiles over the runs of the k needed for ε; in words where a run needs less or more than it was given."""
    needs, first, last = [needed(worst, epsilon) for worst in runs], min(runs[0]), max(runs[0])
    if max(needs) in (first, inf):
        return f"≤ {first}" if max(needs) == first else f"> {last} in {needs.count(inf)} of {len(needs)}"
    return tuple(np.quantile(needs, [0.25, 0.5, 0.75]))


def along(rows: list[Row], titles: dict[str, str], columns: Sequence[str], **x: Sequence) -> tuple[dict, list[list]]:
    """Panels for `draw`, by the data's titles: the columns' quartiles along x; and a table's lines of these."""
    ((name, values),) = x.items()
    panels, body = {}, []
    for data, title in titles.items():
        panels[title] = {c: {v: quartiles(rows, c, data=data, **{name: v}) for v in values} for c in columns}
        body += [[data, v, *(curve[v] for curve in panels[title].values())] for v in values]
    return panels, body


def dimensions(options: Sweep, n: Size = 100) -> None:
    """Worst distortion against k, and the k needed for a worst distortion of 0.5, 0.2 and 0.1."""
    seeds = range(options.seeds)
    cases = [dict(data=data, n=n, k=k, seed=seed) for data in DATA for k in DIMENSIONS for seed in seeds]
    rows = sweep(run_dimensions, cases, "dimensions", options)
    panels, body, theory = {}, [], {}
    for data, d in DATA.items():
        by = {method: [row for row in rows if row["data"] == data and method in row] for method in METHODS}
        panels[f"{n} {data}, d = {d}"] = {
            method: {row["k"]: quartiles(some, method, k=row["k"]) for row in some} for method, some in by.items()
        }
        runs = [[{x["k"]: x[m] for x in some if x["seed"] == seed} for seed in seeds] for m, some in by.items()]
        # The norms of n vectors are distances of n + 1 points: the origin is the last.
        asked = {int(johnson_lindenstrauss_min_dim(n + (data == "vectors"), eps=eps)): eps for eps in EPSILONS}
        theory[data] = asked
        body += [[data, eps, *(needed_quartiles(x, eps) for x in runs), k] for k, eps in asked.items()]
    styles = [(BLUE, "o-"), (GREEN, "s-."), (RED, "v-"), (RED, "v:"), (ORANGE, "^--")]
    figure = draw(panels, styles, "dimensions kept, k")
    for axes, asked in zip(figure.axes, theory.values(), strict=True):
        axes.plot(*zip(*asked.items(), strict=True), "*", color="black", markersize=9, label="scikit-learn's bound")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, 6)
    header = ["data", "ε", *METHODS, "scikit-learn's bound"]
    easy = quartiles(rows, "derandomized", data="vectors", k=min(DIMENSIONS))[1]
    report("study_dimensions", header, body, figure, options.out, {"vectors_least_k": easy, "least_k": min(DIMENSIONS)})


def nuclear(options: Sweep, n: Annotated[int, Field(ge=5, le=200)] = 50) -> None:
    """The k that ours, PCA and NuMax need for a worst distortion of δ."""
    names, seeds = ("Gaussian points", "digits"), range(options.seeds)
    cases = [dict(data=data, n=n, delta=eps, seed=seed) for data in names for eps in EPSILONS for seed in seeds]
    rows = sweep(run_numax, cases, "nuclear", options)
    needs = (SEEING[0], "NuMax", "NuMax, truncated", SEEING[1])
    panels, body = along(rows, {data: f"{n} {data}, d = {DATA[data]}" for data in names}, needs, delta=EPSILONS)
    styles = [(BLUE, "o-"), (ORANGE, "D-"), (PURPLE, "v--"), (GREEN, "s-.")]
    figure = draw(panels, styles, "worst distortion allowed, δ")
    figure.axes[0].set_ylabel("dimensions needed, k")
    legend_below(figure, 4)
    missed = max(row["missed"] for row in rows)
    report("study_nuclear", ["data", "δ", *needs], body, figure, options.out, {"missed": missed, "n": n})


def objectives(options: Sweep, n: Size = 100, seconds: Positive = 6) -> None:
    """The bound, the paper's tail and the authors' sampled objective at equal processor time (use --jobs 1)."""
    names = ("bound", "tail", "sampled")
    where = [dict(data=data, objective=name) for data in OBJECTIVES_ON for name in names]
    cases = [x | dict(n=n, seconds=seconds, seed=seed) for x in where for seed in range(options.seeds)]
    rows = sweep(run_objectives, cases, "objectives", options)
    panels, body, shown = {}, [], times(seconds)[10::10]
    for x in where:
        curve = {t: quartiles(rows, str(t), **x) for t in times(seconds)}
        title = f"{n} {x['data']}, d = {DATA[x['data']]}, k = {OBJECTIVES_ON[x['data']]['k']}"
        panels.setdefault(title, {})[x["objective"]] = curve
        body.append([*x.values(), *(curve[t] for t in shown), *(quartiles(rows, y, **x) for y in ("steps", "sigma"))])
    figure = draw(panels, [(BLUE, "-"), (ORANGE, "--"), (RED, ":")], "processor time (s)")
    legend_below(figure, 3)
    header = ["data", "objective", *(f"after {t:.3g} s" for t in shown), "steps", "σ at the end"]
    last = {f"{x['objective']}_{x['data']}": quartiles(rows, str(times(seconds)[-1]), **x)[1] for x in where}
    report("study_objectives", header, body, figure, options.out, last | {"seconds": seconds})


def starts(options: Sweep, n: Annotated[int, Field(ge=11, le=1797)] = 500) -> None:
    """Worst distortion of the first n digits where the descent ends, by where it starts, as a share of PCA's."""
    cases = [
        dict(n=n, k=k, start=start, seed=seed) for k in STARTS_K for start in STARTS for seed in range(options.seeds)
    ]
    rows = sweep(run_starts, cases, "starts", options)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes, body = figure.subplots(), []
    for i, (start, color, mark) in enumerate(zip(STARTS, (BLUE, GREEN, RED), "osv", strict=True)):
        ends = {k: [row for row in rows if row["k"] == k and row["start"] == start] for k in STARTS_K}
        for x, (k, those) in enumerate(ends.items()):
            reached = np.array([row["distortion"] for row in those])
            at, half = np.linspace(-0.1, 0.1, len(those)) + x + 0.25 * (i - 1), those[0]["pca"] / 2
            label = dict(label=f"from {start}{' matrices' * (start == 'Gaussian')}") if not x else {}
            axes.plot(at, reached / (2 * half), mark, color=color, markersize=4, **label)
            least, most, sosps = float(reached.min()), float(reached.max()), sum(row["sosp"] for row in those)
            body.append([k, start, least, float(np.median(reached)), most, f"{sosps:.0f} of {len(those)}", half])
    axes.axhline(0.5, color=GREY, linestyle=":", label="half")
    axes.set(ylim=(0.45, 1), ylabel="share of best-scaled PCA's distortion", title=f"all distances of {n} digits")
    axes.set_xticks(range(len(STARTS_K)), [f"k = {k}" for k in STARTS_K])
    legend_below(figure, 4)
    header = ["k", "start", "least", "median", "most", "SOSPs", "half of best-scaled PCA's"]
    body.sort(key=lambda line: line[0])
    report("study_starts", header, body, figure, options.out, {"n": n})


def generalization(options: Sweep, n: tuple[Size, ...] = (50, 100, 400)) -> None:
    """Worst distortion of held-out points of the same data, against the number of points that M was fitted to."""
    cases = [dict(data=data, n=size, seed=seed) for data in DATA for size in n for seed in range(options.seeds)]
    rows = sweep(run_generalization, cases, "generalization", options)
    columns = [f"{method}, {which}" for method in GENERAL for which in ("seen", "unseen")]
    titles = {data: f"{data}, d = {d}, k = {HELD_OUT_K}" for data, d in DATA.items()}
    panels, body = along(rows, titles, columns, n=n)
    marks = zip((BLUE, ORANGE, GREEN, RED), "oDsv", strict=True)
    styles = [(color, style) for color, mark in marks for style in ("--", f"{mark}-")]
    figure = draw(panels, styles, "points fitted to, n")
    legend_below(figure, 3)
    most = {column: quartiles(rows, column, data="digits", n=max(n))[1] for column in columns} | {"n": max(n)}
    report("study_generalization", ["data", "n", *columns], body, figure, options.out, most)


def neighbours(options: Sweep, n: Annotated[int, Field(gt=NEIGHBOURS, le=569)] = 200) -> None:
    """Recall of the true nearest neighbours, searched for among the projected points, against k."""
    names, seeds = ("digits", "breast cancer"), range(options.seeds)
    cases = [dict(data=data, n=n, k=k, seed=seed) for data in names for k in NEIGHBOURS_K for seed in seeds]
    rows = sweep(run_neighbours, cases, "neighbours", options)
    panels, body = along(rows, {data: f"{n} of {data}" for data in names}, SEARCHED, k=NEIGHBOURS_K)
    figure = draw(panels, [(BLUE, "o-"), (GREEN, "s-."), (RED, "v:"), (ORANGE, "^--")], "dimensions kept, k")
    for axes in figure.axes:
        axes.set(yscale="linear", ylim=(0, 1.02))
    figure.axes[0].set_ylabel(f"recall of {NEIGHBOURS} neighbours")
    legend_below(figure, 4)
    report("study_neighbours", ["data", "k", *SEARCHED], body, figure, options.out, {"n": n, "neighbours": NEIGHBOURS})


def scale(options: Sweep) -> None:
    """Seconds and distortion against n: of the runs jl_n500, … that results/ keeps (`tables.py run`); it runs none."""
    runs = [json.loads((RESULTS / f"jl_n{n}.json").read_text(encoding="utf-8")) for n in SCALE]
    d, k = (runs[0][name] for name in "dk")
    figure = Figure(figsize=(8.2, 4), layout="constrained")
    took, lost = figure.subplots(1, 2)
    took.plot(SCALE, [run["seconds"] for run in runs], "o-", color=BLUE, label="derandomized, to an SOSP")
    slope = runs[-1]["seconds"] * (np.array(SCALE) / SCALE[-1]) ** 2
    took.plot(SCALE, slope, ":", color=GREY, linewidth=1.2, label="as the number of pairs")
    lost.plot(SCALE, [run["distortion"] for run in runs], "o-", color=BLUE)
    lost.plot(SCALE, [run["pca"] for run in runs], "s-.", color=GREEN, label="best-scaled PCA")
    took.set(yscale="log", ylim=(1, None), ylabel="seconds of two cores")
    lost.set(ylim=(0, 1), ylabel="worst distortion, over all pairs")
    for axes in (took, lost):
        axes.set(xscale="log", xlabel="points, n", xticks=SCALE)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter("")
    figure.suptitle(f"all distances between Gaussian points, d = {d}, k = {k}", fontsize=12)
    legend_below(figure, 3)
    writable(options.out)
    with whole_files(options.out) as folder:
        save_figure(figure, folder, "study_scale")


def draw(panels: dict[str, dict[str, dict]], styles: list[tuple[str, str]], xlabel: str) -> Figure:
    """A panel a title: quartiles by the curve's name and x; styles: each curve's colour, marker and line."""
    figure = Figure(figsize=(1 + 3.4 * len(panels), 4.2), layout="constrained")
    for axes, (title, curves) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for (name, curve), (color, style) in zip(curves.items(), styles, strict=True):
            band(axes, list(curve), list(curve.values()), style, color=color, label=name)
        axes.set(xscale="log", yscale="log", xlabel=xlabel, title=title)
        q3 = [x[2] for curve in curves.values() for x in curve.values()]
        # Where a curve ends exact but for rounding it leaves the frame; one that is so throughout does not.
        lows = [[low for low, _, _ in curve.values()] for curve in curves.values()]
        floors = [min((x for x in low if x > 1e-13), default=min(low)) for low in lows]
        axes.set_ylim(0.6 * max(min(floors), 1e-17), 1.5 * max(q3))
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            if high < 1000 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
    figure.axes[0].set_ylabel("worst distortion")
    return figure


STUDIES = {f.__name__: f for f in (dimensions, nuclear, objectives, starts, generalization, neighbours, scale)}

if __name__ == "__main__":
    sys.exit(command_line(STUDIES, __doc__))
