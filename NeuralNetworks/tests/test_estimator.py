"""The estimators are scikit-learn's: its own checks, pipelines, names of outputs, and refusals in its way."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import discover
import estimator
from discover import polish
from estimator import StructureDiscovery, StructureDiscoveryClassifier, Whitening
from main import Config

QUICK = dict(steps=2, max_directions=1, width=5)


@pytest.mark.filterwarnings("ignore")  # the checks' own
@pytest.mark.parametrize("kind", [StructureDiscovery, StructureDiscoveryClassifier])
def test_scikit_learns_checks(kind, monkeypatch):
    monkeypatch.setattr(estimator, "Search", partial(discover.Search, lams=(0.1,)))
    for module in (estimator, discover):
        monkeypatch.setattr(module, "polish", lambda *fit, **_: polish(*fit[:4], iterations=5))
    outcomes = check_estimator(kind(**QUICK), on_fail=None, on_skip=None)
    assert {x["check_name"]: x["exception"] for x in outcomes if x["status"] == "failed"} == {}
    assert sum(x["status"] == "passed" for x in outcomes) > 50


def test_a_fit_that_fails_leaves_no_answers_of_the_one_before(monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 3))
    for model, y in ((StructureDiscovery(**QUICK), X[:, 0]), (StructureDiscoveryClassifier(**QUICK), X[:, 0] > 0)):
        with monkeypatch.context() as patch:
            patch.setattr(discover, "descend", interrupted := Interrupted(discover.descend))
            model.fit(X, y)
            interrupted.now = True
            with pytest.raises(KeyboardInterrupt):
                model.fit(X, y)
        with pytest.raises(NotFittedError):
            model.predict(X)


def test_ctrl_c_while_it_is_fitted_again_leaves_the_network_as_it_was(monkeypatch):
    X = np.random.default_rng(0).normal(size=(60, 3))
    model = StructureDiscovery(**QUICK).fit(X, X[:, 0])
    before, interrupted = model.predict(X), Interrupted(polish)
    monkeypatch.setattr(estimator, "polish", interrupted)
    interrupted.now = True
    with pytest.raises(KeyboardInterrupt):
        model.refit(X, X[:, 1])
    assert (model.predict(X) == before).all()
    interrupted.now = False
    assert (model.refit(X, X[:, 1]).predict(X) != before).any()


class Interrupted:
    """A function in which Ctrl-C comes as soon as `now` is set."""

    def __init__(self, function: Callable) -> None:
        self.function, self.now = function, False

    def __call__(self, *arguments: object) -> object:
        if self.now:
            raise KeyboardInterrupt
        return self.function(*arguments)


def test_in_a_pipeline_and_cross_validated():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    y = X[:, 0] ** 2 + 0.1 * rng.normal(size=300)
    model = StructureDiscovery(1, steps=60, width=50, random_state=0)
    assert cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=2).min() > 0.9
    fitted = clone(model).set_output(transform="pandas").fit(X, y)
    assert list(fitted.transform(X).columns) == ["structurediscovery0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_directions=5), "with 4 columns it can be 0 to 4"),
        (dict(n_directions=-1), "'n_directions'.*Got -1"),
        (dict(n_directions=1.5), "'n_directions'.*Got 1.5"),
        (dict(inputs="scaled"), "'inputs'.*Got 'scaled'"),
        (dict(steps=0), "'steps'.*Got 0"),
        (dict(width=0), "'width'.*Got 0"),
        (dict(max_directions=0), "'max_directions'.*Got 0"),
        (dict(n_directions=3, width=2), "3 directions take as many neurons at least: the width is 2"),
    ],
)
def test_hyperparameters_out_of_range(options, message):
    X = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(ValueError, match=message):
        StructureDiscovery(**options).fit(X, X[:, 0])


def test_the_defaults_are_those_of_the_command_line():
    config, model = Config(), StructureDiscovery()
    flags = (config.directions, config.inputs, config.max_directions, config.neurons, config.adam_steps)
    assert flags == (model.n_directions, model.inputs, model.max_directions, model.width, model.steps)


def test_classes_must_be_two():
    X = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(ValueError, match="one class, a"):
        StructureDiscoveryClassifier(**QUICK).fit(X, ["a"] * 30)
    with pytest.raises(ValueError, match="two classes at a time"):
        StructureDiscoveryClassifier(**QUICK).fit(X, ["a", "b", "c"] * 10)
    model = StructureDiscoveryClassifier(**QUICK).fit(X, [0, 2] * 15)
    with pytest.raises(ValueError, match=r"y has 1, which is none of the two classes, \[0, 2\]"):
        model.refit(X, [0, 1, 2] * 10)


def test_no_more_directions_are_tried_than_there_are_neurons():
    X = np.random.default_rng(0).normal(size=(60, 4))
    fitted = StructureDiscovery(width=2, steps=5, random_state=0).fit(X, X[:, 0])
    assert [stage.directions for stage in fitted.discovery_.ranks] == [0, 1, 2] and len(fitted.spectrum_) == 2


@pytest.mark.parametrize("n", [4, 5])
def test_the_rows_held_out_must_be_two(n):
    X, model = np.random.default_rng(0).normal(size=(n, 2)), StructureDiscovery(width=2, steps=1, random_state=0)
    if n == 5:
        assert len(model.fit(X, X[:, 0]).discovery_.chosen.losses) == 2
    else:
        with pytest.raises(ValueError, match="minimum of 5 is required"):
            model.fit(X, X[:, 0])


def test_the_unit_of_the_columns_does_not_matter_to_their_scores():
    X = np.random.default_rng(0).normal(size=(50, 3)) ** 3
    small = Whitening(1e-9 * X, "scores")
    assert np.allclose(small(1e-9 * X), Whitening(X, "scores")(X))
    model = StructureDiscovery(1, inputs="scores", steps=5, random_state=0).fit(1e-9 * X, X[:, 0])
    arrays = model.arrays()
    quantiles = [np.interp(1e-9 * X[:, j], arrays["scores_at"][:, j], arrays["scores_of"]) for j in range(3)]
    z = (np.clip(ndtri(np.array(quantiles).T), -5.2, 5.2) - arrays["mean"]) @ arrays["M"].T
    assert np.allclose(z, model.whitening_(1e-9 * X), atol=1e-3)


def test_raw_inputs_must_be_of_a_size_that_the_network_takes():
    X = np.random.default_rng(0).normal(size=(30, 4))
    StructureDiscovery(inputs="raw", **QUICK).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="as large as 1e\\+06"):
        StructureDiscovery(inputs="raw", **QUICK).fit(np.vstack([X, [1e6, 0, 0, 0]]), np.arange(31))


def test_pytorchs_default_precision_does_not_matter():
    X = np.random.default_rng(0).normal(size=(60, 3))
    one = StructureDiscovery(**QUICK, random_state=0).fit(X, X[:, 0]).predict(X)
    torch.set_default_dtype(torch.float64)
    try:
        other = StructureDiscovery(**QUICK, random_state=0).fit(X, X[:, 0]).predict(X)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.isfinite(other).all() and other.dtype == one.dtype
