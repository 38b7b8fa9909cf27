"""Uniting cuts, and the search from reheated cuts that `--seconds` pays for."""

import time

import networkx as nx
import numpy as np
import pytest
import torch

import search as module
from experiment import Checkpoint
from sdp import solve_sdp, upper_bound
from search import Search, derandomize_within, search, two_flips, unite
from utilities import cut_values, exact_maxcut, from_networkx, make_graph, random_graph


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


@pytest.mark.parametrize("batch_edges", [1, 3000])
def test_the_search_finds_the_optimum_and_stops_at_a_ceiling(batch_edges, monkeypatch):
    monkeypatch.setattr(module, "BATCH_EDGES", batch_edges)
    graph = random_graph(22, 0.5, 3)
    optimum = exact_maxcut(graph)[0]
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    generator, since = torch.Generator().manual_seed(0), time.perf_counter()
    found = search(graph, V, np.ones(22), 60, since, ceiling=optimum, workers=2, generator=generator)
    assert max(found.cuts) == optimum == found.best[-1] and found.descents >= 1
    assert time.perf_counter() - since < 30  # it stopped because of the ceiling
    assert found.best == sorted(found.best) and found.seconds == sorted(found.seconds)
    assert found.cuts == [value(graph, s) for s in found.s]


def test_it_ends_when_the_time_is_over_at_an_sosp_no_worse_than_the_first_descents():
    graph = random_graph(200, 0.1, 1)
    since, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    V = solve_sdp(graph, generator=generator)
    bound = upper_bound(graph, V)[0]
    result, found = derandomize_within(graph, V, 4.0, since, bound, generator=generator)
    assert result.cut == max(found.cuts) >= found.best[0] and value(graph, result.s) == result.cut <= bound
    assert result.certificate.is_sosp and result.sigma < 1e-3
    assert found.descents >= 1


def test_a_resumed_search_makes_the_same_descents(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_EDGES", 1)
    graph = random_graph(100, 0.15, 1)
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "search.pt"

    def searched(descents: int, checkpoint: Checkpoint) -> Search:
        count = []

        def progress(elapsed: float, best: float) -> None:
            count.append(best)
            if len(count) == descents:
                raise KeyboardInterrupt

        generator = torch.Generator().manual_seed(0)
        options = dict(generator=generator, checkpoint=checkpoint, progress=progress)
        return search(graph, V, np.ones(100), 60, time.perf_counter(), **options)

    whole = searched(40, Checkpoint())
    searched(20, Checkpoint(file))
    resumed = searched(40 - torch.load(file)["parts"]["search"]["descents"], Checkpoint(resume=file))
    assert whole.descents == resumed.descents == 40 and whole.best == resumed.best and whole.cuts == resumed.cuts
    assert all((s == t).all() for s, t in zip(whole.s, resumed.s, strict=True))
