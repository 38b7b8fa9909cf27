"""The studies: their mathematics, and their command line on a few small runs."""

import json
import subprocess
import sys
from functools import partial
from math import inf, isnan
from pathlib import Path

import numpy as np
import pytest
import torch

import study
from activations import activation
from model import Student, quadrature, risk, squared
from sweep import Sweep, sweep
from train import train

STUDY, EXACT_STEPS = Path(study.__file__), study.EXACT_STEPS


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch):
    """Studies of a few runs of a few steps."""
    small = dict(
        STEPS=20,
        EXACT_STEPS=60,
        HELD_OUT=64,
        BATCH=16,
        LAMS=[1e-2],
        RHOS={1e-2: [1e-2, 1e-3]},
        INPUTS=("Gaussian", "digits"),
    )
    small |= dict(COVERED=1, DEPTHS=(2, 3), WIDTHS=(64, 256), DIRECTIONS=(1, 2), DIMENSIONS=(5, 10))
    small |= dict(DEAR=256, IOTAS=(1.0, inf), POINTS=(100, inf))
    for name, value in small.items():
        monkeypatch.setattr(study, name, value)
    yield
    torch.set_flush_denormal(False)  # which runs set


def case(**change: object) -> dict:
    return study.BASE | change | dict(seed=0)


@pytest.mark.parametrize("inputs", ["Gaussian", "correlated Gaussian", "Gaussian mixture", "Laplace", "uniform"])
def test_inputs_have_mean_0_and_their_covariance(inputs):
    n, d = 200_000, 4
    x = study.source(inputs, d, np.random.default_rng(0))(n)
    variances = study.spread(d) ** 2 if inputs.startswith("correlated") else np.ones(d)
    assert x.shape == (n, d) and variances.mean() == pytest.approx(1)
    # No fourth moment here is above 6 squared variances, so that a standard error is below √(6/n) of them.
    assert np.abs(x.mean(0) / np.sqrt(variances)).max() < 5 * np.sqrt(1 / n)
    assert np.abs(np.cov(x.T) - np.diag(variances)).max() < 5 * np.sqrt(6 / n) * variances.max()


def test_student_t_has_variance_1_and_heavy_tails():
    x = study.source("Student t, 5 degrees", 5, np.random.default_rng(0))(200_000).ravel()
    assert x.var() == pytest.approx(1, abs=0.02)  # kurtosis 9: standard error 0.003
    assert np.mean(np.abs(x) > 5) > 1e-3 > 2e-6 > 2 * (1 - float(torch.special.ndtr(torch.tensor(5.0).double())))


def test_the_digits_are_whitened():
    rng = np.random.default_rng(0)
    x = study.source("digits", 10, rng)(100_000)
    rows = np.unique(x, axis=0)
    assert len(rows) <= 1797  # the digits themselves and nothing between
    assert np.cov(x.T) == pytest.approx(np.eye(10), abs=0.1)


def test_the_lemmas_bound():
    assert study.lemma_bound(1e-2, 1e-4) == pytest.approx(1e-4 / (2e-2 - 1e-2))
    assert study.lemma_bound(1e-2, 1e-10) == pytest.approx(1e-10 / 2e-2, rel=1e-3)
    assert isnan(study.lemma_bound(1e-2, 4e-4)) and isnan(study.lemma_bound(1e-7, 2e-8))


def test_exact_runs_end_at_an_sosp_under_the_bound(monkeypatch):
    monkeypatch.setattr(study, "EXACT_STEPS", 5000)
    row = study.descend(dict(lam=1e-2, rho=1e-4, seed=0))
    assert row["is_sosp"] and row["holds"] and row["w_perp"] <= row["bound"] < study.lemma_bound(1e-2, 1e-4)
    assert row["w_perp"] < 1e-2 * row["w_perp_initial"]


def test_a_run_is_a_function_of_its_case(monkeypatch):
    assert study.learn(case()) == study.learn(case())
    assert study.learn(case()) != study.learn(case() | dict(seed=1))
    monkeypatch.setattr(study, "STEPS", 600)
    row = study.learn(case())
    assert row["left"] < 0.3 and row["risk"] < 0.1


def test_few_points_leave_more_than_fresh_ones(monkeypatch):
    monkeypatch.setattr(study, "STEPS", 600)
    left = [study.learn(case(points=points, noise=0.3))["left"] for points in (30, inf)]
    assert left[0] > 2 * left[1]


@pytest.mark.parametrize("run, change", [("learn", {}), ("descend", dict(lam=1e-2, rho=1e-4))])
def test_an_interrupted_run_is_not_kept(tmp_path, monkeypatch, run, change):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.PGD.step", interrupted)  # `train` itself answers with what it has
    with pytest.raises(KeyboardInterrupt):
        sweep(getattr(study, run), [case(**change)], "stopped", Sweep(out=tmp_path))
    assert results(tmp_path / "stopped_runs") == {}


def test_stein_for_correlated_inputs():
    """Inputs A z: where ∇f = 0, (H W + 2λ W C⁻¹)(I − uuᵀ) = 0, so that W⊥ is not 0; on the whitened z it is."""
    lam, width = 1e-2, 8
    A = torch.diag(torch.tensor([1.3, 0.5], dtype=torch.float64))
    u = torch.tensor([[1.0, 2.0]], dtype=torch.float64) / 5**0.5
    v = torch.nn.functional.normalize(u @ A)
    z, p = quadrature([48, 20])
    z = z @ torch.stack([v[0], torch.stack([-v[0, 1], v[0, 0]])])  # aligned with what the teacher uses
    y = (z @ A @ u[0]).tanh()
    ends = []
    for x, U, C in ((z @ A, u, A @ A), (z, v, torch.eye(2, dtype=torch.float64))):
        student = Student(2, [width], activation("relu_iota"), torch.Generator().manual_seed(0))
        student.a.requires_grad_(False)
        data = x, y, p
        train(student, data, U, squared, held_out=data, lam=lam, lr=20, rho=1e-15, momentum=0.9, steps=3000)
        W, b = student.W.detach(), student.b.detach()

        def f(b, student=student, data=data):
            return risk(partial(torch.func.functional_call, student, {"b": b}), squared, data)

        H, perp = torch.autograd.functional.hessian(f, b), torch.eye(2, dtype=torch.float64) - U.T @ U
        assert float(((H @ W + 2 * lam * W @ torch.linalg.inv(C)) @ perp).norm()) < 1e-7
        ends.append(float((W @ perp).norm() / W.norm()))
    assert ends[0] > 1e-2 and ends[1] < 1e-10


@pytest.mark.parametrize("name, runs", [("lemma", 6), ("inputs", 4), ("architecture", 9), ("iota", 4), ("samples", 8)])
def test_a_study_leaves_its_files_and_keeps_its_runs(tmp_path, monkeypatch, capsys, name, runs):
    options, calls, run = Sweep(seeds=2, out=tmp_path), [], "descend" if name == "lemma" else "learn"
    original = getattr(study, run)

    def interrupted_once(case):
        if len(calls) == 2:
            calls.append(None)
            raise KeyboardInterrupt
        calls.append(case)
        return original(case)

    monkeypatch.setattr(study, run, interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        getattr(study, name)(options)
    assert not list(tmp_path.glob("study_*"))
    getattr(study, name)(options)
    assert len(calls) == runs + 1 and calls.count(None) == 1  # the first two are not run again
    assert {file.suffix for file in tmp_path.glob(f"study_{name}.*")} == {".md", ".png", ".pdf"}
    out, err = capsys.readouterr()
    assert f"2 of {runs} runs were finished before" in err
    assert (tmp_path / f"study_{name}.md").read_text() in out


def results(folder: Path) -> dict[str, dict]:
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return {json.dumps(row["case"], sort_keys=True): row["result"] for row in map(json.loads, lines)}


def test_jobs_side_by_side_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "EXACT_STEPS", EXACT_STEPS)  # the jobs import the study as it is
    program = (
        f"import sys; sys.path.insert(0, {str(STUDY.parent)!r}); import study\n"
        "study.LAMS, study.RHOS = [1e-2], {1e-2: [1e-2, 1e-3]}\n"
        "sys.exit(study.command_line(dict(lemma=study.lemma, inputs=study.inputs), study.__doc__))"
    )
    flags = ["lemma", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "study_lemma.png").exists() and "| λ" in done.stdout
    study.lemma(Sweep(seeds=1, out=tmp_path / "one"))
    one, two = (results(tmp_path / jobs / "lemma_runs") for jobs in ("one", "two"))
    assert one == two and len(one) == 3


def test_bad_input_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "iota", "--jobs", "0", "--out", str(tmp_path)])
    assert study.command_line(dict(iota=study.iota, samples=study.samples), study.__doc__) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and not list(tmp_path.iterdir())
