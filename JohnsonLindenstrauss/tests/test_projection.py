"""The transformer is one, by scikit-learn's own account, and keeps distances better than a random one."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils.estimator_checks import check_estimator

from projection import DerandomizedProjection
from train import Derandomization


def worst(X: np.ndarray, Y: np.ndarray) -> float:
    upper = np.triu_indices(len(X), 1)
    return np.abs((pairwise_distances(Y)[upper] / pairwise_distances(X)[upper]) ** 2 - 1).max()


def test_scikit_learns_own_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a check that is skipped
        done = check_estimator(DerandomizedProjection(n_components=2, max_iter=10))
    assert len(done) > 40 and all(check["status"] in ("passed", "skipped") for check in done)


def test_keeps_distances_in_a_pipeline():
    X, y = load_digits(return_X_y=True)
    X, y = X[:60], y[:60]
    projection = DerandomizedProjection(n_components=15, growth=1.02, max_iter=500, random_state=0)
    Y = projection.fit_transform(X)
    assert Y.shape == (60, 15) and np.array_equal(Y, X @ projection.components_.T)
    assert worst(X, Y) == pytest.approx(projection.distortion_)
    assert worst(X, Y) < 0.5 * worst(X, GaussianRandomProjection(15, random_state=0).fit_transform(X))
    assert list(projection.get_feature_names_out()[:2]) == ["derandomizedprojection0", "derandomizedprojection1"]
    pipeline = make_pipeline(
        DerandomizedProjection(n_components=15, growth=1.02, max_iter=300), KNeighborsClassifier(1)
    ).fit(X, y)
    assert pipeline.score(X, y) == 1


def test_ctrl_c_is_passed_on_with_the_best_so_far_kept(ctrl_c):
    ctrl_c(Derandomization, 30)
    projection = DerandomizedProjection(n_components=2, random_state=0)
    with pytest.raises(KeyboardInterrupt):
        projection.fit(np.random.default_rng(0).standard_normal((20, 5)))
    assert projection.n_iter_ == 30 and projection.components_.shape == (2, 5) and projection.certificate_ is None


def test_vectors_and_bad_parameters():
    X = np.random.default_rng(0).standard_normal((20, 30))
    projection = DerandomizedProjection(n_components=5, problem="vectors", random_state=0).fit(X)
    norms = np.linalg.norm(projection.transform(X), axis=1) / np.linalg.norm(X, axis=1)
    assert np.abs(norms**2 - 1).max() == pytest.approx(projection.distortion_, abs=1e-9)
    assert projection.distortion_ < 1e-5 and projection.sigma_ < 1e-5
    assert projection.certificate_.is_sosp and projection.certificate_.gradient_norm <= 1e-6
    early = DerandomizedProjection(n_components=5, problem="vectors", max_iter=20, random_state=0).fit(X)
    assert not early.certificate_.is_sosp
    for bad in (dict(n_components=0), dict(growth=1.0), dict(problem="triples"), dict(max_iter=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DerandomizedProjection(**bad).fit(X)
