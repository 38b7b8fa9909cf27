"""The studies of networks: their mathematics, and their command line on a few small runs."""

import json
import sys
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(1, str(Path(__file__).parents[2] / "NeuralNetworks"))

import neural_networks as study
from activations import activation
from estimator import StructureDiscovery
from main import Config
from model import Student, quadrature, risk, squared
from peers import PEERS
from sweep import Sweep
from train import Training


@pytest.fixture(autouse=True)
def few_and_short(monkeypatch):
    """Studies of a few runs of a few steps."""
    small = dict(STEPS=20, HELD_OUT=64, BATCH=16, LAMS=[1e-2], RHOS={1e-2: [1e-2, 1e-3]})
    small |= dict(EXACT=dict(width=16, steps=60), DEAR=128)
    small |= dict(FACTORS=dict(depth=(2, 3), width=(64, 128), k=(1, 2), d=(5, 10)))
    small |= dict(IOTAS=(1.0, inf), POINTS=(100, inf))
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


def test_exact_runs_end_at_an_sosp_under_the_bounds(monkeypatch):
    monkeypatch.setattr(study, "EXACT", dict(width=64, momentum=0.9, steps=5000))
    row = study.descend(dict(lam=1e-2, rho=1e-4, seed=0))
    assert row["is_sosp"] and row["holds"] and row["w_perp"] <= row["identity"] < row["lemma"]
    assert row["w_perp"] < 1e-2 * row["w_perp_initial"]


def test_bounds_of_those_that_have_one():
    runs = [dict(y=0.1), dict(y=0.2), dict(y=None)]
    assert study.if_any(runs[:1], "y") == (0.1, 0.1, 0.1) and study.if_any(runs[2:], "y") == "none"
    assert study.if_any(runs, "y") == "0.15 (0.125 – 0.175), none in 1 of 3"


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
        data, config = (x, y, p), Config(width=width, lam=lam, lr=20, rho=1e-15, steps=3000)
        Training(student, data, U, config, torch.Generator()).run()
        W, b = student.W.detach(), student.b.detach()

        def f(b, student=student, data=data):
            return risk(partial(torch.func.functional_call, student, {"b": b}), squared, data)

        H, perp = torch.autograd.functional.hessian(f, b), torch.eye(2, dtype=torch.float64) - U.T @ U
        assert float(((H @ W + 2 * lam * W @ torch.linalg.inv(C)) @ perp).norm()) < 1e-7
        ends.append(float((W @ perp).norm() / W.norm()))
    assert ends[0] > 1e-2 and ends[1] < 1e-10


@pytest.mark.parametrize("rows", ["Gaussian", "correlated", "heavy-tailed"])
@pytest.mark.parametrize("link", study.LINKS)
def test_planted_answers_depend_on_the_planted_directions(link, rows):
    X, y, U, *test = study.planted(study.PLANTED | dict(link=link, rows=rows, n=500, noise=0.0, seed=0))
    k, h = study.LINKS[link]
    assert U.shape == (k, 20) and np.allclose(h(X @ U.T), y)
    assert test[0].shape == (study.TEST_ROWS, 20) and np.allclose(h(test[0] @ U.T), test[1])
    off = np.corrcoef(X.T)[np.triu_indices(20, 1)].mean()
    assert off == pytest.approx(0.5 if rows == "correlated" else 0, abs=0.1)


@pytest.mark.parametrize(("rows", "d"), [("digits", 20), ("pixels", 61)])
def test_answers_planted_in_digits_depend_on_the_planted_directions(rows, d):
    X, y, U, *test = study.planted(study.PLANTED | dict(link="(u₁·x)(u₂·x)", rows=rows, noise=0.0, seed=0))
    h = study.LINKS["(u₁·x)(u₂·x)"][1]
    assert X.shape == (1400, d) and U.shape == (2, d) and np.allclose(h(X @ U.T), y, atol=1e-6)
    assert len(test[0]) == 397 and np.allclose(h(test[0] @ U.T), test[1], atol=1e-6)
    t = np.concatenate([X, test[0]]) @ U.T
    assert np.allclose(np.cov(t.T), np.eye(2), atol=0.1)  # the planted coordinates are white, but for the shrinkage


@pytest.mark.parametrize(
    ("peer", "link"),
    [
        ("least squares", lambda t: np.tanh(t[:, 0])),
        ("SIR", lambda t: np.tanh(t[:, 0])),
        ("SAVE", lambda t: t[:, 0] ** 2),
        ("pHd", lambda t: t[:, 0] * t[:, 1]),
        ("OPG", lambda t: t[:, 0] * t[:, 1]),
        ("AGOP", lambda t: np.sin(t[:, 0])),
    ],
)
def test_peers_find_what_they_are_made_for(peer, link):
    rng = np.random.default_rng(0)
    z, k = rng.normal(size=(1500, 4)), 1 + (peer in ("pHd", "OPG"))
    U = np.linalg.qr(rng.normal(size=(4, k)))[0].T
    how = dict(OPG=dict(anchors=100), AGOP=dict(steps=300, width=30)).get(peer, {})
    found = PEERS[peer](z, link(z @ U.T) + 0.1 * rng.normal(size=len(z)), k, **how)
    assert np.allclose(found @ found.T, np.eye(k)) and study.sine(found, U) < 0.15


def test_what_is_blind_is_blind():
    z = np.random.default_rng(0).normal(size=(2000, 4))
    U, y = np.eye(4)[:1], z[:, 0] ** 2
    assert study.sine(PEERS["SIR"](z, y, 1), U) > 0.3 < study.sine(PEERS["least squares"](z, y, 1), U)
    assert study.sine(PEERS["SAVE"](z, y, 1), U) < 0.1


@pytest.mark.soak
def test_a_recovered_direction_is_measured(monkeypatch):
    monkeypatch.setattr(study, "StructureDiscovery", partial(StructureDiscovery, steps=100, max_directions=2, width=30))
    monkeypatch.setitem(PEERS, "AGOP", partial(PEERS["AGOP"], steps=300, width=30))
    row = study.recover(study.PLANTED | dict(n=400, d=4, seed=0))
    assert row["right"] is True and row["ours"] < 0.15 and row["least squares"] < 0.4 and abs(row["gap"]) < 0.05
    assert row["r2"] > 0.7 and row["link known"] < min(0.1, 1.1 * row["ours"])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["lemma", "inputs", "architecture", "iota", "samples"])
def test_a_study_leaves_its_files(tmp_path, capsys, name):
    getattr(study, name)(Sweep(seeds=1, out=tmp_path))
    left = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert left == {f"study_{name}.{suffix}" for suffix in ("md", "png", "pdf", "json")}
    assert (tmp_path / f"study_{name}.md").read_text() in capsys.readouterr().out


@pytest.mark.soak
def test_the_study_of_tables_leaves_its_files(tmp_path, capsys, monkeypatch):
    links, quick = dict(list(study.LINKS.items())[:2]), dict(steps=5, max_directions=2, width=5)
    changes = dict(LINKS=links, FURTHER=(list(links)[1],), PLANTED=study.PLANTED | dict(n=60, d=3), TEST_ROWS=50)
    changes |= dict(HARDER=dict(n=(60, 80), rows=("Gaussian", "correlated")), PEERS=dict.fromkeys(PEERS, PEERS["pHd"]))
    changes |= dict(StructureDiscovery=partial(StructureDiscovery, **quick))
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    test_a_study_leaves_its_files(tmp_path, capsys, "structure")
    found = json.loads((tmp_path / "study_structure.json").read_text())
    assert found["runs"] == 4 and [line[:2] for line in found["body"][2:]] == [
        ["n", 60],
        ["n", 80],
        ["rows", "Gaussian"],
        ["rows", "correlated"],
    ]
