"""Long runs survive: killed at random moments and resumed they come to the same end, and leave nothing half-written."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CASES = {
    "MAXCUT": "MAXCUT --n 300 --p 0.1 --growth 10",
    "pairs": "JohnsonLindenstrauss --problem pairs --n 60 --d 30 --k 6 --growth 1.01",
    "deep": "NeuralNetworks --depth 3 --width 24 --d 5 --k 2 --trained all --risk sampled --batch 64 --steps 1000 "
    "--lam 1e-3 --anneal --no-toy",
}
CHANGING = ("seconds", "seconds_pgd", "peak_memory", "versions", "config")


def start(case: str, out: Path, *more: str | Path) -> subprocess.Popen:
    folder, *flags = case.split()
    command = [sys.executable, ROOT / folder / "main.py", *flags, "--out", out, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def numbers(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What a run ended with, but for times."""
    found = json.loads((folder / "results.json").read_text())
    with np.load(folder / "history.npz") as history:
        arrays = {name: history[name] for name in history.files if name != "seconds"}
    return {name: value for name, value in found.items() if name not in CHANGING}, arrays


def killed_and_resumed(case: str, tmp_path: Path, seconds: float, kills: int) -> Path:
    """The folder of a run that was killed so many times on its way, and each time resumed."""
    file, out, moments = tmp_path / "run.checkpoint", tmp_path / "killed", random.Random(case)
    for _ in range(kills):
        before = file.stat().st_mtime_ns if file.exists() else 0
        process = start(case, out, "--checkpoint", file)
        while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, seconds / kills))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (0, -9), err
        left = {path.name for path in out.iterdir()}
        assert not left or "results.json" in left, left
    finish(start(case, out, "--checkpoint", file))
    assert {path.name for path in tmp_path.iterdir()} >= {file.name, out.name}
    assert not [path for folder in (tmp_path, out) for path in folder.iterdir() if path.name.startswith(".")]
    return out


@pytest.fixture(scope="module", params=CASES)
def finished(request, tmp_path_factory) -> tuple[str, Path]:
    """A run that nothing has stopped."""
    out = tmp_path_factory.mktemp("whole")
    finish(start(CASES[request.param], out))
    return CASES[request.param], out


@pytest.mark.soak
def test_killed_runs_come_to_the_same_end(finished, tmp_path):
    case, out = finished
    expected, curves = numbers(out)
    seconds = json.loads((out / "results.json").read_text())["seconds"]
    found, killed_curves = numbers(killed_and_resumed(case, tmp_path, seconds, kills=2))
    assert found == expected
    assert curves.keys() == killed_curves.keys()
    for curve, values in curves.items():
        np.testing.assert_array_equal(killed_curves[curve], values, err_msg=curve)


@pytest.mark.soak
def test_a_killed_search_keeps_its_cuts_and_its_time(tmp_path):
    case = "MAXCUT --n 50 --p 0.2 --steps 400"
    out = killed_and_resumed(f"{case} --seconds 2", tmp_path, 1, kills=1)
    found, curves = numbers(out)
    finish(start(f"{case} --seconds 1", tmp_path / "whole"))
    expected, whole_curves = numbers(tmp_path / "whole")
    for curve in ("step", "expected_cut", "drawn_cut", "sigma"):  # of the first descent
        np.testing.assert_array_equal(curves[curve], whole_curves[curve])
    assert found["cut"] == expected["cut"] == curves["search_cut"][-1]  # so small a graph is soon cut best
    assert found["certificate"]["is_sosp"] and (np.diff(curves["search_seconds"]) > 0).all()
    seconds = json.loads((out / "results.json").read_text())["seconds"]
    assert seconds == pytest.approx(2, abs=2)  # those before the kills are counted

    file = tmp_path / "run.checkpoint"  # a finished search goes on if it is given more time
    finish(start(f"{case} --seconds {seconds + 2}", tmp_path / "longer", "--checkpoint", file))
    assert numbers(tmp_path / "longer")[0]["descents"] > found["descents"]
