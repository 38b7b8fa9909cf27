"""The relaxation against known values, its bound against exact optima, roundings against arccos(r)/π."""

import math
import threading

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn.functional import normalize

import sdp
from sdp import Baselines, goemans_williamson, principal, sdp_value, solve_sdp, upper_bound
from utilities import Graph, exact_maxcut, from_networkx, make_graph, random_graph


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_principal_directions_are_those_of_largest_variance():
    V = normalize(torch.randn(50, 6, generator=generator()) * torch.tensor([3, 1, 2, 0.1, 0.5, 0.2]))
    U, S, _ = np.linalg.svd(V.numpy(), full_matrices=False)
    best = U[:, :2] * S[:2]
    best /= np.linalg.norm(best, axis=1, keepdims=True)
    found = principal(V, 2).numpy()
    assert found.shape == (50, 2) and np.allclose(found @ found.T, best @ best.T, atol=1e-4)  # but for a rotation


def signed(graph: nx.Graph, seed: int) -> Graph:
    """The graph with weights ±1."""
    weights = np.random.default_rng(seed).choice([-1.0, 1.0], graph.number_of_edges())
    i, j = np.array(graph.edges()).T
    return make_graph(graph.number_of_nodes(), i, j, weights)


@pytest.mark.parametrize(
    "graph, value",
    [
        (nx.cycle_graph(5), 2.5 * (1 + math.cos(math.pi / 5))),
        (nx.complete_graph(8), 16.0),
        (nx.complete_graph(7), 49 / 4),
        (nx.petersen_graph(), 12.5),
        (nx.complete_bipartite_graph(3, 5), 15.0),
        (nx.path_graph(2), 1.0),
        (nx.disjoint_union(nx.cycle_graph(5), nx.empty_graph(2)), 2.5 * (1 + math.cos(math.pi / 5))),
    ],
)
def test_known_values(graph, value):
    graph = from_networkx(graph)
    V = solve_sdp(graph, tol=1e-5, generator=generator())
    assert sdp_value(graph, V) == pytest.approx(value, rel=1e-4)
    assert sdp_value(graph, V) - 1e-6 <= upper_bound(graph, V)[0] == pytest.approx(value, rel=1e-3)
    assert torch.allclose(V.norm(dim=1), torch.ones(graph.n))


@pytest.mark.parametrize("seed", range(10))
def test_bound_holds_for_the_exact_optimum_whatever_the_weights(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 17))
    i, j = np.triu_indices(n, 1)
    graph = make_graph(n, i, j, rng.standard_normal(len(i)) * rng.choice([1e-3, 1, 1e6]))
    optimum = exact_maxcut(graph)[0]
    V = solve_sdp(graph, tol=1e-4, generator=generator(seed))
    scale = float(graph.w.abs().sum())
    assert optimum <= sdp_value(graph, V) + 1e-3 * scale
    assert optimum <= upper_bound(graph, V)[0] * (1 + 1e-12)
    assert upper_bound(graph, V)[0] <= sdp_value(graph, V) + 2e-3 * scale
    anything = normalize(torch.randn(n, 3, generator=generator(seed)))
    assert optimum <= upper_bound(graph, anything)[0] * (1 + 1e-12)  # weak duality needs no solution


@pytest.mark.parametrize(
    "graph",
    [
        random_graph(400, 0.06, seed=1),
        signed(nx.gnp_random_graph(400, 0.06, seed=2), seed=2),
        signed(nx.convert_node_labels_to_integers(nx.grid_2d_graph(20, 20, periodic=True)), seed=3),
        from_networkx(nx.random_regular_graph(3, 600, seed=4)),
        from_networkx(nx.barabasi_albert_graph(600, 4, seed=5)),
    ],
    ids=["dense", "signed", "torus", "cubic", "power-law"],
)
def test_bound_is_within_0_15_percent_of_the_value(graph):
    V = solve_sdp(graph, generator=generator())
    value, bound = sdp_value(graph, V), upper_bound(graph, V)[0]
    assert value <= bound <= 1.0015 * value


@pytest.mark.parametrize("unit", [1e-200, 1e150])
def test_value_and_bound_scale_with_the_weights(unit):
    i, j = random_graph(30, 0.3, seed=0).i.numpy(), random_graph(30, 0.3, seed=0).j.numpy()
    graph, scaled = make_graph(31, i, j), make_graph(31, i, j, np.full(len(i), unit))  # vertex 30 is isolated
    V, V_scaled = solve_sdp(graph, generator=generator()), solve_sdp(scaled, generator=generator())
    assert sdp_value(scaled, V_scaled) == pytest.approx(unit * sdp_value(graph, V), rel=1e-4)
    assert upper_bound(scaled, V)[0] == pytest.approx(unit * upper_bound(graph, V)[0])


def test_mean_rounding_is_arccos():
    graph = random_graph(40, 0.3, seed=0)
    V = solve_sdp(graph, generator=generator()).double()
    cuts = goemans_williamson(graph, V, 20_000, generator())
    expected = float((graph.w * (V[graph.i] * V[graph.j]).sum(1).clamp(-1, 1).arccos()).sum()) / math.pi
    assert cuts.shape == (20_000,)
    assert abs(float(cuts.mean()) - expected) < 3 * float(cuts.std()) / math.sqrt(20_000)
    assert expected >= 0.878 * sdp_value(graph, V)


def test_a_bound_that_a_factorization_refutes_is_raised(monkeypatch):
    """Lanczos that misses the least eigenvalue gives too low a bound; the proof does not, dense or sparse."""
    graph = random_graph(60, 0.06, 3)
    V = torch.nn.functional.normalize(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    )  # far from optimal
    W, x = graph.adjacency.toarray(), V.double().numpy()
    y = -(x * (W @ x)).sum(1)
    least, vectors = np.linalg.eigh(W + np.diag(y))
    exact = W.sum() / 4 + (y.sum() - 60 * least[0]) / 4
    for dense, proof in ((4000, "Cholesky"), (10, "LDL")):
        monkeypatch.setattr(sdp, "DENSE", dense)
        bound, way = upper_bound(graph, V)
        assert way == proof and exact <= bound <= 1.02 * exact
        with monkeypatch.context() as patch:
            patch.setattr(sdp, "eigsh", lambda *_, **__: (None, vectors[:, 1:2]))  # the second instead
            missed, way = upper_bound(graph, V)
            assert way == proof and missed >= exact
            patch.setattr(sdp, "positive_definite", lambda S: (None, "Lanczos"))
            blind, way = upper_bound(graph, V)
            assert way == "Lanczos" and blind < exact


@pytest.mark.parametrize("angle", [0.02, 0.2])
def test_without_a_factorization_the_residual_covers_what_lanczos_lacks(angle, monkeypatch):
    """A vector that is `angle` off the least eigenvector has too large a Rayleigh quotient, and a residual."""
    graph = random_graph(60, 0.06, 3)
    V = normalize(torch.randn(60, 3, generator=generator()))
    W, x = graph.adjacency.toarray(), V.double().numpy()
    y = -(x * (W @ x)).sum(1)
    least, vectors = np.linalg.eigh(W + np.diag(y))
    exact = W.sum() / 4 + (y.sum() - 60 * least[0]) / 4
    u = math.cos(angle) * vectors[:, :1] + math.sin(angle) * vectors[:, 5:6]
    monkeypatch.setattr(sdp, "eigsh", lambda S, **how: ([1.0], u) if how["which"] == "SA" else ([10.0], u))
    monkeypatch.setattr(sdp, "positive_definite", lambda S: (None, "Lanczos"))
    bound, way = upper_bound(graph, V)
    assert way == "Lanczos" and exact <= bound <= exact * (1 + 3 * angle)


def test_the_factorizations_tell_definite_from_indefinite(monkeypatch):
    eigenvalues = np.linspace(1e-9, 3, 50)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 50)))[0]
    for dense, proof in ((4000, "Cholesky"), (10, "LDL")):
        monkeypatch.setattr(sdp, "DENSE", dense)
        monkeypatch.setattr(sdp, "SPARSE", 10**6 if proof == "LDL" else 0)
        for least, definite in ((1e-6, True), (-1e-6, False)):
            S = sp.csr_array(Q * np.append(eigenvalues[1:], least) @ Q.T)
            if proof == "LDL":  # sparse enough to be tried
                S = sp.block_diag([S, sp.eye_array(1000)], format="csr")
            assert sdp.positive_definite(S) == (definite, proof)
    monkeypatch.setattr(sdp, "SPARSE", 0)
    assert sdp.positive_definite(sp.eye_array(20, format="csr")) == (None, "Lanczos")


def test_rows_have_length_1_whatever_the_weights_sizes():
    """A path with weights of 10⁻¹⁵ to 10¹⁵, all of which a cut can contain."""
    w = 10 ** np.random.default_rng(0).uniform(-15, 15, 399)
    graph = make_graph(400, np.arange(399), np.arange(1, 400), w)
    V = solve_sdp(graph, generator=torch.Generator().manual_seed(0))
    assert (V.norm(dim=1) - 1).abs().max() < 1e-6
    assert w.sum() <= upper_bound(graph, V)[0] < 1.001 * w.sum()


def test_baselines_are_those_of_their_functions_and_a_search_may_wait_for_their_bound(monkeypatch):
    graph = random_graph(40, 0.2, 0)
    V = solve_sdp(graph, generator=generator())
    baselines = Baselines(graph, V, 20, generator(1))
    assert baselines.ceiling(timed=False) == upper_bound(graph, V)[0] and baselines.wait(None)
    assert baselines.bound == upper_bound(graph, V)
    assert torch.equal(baselines.cuts, goemans_williamson(graph, V, 20, generator(1)))
    monkeypatch.setattr(sdp, "LARGE", 1)  # of more edges it might take minutes
    large = Baselines(graph, V, 20, generator(1))
    assert large.wait(None) and large.ceiling(timed=True) < math.inf == large.ceiling(timed=False)


@pytest.mark.parametrize("seconds", [None, 0.1])
def test_neither_ctrl_c_nor_the_end_of_patience_loses_a_run_that_awaits_its_baselines(monkeypatch, seconds):
    graph, late = random_graph(40, 0.2, 0), threading.Event()
    monkeypatch.setattr(sdp, "upper_bound", lambda *_: late.wait(60))
    baselines = Baselines(graph, torch.eye(40), 20, generator())
    if seconds is None:

        def interrupted(seconds: float | None) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(baselines._bound, "get", interrupted)
    assert baselines.ceiling(timed=True) == math.inf and baselines.wait(seconds) == (seconds is not None)
    late.set()
    assert baselines.bound == (graph.m, "the weights' sum") and len(baselines.cuts) == 1
