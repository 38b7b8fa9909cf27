"""Ways to a cut: annealing, bifurcation, and the descent with V, each from remembered sides."""

from math import inf
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

import ways as module
from kernel import contract, value
from sdp import solve_sdp
from utilities import cut_values, exact_maxcut, make_graph, random_graph
from ways import ONCE, WAYS, Annealing, Ways, bifurcate, together


def endless() -> float:
    return inf


def gaussian(n: int, p: float, seed: int):
    graph = random_graph(n, p, seed)
    return make_graph(n, graph.i.numpy(), graph.j.numpy(), np.random.default_rng(seed).standard_normal(graph.m))


def ways_on(graph) -> Ways:
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    return Ways(graph, V, 0.03, 8)


def parts(graph):
    W = graph.matrix
    return W.crow_indices(), W.col_indices(), W.values().float()


@pytest.mark.parametrize("way", [*WAYS])
def test_each_way_reaches_the_exact_optimum_of_a_small_graph(way):
    graph = gaussian(18, 0.5, 2)
    optimum, made = exact_maxcut(graph)[0], ways_on(graph)
    batch, best = made.batch[way], 0.0
    for seed in range(10):
        memory = np.random.default_rng(seed).choice([-1.0, 1.0], size=(batch, 18))
        cuts = made(way, memory if seed % 2 else 0 * memory, made.seconds(way), np.random.default_rng(seed), endless)
        assert cuts.shape == (batch, 18) and set(np.unique(cuts)) <= {-1.0, 1.0}
        best = max(best, *(value(graph, s) for s in cuts))
    assert best == pytest.approx(optimum)


def test_bifurcation_follows_the_gradient_of_the_expected_cut():
    """One step from rest with a = 1: x moves by 2 c Δ² ∇E[cut], by autograd through the multilinear formula."""
    graph, c = gaussian(30, 0.3, 1), 0.01
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    m = x.double().requires_grad_()
    cut = sum(w / 2 * (1 - m[i] * m[j]) for i, j, w in zip(graph.i, graph.j, graph.w, strict=True)).sum()
    (gradient,) = torch.autograd.grad(cut, m)
    moved = bifurcate(parts(graph), x.clone(), torch.zeros_like(x), 1, 1.0, c, False, endless)
    assert torch.allclose((moved - x).double(), module.STEP**2 * 2 * c * gradient, atol=1e-6)
    signs = x.sign().double().requires_grad_()
    cut = sum(w / 2 * (1 - signs[i] * signs[j]) for i, j, w in zip(graph.i, graph.j, graph.w, strict=True)).sum()
    (gradient,) = torch.autograd.grad(cut, signs)
    moved = bifurcate(parts(graph), x.clone(), torch.zeros_like(x), 1, 1.0, c, True, endless)
    assert torch.allclose((moved - x).double(), module.STEP**2 * 2 * c * gradient, atol=1e-6)


def test_walls_absorb_and_what_is_over_stops():
    graph = gaussian(30, 0.3, 1)
    x, y = torch.zeros(30, 2), torch.full((30, 2), 10.0)
    end = bifurcate(parts(graph), x, y, 1, 1.0, 0.0, False, endless)
    assert (end == 1).all() and (y == 0).all()
    assert bifurcate(parts(graph), x, y, 5, 0.0, 0.5, False, lambda: 0.0) is None
    made = ways_on(graph)
    for way in ("vectors", "bifurcation"):
        memory = np.ones((made.batch[way], 30))
        assert made(way, memory, 1.0, np.random.default_rng(0), lambda: 0.0) is None


def test_annealed_cuts_are_as_good_as_the_library_says_and_the_seed_decides():
    """The library's own energy of what it returns, by its public sampler, beside ours."""
    from dwave.samplers import SimulatedAnnealingSampler

    graph, start = gaussian(60, 0.2, 4), np.random.default_rng(0).choice([-1, 1], size=(3, 60))
    annealing = Annealing(graph)
    cuts = annealing(start, 0.5, 200, 7)
    assert (cuts == annealing(start, 0.5, 200, 7)).all() and (cuts != annealing(start, 0.5, 200, 8)).any()
    assert (start == np.random.default_rng(0).choice([-1, 1], size=(3, 60))).all()  # not overwritten
    edges = zip(graph.i.tolist(), graph.j.tolist(), strict=True)
    J = dict(zip(edges, graph.w.tolist(), strict=True))
    for s in cuts:
        kept = SimulatedAnnealingSampler().sample_ising(
            {}, J, initial_states=dict(enumerate(s.astype(int).tolist())), num_sweeps=0
        )
        assert value(graph, s) == pytest.approx(float(graph.w.sum() - kept.first.energy) / 2)
        for v in range(60):  # three sweeps at temperature 0 leave no flip that gains
            other = s.copy()
            other[v] *= -1
            assert value(graph, other) <= value(graph, s) + 1e-9


def test_a_population_has_fewer_cuts_where_time_is_short_and_then_fewer_sweeps(monkeypatch):
    made, seen = ways_on(gaussian(20, 0.3, 1)), []
    monkeypatch.setattr(module, "simulated_annealing", lambda *_: seen.append(_[6]) or (_[-1], np.zeros(len(_[-1]))))
    monkeypatch.setattr(module, "together", lambda graph, cuts, sweeps, seed: cuts[0])
    whole, joined = made.seconds("population"), made._joined
    monkeypatch.setattr(made, "_joined", lambda s, *rest: cuts.append(len(s)) or joined(s, *rest))
    for share, copies, stages, sweeps in ((1.0, 32, 200, 3003), (0.5, 16, 200, 3003), (0.125, 8, 100, 1503)):
        cuts = []
        made("population", np.zeros((1, 20)), share * whole, np.random.default_rng(0), endless)
        assert cuts == [copies] and len(seen) == stages and sum(map(len, seen)) == sweeps  # three are at temperature 0
        assert seen[0][0] >= 0.4 / made.annealing.rms and seen[-1][-4] == made.annealing.end
        seen.clear()
    left = lambda: 0.0 if len(seen) == 5 else 1e9  # noqa: E731
    made("population", np.zeros((1, 20)), whole, np.random.default_rng(0), left)
    assert len(seen) == 6 and seen[5] == 3 * [1e9 * made.annealing.end]  # what there is, frozen


def clock(monkeypatch, seconds: float) -> list[float]:
    """The seconds that are left, as tests count them down."""
    left = [seconds]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: -left[0]))
    return left


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_an_annealing_in_stages_keeps_to_its_time_by_making_fewer_sweeps_and_never_more(monkeypatch, speed):
    anneal, left, sweeps, betas = module.simulated_annealing, clock(monkeypatch, 1.0), [], []

    def timed(cuts: int, h: object, i: object, j: object, w: object, per_beta: int, cold: list, *rest: object):
        left[0] -= 0.001 + len(cold) / (1000 * speed)  # planned are 1000 in one second
        sweeps.append(len(cold))
        betas.extend(cold)
        return anneal(cuts, h, i, j, w, per_beta, cold, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    annealing = Annealing(grid(10))
    annealing(sides(100)[None].repeat(3, axis=0), 0.5, 1000, 0, 50, lambda: left[0])
    made = sum(sweeps) - 3
    assert len(sweeps) == 50 and max(sweeps) <= 23 and betas[0] == 0.5 / annealing.rms and betas[-4] == annealing.end
    assert (
        made == 1000
        if speed == 4
        else left[0] == pytest.approx(0, abs=0.03) and made == pytest.approx(1000 * speed * 0.95, rel=0.05)
    )


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e200])
def test_the_unit_of_the_weights_does_not_matter(scale):
    graph = random_graph(40, 0.2, 1)
    scaled = make_graph(40, graph.i.numpy(), graph.j.numpy(), scale * graph.w.numpy())
    start = np.random.default_rng(0).choice([-1, 1], size=(1, 40))
    s = Annealing(scaled)(start, 0.5, 300, 1)
    assert value(graph, s[0]) >= 0.98 * value(graph, Annealing(graph)(start, 0.5, 300, 1)[0])


def test_copies_are_descended_on_side_by_side(monkeypatch):
    monkeypatch.setattr(module, "BATCH_EDGES", 1)
    graph = gaussian(40, 0.3, 1)
    alone = ways_on(graph)
    monkeypatch.setattr(module, "BATCH_EDGES", 3 * graph.m)
    three = ways_on(graph)
    assert (alone.copies, three.copies) == (1, 3)
    memory = np.random.default_rng(0).choice([-1.0, 1.0], size=(3, 40))
    cuts = three("vectors", memory, 1.0, np.random.default_rng(0), endless)
    assert len(cuts) == 3
    best = value(graph, Annealing(graph)(memory[:1], 0.4, 1000, 1)[0])
    assert all(float(cut_values(graph, torch.from_numpy(s))) > 0.8 * best for s in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_cuts_together_find_what_flips_of_a_vertex_do_not(seed):
    """A ring of 8 cliques, positive within and weakly negative between: clusters of 5 vertices must flip as one."""
    rng = np.random.default_rng(seed)
    ring = [(5 * a + u, 5 * a + v, -10.0) for a in range(8) for u in range(5) for v in range(u)]
    ring += [(5 * a, (5 * a + 7) % 40, rng.uniform(0.5, 1.5)) for a in range(8)]
    i, j, w = (np.array(x) for x in zip(*ring, strict=True))
    graph = make_graph(40, i, j, w)
    cuts = np.repeat(rng.choice([-1.0, 1.0], (4, 8)), 5, axis=1)
    s = together(graph, cuts, 50, seed)
    assert value(graph, s) >= value(graph, cuts[0])
    apart = {a for a in range(8) if len({x[5 * a] * x[(5 * a + 7) % 40] for x in cuts}) > 1}  # where the cuts disagree
    joined = [w[80 + a] for a in range(8) if s[5 * a] == s[(5 * a + 7) % 40]]
    assert apart and len(joined) <= 1 + 8 - len(apart)
    assert (together(graph, cuts[[0, 0]], 50, seed) == cuts[0]).all()


def test_cuts_together_are_no_worse_than_the_first_and_anneal_from_hot_enough_to_leave_it():
    """Random cuts agree on little: the optimum of what is left is found, which a quench misses."""
    reached = 0
    for seed in range(20):
        graph, rng = gaussian(24, 0.4, seed), np.random.default_rng(seed)
        cuts = rng.choice([-1.0, 1.0], (5, 24))
        cuts[0] = Annealing(graph)(cuts[:1], 100.0, 3, seed)[0]  # no flip gains
        s = together(graph, cuts, 50, seed)
        assert value(graph, s) >= value(graph, cuts[0]) - 1e-9
        optimum = value(graph, cuts[0]) + exact_maxcut(contract(graph, cuts)[1])[0]
        reached += value(graph, s) >= optimum - 1e-9
    assert reached >= 15  # 11 if the annealing starts cold


def test_of_a_team_the_best_cut_is_kept(monkeypatch):
    graph = gaussian(60, 0.2, 1)
    made, seen = ways_on(graph), []
    monkeypatch.setitem(module.TEAMS, "clusters", (16, 1, 1))
    monkeypatch.setitem(module.WAYS, "clusters", 1)
    monkeypatch.setattr(module, "together", lambda graph, cuts, sweeps, seed: seen.append(cuts) or cuts[-1])
    (s,) = made("clusters", np.zeros((1, 60)), made.seconds("clusters"), np.random.default_rng(0), endless)
    assert value(graph, s) == max(value(graph, few[-1]) for few in seen) and len(seen) == 16
    for few in seen:  # the best is first, and it is what the others are united with
        assert len(np.unique(few, axis=0)) == 5 and value(graph, few[0]) == max(value(graph, x) for x in few)


@pytest.mark.parametrize("way, rounds", [("population", 1), ("clusters", 3)])
def test_a_team_has_as_many_cuts_as_there_are_seconds_for_and_its_rounds_end_in_time(way, rounds, monkeypatch):
    made, annealed, joined = ways_on(gaussian(20, 0.3, 1)), [], []
    monkeypatch.setattr(Annealing, "__call__", lambda self, s, *_: annealed.append(_[1]) or s.astype(float))
    monkeypatch.setattr(module, "together", lambda graph, cuts, sweeps, seed: joined.append(sweeps) or cuts[0])
    team, sweeps = module.TEAMS[way][0], module.WAYS[way]
    for share in (0.125, 0.5, 1.0):
        seconds, copies = share * made.seconds(way), max(8, round(team * share))
        made(way, np.zeros((1, 20)), seconds, np.random.default_rng(0), lambda: 0.0 if len(joined) == 7 else inf)
        assert annealed.pop() == np.ceil(sweeps * min(team * share / copies, 1)) and len(joined) == 7
        joined.clear()
        made(way, np.zeros((1, 20)), seconds, np.random.default_rng(0), endless)
        assert joined == rounds * copies * [200]
        annealed.clear(), joined.clear()


@pytest.mark.parametrize("way", ["population", "clusters"])
def test_a_team_starts_warm_only_where_there_is_something_to_remember(way, monkeypatch):
    made, hot = ways_on(gaussian(20, 0.3, 1)), []
    monkeypatch.setattr(Annealing, "__call__", lambda self, s, beta, *_: hot.append(beta) or s.astype(float))
    monkeypatch.setattr(module, "together", lambda graph, cuts, sweeps, seed: cuts[0])
    for memory, least, most in (
        (np.zeros(20), 0.95, 1.0),
        (sides(20), 1.9, 2.0),
        (sides(20) * (np.arange(20) < 9), 1.9, 2.0),
    ):
        for seed in range(100):
            made(way, memory[None], made.seconds(way), np.random.default_rng(seed), endless)
        assert 0.4 <= min(hot) < 0.5 and least < max(hot) <= most and len(hot) == 100
        hot.clear()


def test_a_population_is_drawn_again_by_boltzmann_weights_and_one_stage_leaves_it_as_it_is(monkeypatch):
    """One edge, and no moves: drawn again before each stage but one, it is cut at odds of exp(2 Δβ), Δβ over them."""
    monkeypatch.setattr(module, "simulated_annealing", lambda *_: (_[-1], _[-1].prod(axis=1, dtype=float)))
    annealing = Annealing(make_graph(2, np.array([0]), np.array([1])))
    s = np.random.default_rng(0).choice([-1, 1], size=(20_000, 2))
    assert (annealing(s, 0.5, 40, 0) == s).all()
    for stages in (4, 40):
        drawn = annealing(s, 0.5, 40, 0, stages)
        odds = np.exp(2 * (annealing.end - 0.5) * (1 - 1 / stages))
        assert np.mean(drawn[:, 0] != drawn[:, 1]) == pytest.approx(odds / (1 + odds), abs=0.01)


def grid(side: int):
    """A torus with weights ±1."""
    edges = nx.convert_node_labels_to_integers(nx.grid_2d_graph(side, side, periodic=True)).edges
    return make_graph(side * side, *np.array(edges).T, np.random.default_rng(0).choice([-1.0, 1.0], 2 * side * side))


def sides(n: int):
    return np.random.default_rng(1).choice([-1.0, 1.0], n)


def test_clusters_help_on_a_torus_and_not_on_a_random_graph():
    assert ways_on(grid(60)).trial()[0] and not ways_on(random_graph(3000, 0.003, 0)).trial()[0]


@pytest.mark.parametrize("slow, said", [(0.1, 1.0), (3.0, 3.0), (50.0, 5.0)])
def test_a_trial_says_how_slow_the_machine_is(slow, said, monkeypatch):
    made, anneal, left = ways_on(gaussian(40, 0.3, 1)), module.simulated_annealing, clock(monkeypatch, 1.0)
    planned = 3e-7 * made.graph.m + 4e-6 + 125 * 1e-8 * 40 * (1 + 40 / 200_000)

    def timed(cuts: int, *rest: object):
        left[0] -= slow * planned * cuts
        return anneal(cuts, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    assert made.trial()[1] == pytest.approx(said)


@pytest.mark.parametrize("speed", [1, 10])
def test_an_annealing_by_the_clock_uses_its_time_and_ends_cold(monkeypatch, speed):
    anneal, graph, betas, begun = module.simulated_annealing, random_graph(400, 0.08, 0), [], []
    left = clock(monkeypatch, 1.0)

    def timed(cuts: int, h: object, i: object, j: object, w: object, per_beta: int, cold: list, *rest: object):
        left[0] -= len(cold) / (2000 if left[0] > 0.5 else 2000 * speed)  # it may get faster as it cools
        betas.extend(cold)
        begun.append(rest[1].copy())
        return anneal(cuts, h, i, j, w, per_beta, cold, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    s = ways_on(graph).by_the_clock(sides(400), np.random.default_rng(0), lambda: left[0])
    assert abs(left[0]) < 0.02 and 0.9 < len(betas) / (1000 * (1 + speed)) < 1.1
    del betas[:36]  # 1, 1 and 25 sweeps to see how long they take, and three at temperature 0 after each
    assert (begun[3] == sides(400)).all() and betas[0] == pytest.approx(ONCE / Annealing(graph).rms)
    assert betas[0] < 0.2 * betas[-4] and betas[-4] == pytest.approx(Annealing(graph).end)
    assert (np.diff(betas) >= 0).all()  # colder and colder
    assert (s * (graph.adjacency @ s)).max() <= 0  # no flip gains: it is frozen
    assert value(graph, s) >= 0.97 * max(value(graph, x) for x in Annealing(graph)(np.ones((20, 400)), 0.4, 2000, 0))


@pytest.mark.parametrize("call, share", [(0.0, 0.95), (0.01, 0.8), (0.03, 0.6)])
def test_where_a_call_is_dear_an_annealing_by_the_clock_makes_few(monkeypatch, call, share):
    anneal, left, sweeps = module.simulated_annealing, clock(monkeypatch, 1.0), []

    def timed(cuts: int, h: object, i: object, j: object, w: object, per_beta: int, cold: list, *rest: object):
        left[0] -= call + len(cold) / 5000
        sweeps.append(len(cold))
        return anneal(cuts, h, i, j, w, per_beta, cold, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    ways_on(grid(20)).by_the_clock(sides(400), np.random.default_rng(0), lambda: left[0])
    assert abs(left[0]) <= 2 * call + 1e-3 and sum(sweeps) > 5000 * share, (left, sweeps)


def test_a_call_that_others_hold_up_makes_an_annealing_by_the_clock_no_coarser(monkeypatch):
    anneal, left, sweeps = module.simulated_annealing, clock(monkeypatch, 2.0), []

    def timed(cuts: int, h: object, i: object, j: object, w: object, per_beta: int, cold: list, *rest: object):
        left[0] -= 0.3 * (not sweeps) + len(cold) / 5000
        sweeps.append(len(cold))
        return anneal(cuts, h, i, j, w, per_beta, cold, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    ways_on(grid(20)).by_the_clock(sides(400), np.random.default_rng(0), lambda: left[0])
    assert len(sweeps) > 100 and abs(left[0]) < 0.02


def test_by_the_clock_there_are_as_many_cuts_as_there_is_time_for(monkeypatch):
    """At 50,000 sweeps a second two seconds are 3000 each for 33 cuts, none of which remembers anything."""
    anneal, left, begun = module.simulated_annealing, clock(monkeypatch, 2.0), []

    def timed(cuts: int, h: object, i: object, j: object, w: object, per_beta: int, cold: list, *rest: object):
        left[0] -= cuts * len(cold) / 50_000
        begun.append((cold[0], rest[1].copy()))
        return anneal(cuts, h, i, j, w, per_beta, cold, *rest)

    monkeypatch.setattr(module, "simulated_annealing", timed)
    monkeypatch.setattr(module, "together", lambda graph, cuts, sweeps, seed: cuts[0])
    made = ways_on(grid(10))
    s = made.by_the_clock(sides(100), np.random.default_rng(0), lambda: left[0])
    beta, cuts = begun[3]
    assert 30 <= len(cuts) <= 33 and abs(cuts.mean()) < 0.1 and abs((cuts @ sides(100)).mean()) < 5
    assert 0.4 <= beta * made.annealing.rms <= 1.0 and 0 < left[0] < 0.15  # what is left is for putting them together
    assert value(made.graph, s) >= max(value(made.graph, x) for x in begun[-1][1])
    for most, cuts in ((1000, 10), (500, 1)):  # of less than eight, one, which remembers
        monkeypatch.setattr(module, "TEAM_SIDES", most)
        left[0] = 2.0
        begun.clear()
        made.by_the_clock(sides(100), np.random.default_rng(0), lambda: left[0])
        assert len(begun[3][1]) == cuts and (begun[3][1][0] == sides(100)).all() == (cuts == 1)
