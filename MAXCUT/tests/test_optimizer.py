"""The closed form against sampling and special cases, its derivatives, and derandomized rounding itself."""

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from main import Config
from optimizer import Derandomization, Result, Rounding, conditional_expectations, disagreement, unperturbed
from sdp import goemans_williamson, solve_sdp
from utilities import Graph, cut_values, from_networkx, make_graph, random_graph

D = disagreement


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def derandomize(graph: Graph, seed: int = 0, **changes: object) -> Result:
    """From the relaxation to the end, with these hyperparameters and main.py's others."""
    g = generator(seed)
    return Derandomization(graph, solve_sdp(graph, generator=g), replace(Config(), **changes), g).run().result()


def tensors(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def weighted_graph(n: int, seed: int, p: float = 0.5) -> Graph:
    graph = random_graph(n, p, seed)
    return make_graph(n, graph.i.numpy(), graph.j.numpy(), np.random.default_rng(seed).standard_normal(graph.m))


def point(graph: Graph, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Some V (n × k) and μ (n,), degree-scaled, that require gradients."""
    g, root_d = generator(seed), Rounding(graph, 1.0).root_d
    V = torch.randn(graph.n, k, generator=g, dtype=torch.float64) * root_d[:, None]
    mu = torch.randn(graph.n, generator=g, dtype=torch.float64) * root_d
    return V.requires_grad_(), mu.requires_grad_()


R = [-0.999999, -0.99, -0.7, -0.2, 0.0, 0.3, 0.8, 0.999, 0.9999999]


@pytest.mark.parametrize("r", R)
def test_disagreement_against_a_million_draws(r):
    draws = torch.randn(2, 1_000_000, generator=generator(), dtype=torch.float64)
    a, b = draws[0], r * draws[0] + math.sqrt(1 - r * r) * draws[1]
    for alpha, beta in itertools.product([-2.5, -0.6, 0.0, 0.1, 1.3], [-1.3, 0.0, 0.6, 2.5]):
        sampled = float(((a + alpha > 0) != (b + beta > 0)).double().mean())
        exact = float(D(*tensors(alpha, beta, r)))
        # three standard errors, and three draws where the probability is smaller than they resolve
        assert abs(sampled - exact) < 3 * math.sqrt(exact * (1 - exact) / 1e6) + 3e-6


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("r", [-1.0, *R, 1.0])
def test_disagreement_without_shifts_is_arccos(r, flush):
    torch.set_flush_denormal(flush)  # as main.py does
    try:
        assert float(D(*tensors(0, 0, r))) == pytest.approx(math.acos(r) / math.pi, abs=1e-12)
    finally:
        torch.set_flush_denormal(False)


def test_disagreement_of_independent_and_of_identical_signs():
    def phi(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    for a, b in itertools.product([-3.0, -0.5, 0.0, 0.5, 2.0], repeat=2):
        independent = phi(a) * (1 - phi(b)) + phi(b) * (1 - phi(a))
        assert float(D(*tensors(a, b, 0))) == pytest.approx(independent, abs=1e-14)
        assert float(D(*tensors(a, b, 1))) == pytest.approx(abs(phi(a) - phi(b)), abs=1e-14)
        assert float(D(*tensors(a, b, -1))) == pytest.approx(1 - abs(phi(b) - phi(-a)), abs=1e-14)


def test_disagreement_symmetries_and_range():
    alpha, beta = (3 * torch.randn(1000, generator=generator(s), dtype=torch.float64) for s in (1, 2))
    r = 2 * torch.rand(1000, generator=generator(3), dtype=torch.float64) - 1
    d = D(alpha, beta, r)
    assert ((d >= 0) & (d <= 1)).all()
    assert torch.allclose(d, D(beta, alpha, r)) and torch.allclose(d, D(-alpha, -beta, r))
    assert torch.allclose(d, 1 - D(alpha, -beta, -r))


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_the_objectives(seed):
    graph = weighted_graph(12, seed)
    problem, (V, mu) = Rounding(graph, 0.2), point(graph, seed=seed)
    assert gradcheck(lambda V, mu: problem.objective(V, mu, 0.3), (V, mu))
    assert gradgradcheck(lambda V, mu: problem.objective(V, mu, 0.3), (V, mu))
    by_autograd = torch.autograd.grad(problem.objective(V, mu, 0.3), (V, mu))
    for closed, automatic in zip(problem.gradient(V, mu, 0.3), by_autograd, strict=True):
        assert torch.allclose(closed, automatic, atol=1e-12)
    f, slope = (partial(problem.objective, lam=0.3, valued=valued) for valued in (True, False))
    hessians = (torch.autograd.functional.hessian(of, (V.detach(), mu.detach())) for of in (f, slope))
    for row, other in zip(*hessians, strict=True):
        assert all(torch.equal(x, y) and x.any() for x, y in zip(row, other, strict=True))
    assert slope(V, mu) != f(V, mu)


@pytest.mark.parametrize("epsilon", [1e-2, 0.3])
def test_stein_identity(epsilon):
    """∇_V E = (∇²_μ E) V: what Lemma 3.1 rests on."""
    graph = weighted_graph(10, seed=5)
    problem, (V, mu) = Rounding(graph, epsilon), point(graph)
    hessian = torch.autograd.functional.hessian(lambda mu: problem.objective(V, mu, 0.0), mu)
    (gradient,) = torch.autograd.grad(problem.objective(V, mu, 0.0), V)
    assert torch.allclose(gradient, hessian @ V, atol=1e-9)


def test_expected_cut_is_the_mean_of_drawn_cuts():
    graph = weighted_graph(15, seed=1)
    problem, (V, mu) = Rounding(graph, 0.3), point(graph)
    with torch.no_grad():
        cuts = cut_values(graph, problem.draw(V, mu, 200_000, generator())[0].sign())
        assert abs(cuts.mean() - problem.expected_cut(V, mu)) < 3 * cuts.std() / math.sqrt(200_000)


def test_sampled_gradient_is_unbiased():
    graph = weighted_graph(6, seed=2, p=1.0)
    problem, (V, mu) = Rounding(graph, 0.5), point(graph)
    with torch.no_grad():
        exact, g = problem.gradient(V, mu, 0.1), generator()
        estimates = [problem.sampled_gradient(V, mu, 0.1, 10, g) for _ in range(4000)]
    for part in (0, 1):
        sample = torch.stack([estimate[part] for estimate in estimates])
        z = (sample.mean(0) - exact[part]) / (sample.std(0) / math.sqrt(len(sample)))
        assert z.abs().max() < 4 and z.square().mean() < 2  # 24 numbers; biased by 1/draws, z would be several


def test_the_start_is_goemans_williamson():
    graph = random_graph(40, 0.3, seed=0)
    problem = Rounding(graph, 1e-9)
    V = solve_sdp(graph, generator=generator()).double()
    expected = problem.expected_cut(V * problem.root_d[:, None], torch.zeros(40, dtype=torch.float64))
    cosines = (V[graph.i] * V[graph.j]).sum(1).clamp(-1, 1)
    assert float(expected) == pytest.approx(float((graph.w * cosines.arccos()).sum()) / math.pi, rel=1e-6)


def test_invariances():
    """A rotation of z, the sign of all of a, the names of the vertices and the weights' unit don't matter."""
    graph = weighted_graph(12, seed=4)
    problem, (V, mu) = Rounding(graph, 0.2), point(graph)
    f = problem.objective(V, mu, 0.1)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator(9), dtype=torch.float64))[0]
    assert torch.allclose(problem.objective(V @ Q, mu, 0.1), f)
    assert torch.allclose(problem.objective(V, -mu, 0.1), f)
    order = torch.randperm(12, generator=generator(9))
    renamed = make_graph(12, order[graph.i].numpy(), order[graph.j].numpy(), 7 * graph.w.numpy())
    inverse = order.argsort()
    assert torch.allclose(Rounding(renamed, 0.2).objective(V[inverse], mu[inverse], 0.1), f)


def test_mu_zero_is_a_trap():
    graph = random_graph()
    problem, (V, _) = Rounding(graph, 0.02, torch.float32), point(graph)
    gradient = problem.gradient(V.detach().float(), torch.zeros(15), 0.1)
    assert (gradient[1] == 0).all() and gradient[0].norm() > 0.01


@pytest.mark.parametrize("seed", range(20))
def test_conditional_expectations_never_lose(seed):
    graph = weighted_graph(30, seed, p=0.2)
    means = np.random.default_rng(seed).uniform(-1, 1, 30) * (seed % 3 != 0)  # some starts say nothing at all
    s = conditional_expectations(graph, means)
    assert set(np.unique(s)) <= {-1.0, 1.0}
    cut = float(cut_values(graph, torch.from_numpy(s)))
    assert cut >= float(cut_values(graph, torch.from_numpy(means))) - 1e-12
    flipped = torch.from_numpy(s[:, None] * (1 - 2 * np.eye(30)))
    assert cut >= float(cut_values(graph, flipped).max()) - 1e-12  # no flip of one vertex helps


def test_rounding_a_distribution_is_no_worse_than_its_mean():
    graph = weighted_graph(40, seed=6, p=0.3)
    problem, (V, mu) = Rounding(graph, 0.1), point(graph)
    with torch.no_grad():
        s = problem.round(V * 1e-3, mu, generator=generator())
        assert cut_values(graph, s) >= problem.expected_cut(V * 1e-3, mu)


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.soak)], ids=len)
def test_the_papers_graph_is_solved_from_twenty_seeds(seeds, monkeypatch):
    graph, optimal = random_graph(), 0
    monkeypatch.setattr(Derandomization, "due", lambda descent: descent.t % 500 == 0)
    for seed in seeds:
        result = derandomize(graph, seed)
        optimal += result.cut == 41
        assert result.sigma < 1e-3
        assert result.certificate.is_sosp
        assert result.certificate.w_norm <= result.certificate.w_norm_bound
    assert optimal >= len(seeds) - 1


@pytest.mark.parametrize(
    "graph",
    [
        from_networkx(nx.random_regular_graph(3, 300, seed=1)),
        weighted_graph(200, seed=1, p=0.1),
        from_networkx(nx.barabasi_albert_graph(300, 3, seed=1)),
        from_networkx(nx.disjoint_union(nx.cycle_graph(51), nx.star_graph(20))),
    ],
    ids=["cubic", "normal weights", "power-law", "disconnected"],
)
def test_beats_goemans_williamson_and_ends_at_an_sosp(graph):
    result, g = derandomize(graph), generator()
    assert result.cut >= float(goemans_williamson(graph, solve_sdp(graph, generator=g), 1000, g).max())
    assert result.certificate.is_sosp and result.certificate.w_norm <= result.certificate.w_norm_bound
    assert result.sigma < 1e-3
    assert float(cut_values(graph, result.s)) == result.cut


def test_bipartite_graphs_are_cut_completely():
    graph = from_networkx(nx.convert_node_labels_to_integers(nx.grid_2d_graph(12, 9)))
    assert derandomize(graph).cut == graph.m


def test_negative_weights_only_cut_nothing():
    graph = make_graph(3, [0, 0, 1], [1, 2, 2], [-1.0, -2.0, -3.0])
    assert derandomize(graph).cut == 0


def test_without_a_perturbation_it_ends_at_the_saddle():
    result = derandomize(random_graph(), radius=0.0, lr=0.05)
    assert result.certificate.gradient_norm <= 1e-6 and not result.certificate.is_sosp
    assert result.certificate.lambda_min == pytest.approx(-0.2, rel=0.05)  # −2 lam: where V ≠ 0, H V = −2 lam V
    assert result.sigma > 0.1 and result.certificate.w_norm_bound is None


def test_the_authors_way_reaches_the_optimum_too():
    options = {"gradient": "sampled", "epsilon": 0.3, "lr": 0.1, "steps": 2000}
    results = [derandomize(random_graph(), seed, **options) for seed in range(3)]  # drawn gradients differ by processor
    assert max(result.cut for result in results) == 41
    assert all(result.cut >= 40 and result.sigma < 1e-3 for result in results)


PURE = dict(lr=0.05, rho=1e-5, patience=200, steps=10_000)
"""with which Algorithms 1 and 2 reach what they can, as --help says"""


@pytest.mark.parametrize("algorithm", ["1", "2"])
def test_the_papers_algorithms_are_pure(algorithm):
    """No kick at the start, no momentum, λ constant, the rule awake from the first step on; it ends at an SOSP."""
    graph, g = random_graph(), generator()
    config = Config(algorithm=algorithm, **PURE)
    descent = Derandomization(graph, solve_sdp(graph, generator=g), config, g)
    V, mu = descent.V.detach().clone(), descent.mu.detach().clone()
    slope = descent.exact.gradient(V, mu, config.lam)
    assert not mu.any() and descent.kicks == []
    # It steps along curvature that the certificate would not pass.
    strict = Derandomization(graph, solve_sdp(graph), Config(algorithm=algorithm, rho=1e-2, lam=0.05), g)
    assert (descent.pgd.curvature, strict.pgd.curvature) == (config.rho**0.5, 0.05)
    for step in (1, 2):
        descent.step()
        V -= config.lr * slope[0]
        assert torch.allclose(descent.V, V, atol=1e-14) and not descent.mu.any(), step
        slope = descent.exact.gradient(V, mu, config.lam)
    assert descent.pgd.param_groups[0]["rho"] == config.rho and descent.pgd.f_decrease is None
    result = descent.run().result()
    assert result.cut == 41 and result.certificate.is_sosp and set(result.history["lam"]) == {config.lam}
    kicks = result.history["kicks"]
    assert min(kicks) > 50  # only once it has come to the saddle
    assert algorithm == "1" or len(kicks) == 1  # along the negative curvature once is enough
    assert result.history["gradient_norm"][result.history["step"] < min(kicks)].min() < 1e-4


def test_lambda_grows_geometrically_and_then_stays_and_the_rule_sleeps_until_then():
    result = derandomize(random_graph(), growth=20.0, lam=0.3)
    steps, lam = result.history["step"], result.history["lam"]
    assert np.allclose(lam[steps < 900], 0.3 * 20.0 ** (steps[steps < 900] / 900 - 1))
    assert (lam[steps >= 900] == 0.3).all() and 900 <= result.steps
    kicks = result.history["kicks"]
    assert kicks[0] == 0 and min(kicks[1:]) >= 900


@pytest.mark.parametrize("p", [0.1, 0.6])  # in double and in single precision
@pytest.mark.parametrize("steps", [0, 3])
def test_a_cut_is_planted_without_randomness_however_early_the_descent_was_interrupted(p, steps, ctrl_c):
    graph, g = random_graph(200, p), generator()
    V = solve_sdp(graph, generator=g)
    s = (V @ torch.randn(V.shape[1], generator=g)).sign().double()
    ctrl_c(Derandomization, steps)
    descent = Derandomization(graph, V, Config(), g).run()
    assert descent.interrupted and descent.t == steps
    assert torch.equal(descent.plant(SimpleNamespace(best_cut=s.numpy, interrupted=False)), s) and descent.interrupted
    result = descent.result(s)
    assert result.certificate.is_sosp and result.sigma == 0 and result.certificate.w_norm_bound == 0
    assert result.objective == pytest.approx(-result.cut / float(graph.w.abs().sum()))
    assert torch.equal(descent.mu.sign().double(), s)


def test_the_run_without_perturbation_takes_no_more_than_5000_steps_and_ends_at_a_saddle():
    graph, g = random_graph(), generator()
    result = unperturbed(graph, solve_sdp(graph, generator=g), Config(steps=10**6, seconds=1), g)
    assert result.steps <= 5000 and not len(result.history["kicks"]) and result.certificate.lambda_min < -0.1
    assert result.certificate.gradient_norm <= 1e-6


def test_the_descent_starts_at_goemans_williamson():
    graph, g = weighted_graph(40, seed=3, p=0.3), generator()
    V = solve_sdp(graph, generator=g)
    descent = Derandomization(graph, V, Config(radius=0.0, epsilon=1e-9, rank=40), g)
    V = V.double()
    expected = float((graph.w * (V[graph.i] * V[graph.j]).sum(1).clamp(-1, 1).arccos()).sum()) / math.pi
    assert descent.row()["expected_cut"] == pytest.approx(expected, rel=1e-5)
    assert descent.row()["sigma"] == pytest.approx(1, abs=1e-6) and descent.row()["step"] == 0


def test_few_seconds_plan_few_steps_and_a_resumed_descent_keeps_its_plan():
    graph, g = random_graph(), generator()
    V = solve_sdp(graph, generator=g)
    few, many = (Derandomization(graph, V, Config(seconds=x), generator(seed)) for x, seed in ((1e-3, 1), (1e3, 2)))
    assert (few.steps, many.steps) == (100, 1500)
    for _ in range(10):
        few.step()
        few.t += 1
    many.load_state_dict(few.state_dict())
    assert (many.steps, many.t, many.lam) == (100, 10, few.lam) and torch.equal(many.V, few.V)
    assert torch.equal(many.generator.get_state(), few.generator.get_state()) and many.row() == few.row()


def test_ctrl_c_keeps_the_best_cut_so_far(ctrl_c):
    graph, g = random_graph(200, 0.1, seed=3), generator()
    V = solve_sdp(graph, generator=g)
    descent = Derandomization(graph, V, Config(), g)
    ctrl_c(Derandomization, 100)
    result = descent.run().result()
    assert result.interrupted and result.steps == 100
    assert result.cut > float(goemans_williamson(graph, V, 1000, g).max())
    assert not result.certificate.is_sosp
