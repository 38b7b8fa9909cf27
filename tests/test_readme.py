"""The README cannot rot: its code blocks run, its commands run (with fewer steps), what it links to is there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = "".join(text for language, text in BLOCKS if not language)
VARIABLES = dict(re.findall(r'^(\w+)="(.*?)"$', SHELL, re.MULTILINE))


def commands() -> list[str]:
    """Every `python …` of the README's shell blocks, of its text, and of the rows of tables headed `python … …`."""
    found = re.findall(r"^(python .*?)(?:\s+#.*)?$", SHELL, re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    for line in prose.splitlines():
        if not line.startswith("|"):
            head = None
        elif head := re.match(r"\| `(python .*?) …`", line) or head:
            found += [f"{head[1]} {flags}" for flags in re.findall(r"^\|[^|`]*`([-$].*?)`", line)]
    found += [command for command in re.findall(r"`(python [^`]*?)`", prose) if not command.endswith("…")]
    for name, value in VARIABLES.items():
        found = [command.replace(f"${name}", value) for command in found]
    return list(dict.fromkeys(found))


# Runs a folder's commands one after the other, each with few steps and without drawing: figures have their own tests.
DRIVER = """
import shlex, sys
folder, *lines = sys.argv[1:]
sys.path.insert(0, folder)
import tyro, plot, style, main
style.save = plot.animate = lambda *arguments: None
for line in lines:
    status = main.main(tyro.cli(main.Config, args=shlex.split(line)))
    assert status == 0, line
"""
SHORT = {
    "MAXCUT": "--steps 15 --roundings 5",
    "JohnsonLindenstrauss": "--steps 15 --gaussians 5",
    "NeuralNetworks": "--steps 5 --no-toy --width 10",
}
SMALLER = {
    r"--n 1000000 --p 1e-5": "--n 2000 --p 1e-3",
    r"--seconds [\d ]+": "--seconds 0.3 ",
    r"--data digits --n 500": "--data digits --n 40",
    r"--n 2000 --d 200 --k 40": "--n 40 --d 20 --k 4",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository, with the files that the README takes from its reader."""
    folder = tmp_path_factory.mktemp("a reader's") / "StructureDiscovery"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "figures", "tests", "__pycache__"))
    graph = nx.gnp_random_graph(30, 0.3, seed=0)
    nx.write_edgelist(graph, folder / "my.edgelist", data=False)
    lines = [f"{i + 1} {j + 1} 1" for i, j in graph.edges]
    (folder / "folder" / "of" / "graphs").mkdir(parents=True)
    for file in ("G1.txt", "G22.txt", "folder/of/graphs/G1.txt"):
        (folder / file).write_text("\n".join([f"30 {len(lines)}", *lines]) + "\n")
    np.savetxt(folder / "my.csv", np.random.default_rng(0).standard_normal((40, 30)), delimiter=",")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("experiment", SHORT)
def test_the_runs_run(clone, experiment):
    lines = [command.split(maxsplit=2)[2:] for command in commands() if f" {experiment}/main.py" in command]
    lines = [line[0] if line else "" for line in lines if line != ["--help"]]
    for pattern, smaller in SMALLER.items():
        lines = [re.sub(pattern, smaller, line) for line in lines]
    if experiment == "JohnsonLindenstrauss":  # for the code block that reads them
        assert "--data my.csv --problem pairs --k 20 --out results" in lines
    assert len(lines) > 5
    lines = [f"{line} {SHORT[experiment]}" for line in lines]
    done = run(clone, "-c", DRIVER, experiment, *lines)
    assert done.returncode == 0, done.stderr


# A study takes minutes: that it refuses --seeds 0 shows that it knows all the rest of its command.
STUDIES = """
import runpy, shlex, sys
for line in sys.argv[1:]:
    sys.argv = [*shlex.split(line), "--seeds", "0"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert end.code == 2, line
"""


@pytest.mark.parametrize("experiment", SHORT)
def test_the_studies_are_known(clone, experiment):
    lines = [command.removeprefix("python ") for command in commands() if f" {experiment}/study.py" in command]
    assert len(lines) >= 3
    done = run(clone, "-c", f"import sys; sys.path.insert(0, {experiment!r})\n{STUDIES}", *lines)
    assert (done.returncode, done.stderr.count("error: --seeds 0")) == (0, len(lines)), done.stderr


def test_the_benchmarks_run(clone):
    called = [shlex.split(command)[1:] for command in commands() if "/benchmark.py" in command]
    assert len(called) == 2
    for program, name, *flags in called:
        smaller = [flags[0], "--seconds", "0.3"] if name == "cuts" else ["--edges", "1e3", "--repeats", "1"]
        done = run(clone, program, name, *smaller)
        assert done.returncode == 0 and done.stdout.startswith("| "), done.stderr


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_the_code_blocks_run(clone, block):
    if "results/projection.npy" in block:
        (clone / "results").mkdir(exist_ok=True)
        np.save(clone / "results" / "projection.npy", np.eye(20, 30))
    done = run(clone, "-c", block)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_known():
    known = r"python (\w+/(main|study|benchmark)\.py|main\.py|collapse\.py)\b"
    assert [command for command in commands() if not re.match(known, command)] == []
    assert len(PYTHON) >= 5


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+?)\)", README)
    files = [link for link in links if "://" not in link]
    assert len(files) > 15
    for file in files:
        assert (ROOT / file).exists(), file
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in README.splitlines()}
    assert set(re.findall(r"\]\(#(.+?)\)", README)) <= headings


def test_the_layout_names_every_file():
    layout = README[README.index("## Layout") :]
    files = {path.name for path in ROOT.glob("*/*.py") if path.parent.name != "tests"} | {"collapse.py"}
    assert {name for name in files if name not in layout} == set()
