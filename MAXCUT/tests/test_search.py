"""Uniting cuts, and the search from reheated cuts that `--seconds` pays for."""

import time

import networkx as nx
import numpy as np
import pytest
import torch

import search as module
from main import Config
from optimizer import Derandomization
from run import Checkpoint
from sdp import solve_sdp, upper_bound
from search import Search, search, two_flips, unite
from utilities import Graph, cut_values, exact_maxcut, from_networkx, make_graph, random_graph


def value(graph, s) -> float:
    return float(cut_values(graph, torch.from_numpy(np.asarray(s, dtype=float))))


@pytest.mark.parametrize("seed", range(30))
def test_united_cuts_are_at_least_as_good_as_either(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(60, 0.04, seed)
    graph = make_graph(60, graph.i.numpy(), graph.j.numpy(), rng.standard_normal(graph.m))
    s, t = rng.choice([-1.0, 1.0], size=(2, 60))
    assert value(graph, unite(graph, s, t)) >= max(value(graph, s), value(graph, t)) - 1e-9
    assert (unite(graph, s, -s) == s).all() and (unite(graph, s, s) == s).all()


def test_united_cuts_take_the_better_part_of_each():
    graph = from_networkx(nx.disjoint_union(nx.cycle_graph(6), nx.cycle_graph(8)))
    alternating = np.resize([1.0, -1.0], 14)
    s, t = alternating.copy(), alternating.copy()
    s[:3], t[6:9] = 1, 1  # each spoils one of the cycles
    assert max(value(graph, s), value(graph, t)) < 14 == value(graph, unite(graph, s, t))


@pytest.mark.parametrize("seed", range(10))
def test_two_flips_leave_no_pair_of_neighbours_that_gains(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(60, 0.15, seed)
    graph = make_graph(60, graph.i.numpy(), graph.j.numpy(), rng.choice([-1.0, 1.0, 0.3], graph.m))
    start = rng.choice([-1.0, 1.0], 60)
    s = two_flips(graph, start)
    assert set(np.unique(s)) <= {-1.0, 1.0} and value(graph, s) >= value(graph, start)
    for flipped in [[v] for v in range(60)] + list(zip(graph.i.tolist(), graph.j.tolist(), strict=True)):
        other = s.copy()
        other[list(flipped)] *= -1
        assert value(graph, other) <= value(graph, s) + 1e-9


def test_a_batch_of_copies_is_as_many_graphs():
    graph = random_graph(20, 0.3, 1)
    three = graph.copies(3)
    s = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 20)))
    assert (three.n, three.m) == (60, 3 * graph.m)
    assert float(cut_values(three, s.reshape(-1))) == sum(value(graph, row) for row in s)
    assert (three.adjacency[20:40, 20:40] != graph.adjacency).nnz == 0


def start(graph: Graph) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """The relaxation's vectors, the cut of nothing, and a random source."""
    generator = torch.Generator().manual_seed(0)
    return solve_sdp(graph, generator=generator), torch.ones(graph.n, dtype=torch.float64), generator


@pytest.mark.parametrize("batch_edges", [1, 3000])
def test_the_search_finds_the_optimum_and_stops_at_a_ceiling(batch_edges, monkeypatch):
    monkeypatch.setattr(module, "BATCH_EDGES", batch_edges)
    graph = random_graph(22, 0.5, 3)
    optimum = exact_maxcut(graph)[0]
    (V, s, generator), since, config = start(graph), time.perf_counter(), Config(seconds=60)
    found = search(graph, V, s, config, generator, since, optimum + 0.9, workers=2)  # weights are whole
    assert max(found.cuts) == optimum == found.best[-1] == value(graph, found.best_cut()) and found.descents >= 1
    assert time.perf_counter() - since < config.seconds  # it stopped because of the ceiling
    assert found.best == sorted(found.best) and found.seconds == sorted(found.seconds)
    assert found.cuts == [value(graph, s) for s in found.s]


def test_it_ends_when_the_time_is_over_and_pgd_at_an_sosp_there():
    graph = random_graph(200, 0.1, 1)
    (V, _, generator), config = start(graph), Config(seconds=2.5)
    descent = Derandomization(graph, V, config, generator).run()
    bound = upper_bound(graph, V)[0]
    found = search(graph, V, descent.round(), config, generator, time.perf_counter(), bound)
    s = torch.from_numpy(found.best_cut())
    descent.plant(s)
    result = descent.result(s)
    assert result.cut == max(found.cuts) >= found.best[0] and value(graph, result.s) == result.cut <= bound
    assert result.certificate.is_sosp and result.sigma < 1e-3 and found.descents >= 1
    assert torch.equal(descent.mu.sign(), s)  # PGD has not left the cut
    assert result.history["expected_cut"][-1] <= found.best[0]  # of the first descent, before the search


def test_a_resumed_search_makes_the_same_descents(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_EDGES", 1)
    graph, config = random_graph(100, 0.15, 1), Config(seconds=60)
    V, s, _ = start(graph)
    file, add = tmp_path / "search.pt", Search.add

    def searched(descents: int, checkpoint: Checkpoint) -> Search:
        count = []

        def counted(found: Search, *arguments: object) -> None:
            add(found, *arguments)
            count.append(1)
            if len(count) == descents:
                raise KeyboardInterrupt

        monkeypatch.setattr(Search, "add", counted)
        generator = torch.Generator().manual_seed(0)
        return search(graph, V, s, config, generator, time.perf_counter(), checkpoint=checkpoint)

    whole = searched(40, Checkpoint())
    searched(20, Checkpoint(file, config))
    resumed = searched(40 - torch.load(file)["parts"]["search"]["descents"], Checkpoint(file, config))
    assert whole.descents == resumed.descents == 40 and whole.best == resumed.best and whole.cuts == resumed.cuts
    assert all((s == t).all() for s, t in zip(whole.s, resumed.s, strict=True))
