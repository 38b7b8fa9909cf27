"""Exact reduction: a vertex of at most three neighbours follows them, and leaves behind weights between them."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

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
    upper = sp.triu(W[vertices][:, vertices], 1).tocoo()
    parts = (upper.row.astype(np.int64), upper.col.astype(np.int64), upper.data)
    return Kernel(
        Graph(len(vertices), *(torch.from_numpy(x).to(graph.w.device) for x in parts)), vertices, graph, rounds
    )


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
