"""The studies of the projection measure what they say."""

import json
import sys
from dataclasses import replace
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.random_projection import johnson_lindenstrauss_min_dim

sys.path.insert(1, str(Path(__file__).parents[2] / "JohnsonLindenstrauss"))

import johnson_lindenstrauss as study
from johnson_lindenstrauss import DATA, DIMENSIONS, points, problem_of, projection, times
from model import Pairs, distortion
from sweep import Sweep, command_line
from train import Derandomization


def test_needed_dimensions_between_those_that_were_run():
    worst = {2: 0.5, 4: 0.25, 8: 0.125, 16: 0.2, 32: 0.025}
    assert [study.needed(worst, epsilon) for epsilon in (0.7, 0.5, 0.375, 0.25, 0.24, 0.125)] == [2, 2, 3, 4, 5, 8]
    assert study.needed(worst, 0.075) == 24  # the rise at 16 is no need
    assert study.needed(worst, 0.02) == inf
    runs = [{2: 0.5, 6: 0.1}, {2: 0.3, 6: 0.1}, {2: 0.7, 6: 0.3}]
    assert study.needed_quartiles(runs, 0.7) == "≤ 2" and study.needed_quartiles(runs, 0.3) == (3, 4, 5)
    assert study.needed_quartiles(runs, 0.1) == "> 6 in 1 of 3"


@pytest.mark.parametrize("data", DATA)
def test_points_are_many_and_differ_from_seed_to_seed(data):
    X = points(data, 30, seed=1)
    assert X.shape == (30, DATA[data]) and len(np.unique(X, axis=0)) == 30
    assert np.array_equal(X, points(data, 30, seed=1)) and not np.array_equal(X, points(data, 30, seed=2))


def test_random_projections_know_nothing_of_the_data():
    X = torch.from_numpy(points("Gaussian points", 20, seed=3))
    A = projection("Gaussian", problem_of("Gaussian points", X.numpy()), 20, seed=3)
    correlation = torch.corrcoef(torch.stack([A.flatten(), X.flatten()]))[0, 1]
    assert abs(correlation) < 4 / sqrt(A.numel())


def test_worst_distortion_by_dimension(monkeypatch):
    monkeypatch.setitem(study.FIT, "steps", 300)
    case = dict(data="digits", n=20, seed=0)
    few, all_of_them = (study.run_dimensions(case | {"k": k}) for k in (8, 64))
    assert few["derandomized"] < few["best-scaled PCA"] < few["best-scaled Gaussian"] < few["Gaussian"]
    assert all_of_them["best-scaled PCA"] < 1e-12  # nothing is lost
    # What Johnson and Lindenstrauss guarantee, with a probability that is no less than 1 − 2/n.
    guaranteed = study.run_dimensions(case | {"k": int(johnson_lindenstrauss_min_dim(20, eps=0.5))})
    assert set(guaranteed) == {"sparse random", "Gaussian", "best-scaled Gaussian"} and guaranteed["Gaussian"] < 0.5
    assert max(DIMENSIONS) >= johnson_lindenstrauss_min_dim(100, eps=0.1)


@pytest.mark.parametrize("delta", [1e-3, 0.3])
def test_numax_has_the_least_trace(delta):
    """SLSQP over all 3 × 3 matrices finds no smaller one; at δ near 0 only the identity is left."""
    problem = study.problem_of("points", np.random.default_rng(0).standard_normal((8, 3)))
    i, j = np.triu_indices(8, 1)
    D = (problem.X[i] - problem.X[j]).numpy()
    U = D / np.linalg.norm(D, axis=1, keepdims=True)
    room = lambda x: delta - np.abs(np.square(U @ x.reshape(3, 3).T).sum(1) - 1)  # noqa: E731
    starts = np.eye(3).flatten() + 0.2 * np.random.default_rng(1).standard_normal((5, 9))
    found = [minimize(lambda x: x @ x, x, constraints=dict(type="ineq", fun=room), method="SLSQP") for x in starts]
    M = study.numax(problem, delta, rounds=3000)
    assert study.distortion(problem, M) == pytest.approx(delta, abs=1e-6)
    assert float(M.square().sum()) == pytest.approx(min(x.fun for x in found if x.success), rel=1e-4)
    assert float(M.square().sum()) == pytest.approx(3, abs=0.01) or delta > 0.1


@pytest.mark.parametrize("objective", ["bound", "tail", "sampled"])
@pytest.mark.parametrize("data", ["vectors", "digits"])
def test_objectives_stop_in_time(data, objective):
    row = study.run_objectives(dict(data=data, objective=objective, n=12, seconds=0.2, seed=0))
    curve = [row[str(t)] for t in times(0.2)]
    assert curve == sorted(curve, reverse=True) and 1 >= curve[0] and 1 > curve[-1] > 0
    assert row["steps"] > 0 and 0 <= row["sigma"] < 1
    assert times(0.2)[-1] == 0.2 and times(0.2)[-6] == pytest.approx(0.1)


@pytest.mark.soak
def test_where_the_descent_starts(monkeypatch):
    """Its first M is the one that it is to start from, but for the kick, and it moves on from there to an SOSP."""
    problem, begun, finish = Pairs(torch.from_numpy(study.read_matrix("digits")[:15])), [], Derandomization.run

    def run(self: Derandomization) -> Derandomization:
        begun.append(self.point()[0] @ self.basis)
        return finish(self)

    monkeypatch.setattr(Derandomization, "run", run)
    for start in study.STARTS:
        row = study.run_starts(dict(n=15, k=4, seed=0, start=start))
        asked = 1.0 if start == "a kick" else distortion(problem, projection(start, problem, 4, seed=0))
        assert distortion(problem, begun[-1]) == pytest.approx(asked, rel=0.05)
        assert row["sosp"] == 1 and row["distortion"] < 0.8 * row["pca"]


def test_seen_and_unseen(monkeypatch):
    monkeypatch.setitem(study.FIT, "steps", 600)
    row = study.run_generalization(dict(data="Gaussian points", n=12, seed=0))
    for method in ("derandomized", "best-scaled PCA"):
        assert row[f"{method}, seen"] < 0.5 < row[f"{method}, unseen"]  # there is nothing to learn from 12 points
    X = points("Gaussian points", 212, seed=0)
    unseen, seen = problem_of("Gaussian points", X[:200]), problem_of("Gaussian points", X[200:])
    M = projection("best-scaled Gaussian", seen, 20, seed=0)
    assert row["best-scaled Gaussian, seen"] == distortion(seen, M) < row["best-scaled Gaussian, unseen"]
    assert row["best-scaled Gaussian, unseen"] == distortion(unseen, M)
    assert distortion(seen, M) < distortion(seen, projection("Gaussian", seen, 20, seed=0))


def test_recall_of_neighbours():
    X = np.random.default_rng(0).standard_normal((40, 6))
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    assert study.recall(X, 3 * X @ Q) == 1  # a rotation and a scale change no neighbour
    distances = [np.linalg.norm(Z[:, None] - Z, axis=2) + 1e9 * np.eye(40) for Z in (X, X[:, :2])]
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(*(np.argsort(D, axis=1)[:, :10] for D in distances), strict=True)]
    assert np.mean(kept) < 0.8 and study.recall(X, X[:, :2]) == pytest.approx(np.mean(kept))


def test_breast_cancer_is_standardized():
    X = points("breast cancer", 569, seed=0)
    assert X.shape == (569, 30) and np.allclose(X.mean(0), 0) and np.allclose(X.std(0), 1)


def test_a_run_that_ctrl_c_cuts_short_is_not_kept(monkeypatch):
    def step(self: Derandomization) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Derandomization, "step", step)
    with pytest.raises(KeyboardInterrupt):
        study.run_dimensions(dict(data="vectors", n=5, k=2, seed=0))


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in study.STUDIES if name != "scale"])
def test_each_study_draws_its_figure_and_keeps_its_table(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(study.FIT, "steps", 20)
    monkeypatch.setattr(study, "DIMENSIONS", [2, 8, 64, 128])
    monkeypatch.setattr(study, "STARTS_K", [5])
    sizes = {"generalization": dict(n=(6, 9)), "objectives": dict(n=6, seconds=0.02), "dimensions": dict(n=6)}
    sizes = sizes.get(name, dict(n=12))
    study.STUDIES[name](replace(Sweep(), seeds=1, out=tmp_path), **sizes)
    text = (tmp_path / f"study_{name}.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert len(text.splitlines()) == 2 + {"dimensions": 9, "starts": 3}.get(name, 6)
    torch.set_flush_denormal(False)  # which runs set
    assert {file.name for file in tmp_path.glob(f"study_{name}.*")} >= {
        f"study_{name}.{x}" for x in ("png", "pdf", "json")
    }


def test_scale_draws_the_rows_that_are_kept(tmp_path, monkeypatch):
    results, out = tmp_path / "results", tmp_path / "figures"
    results.mkdir()
    monkeypatch.setattr(study, "RESULTS", results)
    with pytest.raises(FileNotFoundError, match="jl_n500"):
        study.scale(Sweep(out=out))
    for n in study.SCALE:
        (results / f"jl_n{n}.json").write_text(json.dumps(dict(seconds=n / 30, distortion=0.3, pca=0.6, d=100, k=40)))
    study.scale(Sweep(out=out))
    assert sorted(file.name for file in out.iterdir()) == ["study_scale.pdf", "study_scale.png"]


@pytest.mark.parametrize(
    "words",
    ["dimensions --n 3000", "generalization --n 1700", "neighbours --n 570", "nuclear --n 4", "objectives --seconds 0"],
)
def test_more_points_than_there_are_or_no_time_are_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["johnson_lindenstrauss.py", *words.split(), "--out", str(tmp_path / "new")])
    assert command_line(study.STUDIES, study.__doc__) == 2
    message, (_, flag, value) = capsys.readouterr().err, words.split()
    assert message.startswith(f"error: {flag} is {value}") and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
