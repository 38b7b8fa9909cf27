"""The exact reduction: cuts of what is left differ as those of the whole graph do."""

import networkx as nx
import numpy as np
import pytest
import torch

from kernel import contract, kernel, value
from utilities import cut_values, exact_maxcut, from_networkx, make_graph, random_graph


def brute(graph) -> float:
    """The largest cut over all sides, by a matrix product that shares nothing with the code."""
    sides = 1 - 2 * ((np.arange(2 ** (graph.n - 1))[:, None] >> np.arange(graph.n)) & 1)
    cut = np.zeros(len(sides))
    for i, j, w in zip(graph.i.tolist(), graph.j.tolist(), graph.w.tolist(), strict=True):
        cut += w * (sides[:, i] != sides[:, j])
    return cut.max()


def weighted(graph, seed: int):
    w = np.random.default_rng(seed).choice([-1.0, 1.0, 0.5, 2.3], graph.m)
    return make_graph(graph.n, graph.i.numpy(), graph.j.numpy(), w)


@pytest.mark.parametrize("seed", range(12))
def test_the_kernels_optimum_extends_to_the_graphs(seed):
    graph = random_graph(14, 0.25, seed) if seed % 2 else from_networkx(nx.random_regular_graph(3, 14, seed=seed))
    graph = weighted(graph, seed)
    reduced = kernel(graph)
    assert reduced.graph.n < graph.n
    s = np.where(exact_maxcut(reduced.graph)[1], 1.0, -1.0)
    assert value(graph, reduced.extend(s)) == pytest.approx(brute(graph))


@pytest.mark.parametrize("seed", range(5))
def test_every_cut_of_the_kernel_is_extended_best_and_to_the_same_difference(seed):
    graph = weighted(random_graph(60, 0.06, seed), seed)
    reduced, rng = kernel(graph), np.random.default_rng(seed)
    for _ in range(5):
        s = rng.choice([-1.0, 1.0], reduced.graph.n)
        whole = reduced.extend(s)
        assert (whole[reduced.vertices] == s).all()
        assert value(graph, whole) - value(reduced.graph, s) == pytest.approx(reduced.offset())
        for removed in np.setdiff1d(np.arange(60), reduced.vertices):
            other = whole.copy()
            other[removed] *= -1
            assert value(graph, other) <= value(graph, whole) + 1e-9


def test_graphs_without_vertices_of_few_neighbours_and_forests_are_left_alone():
    dense = random_graph(30, 0.5, 1)
    assert kernel(dense).graph is dense and kernel(dense).offset() == 0
    tree = from_networkx(nx.random_labeled_tree(30, seed=1))
    assert kernel(tree).graph.n >= 2
    s = kernel(tree).extend(np.ones(kernel(tree).graph.n))
    assert set(np.unique(s)) <= {-1.0, 1.0}


def test_value_is_that_of_cut_values():
    graph = weighted(random_graph(40, 0.2, 3), 3)
    s = np.random.default_rng(0).choice([-1.0, 1.0], 40)
    assert value(graph, s) == pytest.approx(float(cut_values(graph, torch.from_numpy(s))))


@pytest.mark.parametrize("seed", range(4))
def test_cuts_of_the_contracted_graph_are_cuts_of_the_graph(seed):
    graph, rng = weighted(random_graph(60, 0.08, seed), seed), np.random.default_rng(seed)
    s = rng.choice([-1.0, 1.0], 60)
    cuts = np.array([s, *(np.where(rng.random(60) < 0.2, -s, s) for _ in range(2))])
    cuts[2] *= -1  # the complement is the same cut
    part, parts = contract(graph, cuts)
    assert set(part) == set(range(parts.n)) and parts.n < 60
    for i, j in zip(graph.i.tolist(), graph.j.tolist(), strict=True):
        agree = len(set(cuts[:, i] * cuts[:, j])) == 1
        assert not agree or part[i] == part[j]
    whole = nx.Graph(zip(graph.i.tolist(), graph.j.tolist(), strict=True))
    for p in range(parts.n):  # parts hold together by edges on which all agree
        inside = [(i, j) for i, j in whole.subgraph(np.flatnonzero(part == p)).edges]
        same = nx.Graph([(i, j) for i, j in inside if len(set(cuts[:, i] * cuts[:, j])) == 1])
        assert (part == p).sum() == 1 or (len(same) == (part == p).sum() and nx.is_connected(same))
    for _ in range(20):
        x = rng.choice([-1.0, 1.0], parts.n)
        gain = cut_values(graph, torch.from_numpy(s * x[part])) - cut_values(graph, torch.from_numpy(s))
        assert value(parts, x) - value(parts, np.ones(parts.n)) == pytest.approx(float(gain))
    assert contract(graph, np.array([s, -s]))[1].m == 0  # nothing is left to disagree on
