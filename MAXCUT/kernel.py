"""Smaller graphs whose cuts are the graph's: exact reduction, and what cuts agree on; and cuts united part by part."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components

from utilities import Graph

LEAST = 0.01
"""share of the vertices that a round must remove for another to follow"""


@dataclass(frozen=True)
class Kernel:
    """What is left of a graph, and how a cut of it goes on to the rest."""

    graph: Graph
    """the vertices that are left, with weights between them such that cuts differ as those of the whole graph do"""
    vertices: np.ndarray
    """their numbers in the whole graph"""
    whole: Graph
    rounds: list[tuple[np.ndarray, sp.csr_array]]
    """vertices that each round removed, and their weights to what it left, as rows over all vertices"""

    def extend(self, s: np.ndarray) -> np.ndarray:
        """The best cut of the whole graph, (n,) of ±1, among those whose sides on the kernel are s."""
        sides = np.ones(self.whole.n)
        sides[self.vertices] = s
        for removed, weights in reversed(self.rounds):
            sides[removed] = np.where(weights @ sides > 0, -1.0, 1.0)
        return sides

    def offset(self) -> float:
        """What cuts of the whole graph have above those of the kernel that they extend."""
        s = np.ones(self.graph.n)
        return value(self.whole, self.extend(s)) - value(self.graph, s)


def value(graph: Graph, s: np.ndarray) -> float:
    """The cut's value in the weights' unit."""
    return float(graph.w.sum()) / 2 - float((s * (graph.adjacency @ s)).sum()) / 4


def kernel(graph: Graph) -> Kernel:
    """Remove vertices of at most three neighbours, none two of them neighbours, round by round.

    A vertex v with weights w_1, w_2, w_3 takes the side that cuts more: max over s_v of −½ Σ w_k s_v s_k is
    ½ |w_1 s_1 + w_2 s_2 + w_3 s_3|, even in the three sides and so a constant and a weight between each two of them
    (the star–triangle transformation). With q_k the |·| where s_k alone is −1, and q_0 where none is, the weight to be
    added between 1 and 2 is (q_1 + q_2 − q_0 − q_3)/4.
    """
    n = graph.n
    W = graph.adjacency.copy()
    rounds, left = [], np.ones(n, dtype=bool)
    priority = np.random.default_rng(0).permutation(n) + 1
    while True:
        degree = np.diff(W.indptr)
        rank = np.where((degree <= 3) & left, priority, 0)
        row = np.repeat(np.arange(n), degree)
        beaten = np.zeros(n, dtype=bool)
        beaten[row[rank[row] < rank[W.indices]]] = True
        removed = np.flatnonzero((rank > 0) & ~beaten)
        if len(removed) < max(1, LEAST * left.sum()):
            break
        star, others = W[removed], left.copy()
        others[removed] = False
        keep = sp.diags_array(others.astype(float))
        rest = (keep @ W @ keep + triangles(star)).tocsr()
        rest.eliminate_zeros()
        if not rest.nnz:  # of a forest, say: there must be something to search on
            break
        W, left = rest, others
        rounds.append((removed, star))
    if not rounds:
        return Kernel(graph, np.arange(n), graph, [])
    vertices = np.flatnonzero(left)
    return Kernel(_graph(len(vertices), sp.triu(W[vertices][:, vertices], 1), graph.w.device), vertices, graph, rounds)


def _graph(n: int, upper: sp.csr_array, device: torch.device | str = "cpu") -> Graph:
    """The graph with these weights above the diagonal."""
    upper = upper.tocoo()
    there = upper.data != 0
    parts = upper.row[there].astype(np.int64), upper.col[there].astype(np.int64), upper.data[there]
    return Graph(n, *(torch.from_numpy(x).to(device) for x in parts))


def triangles(star: sp.csr_array) -> sp.csr_array:
    """Weights that removed vertices leave between their neighbours: (n, n), from their rows of the weight matrix."""
    count, n = np.diff(star.indptr), star.shape[1]
    place = np.arange(star.nnz) - np.repeat(star.indptr[:-1], count)
    rows = np.repeat(np.arange(len(count)), count)
    w, u = np.zeros((len(count), 3)), np.full((len(count), 3), -1)
    w[rows, place], u[rows, place] = star.data, star.indices
    q = np.abs(w.sum(1, keepdims=True) - 2 * w)
    q_0 = np.abs(w.sum(1))
    ends, weights = [], []
    for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        there = (u[:, a] >= 0) & (u[:, b] >= 0)
        ends.append(np.stack([u[there, a], u[there, b]]))
        weights.append(((q[:, a] + q[:, b] - q_0 - q[:, c]) / 4)[there])
    (i, j), x = np.concatenate(ends, axis=1), np.concatenate(weights)
    return sp.csr_array((np.tile(x, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(n, n))


def contract(graph: Graph, cuts: np.ndarray) -> tuple[np.ndarray, Graph]:
    """The graph of the parts on which all cuts agree: a renormalization (Houdayer and Martin 1999).

    An edge lies within a part if all cuts cut it or none does; what such edges connect is a part. Sides x of the parts
    are the cut s · x[part], s the first of the cuts; the weight between two parts is Σ w_ij s_i s_j of their edges.

    Args:
        graph: the graph.
        cuts: (count, n) sides ±1, two or more.

    Returns:
        The part of each vertex, (n,), and the graph of the parts, without edges where all cuts are the same.
    """
    i, j, w = (x.cpu().numpy() for x in (graph.i, graph.j, graph.w))
    first, *others = (s[i] * s[j] for s in cuts.astype(np.int8))
    agree = np.flatnonzero(np.logical_and.reduce([first == other for other in others]))
    within = sp.coo_array((np.ones(len(agree)), (i[agree], j[agree])), shape=(graph.n, graph.n))
    n, part = connected_components(within, directed=False)
    between = part[i] != part[j]
    ends = np.sort([part[i], part[j]], axis=0)[:, between]
    return part, _graph(n, sp.csr_array(((w * first)[between], ends), shape=(n, n)))


def nearer(s: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the sides `other` and their complement, which are the same cut, those that agree more with s."""
    return other if 2 * np.count_nonzero(s == other) >= len(s) else -other  # no s @ other: BLAS starts threads for it


def unite(graph: Graph, s: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cut s with every connected part of its difference to the other that does not lose by being flipped.

    Parts that no edge joins add up: the result cuts at least as much as either (of `other` and its complement, the same
    cut, the one nearer to s is taken).

    Args:
        graph: the graph.
        s, other: (n,) sides ±1.
    """
    different = s != nearer(s, other)
    i, j, w = (x.cpu().numpy() for x in (graph.i, graph.j, graph.w))
    inside = np.flatnonzero(different[i] & different[j])
    i, j, w = i[inside], j[inside], w[inside]
    parts, part = connected_components(sp.coo_array((w, (i, j)), shape=(graph.n, graph.n)), directed=False)
    gain = np.bincount(part, weights=s * (graph.adjacency @ s), minlength=parts)
    gain -= np.bincount(part[i], weights=2 * w * s[i] * s[j], minlength=parts)
    return np.where(different & (gain[part] >= 0), -s, s)
