"""What holds for the repository as a whole: one house, one shape, clean code, pins, folders that stand alone."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.parent for file in ROOT.glob("*/main.py"))
SHARED = ("pgd.py", "run.py")
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/tests/*.py")])
NAMED = {  # by the people who use them
    "MAXCUT": ["main.py", "utilities.py", "optimizer.py", "plot.py"],
    "JohnsonLindenstrauss": ["main.py", "model.py", "train.py", "plot.py"],
    "NeuralNetworks": ["main.py", "model.py", "train.py", "plot.py", "activations.py"],
}


def lines(*files: Path) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


@pytest.mark.parametrize("name", SHARED)
def test_what_every_experiment_has_is_the_same(name):
    assert len({(folder / name).read_bytes() for folder in EXPERIMENTS}) == 1


def test_files_keep_their_names():
    assert [folder.name for folder in EXPERIMENTS] == sorted(NAMED)
    missing = [f"{folder}/{name}" for folder in NAMED for name in NAMED[folder] if not (ROOT / folder / name).exists()]
    assert missing == []
    for folder in EXPERIMENTS:  # a folder imports its own files only
        modules = {file.stem for file in folder.glob("*.py")}
        others = {file.stem for other in (*EXPERIMENTS, ROOT / "studies") for file in other.glob("*.py")} - modules
        for file in folder.glob("*.py"):
            tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            imports = {name.name for node in tree if isinstance(node, ast.Import) for name in node.names}
            tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            imports |= {node.module for node in tree if isinstance(node, ast.ImportFrom)}
            assert imports & others == set(), file


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_function_is_longer_than_a_screen(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > 60}
    assert long == {}


def test_main_is_a_page():
    assert {folder.name: n for folder in EXPERIMENTS if (n := lines(folder / "main.py")) > 150} == {}


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_public_functions_say_what_they_do(folder):
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        public = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        public += [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        bare = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
        assert bare == [], file.name


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_is_content(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_requirements_are_pinned():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert line.count("==") == 1, line


@pytest.mark.soak
def test_the_pictures_of_the_three_collapses(tmp_path):
    for file in ("collapse.py", *(f"MAXCUT/{name}" for name in SHARED)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    draw = [sys.executable, tmp_path / "collapse.py", "--out", tmp_path / "out"]
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["collapse.gif", "collapse.png"]
    with Image.open(tmp_path / "out" / "collapse.gif") as animation:
        assert animation.n_frames == len(steps)  # frames that are the same are one
    assert (ROOT / "collapse.gif").stat().st_size <= 3e6
