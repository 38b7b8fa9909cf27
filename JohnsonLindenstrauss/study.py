"""Studies of the projection: the dimensions that it needs, its three objectives, and points that it was not fitted to.

`python study.py dimensions --jobs 2`, and so on; each saves its table, its figure and the finished runs.
"""

import sys
import time
from contextlib import suppress
from math import inf

import numpy as np
import torch
from sklearn.random_projection import johnson_lindenstrauss_min_dim
from torch import Tensor

import baselines
import plot
from data import random_data, read_matrix
from model import Pairs, Problem, Vectors, distortion
from sweep import Row, Sweep, command_line, quartiles, report, sweep, table, whole
from train import derandomize, row_space

DATA = {"vectors": 500, "Gaussian points": 64, "digits": 64}
"""dimension d: the paper's random vectors; standard normal points, which have no structure; scikit-learn's digits"""
FITTED, RANDOM = ("derandomized", "best-scaled PCA"), ("sparse random", "Gaussian")
"""methods that look at the data, and methods that don't"""
LAM = 0.01
"""λ; at main.py's 0.001 σ lingers where k nears d"""
GROWTH = 1.004
"""growth of τ, a step: slow enough for more vectors than the paper's 100, where main.py's 1.05 ends in poor corners"""
STEPS = 2200
"""enough for τ to arrive"""
DIMENSIONS = [round(2 ** (i / 2)) for i in range(2, 27)]
"""k from 2 to 8192: so far do random matrices have to go"""
LARGEST = 64
"""last k for the methods that look at the data"""
EPSILONS = (0.5, 0.2, 0.1)
"""worst distortions to reach"""
OBJECTIVES = ("bound", "tail", "sampled")
OBJECTIVES_ON = {"vectors": dict(k=30, growth=1.05), "digits": dict(k=10, growth=1.003)}
"""what they are compared on; with main.py's hyperparameters"""
TAIL = 0.3
"""ε of the tail objective, main.py's"""
HELD_OUT = 200
"""points that nothing is fitted to: 19,900 pairs"""
HELD_OUT_K = 20
"""dimensions that they are projected to"""
HELD_OUT_METHODS = (*FITTED, "best-scaled Gaussian")
"""each at the scale that suits what it sees: M = 0, with distortion 1, would beat an unscaled Gaussian matrix"""


def points(data: str, n: int, seed: int) -> np.ndarray:
    """(n, d) points: random ones, or a random choice of the digits."""
    if data == "digits":
        X = read_matrix("digits")
        return X[np.random.default_rng(seed).permutation(len(X))[:n]]
    return random_data("vectors" if data == "vectors" else "pairs", n, DATA[data], seed)


def preserved(data: str, X: np.ndarray) -> Problem:
    """What a projection is to preserve: the norms of vectors, all distances between points."""
    return (Vectors if data == "vectors" else Pairs)(torch.from_numpy(X))


def generator(seed: int) -> torch.Generator:
    """Source of a projection's randomness: other numbers than those of the random data with this seed."""
    return torch.Generator().manual_seed(10**6 + seed)


def projection(method: str, problem: Problem, case: Row) -> Tensor:
    """(k, d) projection that the method makes for the problem."""
    k, randomness = case["k"], generator(case["seed"])
    if method == "derandomized":
        return whole(derandomize(problem, k, lam=LAM, growth=GROWTH, steps=case["steps"], generator=randomness)).M
    if method == "best-scaled PCA":
        return baselines.scaled_pca(problem, k)
    if method == "sparse random":
        return baselines.sparse(k, problem.d, randomness)
    A = baselines.gaussian(k, problem.d, randomness)
    return baselines.best_scaled(problem, A) if method == "best-scaled Gaussian" else A


def check(n: tuple[int, ...], steps: int = 1) -> None:
    """Raise ValueError for a number of points or of steps that is out of range."""
    most = len(read_matrix("digits")) - HELD_OUT
    if not n or min(n) < 2 or max(n) > most:
        raise ValueError(f"--n is {' '.join(map(str, n))}; it must lie between 2 and {most}")
    if steps < 1:
        raise ValueError(f"--steps is {steps}; it must be at least 1")


def run_dimensions(case: Row) -> Row:
    """Worst distortion by each method."""
    problem = preserved(case["data"], points(case["data"], case["n"], case["seed"]))
    methods = FITTED + RANDOM if case["k"] <= LARGEST else RANDOM
    return {method: distortion(problem, projection(method, problem, case)) for method in methods}


def needed(worst: dict[int, float], epsilon: float) -> float:
    """Whole k from which the worst distortion is at most ε, by straight lines between those given; inf if none.

    Args:
        worst: worst distortion by k, in the order of k.
        epsilon: ε.
    """
    least = np.minimum.accumulate(list(worst.values()))
    return float(np.ceil(np.interp(epsilon, least[::-1], list(worst)[::-1], left=inf)))


def needed_quartiles(runs: list[dict[int, float]], epsilon: float) -> object:
    """Quartiles over the runs of the k needed for ε; in words where a run needs less or more than it was given."""
    needs, first, last = [needed(worst, epsilon) for worst in runs], min(runs[0]), max(runs[0])
    if max(needs) == first:
        return f"≤ {first}"
    if max(needs) == inf:
        return f"> {last} in {needs.count(inf)} of {len(needs)}"
    return tuple(np.quantile(needs, [0.25, 0.5, 0.75]))


def dimensions(options: Sweep, n: int = 100, steps: int = STEPS) -> None:
    """Worst distortion against k, and the k needed for a worst distortion of 0.5, 0.2 and 0.1.

    Args:
        options: where and how the runs are done.
        n: vectors or points.
        steps: of each descent, at most.
    """
    check((n,), steps)
    cases = [
        dict(data=data, n=n, k=k, steps=steps, seed=seed)
        for data in DATA
        for k in DIMENSIONS
        for seed in range(options.seeds)
    ]
    rows = sweep(run_dimensions, cases, "dimensions", options)
    panels, needs, theory = {}, [], {}
    for data in DATA:
        runs = {
            method: [
                {row["k"]: row[method] for row in rows if (row["data"], row["seed"]) == (data, seed) and method in row}
                for seed in range(options.seeds)
            ]
            for method in FITTED + RANDOM
        }
        panels[data] = {
            method: {k: quartiles(rows, method, data=data, k=k) for k in each[0]} for method, each in runs.items()
        }
        # The norms of n vectors are distances of n + 1 points: the origin is the last.
        size = n + (data == "vectors")
        theory[data] = {int(johnson_lindenstrauss_min_dim(size, eps=epsilon)): epsilon for epsilon in EPSILONS}
        needs += [
            [data, epsilon, *(needed_quartiles(each, epsilon) for each in runs.values()), k]
            for k, epsilon in theory[data].items()
        ]
    shown = [k for k in DIMENSIONS[::2] if k <= LARGEST]
    worst = [[data, k, *(curve[k] for curve in panels[data].values())] for data in DATA for k in shown]
    text = (
        f"Worst distortion of {n} vectors, or of the pairs of {n} points:\n\n"
        + table(["data", "k", *FITTED, *RANDOM], worst)
        + "\n\nk needed for a worst distortion of ε, and scikit-learn's johnson_lindenstrauss_min_dim:\n\n"
        + table(["data", "ε", *FITTED, *RANDOM, "scikit-learn"], needs)
    )
    titles = {data: f"{n} {data}, d = {d}" for data, d in DATA.items()}
    report("study_dimensions", text, plot.study_dimensions(panels, titles, theory), options.out)


def run_objectives(case: Row) -> Row:
    """Least worst distortion of M by each of the `times`, and the steps and σ that the descent came to."""
    # In the row space from the start: else the sampled objective alone would work in all d dimensions.
    problem, _ = row_space(preserved(case["data"], points(case["data"], case["n"], case["seed"])))
    # Processor time: what else runs on the machine counts little. M = 0 before the first snapshot: distortion 1.
    start, spent, worst, last = time.process_time(), [], [1.0], {}

    def progress(step: int, of_mean: float, sigma: float) -> None:
        spent.append(time.process_time() - start)
        worst.append(min(worst[-1], of_mean))
        last.update(steps=step, sigma=sigma)
        if spent[-1] > case["seconds"]:
            raise TimeoutError

    with suppress(TimeoutError):
        whole(
            derandomize(
                problem,
                **OBJECTIVES_ON[case["data"]],
                objective=case["objective"],
                epsilon=TAIL,
                steps=10**9,
                generator=generator(case["seed"]),
                progress=progress,
            )
        )
    by_then = np.searchsorted(spent, times(case["seconds"]), side="right")
    return {str(t): worst[i] for t, i in zip(times(case["seconds"]), by_then, strict=True)} | last


def times(seconds: float) -> list[float]:
    """When the objectives are compared, in seconds: the last after `seconds`, each fifth after twice as many."""
    return [seconds * 2 ** (i / 5) for i in range(-30, 1)]


def objectives(options: Sweep, n: int = 100, seconds: float = 6) -> None:
    """The bound, the paper's tail and the authors' sampled objective at equal time (use --jobs 1).

    Args:
        options: where and how the runs are done.
        n: vectors or points.
        seconds: processor time of each run.
    """
    check((n,))
    if not 0 < seconds < inf:
        raise ValueError(f"--seconds is {seconds}; it must be a positive number")
    cases = [
        dict(data=data, objective=objective, n=n, seconds=seconds, seed=seed)
        for data in OBJECTIVES_ON
        for objective in OBJECTIVES
        for seed in range(options.seeds)
    ]
    rows = sweep(run_objectives, cases, "objectives", options)
    panels, body = {}, []
    shown = times(seconds)[10::10]
    for data in OBJECTIVES_ON:
        panels[data] = {}
        for objective in OBJECTIVES:
            where = dict(data=data, objective=objective)
            curve = {t: quartiles(rows, str(t), **where) for t in times(seconds)}
            panels[data][objective] = curve
            end = (quartiles(rows, column, **where) for column in ("steps", "sigma"))
            body.append([data, objective, *(curve[t] for t in shown), *end])
    header = ["data", "objective", *(f"after {t:.3g} s" for t in shown), "steps", "σ at the end"]
    titles = {data: f"{n} {data}, d = {DATA[data]}, k = {on['k']}" for data, on in OBJECTIVES_ON.items()}
    text = f"Least worst distortion of M so far ({'; '.join(titles.values())}):\n\n" + table(header, body)
    report("study_objectives", text, plot.study_objectives(panels, titles), options.out)


def run_generalization(case: Row) -> Row:
    """Worst distortion by each method: of the n points that it sees, and of the held-out points."""
    X = points(case["data"], HELD_OUT + case["n"], case["seed"])
    unseen, seen = preserved(case["data"], X[:HELD_OUT]), preserved(case["data"], X[HELD_OUT:])
    row = {}
    for method in HELD_OUT_METHODS:
        M = projection(method, seen, case)
        row |= {f"{method}, seen": distortion(seen, M), f"{method}, unseen": distortion(unseen, M)}
    return row


def generalization(options: Sweep, n: tuple[int, ...] = (25, 50, 100, 200, 400), steps: int = STEPS) -> None:
    """Worst distortion of held-out points of the same data, against the number of points that M was fitted to.

    Args:
        options: where and how the runs are done.
        n: numbers of vectors or points that M is fitted to.
        steps: of each descent, at most.
    """
    check(n, steps)
    cases = [
        dict(data=data, n=size, k=HELD_OUT_K, steps=steps, seed=seed)
        for data in DATA
        for size in n
        for seed in range(options.seeds)
    ]
    rows = sweep(run_generalization, cases, "generalization", options)
    columns = [f"{method}, {which}" for method in HELD_OUT_METHODS for which in ("seen", "unseen")]
    panels = {
        data: {column: {size: quartiles(rows, column, data=data, n=size) for size in n} for column in columns}
        for data in DATA
    }
    titles = {data: f"{data}, d = {d}, k = {HELD_OUT_K}" for data, d in DATA.items()}
    body = [[data, size, *(panels[data][column][size] for column in columns)] for data in DATA for size in n]
    text = (
        f"Worst distortion in {HELD_OUT_K} dimensions of n vectors or the pairs of n points, seen, and of {HELD_OUT} "
        "unseen ones:\n\n" + table(["data", "n", *columns], body)
    )
    report("study_generalization", text, plot.study_generalization(panels, titles), options.out)


STUDIES = dict(dimensions=dimensions, objectives=objectives, generalization=generalization)

if __name__ == "__main__":
    sys.exit(command_line(STUDIES, __doc__))
