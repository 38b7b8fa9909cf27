"""What our cuts are measured against: each takes a graph, seconds and a seed, and tells when it had which cut."""

import contextlib
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle

import networkx as nx
import numpy as np
import torch
from networkx.algorithms.approximation import one_exchange
from torch.nn.functional import normalize

from kernel import value
from main import Config
from optimizer import Derandomization, conditional_expectations
from sdp import solve_sdp
from search import search
from sweep import whole
from utilities import Graph
from ways import Annealing

Curve = list[tuple[float, float]]
"""seconds since the start and the best cut then, whenever it grew"""
DENSE = 2000
"""vertices up to which simulated-bifurcation's dense matrix is made"""
SLOW = 500
"""vertices up to which one_exchange ends within seconds"""


def improvements(since: float, seconds: float, cuts: Iterator[float]) -> Curve:
    """Of cuts as they come those that are better than all before, until the seconds are over."""
    curve: Curve = []
    for cut in cuts:
        elapsed = time.perf_counter() - since
        if elapsed > seconds and curve:
            break
        if not curve or cut > curve[-1][1]:
            curve.append((elapsed, cut))
    return curve


def cuts_of_annealing(graph: Graph, seconds: float, seed: int, cores: int = 2, hot: float = 0.4) -> Curve:
    """dwave-samplers' annealing alone on so many cores: from random sides, each run twice as long as the one before.

    Runs start with 250 sweeps, and the last takes all the time that is left. Inverse temperatures are linear, as ours
    are, from where nothing is frozen yet, `hot` beside 1/rms row norm, to where all is.
    """
    since, annealing = time.perf_counter(), Annealing(graph)

    def runs(core: int) -> Curve:
        rng = np.random.default_rng([seed, core])

        def cuts() -> Iterator[float]:
            sweeps = 250
            while True:
                start = time.perf_counter()
                s = annealing(rng.choice([-1, 1], size=(1, graph.n)), hot, sweeps, int(rng.integers(2**31)))
                yield value(graph, s[0])
                now = time.perf_counter()
                per_sweep, left = (now - start) / sweeps, seconds - (now - since)
                affordable = int(0.95 * left / per_sweep)
                sweeps = affordable if affordable < 4 * sweeps else 2 * sweeps
                if sweeps < 50:
                    return

        return improvements(since, seconds, cuts())

    with ThreadPoolExecutor(cores) as pool:
        curves = list(pool.map(runs, range(cores)))
    return improvements_of(curves)


def improvements_of(curves: list[Curve]) -> Curve:
    """The best of several curves at each time."""
    best: Curve = []
    for elapsed, cut in sorted(point for curve in curves for point in curve):
        if not best or cut > best[-1][1]:
            best.append((elapsed, cut))
    return best


def cuts_of_simulated_bifurcation(graph: Graph, seconds: float, seed: int, agents: int = 128, cores: int = 2) -> Curve:
    """PyPI's simulated-bifurcation, discrete and ballistic in turn; nothing where its dense matrix is too large."""
    if graph.n > DENSE:
        return []
    import simulated_bifurcation as sb

    since, W = time.perf_counter(), torch.from_numpy(graph.adjacency.toarray()).float()
    torch.manual_seed(seed)
    torch.set_num_threads(cores)

    def cuts() -> Iterator[float]:
        for mode in cycle(("discrete", "ballistic")):
            with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no agent has converged: their signs count all the same
                s, _ = sb.minimize(W, domain="spin", agents=agents, max_steps=1000, mode=mode, verbose=False)
            yield value(graph, s.double().cpu().numpy())

    return improvements(since, seconds, cuts())


def cuts_of_one_exchange(graph: Graph, seconds: float, seed: int) -> Curve:
    """networkx's one_exchange, from random sides; nothing on more than `SLOW` vertices: its time grows like n³."""
    if graph.n > SLOW:
        return []
    since, plain, source = time.perf_counter(), nx.from_scipy_sparse_array(graph.adjacency), random.Random(seed)

    def cuts() -> Iterator[float]:
        while True:
            start = {v for v in plain if source.random() < 0.5}
            yield one_exchange(plain, initial_cut=start, weight="weight", seed=source)[0]

    return improvements(since, seconds, cuts())


def cuts_of_goemans_williamson(
    graph: Graph,
    seconds: float,
    seed: int,
    improve: Callable[[Graph, np.ndarray], np.ndarray] = conditional_expectations,
) -> Curve:
    """Goemans–Williamson's roundings, each improved by flips of one vertex (or what else `improve` does)."""
    since, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    V = solve_sdp(graph, generator=generator)

    def cuts() -> Iterator[float]:
        while True:
            s = (V @ torch.randn(V.shape[1], generator=generator)).sign().double().numpy()
            yield value(graph, improve(graph, s))

    return improvements(since, seconds, cuts())


def cuts_of_search(graph: Graph, seconds: float, seed: int, cores: int = 2, random_vectors: bool = False) -> Curve:
    """Ours, the search of main.py's --seconds alone; or from random unit vectors in place of the SDP's."""
    since, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    V, config = solve_sdp(graph, generator=generator), Config(seconds=seconds, seed=seed)
    if random_vectors:
        V = normalize(torch.randn(V.shape, generator=generator))
    descent = whole(Derandomization(graph, V, config, generator).run())
    found = whole(search(graph, V, descent.round(), config, since, workers=cores))
    return [(t, cut) for t, cut in zip(found.seconds, found.best, strict=True) if t <= max(seconds, found.seconds[0])]


def two_flips(graph: Graph, s: np.ndarray) -> np.ndarray:
    """A cut that neither the flip of one vertex nor that of two neighbours improves, at least as good as s.

    Flipping i and j gains g_i + g_j − 2 w_ij s_i s_j, g_i = s_i (W s)_i. Gains of pairs that no edge joins add up.

    Args:
        graph: the graph.
        s: (n,) sides ±1, or means in [−1, 1].
    """
    W, i, j, w = graph.adjacency, *(x.cpu().numpy() for x in (graph.i, graph.j, graph.w))
    while True:
        s = conditional_expectations(graph, s)
        gain = s * (W @ s)
        pair = gain[i] + gain[j] - 2 * w * s[i] * s[j]
        better = np.flatnonzero(pair > 1e-9 * np.abs(w).max())
        if not len(better):
            return s
        waiting = np.zeros(graph.n, dtype=bool)
        for edge in better[np.argsort(-pair[better])]:
            ends = [i[edge], j[edge]]
            if not waiting[ends].any():
                s[ends] *= -1
                for end in ends:  # both ends are each other's neighbours
                    waiting[W.indices[W.indptr[end] : W.indptr[end + 1]]] = True


RIVALS: dict[str, Callable[[Graph, float, int], Curve]] = {
    "ours": cuts_of_search,
    "annealing": cuts_of_annealing,
    "bifurcation": cuts_of_simulated_bifurcation,
    "one_exchange": cuts_of_one_exchange,
    "GW-1-flips": cuts_of_goemans_williamson,
    "GW-2-flips": partial(cuts_of_goemans_williamson, improve=two_flips),
    "ours-random-V": partial(cuts_of_search, random_vectors=True),
}
"""by name, all on two cores but one_exchange and GW-…: Goemans–Williamson's roundings and our flips"""
