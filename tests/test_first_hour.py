"""A stranger's first hour: any folder, any terminal, any locale; no display, no right to write, no room on the disk.

Every run is `python main.py`, in a process of its own, from a copy of the experiment that nobody may write to.
"""

import io
import json
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(file.parent for file in ROOT.glob("*/main.py"))
TINY = {
    "JohnsonLindenstrauss": ["--n", "20", "--d", "40", "--k", "5", "--gaussians", "20", "--steps", "30"],
    "MAXCUT": ["--steps", "30"],
    "NeuralNetworks": ["--no-toy", "--width", "20", "--steps", "30"],
}
RUNS = {folder.name: (folder, TINY[folder.name]) for folder in EXPERIMENTS}
RUNS["pairs"] = (ROOT / "JohnsonLindenstrauss", [*TINY["JohnsonLindenstrauss"], "--problem", "pairs"])
WATCHED = ["MAXCUT", *(pytest.param(name, marks=pytest.mark.soak) for name in RUNS if name != "MAXCUT")]

# Root may write everywhere; without its capabilities it is a user like any other.
AS_A_USER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
PERSONAL = ("DISPLAY", "WAYLAND_DISPLAY", "COLUMNS", "LANG", "LC_ALL", "LC_CTYPE")


@dataclass
class Run:
    """A finished run: what it was, and what it left."""

    folder: Path
    flags: list[str]
    status: int
    stdout: str
    stderr: str
    out: Path


def start(folder: Path, *flags: str | Path, cwd: Path, environment: dict[str, str], **streams) -> subprocess.Popen:
    own = {name: x for name, x in os.environ.items() if name not in PERSONAL and not name.startswith("PYTHON")}
    # Matplotlib, which would remark that HOME can't be written to, keeps its list of fonts where it always does.
    own |= {"HOME": str(folder), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    command = [*AS_A_USER, sys.executable, folder / "main.py", *flags]
    return subprocess.Popen(command, cwd=cwd, env=own | environment, text=True, encoding="utf-8", **streams)


def call(*arguments, **options) -> tuple[int, str, str]:
    with start(*arguments, **dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE) | options) as process:
        stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def contents(out: Path) -> dict[str, object]:
    """What must be the same in two runs of the same command: all but paths, versions and seconds."""
    found = {}
    for file in out.iterdir():
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                found |= {f"{file.name}/{name}": x.tobytes() for name, x in arrays.items() if name != "seconds"}
        elif file.name == "results.json":
            results = json.loads(file.read_text())
            del results["versions"], results["config"]["out"]
            found |= {
                f"results.json/{name}": x for name, x in results.items() if not name.startswith(("seconds", "peak"))
            }
        else:
            found[file.name] = file.read_bytes()
    return found


def differing(a: dict[str, object], b: dict[str, object]) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


@pytest.fixture(scope="module", params=[*TINY, pytest.param("pairs", marks=pytest.mark.soak)])
def piped(request, tmp_path_factory):
    """The first run, its output piped: from elsewhere, with no display, into a folder that does not exist yet."""
    source, flags = RUNS[request.param]
    home = tmp_path_factory.mktemp("a stranger's höme")
    folder = home / source.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("figures", "__pycache__", "tests"))
    for path in (folder / "figures", home / "elsewhere"):
        path.mkdir()
    for path in (*folder.rglob("*"), folder):
        path.chmod(path.stat().st_mode & ~0o222)
    environment = {"LC_ALL": "C", "MPLBACKEND": "TkAgg", "PYTHONHASHSEED": "1"}
    out = Path("new föld er", source.name)
    status, stdout, stderr = call(folder, *flags, "--out", out, cwd=home / "elsewhere", environment=environment)
    yield Run(folder, flags, status, stdout, stderr, home / "elsewhere" / out)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@pytest.fixture(scope="module")
def watched(piped, tmp_path_factory):
    """The same run again, watched in a terminal that knows no letters but ASCII."""
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    out, shown = tmp_path_factory.mktemp("out"), b""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONHASHSEED": "2"}
    streams = dict(stdout=subprocess.PIPE, stderr=stderr)
    with start(piped.folder, *piped.flags, "--out", out, cwd=out, environment=environment, **streams) as process:
        os.close(stderr)
        with suppress(OSError):  # when the program has closed its end
            while part := os.read(terminal, 1000):
                shown += part
        stdout = process.stdout.read()
    os.close(terminal)
    return Run(piped.folder, piped.flags, process.returncode, stdout, shown.decode("ascii"), out)


def test_piped_output_is_the_summary_and_nothing_else(piped):
    assert (piped.status, piped.stderr) == (0, "")
    assert piped.stdout.splitlines()[-1] == f"files        {piped.out}"
    assert "‖" in piped.stdout and "\r" not in piped.stdout and "\x1b" not in piped.stdout
    assert {"results.json", "history.npz"} < {file.name for file in piped.out.iterdir()}


@pytest.mark.parametrize("piped", WATCHED, indirect=True)
def test_a_terminal_shows_a_bar_which_is_gone_at_the_end(watched):
    assert watched.status == 0, watched.stderr
    lines = watched.stderr.split("\r")
    assert any(line.startswith("PGD:") for line in lines)
    assert max(len(line) for line in lines) <= 80 and "\n" not in watched.stderr
    assert lines[-1] == "" and lines[-2].isspace()


@pytest.mark.parametrize("piped", WATCHED, indirect=True)
def test_a_terminal_without_greek_gets_the_summary_too(piped, watched):
    def readable(summary: str) -> str:
        return re.sub(r"[^\x00-\x7f]", "?", re.sub("(seconds|files) .*", "", summary))

    assert readable(watched.stdout) == readable(piped.stdout)


@pytest.mark.parametrize("piped", WATCHED, indirect=True)
def test_the_same_seed_gives_the_same_to_the_digit(piped, watched):
    assert differing(contents(piped.out), contents(watched.out)) == set()


@pytest.mark.parametrize("piped", ["MAXCUT"], indirect=True)  # what tells is the same in all
def test_nobody_reads_the_summary_of_another_seed(piped, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    flags = [*piped.flags, "--seed", "1", "--out", tmp_path / "out"]
    status, _, stderr = call(piped.folder, *flags, cwd=tmp_path, environment=environment, stdout=writer)
    os.close(writer)
    assert (status, stderr) == (0, "")
    first, other = contents(piped.out), contents(tmp_path / "out")
    assert first.keys() == other.keys()
    assert {"results.json/objective", "history.npz/objective"} <= differing(first, other)


@pytest.mark.parametrize("piped", ["MAXCUT"], indirect=True)  # what tells is the same in all
def test_a_full_disk_is_told_in_one_line_and_leaves_no_half_of_a_file(piped, tmp_path):
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    (tmp_path / "results.json").write_text("of the last run")
    flags = [*piped.flags, "--out", tmp_path]
    status, stdout, stderr = call(piped.folder, *flags, cwd=tmp_path, environment={}, preexec_fn=full)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("error: ") and str(tmp_path) in stderr and stderr.count("\n") == 1
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"results.json": "of the last run"}


@pytest.mark.parametrize("piped", ["MAXCUT"], indirect=True)  # what tells is the same in all
def test_a_folder_that_cannot_be_written_to_is_refused(piped, tmp_path):
    closed = dict(preexec_fn=lambda: os.close(1))  # as a daemon's stdout may be
    status, _, stderr = call(piped.folder, *piped.flags, cwd=tmp_path, environment={}, **closed)
    assert status == 2
    assert stderr.startswith("error: --out ") and stderr.count("\n") == 1


def frames(picture: bytes) -> np.ndarray:
    """The first and the last frame, from 0 for black to 1."""
    with Image.open(io.BytesIO(picture)) as image:
        found = [image.convert("RGB")]
        image.seek(getattr(image, "n_frames", 1) - 1)
        return np.array([*found, image.convert("RGB")]) / 255


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="this is no clone")
@pytest.mark.soak
def test_the_pictures_in_git_are_those_that_make_writes(tmp_path):
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout

    listed = git("ls-files", "collapse.png", "collapse.gif", *(f"{folder.name}/figures" for folder in EXPERIMENTS))
    (tmp_path / "MAXCUT").mkdir()
    for file in ("collapse.py", "MAXCUT/run.py", "MAXCUT/pgd.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    for folder in EXPERIMENTS:
        out = tmp_path / folder.name / "figures"
        status, _, stderr = call(folder, "--out", out, cwd=tmp_path, environment={})
        assert (status, stderr) == (0, "")
    subprocess.run([sys.executable, tmp_path / "collapse.py"], check=True, stdout=subprocess.DEVNULL)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.suffix in (".png", ".gif")}
    assert written == {name for name in listed.decode().split() if "/table_" not in name}  # that needs --data
    for name in written:
        old, new = frames(git("show", f":./{name}")), frames((tmp_path / name).read_bytes())
        same = old.shape == new.shape and np.abs(old - new).mean() < 1e-3  # other machines round differently
        assert same, f"another {name} is written than the one in git: add the new one"


def commands(script: str, folder: Path) -> list[str]:
    """The calls of Python and pip, in order, that a shell script would make in the folder."""
    record = f'#!/bin/sh\necho "${{0##*/}}" "$@" >> "{folder}/calls"\n'
    tools, venv = folder / "tools", folder / "work" / ".venv" / "bin"
    for tool in (tools / "python3", venv / "python", venv / "pip"):
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(record)
        tool.chmod(0o755)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder / "work")
    for experiment in EXPERIMENTS:
        (folder / "work" / experiment.name).mkdir()
        (folder / "work" / experiment.name / "main.py").touch()
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": "python3", "MAKEFLAGS": ""}
    subprocess.run(["bash", "-ec", script], cwd=folder / "work", env=environment, check=True, stdout=subprocess.DEVNULL)
    quietly = " --(quiet|disable-pip-version-check|no-compile)"
    return [re.sub(quietly, "", line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target, aim", [("make", "main.py"), ("make test", "pytest")])
def test_the_commands_without_make_do_what_make_does(tmp_path, target, aim):
    plain = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv ")]
    script = plain[["make", "make test"].index(target)]
    made, without = commands(target, tmp_path / "with make"), commands(script, tmp_path / "by hand")
    assert made[:2] == without[:2] == ["python3 -m venv .venv", "pip install -r requirements.txt"]
    assert sorted(made[2:]) == sorted(without[2:]) and aim in " ".join(without)
