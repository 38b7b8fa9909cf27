"""Uniting cuts, and the search from reheated cuts that `--seconds` pays for."""

import concurrent.futures
import math
import time
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

from kernel import kernel
from main import Config
from optimizer import Derandomization
from population import Search, unite
from run import Checkpoint
from sdp import solve_sdp, upper_bound
from search import Reheating, reached, search
from utilities import cut_values, exact_maxcut, from_networkx, make_graph, random_graph
from ways import TEAMS, WAYS, Ways


def cut_of(graph, s) -> float:
    return float(cut_values(graph, torch.from_numpy(np.asarray(s, dtype=float))))


def started(graph) -> Search:
    return Search(kernel(graph), np.ones(graph.n), 0.0)


def searched(graph, file=None, descents=60, seed=0, **options) -> Search:
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    config = Config(descents=descents, seed=seed)
    checkpoint = Checkpoint(file, config, [graph.w])
    return search(graph, V, torch.ones(graph.n), config, time.perf_counter(), checkpoint=checkpoint, **options)


@pytest.mark.parametrize("seed", range(30))
def test_united_cuts_are_at_least_as_good_as_either(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(60, 0.04, seed)
    graph = make_graph(60, graph.i.numpy(), graph.j.numpy(), rng.standard_normal(graph.m))
    s, t = rng.choice([-1.0, 1.0], size=(2, 60))
    assert cut_of(graph, unite(graph, s, t)) >= max(cut_of(graph, s), cut_of(graph, t)) - 1e-9
    assert (unite(graph, s, -s) == s).all() and (unite(graph, s, s) == s).all()


def test_united_cuts_take_the_better_part_of_each():
    graph = from_networkx(nx.disjoint_union(nx.cycle_graph(6), nx.cycle_graph(8)))
    alternating = np.resize([1.0, -1.0], 14)
    s, t = alternating.copy(), alternating.copy()
    s[:3], t[6:9] = 1, 1  # each spoils one of the cycles
    assert max(cut_of(graph, s), cut_of(graph, t)) < 14 == cut_of(graph, unite(graph, s, t))


@pytest.mark.parametrize("parent", [0, None])
def test_what_is_kept_takes_the_better_part_of_each_cut(parent):
    graph = from_networkx(nx.disjoint_union(nx.complete_graph(6), nx.complete_graph(7)))
    balanced = np.resize([1.0, -1.0], 13)
    found = Search(kernel(graph), np.where(np.arange(13) < 6, balanced, 1), 0.0)
    found.add(np.where(np.arange(13) < 6, 1, balanced)[found.kernel.vertices], parent, 1.0)
    assert found.best[0] == 9 and found.best[-1] == 21 == cut_of(graph, found.best_cut())


def test_what_is_kept_never_gets_worse_and_its_values_are_those_of_the_whole_graph():
    graph, rng = random_graph(80, 0.05, 2), np.random.default_rng(0)
    found = started(graph)
    assert found.kernel.graph.n < 80
    for descent in range(200):
        before, members = list(found.cuts), len(found.s)
        found.add(
            rng.choice([-1.0, 1.0], found.kernel.graph.n), None if descent % 50 == 9 else members - 1, float(descent)
        )
        assert all(now >= then for now, then in zip(found.cuts, before, strict=False))
        assert len(found.s) == members + (descent % 50 == 9)
    assert found.cuts == pytest.approx([cut_of(graph, found.kernel.extend(s)) for s in found.s])
    assert found.best == sorted(found.best) and found.best[-1] == max(found.cuts) == cut_of(graph, found.best_cut())
    assert found.descents == 200


def test_parents_are_the_better_of_two_and_what_is_remembered_is_one_cut_or_what_two_agree_on():
    graph, rng = random_graph(60, 0.5, 1), np.random.default_rng(0)
    found = started(graph)
    n = found.kernel.graph.n
    found.s, found.cuts = [*rng.choice([-1.0, 1.0], size=(2, n)), np.ones(n)], [1.0, 2.0, 3.0]
    parents, memory = found.parents(3000, rng)
    shares = np.bincount(parents) / 3000
    assert shares == pytest.approx([1 / 9, 3 / 9, 5 / 9], abs=0.04)  # of the better of two, each of three as likely
    alone = np.array([np.array_equal(row, found.s[parent]) for row, parent in zip(memory, parents, strict=True)])
    assert 1 - alone.mean() == pytest.approx(0.3 * 2 / 3, abs=0.04)  # a third of those mixed are mixed with themselves
    for row, parent in zip(memory[~alone], np.array(parents)[~alone], strict=True):
        agreed = row != 0
        assert (row[agreed] == found.s[parent][agreed]).all() and 2 * agreed.sum() >= n


def test_the_bandit_sends_time_to_what_gains_and_shares_it_evenly_where_nothing_does():
    graph = random_graph(30, 0.5, 1)
    costs, spent = dict(zip(WAYS, np.geomspace(0.01, 0.2, len(WAYS)), strict=True)), {}
    found, rng = started(graph), np.random.default_rng(0)
    assert [found.choose(costs, rng) for _ in WAYS] == [*WAYS]  # side by side, before the first is accounted for
    for gaining in (None, "vectors", "annealing"):
        found, rng, spent = started(graph), np.random.default_rng(0), dict.fromkeys(WAYS, 0.0)
        for turn in range(3000):
            assert turn != len(WAYS) or all(spent.values())  # each has been tried
            way = found.choose(costs, rng)
            spent[way] += costs[way]
            found.account(way, costs[way], costs[way] * 20 * found.unit if way == gaining else 0.0)
        share = {name: seconds / sum(spent.values()) for name, seconds in spent.items()}
        if gaining is None:
            assert all(0.5 < x * len(WAYS) < 1.75 for x in share.values()), share
        else:
            assert share[gaining] > 0.8, share


def test_the_bandits_sums_fade_as_the_square_of_time():
    found = started(random_graph(30, 0.5, 1))
    found.account("vectors", 1.0, 3 * found.unit)
    found.account("annealing", 3.0, 0.0)
    assert found.gained["vectors"] == pytest.approx(3 / 16) and found.spent["vectors"] == pytest.approx(1 / 16)
    assert found.spent["annealing"] == 3.0 and found.total == 4.0


@pytest.mark.parametrize("stalled", [False, True])
def test_nothing_is_begun_that_takes_longer_than_is_left(stalled):
    graph, V = random_graph(300, 0.1, 1), torch.eye(300)
    ways, found = Ways(graph, V, 0.03, 8), Search(kernel(graph), np.ones(300), 0.0)
    found.descents = 10_000 if stalled else 0  # as if the last of them had gained long ago
    costs = {way: ways.seconds(way) for way in WAYS}
    shortened = set()
    for left in np.geomspace(0.3 * costs["clusters"], 2 * costs["population"], 60):
        found.tried = []
        reheating = Reheating(ways, found, Config(), lambda left=left: left, Checkpoint())
        for reheating.slowness in (1.0, 2.0):
            batch, now = reheating.plan(), 0.9 * left / reheating.slowness
            assert (batch is None) == (now <= min(costs.values())) and (batch is None or batch.seconds <= now)
            share = batch.seconds / costs[batch.way] if batch else 1
            assert share == 1 or (batch.way in TEAMS and 0.2 < share < 1)
            shortened |= {batch.way} if share < 1 else set()
    assert (batch.parents[0] is None) == stalled and "clusters" in shortened


@pytest.mark.parametrize("n, p", [(22, 0.5), (25, 0.12)])
def test_the_search_finds_the_optimum_and_stops_at_a_bound(n, p):
    graph = random_graph(n, p, 3)
    optimum = exact_maxcut(graph)[0]
    found = searched(graph, bound=lambda: optimum, workers=2, descents=None)  # ends because of the bound, or never
    assert max(found.cuts) == optimum == found.best[-1] == cut_of(graph, found.best_cut())
    assert found.seconds == sorted(found.seconds)


@pytest.mark.parametrize(
    ("cut", "bound", "size", "whole", "there"),
    [
        (2e9, 2e9, 4e9, True, True),
        (2e9 - 1, 2e9, 4e9, True, False),
        (41, 41.3, 62, True, True),
        (40, 41.3, 62, True, False),
        (41, 41.3, 62, False, False),
        (-1e-16, 0.0, 3.3, False, True),
        (-1e-3, 0.0, 3.3, False, False),
        (0.7, 0.7 + 1e-15, 1.0, False, True),
        (1e200, math.inf, 1e200, True, False),
    ],
)
def test_a_cut_reaches_the_bound_but_for_rounding(cut, bound, size, whole, there):
    assert reached(cut, bound, size, whole) == there


def test_one_worker_and_a_number_of_descents_give_the_same_cuts():
    graph = random_graph(150, 0.08, 1)
    one, two, other = searched(graph), searched(graph), searched(graph, seed=1)
    assert one.descents == 60 and searched(graph, workers=3, descents=7).descents == 7
    small = random_graph(60, 0.2, 0)  # of which "vectors" makes more at a time than are asked for
    assert searched(small, descents=12).descents == 12
    assert one.best == two.best and one.cuts == two.cuts and one.gained == two.gained
    assert all((s == t).all() for s, t in zip(one.s, two.s, strict=True))
    assert any((s != t).any() for s, t in zip(one.s, other.s, strict=False))


@pytest.mark.parametrize("limits", [dict(descents=20), dict(seconds=0.5)])
def test_it_ends_when_it_is_over_at_an_sosp_no_worse_than_the_first_descents(limits):
    graph, config, generator = random_graph(200, 0.1, 1), Config(**limits), torch.Generator().manual_seed(0)
    since = time.perf_counter()
    V = solve_sdp(graph, generator=generator)
    bound = upper_bound(graph, V)[0]
    descent = Derandomization(graph, V, config, generator).run()
    s = descent.round()
    found = search(graph, V, s, config, since, lambda: bound)
    assert (descent.plant(found).numpy() == found.best_cut()).all()
    result = descent.result(torch.from_numpy(found.best_cut()))
    assert result.cut == max(found.cuts) >= found.best[0] == cut_of(graph, s) and result.cut <= bound
    assert result.certificate.is_sosp and result.sigma < 1e-3
    assert found.descents >= limits.get("descents", 0)


def test_where_nothing_is_left_to_do_nothing_is_done():
    """Not even the one annealing that there is where time is short."""
    graph, generator = random_graph(60, 0.2, 0), torch.Generator().manual_seed(0)
    V = solve_sdp(graph, generator=generator)
    s = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0).double()
    found = search(graph, V, s, Config(seconds=60), time.perf_counter(), lambda: 1.0)
    assert found.descents == 0 and len(found.s) == 1 and not found.interrupted


def test_ctrl_c_keeps_the_best_and_a_resumed_search_makes_the_same_descents(tmp_path, monkeypatch):
    graph, file, take_in = random_graph(100, 0.15, 1), tmp_path / "search.pt", Reheating.take_in
    whole = searched(graph, descents=75)

    def stop(self, *batch) -> None:
        take_in(self, *batch)
        if self.found.descents > 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reheating, "take_in", stop)
    partial = searched(graph, file, descents=75)
    assert partial.interrupted and 0 < partial.descents < 75
    assert max(partial.cuts) == partial.best[-1] == cut_of(graph, partial.best_cut())
    monkeypatch.setattr(Reheating, "take_in", take_in)
    resumed = searched(graph, file, descents=75)
    assert whole.descents == resumed.descents and whole.best == resumed.best and whole.cuts == resumed.cuts
    assert whole.gained == resumed.gained and whole.spent == resumed.spent
    assert all((s == t).all() for s, t in zip(whole.s, resumed.s, strict=True))


@pytest.mark.parametrize("slow, seconds, reserve", [(1, 1.5, 0.5), (3, 1.5, 0.5), (1, 2.0, 5.0)])  # half at most
def test_a_search_ends_in_time_gives_up_what_is_late_and_learns_how_slow_the_machine_is(
    slow, seconds, reserve, monkeypatch
):
    graph, clock, planned, seen = random_graph(60, 0.2, 1), SimpleNamespace(now=0.0), [], []

    def descend(ways, way, memory, seconds, rng, left) -> np.ndarray | None:
        planned.append(seconds)
        clock.now += slow * seconds
        while len(planned) == 8:  # it would never end
            clock.now += 0.01
            if left() <= 0:
                return None
        return memory

    take_in = Reheating.take_in
    monkeypatch.setattr("search.time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Ways, "seconds", lambda ways, way: 0.02)
    monkeypatch.setattr(Ways, "trial", lambda ways: (False, 1.0))
    monkeypatch.setattr(Ways, "__call__", descend)
    monkeypatch.setattr(Reheating, "take_in", lambda self, *batch: seen.append(self) or take_in(self, *batch))
    found = search(graph, torch.eye(60), torch.ones(60), Config(seconds=seconds), 0.0, reserve=lambda: reserve)
    assert clock.now == pytest.approx(1.0, abs=0.02) and len(planned) == 8 and len(seen) == 7 <= found.descents
    assert seen[0].slowness == pytest.approx(1 + (slow - 1) * (1 - 0.8**7))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), RuntimeError("a bug")])
def test_a_search_that_runs_out_of_memory_keeps_its_cut(error, monkeypatch):
    graph, made, ways = random_graph(60, 0.2, 1), [], Ways.__call__

    def call(self: Ways, *how: object) -> np.ndarray:
        made.append(how)
        if len(made) == 2:
            raise error
        return ways(self, *how)

    monkeypatch.setattr(Ways, "__call__", call)
    if "bug" in str(error):
        with pytest.raises(RuntimeError, match="bug"):
            searched(graph)
    else:
        with pytest.warns(UserWarning, match="memory ran out"):
            found = searched(graph)
        assert len(found.best) > 1 and found.best[-1] == cut_of(graph, found.best_cut()) and not found.interrupted


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_in_a_search_however_often_keeps_its_cut(presses, monkeypatch):
    pressed = []

    def wait(made, return_when) -> None:
        assert return_when == "FIRST_EXCEPTION"
        if len(pressed) < presses:
            pressed.append(None)
            raise KeyboardInterrupt
        concurrent.futures.wait(made)

    monkeypatch.setattr("search.wait", wait)
    graph = random_graph(60, 0.2, 1)
    found = searched(graph, descents=None, workers=2)  # would never end
    assert found.interrupted and found.best[-1] == cut_of(graph, found.best_cut())


@pytest.fixture
def made(monkeypatch):
    """The ways of a search without time for every way, in their order; they make nothing."""
    ways_made = []
    monkeypatch.setattr(Ways, "seconds", lambda ways, way: 1e3 if way == "population" else 1e-3)
    monkeypatch.setattr(Ways, "__call__", lambda ways, way, memory, *rest: ways_made.append(way) or memory)
    return ways_made


def test_without_time_for_every_way_a_random_graph_is_annealed_and_a_torus_has_its_clusters(made):
    torus = from_networkx(nx.grid_2d_graph(30, 30, periodic=True))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], torus.m)
    torus = make_graph(torus.n, torus.i.numpy(), torus.j.numpy(), signs)
    for graph, ended in ((random_graph(500, 0.02, 0), 2), (torus, None)):
        V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
        s, start = torch.ones(graph.n), time.perf_counter()
        found = search(graph, V, s, Config(seconds=0.3), start, workers=2)
        assert found.best[-1] > found.best[0] if ended else "clusters" in made and "population" not in made
        assert (found.descents == ended and made == []) or not ended


def test_a_number_of_descents_ends_the_search_on_a_graph_too_large_for_every_way(made):
    graph = random_graph(500, 0.02, 0)
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    config = Config(seconds=5, descents=1)
    found = search(graph, V, torch.ones(graph.n), config, time.perf_counter())
    assert made and found.descents >= 1
