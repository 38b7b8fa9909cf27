"""The studies: what they measure, and their commands as a user calls them."""

import json
import subprocess
import sys
from functools import partial
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.random_projection import johnson_lindenstrauss_min_dim

import study
from model import distortion
from study import (
    DATA,
    DIMENSIONS,
    HELD_OUT_K,
    needed,
    needed_quartiles,
    points,
    preserved,
    projection,
    run_dimensions,
    run_generalization,
    run_objectives,
    times,
)
from sweep import Sweep, sweep

FOLDER = Path(__file__).parents[1]


def kept(folder: Path) -> list[dict]:
    """The finished runs."""
    return [json.loads(line) for file in folder.glob("*_runs/*.jsonl") for line in file.read_text().splitlines()]


def test_needed_dimensions_between_those_that_were_run():
    worst = {2: 0.5, 4: 0.25, 8: 0.125, 16: 0.2, 32: 0.025}
    assert [needed(worst, epsilon) for epsilon in (0.7, 0.5, 0.375, 0.25, 0.24, 0.125)] == [2, 2, 3, 4, 5, 8]
    assert needed(worst, 0.075) == 24  # the rise at 16 is no need
    assert needed(worst, 0.02) == inf


def test_needed_dimensions_of_several_runs():
    runs = [{2: 0.5, 6: 0.1}, {2: 0.3, 6: 0.1}, {2: 0.7, 6: 0.3}]
    assert needed_quartiles(runs, 0.7) == "≤ 2"
    assert needed_quartiles(runs, 0.3) == (3, 4, 5)
    assert needed_quartiles(runs, 0.1) == "> 6 in 1 of 3"


@pytest.mark.parametrize("data", DATA)
def test_points_are_many_and_differ_from_seed_to_seed(data):
    X = points(data, 30, seed=1)
    assert X.shape == (30, DATA[data]) and len(np.unique(X, axis=0)) == 30
    assert np.array_equal(X, points(data, 30, seed=1)) and not np.array_equal(X, points(data, 30, seed=2))


def test_random_projections_know_nothing_of_the_data():
    X = torch.from_numpy(points("Gaussian points", 20, seed=3))
    A = projection("Gaussian", preserved("Gaussian points", X.numpy()), dict(k=20, seed=3))
    correlation = torch.corrcoef(torch.stack([A.flatten(), X.flatten()]))[0, 1]
    assert abs(correlation) < 4 / sqrt(A.numel())


@pytest.mark.parametrize("data", ["Gaussian points", "digits"])
def test_worst_distortion_by_dimension(data):
    case = dict(data=data, n=20, steps=300, seed=0)
    few, all_of_them = (run_dimensions(case | {"k": k}) for k in (8, 64))
    assert few["derandomized"] < few["best-scaled PCA"] < few["Gaussian"]
    assert all_of_them["best-scaled PCA"] < 1e-12  # nothing is lost
    # What Johnson and Lindenstrauss guarantee, with a probability that is no less than 1 − 2/n.
    guaranteed = run_dimensions(case | {"k": int(johnson_lindenstrauss_min_dim(20, eps=0.5))})
    assert set(guaranteed) == {"sparse random", "Gaussian"} and guaranteed["Gaussian"] < 0.5
    assert max(DIMENSIONS) >= johnson_lindenstrauss_min_dim(100, eps=0.1)


@pytest.mark.parametrize("objective", ["bound", "tail", "sampled"])
@pytest.mark.parametrize("data", ["vectors", "digits"])
def test_objectives_stop_in_time(data, objective):
    row = run_objectives(dict(data=data, objective=objective, n=12, seconds=0.2, seed=0))
    curve = [row[str(t)] for t in times(0.2)]
    assert curve == sorted(curve, reverse=True) and 1 >= curve[0] and 1 > curve[-1] > 0
    assert row["steps"] > 0 and 0 <= row["sigma"] < 1
    assert times(0.2)[-1] == 0.2 and times(0.2)[-6] == pytest.approx(0.1)


def test_seen_and_unseen():
    row = run_generalization(dict(data="Gaussian points", n=12, k=10, steps=600, seed=0))
    for method in ("derandomized", "best-scaled PCA"):
        assert row[f"{method}, seen"] < 0.5 < row[f"{method}, unseen"]  # there is nothing to learn from 12 points
    X = points("Gaussian points", 212, seed=0)
    unseen, seen = preserved("Gaussian points", X[:200]), preserved("Gaussian points", X[200:])
    M = projection("best-scaled Gaussian", seen, dict(k=10, seed=0))
    assert row["best-scaled Gaussian, seen"] == distortion(seen, M) < row["best-scaled Gaussian, unseen"]
    assert row["best-scaled Gaussian, unseen"] == distortion(unseen, M)
    assert distortion(seen, M) < distortion(seen, projection("Gaussian", seen, dict(k=10, seed=0)))


def test_a_run_that_ctrl_c_cuts_short_is_not_kept(tmp_path, monkeypatch):
    def ctrl_c(step: int, distortion: float, sigma: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "derandomize", partial(study.derandomize, progress=ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        sweep(run_dimensions, [dict(data="vectors", n=5, k=2, steps=50, seed=0)], "dimensions", Sweep(out=tmp_path))
    assert kept(tmp_path) == []


def test_a_study_from_the_command_line_goes_on_where_it_stopped(tmp_path):
    cases = [dict(data=data, n=n, k=HELD_OUT_K, steps=20, seed=0) for data in DATA for n in (6, 9)]
    sweep(run_generalization, cases[:2], "generalization", Sweep(out=tmp_path))  # as if it had been stopped here
    tiny = ("generalization", "--seeds", "1", "--n", "6", "9", "--steps", "20", "--jobs", "2", "--out", tmp_path)
    done = subprocess.run([sys.executable, FOLDER / "study.py", *tiny], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "2 of 6 runs were finished before" in done.stderr

    rows = kept(tmp_path)
    assert len(rows) == len(cases)
    assert all(row["case"] in cases and row["result"] == run_generalization(row["case"]) for row in rows)
    text = (tmp_path / "study_generalization.md").read_text()
    assert text.strip() in done.stdout and text.count("\n| ") == 2 + len(cases)
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"study_generalization.{suffix}").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("dimensions", "--n", "1"), "--n is 1"),
        (("dimensions", "--n", "1798"), "1597"),
        (("generalization", "--n", "5", "1600"), "1600"),
        (("generalization", "--steps", "0"), "--steps is 0"),
        (("objectives", "--seconds", "0"), "--seconds is 0"),
        (("objectives", "--seconds", "nan"), "--seconds is nan"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments, "--out", str(tmp_path / "new")])
    assert study.command_line(study.STUDIES, study.__doc__) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
