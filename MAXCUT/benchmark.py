"""Benchmarks: cuts of a folder of graphs beside the baselines and the best known values, and time per step.

python benchmark.py cuts [FOLDER] --seconds 5 60      gap to the best known cut against seconds
python benchmark.py steps                             time and memory traffic of a step against edges
"""

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import torch
import tyro
from networkx.algorithms.approximation import one_exchange
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import plot
from experiment import refuse
from optimizer import Rounding
from sdp import goemans_williamson, solve_sdp, upper_bound
from search import derandomize_within
from study import EXCHANGE
from sweep import report, table, whole
from utilities import EXACT_LIMIT, Graph, exact_maxcut, from_networkx, make_graph, random_graph, read_graph, threads

OUT = Path(__file__).parent / "figures"
ROUNDINGS = 1000


def torus(side: int, seed: int) -> Graph:
    """Square grid on a torus with weights ±1, as the Gset's toroidal graphs are."""
    graph = from_networkx(nx.grid_2d_graph(side, side, periodic=True))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], graph.m)
    return make_graph(graph.n, graph.i.numpy(), graph.j.numpy(), signs)


def small_default() -> dict[str, Graph]:
    """Graphs of a few families, for those who have no folder of them at hand."""
    return {
        "exact-20": random_graph(20, 0.5, 1),
        "random-200": random_graph(200, 0.06, 1),
        "random-800": random_graph(800, 0.06, 1),
        "sparse-2000": random_graph(2000, 0.003, 1),
        "torus-1024": torus(32, 1),
        "regular-2000": from_networkx(nx.random_regular_graph(3, 2000, seed=1)),
    }


def family(graph: Graph) -> str:
    """Gset's family: toroidal, planar (many triangles) or random; ± for signed weights."""
    W = abs(graph.adjacency).sign()
    degree = W.sum(0)
    triangles, wedges = (W @ W).multiply(W).sum(), (degree * (degree - 1)).sum()
    clustered = triangles / max(wedges, 1) > max(0.05, 3 * degree.mean() / graph.n)
    kind = "toroidal" if (degree == 4).all() else "planar" if clustered else "random"
    return kind + (" ±" if float(graph.w.min()) < 0 else "")


def cuts(
    folder: Path | None = None,
    /,
    seconds: tuple[float, ...] = (2.0,),
    best_known: Path | None = None,
    seed: int = 0,
    out: Path = OUT,
) -> None:
    """Our cuts after so many seconds beside Goemans–Williamson's, networkx's one_exchange and the best known values.

    Args:
        folder: of graphs, in any format that main.py reads; none: a few small random ones.
        seconds: time for each run, as main.py's --seconds, but that its bound is not counted.
        best_known: CSV file with columns instance (a file's name without suffix) and best_known; default
            best_known.csv in the folder, if there is one. Where it says nothing, the exact optimum of small graphs or
            the relaxation's bound stands in.
        seed: of everything random.
        out: for the figure and the table, benchmark_<name of the folder>, or benchmark_cuts.
    """
    if not seconds or min(seconds) <= 0:
        raise ValueError(f"--seconds is {seconds}; give one or more positive numbers")
    graphs = small_default() if folder is None else {}
    if folder is not None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of graphs")
        best_known = best_known or folder / "best_known.csv"
        files = [file for file in sorted(folder.iterdir()) if file.suffix not in (".csv", ".md") and file.is_file()]
        if not files:
            raise ValueError(f"{folder} holds no graphs")
        graphs = {file.stem: read_graph(file) for file in sorted(files, key=lambda file: (len(file.stem), file.stem))}
    known: dict[str, float] = {}
    if best_known is not None and best_known.exists():
        with best_known.open(encoding="utf-8", newline="") as file:
            known = {row["instance"]: float(row["best_known"]) for row in csv.DictReader(file)}

    header = ["graph", "family", "n", "m", "reference", *(f"ours {s:g} s" for s in seconds)]
    header += [f"GW best of {ROUNDINGS}", "s", "one_exchange", "s", "SDP s", "certified"]
    body, gaps, baselines = [], defaultdict(list), defaultdict(list)
    workers = min(4, torch.get_num_threads())
    torch.set_flush_denormal(True)
    for name, graph in tqdm(graphs.items(), unit=" graphs", disable=None, leave=False):
        torch.set_num_threads(threads(graph, workers))
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        V = solve_sdp(graph, generator=generator)
        sdp_seconds = time.perf_counter() - start
        bound = upper_bound(graph, V)[0]
        gw_start = time.perf_counter()
        gw = float(goemans_williamson(graph, V, ROUNDINGS, generator).max())
        gw_seconds = time.perf_counter() - gw_start + sdp_seconds
        if name in known:
            reference, what = known[name], "best known"
        elif graph.n <= EXACT_LIMIT:
            reference, what = exact_maxcut(graph)[0], "optimum"
        else:
            reference, what = bound, "bound"

        ours, certified = [], True
        for limit in seconds:
            generator, since = torch.Generator().manual_seed(seed), time.perf_counter()
            V = solve_sdp(graph, generator=generator)
            result, found = derandomize_within(
                graph, V, limit, since, bound, workers=workers, generator=generator, snapshots=1
            )
            whole(result if found is None else found)
            ours.append(result.cut)
            certified &= result.certificate.is_sosp
        gaps[family(graph)].append((found.seconds, [1 - cut / reference for cut in found.best]))
        exchange, exchange_seconds = "–", "–"
        baselines["Goemans–Williamson"].append((gw_seconds, 1 - gw / reference))
        if graph.n <= EXCHANGE:
            start = time.perf_counter()
            exchange = one_exchange(nx.from_scipy_sparse_array(graph.adjacency), seed=seed)[0]
            exchange_seconds = f"{time.perf_counter() - start:.2g}"
            baselines["one_exchange"].append((float(exchange_seconds), 1 - exchange / reference))
        percent = [f"{cut:.10g} ({cut / reference:.2%})" for cut in ours]
        body.append(
            [name, family(graph), graph.n, graph.m, f"{reference:.10g} ({what})", *percent]
            + [f"{gw:.10g} ({gw / reference:.2%})", f"{gw_seconds:.2g}", exchange, exchange_seconds]
            + [f"{sdp_seconds:.2g}", "yes" if certified else "no"]
        )
    name = f"benchmark_{folder.name if folder else 'cuts'}"
    report(name, table(header, body), plot.gaps(gaps, baselines, max(seconds)), out)


INDEXED = {"index_select": (0, 2), "index_add_": (0, 2), "_embedding_bag": (0, 1), "sparse_sampled_addmm": (2, 0)}
"""Operations that fetch from or add to a tensor by an index: positions of the two among their arguments."""


class Traffic(TorchDispatchMode):
    """Adds up the bytes that PyTorch's operations read and write: each tensor once an operation, but of those that are
    fetched from or added to by an index, one row an entry of the index."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__.removesuffix("_forward_only")
        if name in INDEXED:
            table, index = (args[place] for place in INDEXED[name])
            entries = len(index.values()) if index.layout == torch.sparse_csr else len(index)
            row = table.shape[0] if name == "sparse_sampled_addmm" else table[:1].numel()
            times = 2 if name == "index_add_" else 1
            self.bytes += times * entries * row * table.element_size()
            tensors = [x for x in tensors if x is not table]
        for x in tensors:
            parts = (x.crow_indices(), x.col_indices(), x.values()) if x.layout == torch.sparse_csr else (x,)
            self.bytes += sum(part.numel() * part.element_size() for part in parts)
        return result


def bandwidth() -> float:
    """Bytes a second that this machine reads and writes in a copy of 512 MB, the best of a few."""
    source = torch.ones(2**27)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * 4 / best


def steps(
    edges: tuple[float, ...] = (1e4, 3e4, 1e5, 3e5, 1e6, 5e6), rank: int = 8, repeats: int = 5, out: Path = OUT
) -> None:
    """Time of one gradient against the number of edges, on random graphs with ten edges at a vertex.

    Args:
        edges: numbers of edges.
        rank: of V.
        repeats: the best of so many is taken.
        out: folder for the figure benchmark_steps and the table benchmark_steps.md.
    """
    if not edges or min(edges) < 100 or repeats < 1 or rank < 1:
        raise ValueError(f"--edges {edges} --rank {rank} --repeats {repeats}: at least 100, 1 and 1")
    torch.set_flush_denormal(True)
    cores, speed, body, times = torch.get_num_threads(), bandwidth(), [], []
    for m in tqdm(edges, unit=" sizes", disable=None, leave=False):
        n = round(m / 5)
        graph = random_graph(n, 2 * m / n / n, 1)
        torch.set_num_threads(threads(graph, cores))
        generator = torch.Generator().manual_seed(0)
        problem = Rounding(graph, 0.03, torch.float32)
        root_d = problem.root_d.float()
        V = normalize(torch.randn(n, rank, generator=generator)) * root_d[:, None]
        mu = torch.randn(n, generator=generator) * root_d
        with Traffic() as traffic:
            problem.gradient(V, mu, 0.1)
        best = float("inf")
        for _ in range(repeats * max(1, round(1e5 / m))):
            start = time.perf_counter()
            problem.gradient(V, mu, 0.1)
            best = min(best, time.perf_counter() - start)
        times.append((graph.m, best))
        rate = traffic.bytes / best
        body.append(
            [f"{graph.n:,}", f"{graph.m:,}", best * 1e3, best / graph.m * 1e9, traffic.bytes / graph.m]
            + [rate / 1e9, f"{rate / speed:.0%}"]
        )
    header = ["vertices", "edges", "ms a step", "ns an edge", "bytes an edge", "GB/s", "of the memory's bandwidth"]
    report("benchmark_steps", table(header, body), plot.steps(*zip(*times, strict=True)), out)
    slope = np.polyfit(*np.log(np.array(times)).T, 1)[0] if len(times) > 1 else float("nan")
    print(f"a copy's bandwidth is {speed / 1e9:.1f} GB/s with {cores} threads; time grows like edges^{slope:.2f}")


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"cuts": cuts, "steps": steps}, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(refuse(error))
    except KeyboardInterrupt:
        print("interrupted: nothing is saved", file=sys.stderr)
        sys.exit(130)
