"""READMEs cannot rot: code blocks run, commands run (with fewer steps), numbers are those of results/."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
READMES = sorted([ROOT / "README.md", *ROOT.glob("[!.]*/README.md")])
TEXTS = {readme.parent.relative_to(ROOT): readme.read_text(encoding="utf-8") for readme in READMES}


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


PYTHON = [(folder, code) for folder, text in TEXTS.items() for language, code in blocks(text) if language == "python"]


def commands(text: str) -> list[str]:
    """Every `python …` of the README's shell blocks, of its text, and of the rows of tables headed `python … …`."""
    shell = "".join(block for language, block in blocks(text) if language in ("", "sh", "bash"))
    found = re.findall(r"^(python .*?)(?:\s+#.*)?$", shell, re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for line in prose.splitlines():
        if not line.startswith("|"):
            head = None
        elif head := re.match(r"\| `(python .*?) …`", line) or head:
            found += [f"{head[1]} {flags}" for flags in re.findall(r"^\|[^|`]*`(-.*?)`", line)]
    return found + [command for command in re.findall(r"`(python [^`]*?)`", prose) if not command.endswith("…")]


def programs() -> dict[str, list[str]]:
    """The arguments that the READMEs call each program with, by its path from the root."""
    found: dict[str, list[str]] = {}
    for folder, text in TEXTS.items():
        for command in commands(text):
            program, *arguments = command.removeprefix("python ").split(maxsplit=1)
            here = folder / program  # else the reader is at the root
            known = found.setdefault(str(here if (ROOT / here).exists() else program), [])
            known += [line for line in arguments or [""] if line not in (*known, "--help")]
    return found


# Runs a folder's commands one after the other, each with few steps and without drawing: figures have their own tests.
DRIVER = """
import json, shlex, sys
from pathlib import Path
folder, out, *lines = sys.argv[1:]
sys.path.insert(0, folder)
import tyro, plot, run, main
run.save_figure = plot.animate = lambda *arguments, **options: None
for line in lines:
    arguments = shlex.split(line)
    if "--checkpoint" in arguments:
        arguments[arguments.index("--checkpoint") + 1] += str(lines.index(line))  # fewer steps are another run
    assert main.main(tyro.cli(main.Config, args=[*arguments, "--out", out])) is False, line
    found = json.loads(Path(out, "results.json").read_text())
    assert found["config"].keys() <= vars(main.Config()).keys() and found["experiment"] == folder, line
"""
SHORT = {
    "MAXCUT": "--steps 15 --roundings 5",
    "JohnsonLindenstrauss": "--steps 15 --gaussians 5",
    "NeuralNetworks": "--steps 5 --no-toy --width 10",
}
TABLE = "--adam-steps 5 --neurons 10 --max-directions 2 --bootstrap 2 --repeats 0"
"""in their place, where NeuralNetworks explores a table"""
SMALLER = {
    r"--n 1000000 --p 1e-5": "--n 2000 --p 1e-3",
    r"--n 1000000 --p 1e-05": "--n 2000 --p 1e-3",
    r"--seconds [\d.]+": "--seconds 0.3 ",
    r"--data (digits|breast_cancer)( --n \d+)?(?= --[kp])": r"--data \1 --n 40",
    r" --gaussians \d+": "",  # SHORT's own follow
    r"--n \d+ --d \d+ --k \d+": "--n 40 --d 20 --k 4",
    r"--samples \d+": "--samples 64",
    r"--batch \d+": "--batch 8",
    r"--lr (5|20000)(?= |$)": "--lr 0.1",  # what a hundred, or a thousand, neurons take
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository, with the files that the READMEs take from their readers."""
    folder = tmp_path_factory.mktemp("a reader's") / "StructureDiscovery"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "figures", "tests", "__pycache__"))
    graph = nx.gnp_random_graph(30, 0.3, seed=0)
    lines = [f"{i + 1} {j + 1} 1" for i, j in graph.edges]
    (folder / "graphs").mkdir()
    nx.write_edgelist(graph, folder / "my.edgelist", data=False)
    for file in graphs():
        (folder / file).write_text("\n".join([f"30 {len(lines)}", *lines]) + "\n")
    for place in (folder, folder / "JohnsonLindenstrauss"):
        np.savetxt(place / "my.csv", np.random.default_rng(0).standard_normal((40, 30)), delimiter=",")
    return folder


def graphs() -> list[str]:
    """Names of the Gset's graphs that commands use."""
    named = re.findall(r"\bG\d+(?:\.txt)?", " ".join(line for lines in programs().values() for line in lines))
    return sorted({*named, "G1.txt", "graphs/G1.txt"})


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.soak
@pytest.mark.parametrize("experiment", SHORT)
def test_the_runs_run(clone, tmp_path, experiment):
    lines = programs()[f"{experiment}/main.py"]
    for pattern, smaller in SMALLER.items():
        lines = [re.sub(pattern, smaller, line) for line in lines]
    lines = [re.sub(r"--out [^ ]+", "", line) for line in lines]
    tables = [line for line in lines if experiment == "NeuralNetworks" and "--data" in line]
    lines = list(dict.fromkeys(f"{line} {TABLE if line in tables else SHORT[experiment]}" for line in lines))
    assert len(lines) > 5
    done = run(clone, "-W", "ignore::UserWarning", "-c", DRIVER, experiment, tmp_path, *lines)
    assert done.returncode == 0, done.stderr


# A study takes minutes: that it comes as far as its first sweep, or figure, shows that its command is known.
STUDY = """
import runpy, shlex, sys
sys.path.insert(0, "studies")
program, *lines = sys.argv[1:]
for line in lines:
    sys.argv = [program, *shlex.split(line), "--seeds", "0"]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        assert end.code == 2, line
"""
STUDIES = ["maxcut", "johnson_lindenstrauss", "neural_networks"]


@pytest.mark.soak
@pytest.mark.parametrize("study", STUDIES)
def test_the_studies_are_known(clone, study):
    program = f"studies/{study}.py"
    lines = programs()[program]
    done = run(clone, "-c", STUDY, program, *lines)
    assert len(lines) >= 3
    assert (done.returncode, done.stderr.count("greater than or equal to 1")) == (0, len(lines)), done.stderr


@pytest.mark.soak
def test_the_benchmarks_run(clone):
    for line in programs()["studies/benchmark.py"]:
        name, *_ = shlex.split(line)
        smaller = ["graphs", "--seconds", "0.3"] if name == "cuts" else ["--edges", "1e3", "--repeats", "1"]
        done = run(clone, "studies/benchmark.py", name, *smaller, "--out", "benchmarks")
        assert done.returncode == 0 and done.stdout.startswith("| "), done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("folder, block", PYTHON, ids=[f"{folder}-{n}" for n, (folder, _) in enumerate(PYTHON)])
def test_the_code_blocks_run(clone, folder, block):
    for read in re.findall(r'np\.load\("(.*?)"\)', block):
        (clone / folder / read).parent.mkdir(parents=True, exist_ok=True)
        np.save(clone / folder / read, np.eye(20, 30))
    done = run(clone / folder, "-c", block)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_known():
    known = r"((\w+/)?main|studies/(maxcut|johnson_lindenstrauss|neural_networks|benchmark|tables)|collapse)\.py"
    assert [program for program in programs() if not re.fullmatch(known, program)] == []
    assert len(PYTHON) >= 5 and len(READMES) == 5


def test_what_they_link_to_is_there():
    for folder, text in TEXTS.items():
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?(?: \"[^\"]*\")?\)", text)
        for file in links:
            assert "://" in file or (ROOT / folder / file).exists(), f"{folder}/README.md: {file}"
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in text.splitlines()}
        assert set(re.findall(r"\]\(#(.+?)\)", text)) <= headings


def test_the_front_page_is_a_page():
    assert len(TEXTS[Path()].splitlines()) <= 150
    for figure in ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7"):
        assert f"/figures/{figure}_" in TEXTS[Path()]


def test_the_layout_names_every_file():
    layout = TEXTS[Path()][TEXTS[Path()].index("## Layout") :]
    files = {path.name for path in ROOT.glob("*/*.py") if path.parent.name != "tests"} | {"collapse.py"}
    assert {name for name in files if name not in layout} == set()


def test_the_numbers_are_those_of_the_results():
    done = run(ROOT, "studies/tables.py", "check")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_every_result_is_used():
    spec = tomllib.loads((ROOT / "results" / "tables.toml").read_text(encoding="utf-8"))
    shown = {row["name"] for table in spec.values() for row in table["rows"]}
    prose = "".join(TEXTS.values())
    shown |= set(re.findall(r"results/([\w.-]+)\.json", prose)) | set(re.findall(r"<!-- table (\w+) -->", prose))
    assert {file.stem for file in (ROOT / "results").glob("*.json")} <= shown
    assert set(spec) <= set(re.findall(r"<!-- table (\w+) -->", prose))
