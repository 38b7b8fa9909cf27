"""The command line, as a user calls it, on small problems."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from scipy.integrate import quad

import main
import pgd
import plot
from run import Checkpoint
from train import Training

SMALL = ("--width", "40", "--lam", "1e-3")


def test_a_run_leaves_all_its_files_and_a_true_certificate(tmp_path, capsys, at_the_prompt):
    out = tmp_path / "new" / "folder"
    assert at_the_prompt(*SMALL, "--out", out) == 0
    said = capsys.readouterr()
    assert said.err == ""  # no progress bar where nobody watches
    names = ["fig1_toy_frozen_bias", "fig2_toy_trained_bias", "fig3_weights", "norms"]
    expected = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert {f.name for f in out.iterdir()} == expected | {
        "fig3_weights.gif",
        "weights.npz",
        "history.npz",
        "results.json",
    }
    results = json.loads((out / "results.json").read_text())
    certificate, weights = results["certificate"], np.load(out / "weights.npz")
    W, U = weights["W"], weights["U"]
    assert results["experiment"] == "NeuralNetworks" and results["completed"]["lr"] == 80
    assert results["w_perp"] == pytest.approx(np.linalg.norm(W - W @ U.T @ U)) == pytest.approx(certificate["w_norm"])
    assert results["w_parallel"] == pytest.approx(np.linalg.norm(W @ U.T @ U))
    assert certificate["is_sosp"] and certificate["w_norm"] <= certificate["w_norm_bound"]
    assert results["w_perp"] < 0.05 * results["w_perp_initial"]
    assert results["test_risk"] == pytest.approx(results["train_risk"], abs=1e-4) and results["test_risk"] < 0.1
    assert results["effective_rank"] < 1.2 and max(results["toy_error"].values()) <= 1e-3
    history = np.load(out / "history.npz")
    assert history["w_perp"][-1] == results["w_perp"] and len(history["step"]) == len(history["weights"])
    for line in ("‖W⊥‖", "certificate  SOSP", "fig1", "files"):
        assert line in said.out


def test_a_frozen_bias_keeps_the_weights(tmp_path, undrawn):
    toy = dict(d=1, k=0, width=1, activation="relu3", lr=0.02, lam=1e-6, seed=1, toy=False)
    for name in ("fig3_weights.gif", "spectrum.pdf", "spectrum.txt"):
        (tmp_path / name).write_text("of another run, but for the last")
    assert not main.main(main.Config(**toy, freeze_bias=True, out=tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["w_perp"] > 0.3 and results["certificate"]["w_norm_bound"] is None
    assert results["certificate"]["is_sosp"] and not results["interrupted"]
    left = {file.name for file in tmp_path.iterdir()}
    assert "spectrum.txt" in left and not {"fig3_weights.gif", "spectrum.pdf"} & left
    assert results["curvature"] == pytest.approx(-2e-6, rel=0.2)  # −2λ: the loss holds W up
    with np.load(tmp_path / "weights.npz") as saved:  # and the same by integrating up to the kink of ReLU³ and beyond
        w, a, b = (saved[name].item() for name in ("W", "a", "b"))

    def of_density(x: float) -> float:
        r = max(w * x + b, 0.0)
        return 2 * (a * r**3 - 1) * a * 3 * r**2 * x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)

    exact = sum(quad(of_density, *ends, epsabs=1e-14)[0] for ends in ((-12, -b / w), (-b / w, 12)))
    assert results["curvature"] == pytest.approx(exact / w, rel=0.05) and abs(exact + 2e-6 * w) < 2e-7


REFUSED = [
    (("--k", "3"), ("--k is 3 and --d is 2; the teacher can use at most d directions",)),
    (("--width", "0"), ("width", "greater than or equal to 1")),
    (("--depth", "1"), ("depth", "greater than or equal to 2")),
    (("--activation", "relu"), ("--activation", "relu_iota", "he4")),
    (("--teacher", "sin"), ("--teacher", "tanh")),
    (("--d", "4"), ("--d", "sobol")),
    (("--lr", "-1"), ("lr", "greater than")),
    (("--lam", "nan"), ("lam",)),
    (("--lam", "-1e-9"), ("lam", "greater than or equal to 0")),
    (("--rho", "0"), ("rho", "greater than")),
    (("--noise", "inf"), ("noise",)),
    (("--momentum", "1"), ("momentum", "less than 1")),
    (("--samples", "100"), ("--samples", "1024")),
    (("--seed", "-1"), ("seed",)),
    (("--device", "quantum"), ("device", "quantum")),
    (("--algorithm", "2", "--anneal"), ("--algorithm 2 is pure",)),
    (("--algorithm", "2", "--radius", "0"), ("error: ", "radius is 0")),
    (("--bootstrap", "5"), ("--bootstrap is of a table",)),
    (("--adam-steps", "5"), ("--adam-steps is of a table",)),
    (("--out", "/proc/figures"), ("error: ", "/proc")),
    (("--lr", "1e9", "--activation", "relu3"), ("error: ", "diverges", "try --lr 1e+08")),
    (("--lr", "1e5", "--steps", "300"), ("error: ", "the objective is", "diverges", "try --lr 10000")),
]


@pytest.mark.parametrize("flags, words", REFUSED)
def test_bad_input_is_refused(tmp_path, capsys, flags, words, at_the_prompt):
    place = () if "--out" in flags else ("--out", tmp_path / "out")
    assert at_the_prompt(*SMALL, "--no-toy", *place, *flags) == 2
    stdout, stderr = capsys.readouterr()
    said = " ".join(stderr.replace("│", " ").split())
    assert stdout == "" and "Traceback" not in stderr
    assert "error: " not in words or stderr.count("\n") == 1
    for word in words:
        assert word in said
    assert not list(tmp_path.glob("out/*"))


def test_nonsense_flags_are_refused_and_help_knows_every_hyperparameter(capsys):
    for flags, status in ((["--nonsense", "1"], 2), (["--loss", "absolute"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as exit_:
            tyro.cli(main.Config, args=flags)
        assert exit_.value.code == status
    shown = capsys.readouterr().out
    for field in dataclasses.fields(main.Config):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_ctrl_c_saves_what_there_is(tmp_path, capsys, ctrl_c, undrawn):
    ctrl_c(Training, 50)
    assert main.main(main.Config(width=50, rho=1e-15, toy=False, out=tmp_path))
    assert capsys.readouterr().out.startswith("interrupted after 50 steps")
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 50
    assert (tmp_path / "weights.npz").exists()


def test_ctrl_c_in_the_certificate_saves_the_weights_as_they_were(tmp_path, capsys, monkeypatch, undrawn):
    calls, product, config = [], pgd._hessian, main.Config(width=30, lam=1e-3, toy=False)
    assert not main.main(dataclasses.replace(config, out=tmp_path / "whole"))

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:  # λ_min of f, λ_min in b, and K's estimate, which moves the weights about
            raise KeyboardInterrupt
        return product(*arguments)

    monkeypatch.setattr(pgd, "_hessian", interrupted)
    assert main.main(dataclasses.replace(config, out=tmp_path / "cut short"))
    assert "certificate  none: interrupted" in capsys.readouterr().out
    assert json.loads((tmp_path / "cut short" / "results.json").read_text())["certificate"] is None
    first, second = (np.load(tmp_path / name / "weights.npz")["W"] for name in ("whole", "cut short"))
    assert np.array_equal(first, second)


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, capsys, monkeypatch, undrawn):
    config = dict(d=4, k=1, width=20, depth=3, trained="all", risk="sampled", steps=300, anneal=True, toy=False)
    main.main(main.Config(**config, out=tmp_path / "whole"))
    file, keep = tmp_path / "file", Checkpoint.keep

    def stopped(self, part, state, finished=False) -> None:
        keep(self, part, state, finished=state()["t"] == 150)
        if state()["t"] == 150:
            raise RuntimeError("power is off")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Checkpoint, "keep", stopped)
        main.main(main.Config(**config, checkpoint=file, out=tmp_path / "stopped"))
    step, steps = Training.step, []
    monkeypatch.setattr(Training, "step", lambda self: (steps.append(self.t), step(self)))
    main.main(main.Config(**config, checkpoint=file, out=tmp_path / "stopped"))
    assert steps == list(range(150, 300))
    histories = []
    for name in ("whole", "stopped"):
        with np.load(tmp_path / name / "history.npz") as history:
            histories.append({key: history[key] for key in history.files if key != "seconds"})
    assert histories[0].keys() == histories[1].keys()
    for key, values in histories[0].items():
        np.testing.assert_array_equal(values, histories[1][key])
    ends = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped")]
    assert ends[0]["certificate"] == ends[1]["certificate"]
    torch.save(torch.load(file, weights_only=True) | dict(elapsed=1000.0), file)
    main.main(main.Config(**config, checkpoint=file, out=tmp_path / "stopped"))
    assert 1000 < json.loads((tmp_path / "stopped" / "results.json").read_text())["seconds"] < 1100


@pytest.mark.parametrize("lam", [main.Config().lam, pytest.param(1e-6, marks=pytest.mark.soak)])
def test_the_default_ends_at_an_sosp_of_the_population_risk(tmp_path, lam, undrawn):
    """∇f at the end of the default run, by numpy and a trapezoidal rule that agrees with one of half as many nodes."""
    assert not main.main(main.Config(lam=lam, toy=False, out=tmp_path))
    certificate = json.loads((tmp_path / "results.json").read_text())["certificate"]
    with np.load(tmp_path / "weights.npz") as saved:
        W, a, b, U = (saved[name] for name in ("W", "a", "b", "U"))
    u, h, iota = U[0], len(a), 2.0
    across = np.array([-u[1], u[0]])

    def gradient_norm(along: int) -> float:
        z, t = np.linspace(-9, 9, along), np.linspace(-8, 8, 25)
        p, q = np.exp(-z * z / 2), np.exp(-t * t / 2)
        x = (z[:, None, None] * u + t[:, None] * across).reshape(-1, 2)
        weights = np.outer(p / p.sum(), q / q.sum()).ravel()
        pre = x @ W.T + b
        error = np.logaddexp(0, iota * pre) / iota @ a / h - np.tanh(x @ u)
        delta = (2 * weights * error)[:, None] / (1 + np.exp(-iota * pre)) * a / h
        return float(np.sqrt(np.sum((delta.T @ x + 2 * lam * W) ** 2) + np.sum(delta.sum(0) ** 2)))

    fine, coarse = gradient_norm(301), gradient_norm(151)
    assert abs(fine - coarse) < 1e-3 * fine
    assert certificate["is_sosp"] and certificate["rho"] == pytest.approx(lam / 5)
    assert abs(certificate["gradient_norm"] - fine) < 1e-3 * fine and fine <= lam / 5
    assert certificate["gradient_error"] < lam / 1e3


def test_a_run_without_steps_is_drawn_and_one_that_stands_still_moves_through_its_snapshots(tmp_path):
    W = np.random.default_rng(0).normal(size=(1, 20, 2))
    assert plot.weights({"weights": W}, None).axes
    still = {"weights": W.repeat(25, 0), "w_perp": np.full(25, 3.0), "step": np.arange(25)}
    plot.animate(still, None, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:  # frames that are the same are one, of longer duration
        durations = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
    assert sum(durations) >= 320 + 23 * 80 + 1000
