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
FIGURES = {f"{name}.{suffix}" for name in ("fig4_cut", "fig5_sigma", "graph", "saddle") for suffix in ("png", "pdf")}


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "main.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_papers_graph(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cut          41, the optimum is 41" in done.stdout and "certificate  SOSP" in done.stdout
    assert done.stderr == ""  # no progress bar where nobody watches
    assert {file.name for file in tmp_path.iterdir()} == FIGURES | {"cut.txt", "history.npz", "results.json"}

    found = results(tmp_path)
    assert found["experiment"] == "MAXCUT" and (found["n"], found["m"]) == (15, 62)
    assert found["cut"] == found["optimum"] == 41 <= found["sdp_value"] <= found["upper_bound"]
    assert found["gw_mean"] < found["gw_best"] <= 41
    assert found["certificate"]["is_sosp"] and found["sigma"] < 1e-3 and found["perturbations"] >= 2
    assert found["certificate"]["w_norm"] <= found["certificate"]["w_norm_bound"]
    assert found["config"]["epsilon"] == Config().epsilon and "torch" in found["versions"]

    sides = np.loadtxt(tmp_path / "cut.txt", dtype=int)
    assert sides.shape == (15,) and set(sides) == {0, 1}
    with np.load(tmp_path / "history.npz") as history:
        assert history["expected_cut"][-1] == pytest.approx(41) and history["sigma"][0] == pytest.approx(1, abs=0.2)
        assert len(history["gw"]) == 1000 and history["kicks"][0] == 0


def test_a_users_graph_with_names_loops_and_duplicates(tmp_path):
    (tmp_path / "my graph.edgelist").write_text("ä b 2\nb c 1\nc ä 1\nb ä 1\nc c 5\nd e -1\n", encoding="utf-8")
    done = run("--graph", "my graph.edgelist", "--out", "my figures", "--steps", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: 1 self-loop(s) dropped" in done.stderr and "note: 1 duplicate edge(s)" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "my figures"
    assert (folder / "vertices.txt").read_text(encoding="utf-8").split() == ["ä", "b", "c", "d", "e"]
    a, b, _, d, e = np.loadtxt(folder / "cut.txt", dtype=int)
    assert results(folder)["cut"] == 4 and a != b and d == e


def test_a_large_graph_has_a_bound_and_no_optimum(tmp_path, capsys):
    assert main(Config(n=300, p=0.05, out=tmp_path, steps=200)) == 0
    found = results(tmp_path)
    assert found["optimum"] is None and found["cut"] <= found["upper_bound"] <= 1.0015 * found["sdp_value"]
    assert found["cut"] > found["gw_best"]
    assert (tmp_path / "saddle.png").exists() and not (tmp_path / "graph.png").exists()
    assert "of the bound" in capsys.readouterr().out


def test_stopped_early_it_does_not_claim_an_sosp(tmp_path, capsys):
    assert main(Config(out=tmp_path, steps=5)) == 0
    assert not results(tmp_path)["certificate"]["is_sosp"]
    assert "not an SOSP" in capsys.readouterr().out


def test_seconds_are_used_for_a_better_cut(tmp_path, capsys):
    assert main(Config(n=150, p=0.1, out=tmp_path / "one")) == 0
    assert main(Config(n=150, p=0.1, out=tmp_path / "many", seconds=3)) == 0
    one, many = results(tmp_path / "one"), results(tmp_path / "many")
    assert one["cut"] <= many["cut"] <= many["upper_bound"] and many["descents"] > one["descents"] == 1
    assert many["certificate"]["is_sosp"] and many["sigma"] < 1e-3
    assert (tmp_path / "many" / "search.png").exists() and not (tmp_path / "one" / "search.png").exists()
    with np.load(tmp_path / "many" / "history.npz") as history:
        assert history["search_cut"][-1] == many["cut"]
    assert "more descents" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"escape": "curvature"}, {"gradient": "sampled", "epsilon": 0.3, "lr": 0.1}])
def test_the_other_ways_run(tmp_path, capsys, options):
    assert main(Config(out=tmp_path, **options)) == 0
    assert results(tmp_path)["cut"] == 41


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(graph=Path("nowhere.txt")), "nowhere.txt"),
        (dict(n=1), "at least 2"),
        (dict(p=1.5), "probability"),
        (dict(p=float("nan")), "probability"),
        (dict(p=0.0), "no edges"),
        (dict(epsilon=0.0), "--epsilon"),
        (dict(lr=-1.0), "--lr"),
        (dict(lr=float("nan")), "--lr"),
        (dict(lam=float("inf")), "--lam"),
        (dict(rho=0.0), "--rho"),
        (dict(radius=-0.1), "--radius"),
        (dict(momentum=1.0), "--momentum"),
        (dict(steps=0), "--steps"),
        (dict(draws=1), "--draws"),
        (dict(rank=0), "--rank"),
        (dict(growth=0.5), "--growth"),
        (dict(seed=-1), "--seed"),
        (dict(seconds=0.0), "--seconds"),
        (dict(seconds=float("nan")), "--seconds"),
        (dict(device="abacus"), "--device"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, bad, word):
    out = tmp_path / "figures"
    assert main(Config(out=out, **bad)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(Config(out=tmp_path / "taken")) == 2
    assert "taken" in capsys.readouterr().err


def test_unknown_flags_and_values_end_with_status_2(tmp_path):
    done = run("--gradient", "guessed", "--out", tmp_path / "figures")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "figures").exists()


def test_help_names_every_hyperparameter():
    done = run("--help")
    assert done.returncode == 0
    for name in Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in done.stdout


@pytest.mark.parametrize(
    "flags, sign",
    [(["--steps", "1000000", "--growth", "1"], b"E[cut]"), (["--seconds", "600"], b"of the bound")],
    ids=["descent", "search"],
)
def test_ctrl_c_saves_the_cut_so_far(tmp_path, flags, sign):
    arguments = ["--n", "500", "--p", "0.1", *flags, "--out", tmp_path]
    terminal, stderr = pty.openpty()  # a progress bar shows that the descent is under way
    termios.tcsetwinsize(stderr, (24, 120))
    command = [sys.executable, FOLDER / "main.py", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        shown = b""
        while sign not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=120)[0]
    os.close(terminal)
    os.close(stderr)
    assert process.returncode == 130 and "interrupted after" in out
    assert results(tmp_path)["cut"] > results(tmp_path)["gw_best"]
    assert {"cut.txt", "results.json", "fig4_cut.png"} <= {file.name for file in tmp_path.iterdir()}
