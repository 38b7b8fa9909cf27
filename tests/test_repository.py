"""What holds for the repository as a whole: the files that all folders have, clean code, pins."""

import subprocess
import sys
from pathlib import Path

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
