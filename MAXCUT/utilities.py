"""Graphs: make them, read them, value their cuts, find the exact maximum cut of small ones."""

import ctypes
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

import networkx as nx
import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# PyTorch says so once a process; what is used of it here (products, construction) is stable.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

EXACT_LIMIT = 25
"""largest number of vertices for which `exact_maxcut` fits in memory (2^24 numbers)"""

MAX_VERTICES, MAX_EDGES = 10**8, 10**8
"""a sanity check on the vertices of files, and on the graphs that flags ask for"""

MAX_TOTAL = 1e305
"""largest Σ|w|, and its inverse the smallest: beyond, sums of cuts overflow, or weights lose digits"""


@dataclass(frozen=True, eq=False)
class Graph:
    """Weighted undirected graph with vertices 0 … n − 1; each edge once, with i < j, no self-loops.

    Weights are finite, of either sign, in whatever unit the user's cut is measured in. Build one with `make_graph`,
    which checks all this.
    """

    n: int
    i: Tensor
    """(m,) int64: lower end of each edge"""
    j: Tensor
    """(m,) int64: upper end of each edge"""
    w: Tensor
    """(m,) float64: weight of each edge"""
    names: tuple[str, ...] | None = None
    """the user's names of the vertices, in order, each one line; None if they have none"""

    @property
    def m(self) -> int:
        """Number of edges."""
        return len(self.w)

    def symmetric(self, values: np.ndarray) -> sp.csr_array:
        """Symmetric n × n matrix with values (m,) on the edges; the order of its entries depends on the edges only."""
        i, j = self.i.cpu().numpy(), self.j.cpu().numpy()
        ends = np.concatenate([i, j]), np.concatenate([j, i])
        return sp.csr_array((np.tile(values, 2), ends), shape=(self.n, self.n))

    @cached_property
    def adjacency(self) -> sp.csr_array:
        """Symmetric n × n weight matrix W, float64."""
        return self.symmetric(self.w.cpu().numpy())

    @cached_property
    def matrix(self) -> Tensor:
        """The same matrix as a sparse CSR tensor, float64, on the device of the edges."""
        W = self.adjacency
        parts = (torch.from_numpy(part).to(self.w.device) for part in (W.indptr, W.indices, W.data))
        return torch.sparse_csr_tensor(*parts, size=W.shape, check_invariants=False)

    @cached_property
    def degree(self) -> Tensor:
        """(n,) float64: Σ_j |w_ij| of each vertex."""
        ends, w = torch.cat([self.i, self.j]), self.w.abs().repeat(2)
        return torch.bincount(ends, weights=w, minlength=self.n)

    def copies(self, count: int) -> "Graph":
        """The disjoint union of so many copies of the graph, without names; copy c has vertices c n … (c + 1) n − 1."""
        shift = self.n * torch.arange(count, device=self.w.device).repeat_interleave(self.m)
        return Graph(count * self.n, self.i.repeat(count) + shift, self.j.repeat(count) + shift, self.w.repeat(count))

    def to(self, device: torch.device | str) -> "Graph":
        """The same graph with its tensors on `device`."""
        return Graph(self.n, self.i.to(device), self.j.to(device), self.w.to(device), self.names)


LARGE = 200_000
"""edges from which PyTorch has more threads than one: below they gain little, and lose much on a busy machine"""


def trim() -> None:
    """Return freed memory to the system; of several threads' glibc keeps gigabytes. Elsewhere: nothing."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


def weighted_sums(start: Tensor, column: Tensor, values: Tensor, Y: Tensor) -> Tensor:
    """A @ Y for a sparse matrix A in CSR form and dense Y (n, k), as PyTorch's embedding bags.

    They fetch ahead and use all threads, which its CSR product does not: several times faster on large graphs.
    """
    return embedding_bag(column, Y, start, mode="sum", per_sample_weights=values, include_last_offset=True)


def make_graph(
    n: int, i: np.ndarray, j: np.ndarray, w: np.ndarray | None = None, names: tuple[str, ...] | None = None
) -> Graph:
    """Graph from lists of edges: self-loops are dropped and parallel edges added up, with a warning for either.

    Args:
        n: number of vertices.
        i, j: (m,) integers in 0 … n − 1, the ends of each edge, in any order.
        w: (m,) weights; None for 1 each.
        names: names of the vertices.

    Raises:
        ValueError: an end out of range, a weight that is not finite, no edge with a weight other than 0, or weights too
            large or too small to compute with.
    """
    if n > MAX_VERTICES:
        raise ValueError(f"{n} vertices are more than this program takes ({MAX_VERTICES})")
    i, j = np.asarray(i, dtype=np.int64), np.asarray(j, dtype=np.int64)
    w = np.ones(len(i)) if w is None else np.asarray(w, dtype=np.float64)
    for end in (i, j):
        if len(end) and not (0 <= end.min() and end.max() < n):
            raise ValueError(f"an edge ends at vertex {end[(end < 0) | (end >= n)][0]}, outside 0 … {n - 1}")
    if not np.isfinite(w).all():
        bad = np.flatnonzero(~np.isfinite(w))[0]
        raise ValueError(f"edge {bad + 1} has weight {w[bad]}; weights must be finite numbers")
    loops = i == j
    if loops.any():
        warnings.warn(f"{loops.sum()} self-loop(s) dropped: no cut contains them", stacklevel=2)
        i, j, w = i[~loops], j[~loops], w[~loops]
    key, first = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_inverse=True)
    if len(key) < len(w):
        warnings.warn(f"{len(w) - len(key)} duplicate edge(s): their weights are added", stacklevel=2)
    w = np.bincount(first, weights=w, minlength=len(key))
    if not w.any():
        raise ValueError("the graph has no edges (of weight other than 0): there is nothing to cut")
    with np.errstate(over="ignore"):
        total = np.abs(w).sum()
    if not 1 / MAX_TOTAL <= total <= MAX_TOTAL:
        scale = "down" if total > 1 else "up"
        raise ValueError(
            f"the weights' sizes add up to {total:.3g}, which doubles can't compute with: scale them {scale}"
        )
    return Graph(n, torch.from_numpy(key // n), torch.from_numpy(key % n), torch.from_numpy(w), names)


def from_networkx(graph: nx.Graph) -> Graph:
    """Graph from any NetworkX graph; edge attribute `weight`, 1 where it is missing. Directions are ignored.

    Raises:
        ValueError: as `make_graph`, or a weight that is not a number.
    """
    index = {name: v for v, name in enumerate(graph)}
    edges = list(graph.edges(data="weight", default=1))
    try:
        w = np.array([float(weight) for _, _, weight in edges])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"an edge weight is not a number: {error}") from None
    i, j = (np.array([index[edge[end]] for edge in edges], dtype=np.int64) for end in (0, 1))
    # Names are written one a line, and some readers let through half a character.
    names = (" ".join(str(name).splitlines()).encode(errors="replace").decode() for name in graph)
    return make_graph(len(index), i, j, w, tuple(names))


def random_graph(n: int = 15, p: float = 0.6, seed: int = 42) -> Graph:
    """G(n, p): each pair of vertices is an edge with probability p. The defaults give the paper's graph (62 edges).

    Up to 1000 vertices made as the authors make theirs, from a matrix of uniform numbers; above, by drawing the number
    of edges, and then so many of the pairs, without their matrix.

    Raises:
        ValueError: n < 2, p outside [0, 1], the draw has no edge, or the graph is too large.
    """
    if n < 2:
        raise ValueError(f"n is {n}; a graph needs at least 2 vertices")
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}; an edge probability lies in [0, 1]")
    if n > MAX_VERTICES or p * n * (n - 1) / 2 > MAX_EDGES:
        raise ValueError(
            f"n is {n} and p is {p}; this program takes up to {MAX_VERTICES} vertices and {MAX_EDGES} edges"
        )
    if n > 1000:
        rng, pairs = np.random.default_rng(seed), n * (n - 1) // 2
        count = rng.binomial(pairs, p)
        drawn = min(count, pairs - count)  # of a dense graph the pairs that are no edges
        chosen = np.unique(rng.integers(pairs, size=drawn))
        while len(chosen) < drawn:
            chosen = np.union1d(chosen, rng.integers(pairs, size=drawn - len(chosen)))
        if drawn < count:
            chosen = np.setdiff1d(np.arange(pairs), chosen, assume_unique=True)
        # pair number i n − i (i + 1)/2 + (j − i − 1), row by row of the upper triangle
        rows = np.arange(n) * n - np.arange(n) * (np.arange(n) + 1) // 2
        i = np.searchsorted(rows, chosen, side="right") - 1
        return make_graph(n, i, chosen - rows[i] + i + 1)
    generator = torch.Generator().manual_seed(seed)
    i, j = (torch.rand(n, n, generator=generator) < p).triu(1).nonzero(as_tuple=True)
    return make_graph(n, i.numpy(), j.numpy())


def read_graph(path: Path | str) -> Graph:
    """Graph from a file, by suffix: see `READERS`, else Gset/rudy (see `read_gset`).

    Raises:
        ValueError: the file is not what its suffix says, or not a graph that can be cut.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            return READERS.get(path.suffix.lower(), read_gset)(file)
    except OSError:
        raise
    except Exception as error:  # parsers raise whatever they stumble on: KeyError, ParseError, UnicodeDecodeError, …
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def read_gset(file: TextIO) -> Graph:
    """Graph from Gset/rudy format: a line `n m`, then m lines `i j w` (w may be left out), vertices from 1.

    Raises:
        ValueError: what does not fit the format, with its line.
    """
    header = file.readline(1000).split()
    if len(header) != 2 or not all(field.isdecimal() for field in header):
        raise ValueError(
            f"line 1 is {' '.join(header)[:60]!r}, not 'n m' as in a Gset file; "
            f"other formats go by suffix: {', '.join(READERS)}"
        )
    n, m = map(int, header)
    if m == 0:
        raise ValueError("the graph has no edges: there is nothing to cut")
    if n > max(10**6, 100 * m):  # memory grows with n, whatever the size of the file
        raise ValueError(f"line 1 announces {n} vertices and only {m} edges: more than this program takes")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # numpy's, of an empty file: said better below
        try:
            edges = np.loadtxt(file, ndmin=2, comments=None)
        except ValueError as error:
            raise ValueError(f"edges are not all 'i j' or all 'i j w': {str(error).split('; use')[0]}") from None
    if len(edges) != m:
        raise ValueError(f"line 1 announces {m} edges, the file has {len(edges)}: is it truncated?")
    if edges.shape[1] not in (2, 3):
        raise ValueError(f"edges have {edges.shape[1]} columns; they are 'i j' or 'i j w'")
    ends = edges[:, :2]
    wrong = np.flatnonzero(((ends != np.floor(ends)) | (ends < 1) | (ends > n)).any(axis=1))
    if len(wrong):
        i, j = ends[wrong[0]]
        raise ValueError(f"edge {wrong[0] + 1} is {i:g} – {j:g}; vertices are the whole numbers 1 … {n}")
    return make_graph(n, *ends.astype(np.int64).T - 1, edges[:, 2] if edges.shape[1] == 3 else None)


def read_edge_list(file: TextIO) -> Graph:
    """Graph from lines `u v` or `u v weight`, u and v any words; `#` starts a comment, parallel edges add up.

    Not NetworkX's reader, which passes over lines that it can't parse.

    Raises:
        ValueError: what does not fit the format, with its line.
    """
    index: dict[str, int] = {}
    edges = []
    for number, line in enumerate(file, start=1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        try:
            u, v, weight = fields if len(fields) == 3 else (*fields, 1)
            edges.append((index.setdefault(u, len(index)), index.setdefault(v, len(index)), float(weight)))
        except ValueError:
            raise ValueError(f"line {number} is {line.strip()[:60]!r}, not 'u v' or 'u v weight'") from None
    i, j, w = np.array(edges).reshape(-1, 3).T
    return make_graph(len(index), i, j, w, tuple(index))


READERS = {
    ".edgelist": read_edge_list,
    ".adjlist": lambda file: from_networkx(nx.parse_adjlist(line.split("#")[0].strip() for line in file)),
    ".graphml": lambda file: from_networkx(nx.read_graphml(file.buffer)),
    ".gml": lambda file: from_networkx(nx.parse_gml(file)),
}
"""readers by suffix; every other suffix is read as Gset/rudy"""


def cut_values(graph: Graph, s: Tensor) -> Tensor:
    """Values ½ Σ_{i<j} w_ij (1 − s_i s_j), in the weights' unit, of cuts s = ±1 (n, …), one a column: (…) float64.

    For s in [−1, 1] they are the expected cuts when the sides are drawn independently with means s.
    """
    columns = s.to(graph.w).reshape(graph.n, -1)
    cuts = graph.w.sum() / 2 - (columns * (graph.matrix @ columns)).sum(0) / 4
    return cuts.reshape(s.shape[1:])


def exact_maxcut(graph: Graph) -> tuple[float, np.ndarray]:
    """Largest cut value and a cut (n, bool) that has it, over all 2^(n−1) cuts, n ≤ `EXACT_LIMIT`.

    Vertex by vertex, arrays double: with bit v of x the side of vertex v, the cuts of the first t + 1 vertices follow
    from those of the first t and from the weight between vertex t and the vertices on side 1.

    Raises:
        ValueError: the graph is too large.
    """
    if graph.n > EXACT_LIMIT:
        raise ValueError(f"the graph has {graph.n} vertices; the exact search takes at most {EXACT_LIMIT}")
    W = graph.adjacency.toarray()
    cuts = np.zeros(1)  # vertex 0 stays on side 0: a cut and its complement are the same
    for t in range(1, graph.n):
        to_side_1 = np.zeros(1)
        for v in range(1, t):
            to_side_1 = np.concatenate([to_side_1, to_side_1 + W[t, v]])
        cuts = np.concatenate([cuts + to_side_1, cuts + W[t, :t].sum() - to_side_1])
    best = int(cuts.argmax())
    return float(cuts[best]), np.array([False] + [bool(best >> v & 1) for v in range(graph.n - 1)])
