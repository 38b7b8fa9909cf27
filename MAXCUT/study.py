"""The paper's open questions about MAXCUT, answered by many runs: one subcommand a study.

Each prints a table of medians and quartiles and leaves it, with a figure, in figures/. Finished runs are kept.
"""

import sys
import time
from collections.abc import Callable
from math import nan

import networkx as nx
import numpy as np
import torch
from networkx.algorithms.approximation import one_exchange
from scipy.spatial import Delaunay

import plot
from optimizer import Rounding, conditional_expectations, derandomize
from pgd import PGD, certify
from sdp import goemans_williamson, solve_sdp, upper_bound
from sweep import Row, Sweep, command_line, quartiles, report, sweep, table, whole
from utilities import Graph, cut_values, exact_maxcut, from_networkx, make_graph, random_graph

DEGREE = 6
"""mean degree of every random graph (a planar graph's is below 6, however large): families differ in structure only"""

EXACT = 22
"""graphs of up to so many vertices are measured against the exact optimum"""

EXCHANGE = 200
"""networkx's one_exchange recounts the whole cut for every vertex, at every move: time grows like n³, and reaches
seconds a graph here"""

MAX_STEPS = 5000
"""a run that has not converged by then has not reached an SOSP"""


def generator(seed: int) -> torch.Generator:
    """A random source of its own for each run."""
    return torch.Generator().manual_seed(seed)


def pgd_to_sosp(
    graph: Graph,
    epsilon: float = 0.03,
    lam: float = 0.1,
    lr: float = 0.15,
    escape: str = "noise",
    radius: float = 0.1,
    patience: int = 50,
    kick_first: bool = True,
    seed: int = 0,
) -> Row:
    """The paper's Algorithm 1 or 2 as it stands, from the SDP's vectors and μ = 0, with the settings of main.py.

    Unlike in `derandomize`, λ is constant, so that the stopping rule is awake from the first step on.

    Args:
        graph: the graph.
        epsilon, lam, lr, escape, radius, patience: see `derandomize`.
        kick_first: leave the saddle μ = 0 by a random kick before the first step; else descend to it first.
        seed: of all randomness.

    Returns:
        steps, perturbations and seconds (the processor's) of the descent; cut and expected_cut (before the last
        rounding) as fractions of the SDP's upper bound; sigma, lambda_min and is_sosp where it ended.
    """
    source = generator(seed)
    V = solve_sdp(graph, generator=source).double()
    bound, rho = upper_bound(graph, V)[0], 1e-6
    problem = Rounding(graph, epsilon)
    V = (V * problem.root_d[:, None]).requires_grad_()
    mu = torch.zeros_like(V[:, 0]).requires_grad_()

    def objective() -> torch.Tensor:
        return problem.objective(V, mu, lam)

    @torch.no_grad()
    def closure() -> Callable[[], torch.Tensor]:
        V.grad, mu.grad = problem.gradient(V, mu, lam)
        return objective

    pgd = PGD(
        [V, mu],
        lr=lr,
        rho=rho,
        radius=radius,
        momentum=0.9,
        patience=patience,
        objective=objective if escape == "curvature" else None,
        generator=source,
    )
    if kick_first:
        pgd.perturb()
    start, steps = time.process_time(), 0
    while steps < MAX_STEPS and not pgd.converged:
        pgd.step(closure)
        steps += 1
    seconds = time.process_time() - start
    certificate = certify(objective, [V, mu], V, mu, lam, rho)
    with torch.no_grad():
        return {
            "steps": steps,
            "perturbations": pgd.perturbations,
            "seconds": seconds,
            "cut": float(cut_values(graph, problem.round(V, mu, generator=source))) / bound,
            "expected_cut": float(problem.expected_cut(V, mu)) / bound,
            "sigma": float(problem.lengths(V).max()),
            "lambda_min": certificate.lambda_min,
            "is_sosp": certificate.is_sosp,
        }


def sosp_share(rows: list[Row], **where: object) -> float:
    """Share of the runs with these values that ended at an SOSP."""
    return float(np.mean([row["is_sosp"] for row in rows if where.items() <= row.items()]))


def smoothing_run(case: Row) -> Row:
    """One run of `smoothing`: epsilon, lam and a seed, which also draws the graph."""
    graph = random_graph(100, DEGREE / 100, case["seed"])
    return pgd_to_sosp(graph, case["epsilon"], case["lam"], seed=case["seed"])


def smoothing(
    options: Sweep,
    epsilons: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0),
    lams: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> None:
    """What the smoothing ε and the weight λ cost: cut, steps to an SOSP and λ_min, at constant λ.

    Graphs G(100, 0.06), one a seed.

    Args:
        options: where and how.
        epsilons: each ε to try, > 0; the vectors have length 1.
        lams: each λ to try, > 0.
    """
    if not (epsilons and lams and all(np.isfinite(x) and x > 0 for x in (*epsilons, *lams))):
        raise ValueError(f"--epsilons {epsilons} --lams {lams}: all must be positive numbers")
    settings = [dict(epsilon=epsilon, lam=lam) for epsilon in epsilons for lam in lams]
    cases = [setting | dict(seed=seed) for setting in settings for seed in range(options.seeds)]
    rows = sweep(smoothing_run, cases, "smoothing", options)
    header = ["ε", "λ", "cut / bound", "E[cut] / bound", "steps", "λ_min", "share at an SOSP"]
    columns = ("cut", "expected_cut", "steps", "lambda_min")
    body = [
        [
            *setting.values(),
            *(quartiles(rows, column, **setting) for column in columns),
            sosp_share(rows, **setting),
        ]
        for setting in settings
    ]

    def lines(column: str) -> plot.Bands:
        return {f"ε = {x:g}": [quartiles(rows, column, epsilon=x, lam=lam) for lam in lams] for x in epsilons}

    figure = plot.smoothing(lams, lines("cut"), lines("steps"), lines("lambda_min"), MAX_STEPS)
    report("study_smoothing", table(header, body), figure, options.out)


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

METHODS = {
    "ours": "ours",
    "gw_best": "GW, best of 1000",
    "gw_mean": "GW, mean",
    "exchange": "one_exchange",
    "expectations": "conditional expectations",
}


def graphs_run(case: Row) -> Row:
    """One graph of `graphs`, of a family, n and a seed: each method's cut over the optimum (n ≤ EXACT) or the SDP's
    upper bound.
    """
    n, seed = case["n"], case["seed"]
    graph, source = FAMILIES[case["family"]](n, seed), generator(seed)
    V = solve_sdp(graph, generator=source)
    ceiling = exact_maxcut(graph)[0] if n <= EXACT else upper_bound(graph, V)[0]
    gw = goemans_williamson(graph, V, 1000, source)
    result = whole(derandomize(graph, V, snapshots=1, generator=source))
    expectations = conditional_expectations(graph, np.zeros(n))  # of the cut that puts each vertex on a random side
    cuts = {
        "ours": result.cut,
        "gw_best": float(gw.max()),
        "gw_mean": float(gw.mean()),
        "exchange": one_exchange(nx.from_scipy_sparse_array(graph.adjacency), seed=seed)[0] if n <= EXCHANGE else nan,
        "expectations": float(cut_values(graph, torch.from_numpy(expectations))),
    }
    return {name: cut / ceiling for name, cut in cuts.items()} | {"sizes": size_range(n)}


def size_range(n: int) -> str:
    """The rows of the table: what n is measured against, and by which methods, changes between them."""
    return f"≤ {EXACT}" if n <= EXACT else f"{EXACT + 1} – {EXCHANGE}" if n <= EXCHANGE else f"> {EXCHANGE}"


def graphs(options: Sweep, sizes: tuple[int, ...] = (20, 22, 32, 50, 100, 200, 400, 700, 1000, 2000)) -> None:
    """Four families of random graphs: ours against Goemans–Williamson, local search and conditional expectations.

    Each seed is one graph of each family and size: with the defaults, 100 graphs a family. Ratios are to the optimum
    up to n = 22, to the SDP's upper bound above. networkx's one_exchange is used up to n = 200.

    Args:
        options: where and how.
        sizes: numbers of vertices, each above 6, the degree of the regular graphs.
    """
    if not sizes or min(sizes) <= DEGREE:
        raise ValueError(f"--sizes {sizes}: each must be above {DEGREE}, the degree of the regular graphs")
    cases = [dict(family=family, n=n, seed=seed) for family in FAMILIES for n in sizes for seed in range(options.seeds)]
    rows = sweep(graphs_run, cases, "graphs", options)
    header = ["family", "n", "graphs", *METHODS.values(), "ours, least", "GW mean, least", "ours optimal"]
    body = []
    for family, which in dict.fromkeys((row["family"], row["sizes"]) for row in rows):
        group = [row for row in rows if (row["family"], row["sizes"]) == (family, which)]
        ratios = [quartiles(group, method) if np.isfinite(group[0][method]) else "–" for method in METHODS]
        least = [min(row[method] for row in group) for method in ("ours", "gw_mean")]
        optimal = sum(row["ours"] == 1 for row in group) if which == size_range(EXACT) else "–"
        body.append([family, which, len(group), *ratios, *least, optimal])
    lines = {
        family: {
            label: [quartiles(rows, method, family=family, n=n) for n in sizes] for method, label in METHODS.items()
        }
        for family in FAMILIES
    }
    report("study_graphs", table(header, body), plot.graphs(sizes, lines, EXACT), options.out)


WAYS = {
    "no perturbation": dict(radius=0.0),
    "random kick, patience 50": dict(patience=50),
    "random kick, patience 200": dict(patience=200),
    "negative curvature": dict(escape="curvature"),
}
"""ways to leave the saddle; patience: steps that a kick has to lower the objective"""


def escape_run(case: Row) -> Row:
    """One run of `escape`: n, a way and a seed, which also draws the graph."""
    graph = random_graph(case["n"], DEGREE / case["n"], case["seed"])
    # At the saddle the curvature is of order 1/ε: with larger steps the descent would not settle there.
    return pgd_to_sosp(graph, lr=0.05, kick_first=False, seed=case["seed"], **WAYS[case["way"]])


def escape(options: Sweep, sizes: tuple[int, ...] = (20, 50, 100, 200, 500)) -> None:
    """From the saddle μ = 0: random kicks (Algorithm 1), the negative-curvature step (Algorithm 2), no perturbation.

    Graphs G(n, 6/n), one a seed; every run first descends to the saddle. λ is constant.

    Args:
        options: where and how.
        sizes: numbers of vertices, each above 6, the mean degree.
    """
    if not sizes or min(sizes) <= DEGREE:
        raise ValueError(f"--sizes {sizes}: each must be above {DEGREE}, the mean degree")
    cases = [dict(n=n, way=way, seed=seed) for n in sizes for way in WAYS for seed in range(options.seeds)]
    rows = sweep(escape_run, cases, "escape", options)
    header = ["n", "way", "E[cut] / bound", "cut / bound", "σ", "λ_min", "steps", "CPU seconds", "share at an SOSP"]
    columns = ("expected_cut", "cut", "sigma", "lambda_min", "steps", "seconds")
    body = [
        [n, way, *(quartiles(rows, column, n=n, way=way) for column in columns), sosp_share(rows, n=n, way=way)]
        for n in sizes
        for way in WAYS
    ]

    def lines(column: str) -> plot.Bands:
        return {way: [quartiles(rows, column, n=n, way=way) for n in sizes] for way in WAYS}

    sosp = {way: [sosp_share(rows, n=n, way=way) for n in sizes] for way in WAYS}
    figure = plot.escape(sizes, lines("expected_cut"), sosp, lines("steps"), lines("seconds"))
    report("study_escape", table(header, body), figure, options.out)


if __name__ == "__main__":
    sys.exit(command_line({"smoothing": smoothing, "graphs": graphs, "escape": escape}, __doc__))
