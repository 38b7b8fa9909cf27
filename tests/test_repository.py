"""What holds for the repository as a whole: the files that all folders have, self-contained folders, clean code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.parent for file in ROOT.glob("*/main.py"))


@pytest.mark.parametrize("name", ["pgd.py", "experiment.py", "style.py", "sweep.py"])
def test_what_every_experiment_has_is_the_same(name):
    assert len({(folder / name).read_bytes() for folder in EXPERIMENTS}) == 1


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_an_experiment_copied_elsewhere_runs_there(folder, tmp_path):
    copy = tmp_path / "a folder" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("figures", "__pycache__", "tests"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "main.py", "--steps", "50"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "figures" / "results.json").read_text())["experiment"] == folder.name
    assert any((copy / "figures").glob("fig*.png"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_requirements_are_pinned():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.count("==") == 1, line
