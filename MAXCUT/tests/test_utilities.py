"""Graphs, their files, cut values and the exact maximum cut."""

import itertools
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from utilities import Graph, cut_values, exact_maxcut, from_networkx, make_graph, random_graph, read_graph


def edges(graph: Graph) -> dict[tuple[int, int], float]:
    return dict(zip(zip(graph.i.tolist(), graph.j.tolist(), strict=True), graph.w.tolist(), strict=True))


def weighted_graph(n: int, seed: int, p: float = 0.6) -> Graph:
    """G(n, p) with normal weights of either sign."""
    graph = random_graph(n, p, seed)
    weights = np.random.default_rng(seed).standard_normal(graph.m)
    return make_graph(n, graph.i.numpy(), graph.j.numpy(), weights)


def all_cuts(graph: Graph) -> list[float]:
    """Cut values of all 2^n assignments, edge by edge."""
    return [
        sum(w for (i, j), w in edges(graph).items() if side[i] != side[j])
        for side in itertools.product([0, 1], repeat=graph.n)
    ]


def test_the_default_random_graph_is_the_papers():
    graph = random_graph()
    torch.manual_seed(42)
    upper = (torch.rand(15, 15) < 0.6).triu(1)
    assert set(edges(graph)) == {tuple(pair) for pair in upper.nonzero().tolist()}
    assert graph.n == 15 and graph.m == 62 and (graph.w == 1).all()
    assert exact_maxcut(graph)[0] == 41


def test_large_random_graphs_have_the_right_density():
    graph = random_graph(3000, 0.002, seed=1)
    pairs = 3000 * 2999 / 2
    assert abs(graph.m - 0.002 * pairs) < 4 * np.sqrt(0.002 * pairs)


@pytest.mark.parametrize("n, p, word", [(1, 0.5, "at least 2"), (5, -0.1, "probability"), (5, 0.0, "no edges")])
def test_random_graph_refuses(n, p, word):
    with pytest.raises(ValueError, match=word):
        random_graph(n, p)


@pytest.mark.parametrize("n", range(2, 12))
def test_exact_maxcut_is_the_best_of_all_cuts(n):
    graph = weighted_graph(n, seed=n, p=1.0)
    value, side = exact_maxcut(graph)
    assert value == pytest.approx(max(all_cuts(graph)))
    assert float(cut_values(graph, torch.from_numpy(2.0 * side - 1))) == pytest.approx(value)


def test_exact_maxcut_of_known_graphs():
    assert exact_maxcut(from_networkx(nx.complete_graph(20)))[0] == 100
    assert exact_maxcut(from_networkx(nx.cycle_graph(21)))[0] == 20
    assert exact_maxcut(from_networkx(nx.petersen_graph()))[0] == 12
    assert exact_maxcut(make_graph(2, [0], [1], [-3.0]))[0] == 0
    with pytest.raises(ValueError, match="at most 25"):
        exact_maxcut(from_networkx(nx.path_graph(26)))


def test_cut_values_of_many_cuts_at_once():
    graph = weighted_graph(7, seed=0)
    s = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=7))).T
    assert torch.allclose(cut_values(graph, s), torch.tensor(all_cuts(graph), dtype=torch.float64))
    assert cut_values(graph, s[:, 0]).shape == ()


def test_cut_value_of_means_is_the_expected_cut():
    graph, means = weighted_graph(6, seed=3), np.random.default_rng(0).uniform(-1, 1, 6)
    probability = [np.prod(np.where(side, 1 + means, 1 - means) / 2) for side in itertools.product([0, 1], repeat=6)]
    expected = np.dot(probability, all_cuts(graph))
    assert float(cut_values(graph, torch.from_numpy(means))) == pytest.approx(expected)


def test_self_loops_are_dropped_and_parallel_edges_added_with_a_word():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph = make_graph(3, [0, 1, 1, 2], [1, 0, 1, 0], [1.0, 2.0, 9.0, -1.0])
    assert [str(warning.message).split(":")[0] for warning in said] == ["1 self-loop(s) dropped", "1 duplicate edge(s)"]
    assert edges(graph) == {(0, 1): 3.0, (0, 2): -1.0}


def test_degrees_are_of_absolute_weights():
    assert make_graph(4, [0, 1], [1, 2], [2.0, -3.0]).degree.tolist() == [2.0, 5.0, 3.0, 0.0]


GRAPH = nx.Graph([("é", "b", {"weight": 2.0}), ("b", "c c", {"weight": -1.5}), ("c c", "é", {"weight": 1.0})])


@pytest.mark.parametrize("suffix, write", [(".graphml", nx.write_graphml), (".gml", nx.write_gml)])
def test_reads_what_networkx_writes(tmp_path, suffix, write):
    path = tmp_path / f"graph{suffix}"
    write(GRAPH, path)
    graph = read_graph(path)
    assert graph.names == ("é", "b", "c c")
    assert edges(graph) == {(0, 1): 2.0, (1, 2): -1.5, (0, 2): 1.0}


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("g.txt", "3 2\n1 2 1\n3 2 -1.5\n", {(0, 1): 1.0, (1, 2): -1.5}),
        ("g.mc", "3 2\n1 2\n2 3\n\n", {(0, 1): 1.0, (1, 2): 1.0}),
        ("g.edgelist", "# a comment\na b\nb ü 2.5 # another\n\n", {(0, 1): 1.0, (1, 2): 2.5}),
        ("g.adjlist", "a b c\nb c\n", {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}),
    ],
)
def test_reads_text_formats(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert edges(read_graph(path)) == edges(read_graph(str(path))) == expected


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("g.txt", "", "line 1"),
        ("g.txt", "hello world\n", "'n m'"),
        ("g.txt", "3 2\n1 2 1\n", "announces 2 edges, the file has 1"),
        ("g.txt", "3 2\n", "announces 2 edges, the file has 0"),
        ("g.txt", "3 0\n", "no edges"),
        ("g.txt", "3 2\n1 2 1\n2 3\n", "columns"),
        ("g.txt", "3 1\n1 2 1 7\n", "4 columns"),
        ("g.txt", "3 1\n1 4 1\n", "1 – 4"),
        ("g.txt", "3 1\n0 2 1\n", "0 – 2"),
        ("g.txt", "3 1\n1 2.5 1\n", "2.5"),
        ("g.txt", "3 1\n1 2 nan\n", "weight nan"),
        ("g.txt", "3 1\n1 2 1e999\n", "weight inf"),
        ("g.txt", "3 1\n1 2 0\n", "no edges"),
        ("g.txt", "3 1\n2 2 1\n", "no edges"),
        ("g.txt", "3 1\n1 2 one\n", "one"),
        ("g.txt", "3 2\n1 2 1e308\n1 3 1e308\n", "scale them down"),
        ("g.txt", "999999999999 1\n1 2 1\n", "more than this program takes"),
        ("g.edgelist", "a b\nc\n", "line 2"),
        ("g.edgelist", "a b x\n", "line 1"),
        ("g.edgelist", "# nothing\n", "no edges"),
        ("g.graphml", "<graphml", "g.graphml"),
        ("g.gml", "graph [", "g.gml"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path, name, text, word):
    path = tmp_path / name
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the self-loop is told of as well
        with pytest.raises(ValueError, match=word) as error:
            read_graph(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_binary_files_are_refused(tmp_path):
    for suffix in (".txt", ".edgelist", ".gml", ".graphml", ".adjlist"):
        path = tmp_path / f"g{suffix}"
        path.write_bytes(bytes(range(256)))
        with pytest.raises(ValueError, match="g" + suffix):
            read_graph(path)


def test_a_missing_file_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        read_graph(Path("nowhere.txt"))


def test_networkx_weights_must_be_numbers():
    with pytest.raises(ValueError, match="not a number"):
        from_networkx(nx.Graph([(0, 1, {"weight": "heavy"})]))
