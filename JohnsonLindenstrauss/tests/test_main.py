"""The command line as a user calls it: files, summary, bad input, Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from main import Config, main

FOLDER = Path(__file__).parents[1]
FIGURES = {
    f"{name}.{suffix}" for name in ("fig6_distortion", "fig7_variance", "distortions") for suffix in ("png", "pdf")
}
SMALL = dict(n=20, d=40, k=8, gaussians=50, growth=1.02, steps=500)


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "main.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_papers_problem(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "certificate  SOSP" in done.stdout
    assert done.stderr == ""  # no progress bar where nobody watches
    assert {file.name for file in tmp_path.iterdir()} == FIGURES | {"projection.npy", "history.npz", "results.json"}

    found = results(tmp_path)
    assert found["experiment"] == "JohnsonLindenstrauss" and found["problem"] == "vectors"
    assert (found["n"], found["d"], found["k"]) == (100, 500, 30)
    assert found["distortion"] <= 1e-5 and found["sigma"] <= 1e-5
    assert found["distortion"] < found["pca"] < found["gaussian_min"] < found["gaussian_mean"]
    assert found["certificate"]["is_sosp"] and found["perturbations"] >= 2
    assert found["certificate"]["w_norm"] <= found["certificate"]["w_norm_bound"]
    assert found["certificate"]["w_norm"] == pytest.approx(found["sigma"] * np.sqrt(30 * 500))
    assert found["config"]["tau"] == Config().tau and "torch" in found["versions"]

    M = np.load(tmp_path / "projection.npy")
    assert M.shape == (30, 500) and M.dtype == np.float64
    with np.load(tmp_path / "history.npz") as history:
        assert history["sigma"][0] == pytest.approx(1 / np.sqrt(30), rel=1e-2) and history["distortion"][-1] < 1e-5
        assert len(history["gaussian"]) == 1000 and history["kicks"][0] == 0


def test_a_users_points_with_duplicates(tmp_path):
    X = np.random.default_rng(0).standard_normal((30, 12))
    X[4] = X[5]
    np.savetxt(tmp_path / "my points.csv", X, delimiter=",")
    arguments = ["--problem", "pairs", "--k", "6", "--growth", "1.02", "--steps", "500", "--gaussians", "50"]
    done = run("--data", "my points.csv", "--out", "my figures", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "30 × 12, 434 pairs (1 of duplicate points left out), to 6 dimensions" in done.stdout
    M, found = np.load(tmp_path / "my figures" / "projection.npy"), results(tmp_path / "my figures")
    i, j = np.triu_indices(30, 1)
    i, j = (end[(i != 4) | (j != 5)] for end in (i, j))
    U = X[i] - X[j]
    q = np.square(U @ M.T).sum(1) / np.square(U).sum(1)
    assert found["distortion"] == pytest.approx(np.abs(q - 1).max(), rel=1e-9) and found["duplicates"] == 1
    assert found["distortion"] < found["pca"] and found["distortion"] < found["gaussian_min"]


def test_digits_and_the_first_rows_of_a_file(tmp_path, capsys):
    assert main(Config(data="digits", problem="pairs", n=40, k=10, steps=50, gaussians=20, out=tmp_path)) == 0
    found = results(tmp_path)
    assert (found["n"], found["d"], found["gaussians"]) == (40, 64, 20) and not found["certificate"]["is_sosp"]
    assert "not an SOSP" in capsys.readouterr().out


def test_as_many_dimensions_as_there_are(tmp_path, capsys):
    assert main(Config(n=20, d=6, k=6, problem="pairs", gaussians=20, growth=1.02, out=tmp_path)) == 0
    assert "no projection is needed" in capsys.readouterr().err
    assert results(tmp_path)["distortion"] < 1e-5


@pytest.mark.parametrize("options", [dict(objective="tail", epsilon=0.5), dict(objective="sampled", lr=0.1)])
@pytest.mark.parametrize("problem", ["vectors", "pairs"])
def test_the_other_objectives_run(tmp_path, capsys, options, problem):
    assert main(Config(out=tmp_path, problem=problem, **SMALL, **options)) == 0
    found = results(tmp_path)
    assert found["distortion"] < found["gaussian_mean"] and found["sigma"] < 1 / np.sqrt(8)
    assert (found["certificate"] is None) == (options["objective"] == "sampled")


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(data="nowhere.npy"), "nowhere.npy"),
        (dict(data="nowhere.txt"), "neither"),
        (dict(data="digits", n=5000), "1797 rows"),
        (dict(data="digits", n=1), "--n"),
        (dict(n=1), "--n"),
        (dict(d=0), "--d"),
        (dict(k=0), "--k"),
        (dict(tau=0.0), "--tau"),
        (dict(growth=1.0), "--growth"),
        (dict(epsilon=1.5), "--epsilon"),
        (dict(lr=-1.0), "--lr"),
        (dict(lr=float("nan")), "--lr"),
        (dict(lam=float("inf")), "--lam"),
        (dict(rho=0.0), "--rho"),
        (dict(radius=-0.1), "--radius"),
        (dict(momentum=1.0), "--momentum"),
        (dict(steps=0), "--steps"),
        (dict(draws=0), "--draws"),
        (dict(gaussians=0), "--gaussians"),
        (dict(seed=-1), "--seed"),
        (dict(data_seed=-1), "--data-seed"),
        (dict(device="abacus"), "--device"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, bad, word):
    out = tmp_path / "figures"
    assert main(Config(out=out, **bad)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "X, problem, word",
    [
        ([[1.0, 2], [np.nan, 1], [3, 4]], "pairs", "row 1"),
        ([[1.0, 2], [3, 4], [np.inf, 1]], "vectors", "row 2"),
        ([[1.0, 2]], "pairs", "at least 2"),
        ([1.0, 2, 3], "pairs", "shape"),
        ([[1.0, 2], [0, 0]], "vectors", "row 1 is the zero vector"),
        ([[1.0, 2], [1, 2], [1, 2]], "pairs", "the same"),
    ],
)
def test_bad_data_is_refused_in_one_line(tmp_path, capsys, X, problem, word):
    np.save(tmp_path / "X.npy", np.array(X))
    out = tmp_path / "figures"
    assert main(Config(data=str(tmp_path / "X.npy"), problem=problem, k=1, out=out)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(Config(out=tmp_path / "taken")) == 2
    assert "taken" in capsys.readouterr().err


def test_unknown_flags_and_values_end_with_status_2(tmp_path):
    done = run("--problem", "triples", "--out", tmp_path / "figures")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "figures").exists()


def test_help_names_every_hyperparameter():
    done = run("--help")
    assert done.returncode == 0
    for name in Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in done.stdout


def test_ctrl_c_saves_the_matrix_so_far(tmp_path):
    arguments = ["--problem", "pairs", "--n", "200", "--d", "50", "--steps", "1000000", "--out", tmp_path]
    terminal, stderr = pty.openpty()  # a progress bar shows that the descent is under way
    termios.tcsetwinsize(stderr, (24, 120))
    command = [sys.executable, FOLDER / "main.py", *arguments, "--gaussians", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        shown = b""
        while b"distortion 0." not in shown:
            shown = shown[-200:] + os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        summary = process.communicate(timeout=120)[0]
    os.close(terminal)
    os.close(stderr)
    assert process.returncode == 130 and "interrupted after" in summary and "certificate  none" in summary
    found = results(tmp_path)
    assert found["distortion"] < 1 and found["steps"] < 1_000_000 and found["certificate"] is None
    assert np.load(tmp_path / "projection.npy").shape == (30, 50)
