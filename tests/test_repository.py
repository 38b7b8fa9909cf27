"""What holds for the repository as a whole: the files that all folders have, clean code, pins."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.parent for file in ROOT.glob("*/main.py"))


@pytest.mark.parametrize("name", ["pgd.py", "experiment.py", "style.py", "sweep.py"])
def test_what_every_experiment_has_is_the_same(name):
    assert len({(folder / name).read_bytes() for folder in EXPERIMENTS}) == 1


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_requirements_are_pinned():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.count("==") == 1, line


def test_the_picture_of_the_three_collapses(tmp_path):
    for file in ("collapse.py", "MAXCUT/experiment.py", "MAXCUT/style.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    draw = [sys.executable, tmp_path / "collapse.py", tmp_path / "out"]
    done = subprocess.run(draw, capture_output=True, text=True)
    assert done.returncode == 2 and "NeuralNetworks/main.py first" in done.stderr and done.stderr.count("\n") == 1

    steps = np.arange(5)
    falling = {name: np.exp(-steps) for name in ("w_perp", "sigma", "distortion", "drawn_distortion")}
    history = falling | dict(step=steps, kicks=[0], drawn_cut=steps, expected_cut=steps)
    for folder in EXPERIMENTS:
        (tmp_path / folder.name / "figures").mkdir(parents=True)
        np.savez(tmp_path / folder.name / "figures" / "history.npz", weights=np.ones((5, 9, 2)), **history)
    done = subprocess.run(draw, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["collapse.png"]
