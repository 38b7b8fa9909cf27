"""The directions of planted problems are found, their number is right, and no direction is found in noise."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import norm
from sklearn.base import clone

import discover
import estimator
from discover import Network, Search, Stage, choose, eliminate, logistic, objective, polish, sine
from estimator import StructureDiscovery, StructureDiscoveryClassifier, Whitening
from model import squared
from table import split

N, D = 600, 6
BASIS = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]
LINKS = {
    "tanh": (lambda z: np.tanh(z[:, 0]), 1),
    "product": (lambda z: z[:, 0] * z[:, 1], 2),
    "square": (lambda z: z[:, 0] ** 2, 1),
    "sine and square": (lambda z: np.sin(z[:, 0]) + z[:, 1] ** 2 / 2, 2),
    "cubic Hermite": (lambda z: (z[:, 0] ** 3 - 3 * z[:, 0]) / 6**0.5, 1),  # no descent from W = 0 finds it
    "noise": (lambda z: 0 * z[:, 0], 0),
}


def planted(link: str, noise: float = 0.3, seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    h, k = LINKS[link]
    X = rng.normal(size=(n, D))
    return X, h(X @ BASIS) + noise * rng.normal(size=n), BASIS.T[:k]


@pytest.fixture(autouse=True)
def short_path(monkeypatch):
    """Fewer λ, and fewer iterations of L-BFGS: what is done is the same, in a fraction of the time."""
    monkeypatch.setattr(estimator, "Search", partial(Search, lams=(0.1, 0.01, 0.001)))
    for module in (estimator, discover):
        monkeypatch.setattr(module, "polish", lambda *fit, **_: polish(*fit[:4], iterations=30))


def fast(**options: object) -> StructureDiscovery:
    return StructureDiscovery(**{"steps": 120, "max_directions": 3, "width": 50, "random_state": 0} | options)


def largest_angle(V: np.ndarray, U: np.ndarray) -> float:
    return float(np.sin(subspace_angles(V.T, U.T)[0]))


@pytest.mark.parametrize("link", LINKS)
def test_planted_directions_and_their_number_are_found(link):
    X, y, U = planted(link, n=1000 if link == "cubic Hermite" else N)
    model = fast().fit(X, y)
    assert model.n_directions_ == len(U) == len(model.directions_)
    if len(U):
        assert largest_angle(model.directions_, U) < 0.1
        spectrum = model.spectrum_
        assert spectrum[len(U) - 1] > 2 * spectrum[len(U)]  # the gap
        fresh, _, _ = planted(link, seed=1)
        truth = LINKS[link][0](fresh @ BASIS)
        assert np.mean((model.predict(fresh) - truth) ** 2) < 0.06 * np.var(truth)
    else:
        assert np.allclose(model.predict(X), y.mean(), atol=0.05 * y.std())
        assert model.transform(X).shape == (len(X), 0)


def test_the_number_can_be_given():
    X, y, _ = planted("product")
    model = fast(n_directions=1).fit(X, y)
    assert model.directions_.shape == (1, D)
    assert fast(n_directions=2).fit(X, y).score(X, y) > model.score(X, y) + 0.2


def test_two_classes():
    X, _, U = planted("square", n=1500)
    p = 1 / (1 + np.exp(-3 * ((X @ U[0]) ** 2 - 1)))
    y = np.where(np.random.default_rng(1).random(len(X)) < p, "yes", "no")
    model = StructureDiscoveryClassifier(steps=120, max_directions=2, width=50, random_state=0).fit(X, y)
    assert model.n_directions_ == 1 and largest_angle(model.directions_, U) < 0.15
    assert list(model.classes_) == ["no", "yes"]
    assert np.corrcoef(model.predict_proba(X)[:, 1], p)[0, 1] > 0.95
    assert np.array_equal(model.predict(X) == "yes", model.decision_function(X) > 0)


def test_turned_inputs_turn_the_directions():
    X, y, _ = planted("product")
    Q = np.linalg.qr(np.random.default_rng(3).normal(size=(D, D)))[0]
    before, after = (fast(n_directions=2).fit(x, y).directions_ for x in (X, X @ Q.T))
    assert largest_angle(before @ Q.T, after) < 0.03


def test_units_of_columns_and_answers_change_only_the_units():
    X, y, _ = planted("sine and square")
    units = np.array([1e-3, 1, 1e4, 7, 0.2, 50])
    model = fast(n_directions=2)
    before, after = clone(model).fit(X, y), model.fit(X * units + 3, -1e6 * y + 5)
    assert largest_angle(before.directions_, after.directions_ * units) < 0.02
    difference = after.predict(X * units + 3) - (-1e6 * before.predict(X) + 5)
    assert difference.std() < 0.05 * 1e6 * y.std()  # another network, as no neuron is odd


def test_correlated_columns_are_whitened_and_coordinates_are_what_they_say():
    X, y, U = planted("tanh")
    L = np.eye(D) + 0.8
    model = fast().fit(X @ L.T, y)
    assert largest_angle(model.directions_ @ L, U) < 0.1  # β·(L x) = (Lᵀβ)·x
    t = model.transform(X @ L.T)
    assert abs(t.mean()) < 1e-6 and t.std() == pytest.approx(1, abs=0.02)
    assert np.allclose(t - t.mean(0), (X - X.mean(0)) @ L.T @ model.directions_.T)


def test_whitening_of_each_kind():
    X = np.random.default_rng(0).standard_t(3, size=(4000, 3)) @ np.array([[1, 0.9, 0], [0, 1, 0], [0, 5, 100]])
    for inputs in ("whiten", "scores"):
        z = Whitening(X, inputs)(X)
        assert np.allclose(z.mean(0), 0, atol=1e-9) and np.allclose(np.cov(z.T), np.eye(3), atol=0.06)  # shrunk
    assert np.abs(Whitening(X, "scores")(X)).max() < 8 < np.abs(Whitening(X, "whiten")(X)).max()
    assert np.array_equal(Whitening(X, "raw")(X), X)
    constant = np.column_stack([X, np.full(len(X), 0.1)])
    assert 0 < constant[:, 3].std() < 1e-15  # by rounding
    whitening = Whitening(constant, "whiten")
    assert np.array_equal(whitening(constant), whitening(constant + [0, 0, 0, 1]))


def test_the_same_seed_gives_the_same_and_the_split_is_of_the_seed():
    X, y, _ = planted("tanh")
    first, again, other = (fast(n_directions=1, steps=10, random_state=s).fit(X, y).predict(X) for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    training, held_out = split(y, 0.25, 0, False)
    assert len(held_out) == N // 4 and sorted([*training, *held_out]) == list(range(N))
    assert not np.array_equal(held_out, split(y, 0.25, 1, False)[1])


def test_refit_keeps_the_choice_and_takes_the_rows():
    X, y, U = planted("tanh", n=1400)
    model = fast().fit(X[:300], y[:300])
    before, lam = largest_angle(model.directions_, U), model.lam_
    model.refit(X, y)
    assert model.lam_ == lam and largest_angle(model.directions_, U) < min(before, 0.08)


# --- the parts --------------------------------------------------------------------------------------------------------


def network(d: int = 4, width: int = 7, seed: int = 0) -> Network:
    return Network(d, width, torch.Generator().manual_seed(seed))


def test_objective_is_what_the_formula_says():
    model, lam = network(), 0.37
    x, y = torch.randn(9, 4), torch.rand(9)
    W, b, a, c = (p.detach().double().numpy() for p in (model.weights, model.b, model.a, model.c))
    z = x.double().numpy() @ W.T + b
    output = (z * norm.cdf(z)) @ a + c
    penalty = lam * ((W**2).sum() + (a**2).sum())
    t = y.double().numpy()
    cross = -(t * np.log(1 / (1 + np.exp(-output))) + (1 - t) * np.log(1 / (1 + np.exp(output))))
    assert objective(model, (x, y), squared, lam).item() == pytest.approx(
        ((output - t) ** 2).mean() + penalty, rel=1e-5
    )
    assert objective(model, (x, y), logistic, lam).item() == pytest.approx(cross.mean() + penalty, rel=1e-5)


def test_restriction_keeps_the_leading_part_of_w():
    model = network()
    U, s, V = np.linalg.svd(model.weights.detach().numpy(), full_matrices=False)
    for k in range(5):
        part = model.restricted(k)
        assert part.B.shape == (k, 4)
        assert np.allclose(part.weights.detach(), (U[:, :k] * s[:k]) @ V[:k], atol=1e-5)
        assert np.allclose(part.spectrum(), s[:k], rtol=1e-5)
        assert (part.B.detach().numpy()[range(k), np.abs(part.B.detach().numpy()).argmax(1)] > 0).all()
    known = model.along(torch.eye(4)[:2])
    x = torch.randn(5, 4)
    assert torch.equal(known(x), known(x * torch.tensor([1.0, 1, 0, 0]))) and known.B.requires_grad


def test_polish_ends_at_a_stationary_point_and_leaves_its_argument_alone():
    model = network().restricted(2)
    before = model.A.detach().clone()
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    rows = x, torch.tanh(x[:, 0])
    polished = polish(model, rows, squared, 1e-2, iterations=500)
    objective(polished, rows, squared, 1e-2).backward()
    assert all(p.grad.abs().max() < 2e-3 for p in polished.parameters())
    assert torch.equal(model.A, before)


def stage(k: int, losses: list[float]) -> Stage:
    values = np.array(losses)
    return Stage(1.0, network(), k, 0.0, float(values.mean()), values)


def test_the_fewest_directions_within_one_standard_error():
    base = np.array([1.0, 1.2, 0.9, 1.1])
    noisy = base - np.array([0.5, -0.3, 0.2, -0.35])  # better by 0.0125, its standard error is ten times that
    assert choose([stage(0, base), stage(1, noisy)]).directions == 0
    clear = base - np.array([0.3, 0.31, 0.29, 0.3])
    assert choose([stage(0, base), stage(1, clear), stage(2, noisy)]).directions == 1
    tiny = clear - 1e-4  # surely better, and by nothing that anyone would miss
    assert choose([stage(0, base), stage(1, clear), stage(2, tiny)]).directions == 1
    better = clear - 0.1
    assert choose([stage(0, base), stage(1, clear), stage(2, better)]).directions == 2


def test_the_path_keeps_the_lower_of_warm_start_and_fresh_draw(monkeypatch):
    pairs, fits = [], iter(range(100))

    def nowhere(network: Network, *_: object) -> Network:
        """In place of the descent: now the warm start is far up, and now the fresh draw is."""
        copy = deepcopy(network)
        if next(fits) % 4 in (0, 3):
            copy.c.data += 3
        pairs.append((network, copy))
        return copy

    monkeypatch.setattr(discover, "descend", nowhere)
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    rows = (x[:40], x[:40, 0]), (x[40:], x[40:, 0])
    lams = (1, 0.1, 0.01, 0.001)
    found = discover.discover(Search(*rows, squared, (1, 0), 5, 1, torch.Generator(), lams=lams))
    kept = [stage.network for stage in found.path]
    assert [next(i for i, pair in enumerate(pairs) if pair[1] is network) % 2 for network in kept] == [1, 0, 1, 0]
    assert all(pairs[2 * i][0] is kept[i - 1] for i in (1, 2, 3))  # each starts from the one before
    assert len({id(network) for network, _ in pairs[1:8:2]} - {id(network) for network in kept}) == 4  # or a fresh draw
    assert found.full.validation == min(stage.validation for stage in found.path)


def test_elimination_fits_every_number_of_directions_with_neurons_drawn_anew(monkeypatch):
    monkeypatch.setattr(discover, "polish", polish)  # with all its iterations
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=g)
    y = x[:, 0] * x[:, 1]
    rows = (x[:300], y[:300]), (x[300:], y[300:])
    trained = polish(network(width=30), rows[0], squared, 1e-3, 300)
    for weights in (trained.A, trained.a, trained.b):  # as where λ has cost nearly all neurons their weights
        weights.data[2:] = 0
    search = Search(*rows, squared, (3, 2, 1, 0), 30, 100, g)
    three, two, one, none = eliminate(search, Stage(1e-3, trained, 4, 0.0, 0.0, np.zeros(100)))
    assert [stage.directions for stage in (three, two, one, none)] == [3, 2, 1, 0]
    assert two.validation < 0.05 < one.validation < 1.2 * none.validation and two.lam == 1e-4
    assert sine(two.network.directions, np.eye(4)[:2]) < 0.05


@pytest.mark.parametrize(("descents", "path", "ranks"), [(0, 0, []), (4, 2, [3, 2, 1, 0]), (6, 3, [3]), (8, 3, [3, 2])])
def test_ctrl_c_keeps_what_was_fitted_and_stops_who_calls_fit(monkeypatch, descents, path, ranks):
    left, descend = iter(range(descents)), discover.descend

    def interrupted(*arguments: object) -> Network:  # Ctrl-C in one of the descents: two for each λ, then one a number
        if next(left, None) is None and not struck:
            struck.append(True)
            raise KeyboardInterrupt
        return descend(*arguments)

    monkeypatch.setattr(discover, "descend", interrupted)
    X, y, _ = planted("tanh", n=100)
    model, struck = fast(steps=5, width=5), []
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    if path:
        found = model.discovery_
        assert found.interrupted and len(found.path) == path
        assert [stage.directions for stage in found.ranks[::-1]] == ranks and np.isfinite(model.predict(X)).all()


def test_sine_of_the_largest_angle():
    t = 3e-9
    assert sine(np.array([[np.cos(t), np.sin(t)]]), np.array([[-3.0, 0]])) == pytest.approx(t, rel=1e-6, abs=0)
    assert sine(np.eye(3)[:2], np.eye(3)[1:]) == pytest.approx(1)
    assert sine(np.eye(3)[:1], np.eye(3)[:2]) == 1 and sine(np.empty((0, 3)), np.empty((0, 3))) == 0
    V, U = np.random.default_rng(0).normal(size=(2, 3, 7))
    assert sine(V, U) == pytest.approx(largest_angle(V, U))
