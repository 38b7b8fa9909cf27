"""The harness of the studies: what is kept, what is run again, processes side by side, Slurm, quartiles and tables."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path.insert(1, str(ROOT / "MAXCUT"))

import sweep as harness
from sweep import Sweep, command_line, quartiles, report, sweep, table, whole

CASES = [dict(x=x, seed=seed) for x in (1, 2) for seed in range(3)]
STUDY = """
from pathlib import Path
import toy_model

def run(case):
    log, limit = Path(case["log"]), Path(case["log"] + ".limit")
    if limit.exists() and log.exists() and len(log.read_text().split()) == int(limit.read_text()):
        raise KeyboardInterrupt
    with log.open("a") as file:
        file.write(f"{case['x']}.{case['seed']}\\n")
    return {"y": toy_model.a * case["x"] ** 2 + case["seed"], "word": "ja"}

# --- figures
colour = "blue"
"""


@pytest.fixture
def study(tmp_path, monkeypatch) -> SimpleNamespace:
    """A study and an experiment of its own; `calls(…)` sweeps, and returns the rows and which cases were run."""
    folder, log = tmp_path / "experiment", tmp_path / "log"
    folder.mkdir()
    (folder / "toy_model.py").write_text("a = 1\n")
    for name in ("pgd.py", "run.py"):
        shutil.copy(ROOT / "MAXCUT" / name, folder)
    study = tmp_path / "study.py"
    study.write_text(STUDY)
    monkeypatch.setattr(harness, "EXPERIMENT", folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources change faster than their times

    def calls(cases=CASES, name="toy", limit=1000, **options):
        log.unlink(missing_ok=True)
        (tmp_path / "log.limit").write_text(str(limit))
        sys.modules.pop("toy_model", None)
        run = runpy.run_path(str(study), run_name="the study")["run"]
        cases = [case | {"log": str(log)} for case in cases]
        rows = sweep(run, cases, name, Sweep(**(dict(seeds=3, out=tmp_path / "figures") | options)))
        return [{key: x for key, x in row.items() if key != "log"} for row in rows], ran()

    def ran() -> list[str]:
        return sorted(log.read_text().split()) if log.exists() else []

    return SimpleNamespace(calls=calls, ran=ran, folder=folder, source=study, runs=tmp_path / "figures" / "toy_runs")


ALL = ["1.0", "1.1", "1.2", "2.0", "2.1", "2.2"]
ROWS = [case | {"y": case["x"] ** 2 + case["seed"], "word": "ja"} for case in CASES]


def test_rows_are_the_cases_with_their_results_and_are_kept(study, capsys):
    assert study.calls() == (ROWS, ALL)
    assert study.calls() == (ROWS, [])
    assert "6 of 6 runs were finished before" in capsys.readouterr().err
    assert study.calls(name="other") == (ROWS, ALL)
    assert study.calls([*CASES, dict(x=3, seed=0)])[1] == ["3.0"]


def test_two_processes_give_the_rows_of_one(study):
    assert study.calls(jobs=2) == (ROWS, ALL)


def test_an_interrupted_sweep_goes_on_where_it_stopped(study, capsys):
    with pytest.raises(KeyboardInterrupt):
        study.calls(limit=4)
    assert study.ran() == ALL[:4]
    assert study.calls() == (ROWS, ALL[4:])
    assert "4 of 6 runs were finished before" in capsys.readouterr().err


def test_a_changed_source_runs_everything_again_but_a_changed_figure_nothing(study):
    study.calls()
    (study.folder / "plot.py").write_text("colour = 'blue'\n")
    study.source.write_text(STUDY.replace("blue", "red"))
    assert study.calls() == (ROWS, [])
    study.source.write_text(STUDY.replace("ja", "nein"))
    assert study.calls()[1] == ALL
    study.source.write_text(STUDY)
    (study.folder / "toy_model.py").write_text("a = 2\n")
    rows, again = study.calls()
    assert rows[0]["y"] == 2 and again == ALL
    (study.folder / "toy_model.py").write_text("a = 1\n")
    assert study.calls() == (ROWS, [])


@pytest.mark.parametrize("name", ["benchmark", "johnson_lindenstrauss", "maxcut", "neural_networks"])
def test_what_makes_tables_and_figures_stands_below_the_line(name):
    above = (ROOT / "studies" / f"{name}.py").read_text().split("\n# --- figures")[0]
    assert not re.findall(r"\b(report|quartiles|Figure)\(", above)


def test_a_source_that_changes_meanwhile_counts_for_the_next_sweep(study):
    edits = f"    Path({str(study.folder / 'toy_model.py')!r}).write_text(f'a = 1  # {{case[\"seed\"]}}')\n    return"
    study.source.write_text(STUDY.replace("    return", edits))
    assert study.calls() == (ROWS, ALL)
    assert study.calls()[1] == ALL


def test_a_half_written_run_is_run_again(study):
    study.calls()
    file = next(study.runs.glob("*.json"))
    file.rename(file.with_suffix(".123.part"))
    rows, again = study.calls()
    assert rows == ROWS and len(again) == 1


def test_what_a_run_raises_is_raised(study):
    study.source.write_text("def run(case):\n    raise ValueError('a bad case')\n")
    for jobs in (1, 2):
        with pytest.raises(ValueError, match="a bad case"):
            study.calls(jobs=jobs)


SBATCH = """#!{python}
import os, subprocess, sys
from subprocess import DEVNULL
text = open(sys.argv[-1]).read()
first, last = next(x for x in text.splitlines() if "--array" in x).split("=")[1].split("%")[0].split("-")
job = f"SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((7 + task)) bash '{sys.argv[-1]}'"
there = f"'{os.path.dirname(sys.argv[-1])}'/7_${{task}}_submitted.pkl"  # written once submitit has its number
loop = f"for task in $(seq {first} {last}); do until [ -e {there} ]; do sleep 0.1; done; {job}; done"
env = dict(os.environ, SLURM_ARRAY_JOB_ID="7", SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0",
           SLURM_LOCALID="0", SLURM_PROCID="0", SLURM_JOB_NODELIST="here")
subprocess.Popen(["bash", "-c", loop], env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)  # one by one: %1
print("Submitted batch job 7")
"""
SRUN = """#!{python}
import os, sys
arguments = sys.argv[1:]
while arguments and arguments[0].startswith("-"):
    arguments = arguments[2:] if arguments[0] in ("--output", "--error", "-o", "-e") else arguments[1:]
os.execvp(arguments[0], arguments)
"""


def test_a_slurm_cluster_does_the_runs(study, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": "#!/bin/sh\n", "scancel": "#!/bin/sh\n"}.items():
        (tools / name).write_text(text.replace("{python}", sys.executable))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    assert study.calls(CASES[:2], slurm_partition="cpu") == (ROWS[:2], ALL[:2])
    scripts = [script.read_text() for script in (study.runs / "logs").glob("*.sh")]
    assert all("--partition=cpu" in script and "--array=0-1%1" in script for script in scripts) and scripts
    assert study.calls(CASES[:2]) == (ROWS[:2], [])


def test_without_slurm_this_machine_does_the_runs(study, capsys):
    assert shutil.which("srun") is None
    assert study.calls(slurm_partition="gpu") == (ROWS, ALL)
    assert "there is no Slurm here" in capsys.readouterr().err


def test_half_a_run_is_not_kept():
    assert whole(found := SimpleNamespace(interrupted=False)) is found
    with pytest.raises(KeyboardInterrupt):
        whole(SimpleNamespace(interrupted=True))


def test_quartiles():
    rows = [dict(a=a, y=y) for a in ("p", "q") for y in (1, 2, 3, 4, 10)]
    rows[-1]["y"] = 110
    assert quartiles(rows, "y", a="p") == (2, 3, 4)
    assert quartiles(rows, "y", a="q", y=110) == (110, 110, 110)
    assert quartiles(rows[:5] + [dict(a="p", y=11)], "y") == (2.25, 3.5, 8.5)
    assert quartiles([*rows[:5], dict(a="p", y=None)], "y") == (2, 3, 4)
    assert np.isnan(quartiles([dict(y=None)], "y")).all()


def test_table():
    assert table(["λ", "what", "y"], [[0.1, "cut", (1.0, 2.0, 30.125)], [1e-7, 12345, 1 / 3]]) == (
        "| λ | what | y |\n| --- | --- | --- |\n| 0.1 | cut | 2 (1 – 30.12) |\n| 1e-07 | 12345 | 0.3333 |"
    )


def test_report_prints_the_table_and_writes_the_files(tmp_path, capsys, monkeypatch):
    report("toy", ["a", "b"], [[1, (1.0, 2.0, 3.0)]], Figure(), tmp_path, {"best": 2})
    assert {file.name for file in tmp_path.iterdir()} == {"toy.png", "toy.pdf", "toy.md", "toy.json"}
    kept = json.loads((tmp_path / "toy.json").read_text())
    assert kept == {"header": ["a", "b"], "body": [[1, [1, 2, 3]]], "best": 2}
    shown = "| a | b |\n| --- | --- |\n| 1 | 2 (1 – 3) |\n"
    assert (tmp_path / "toy.md").read_text() == shown == table(kept["header"], kept["body"]) + "\n"
    assert capsys.readouterr().out.startswith(shown)
    monkeypatch.setattr(harness, "FIGURES", tmp_path)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "other.json").write_text("of an earlier run")  # READMEs show this one
    for name in ("other", "mine"):
        report(name, ["a"], [], Figure(), tmp_path)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["other.json"]
    assert json.loads((tmp_path / "results" / "other.json").read_text())["header"] == ["a"]
    assert (tmp_path / "mine.json").exists() and not (tmp_path / "other.json").exists()


def toy(options: Sweep) -> int:
    """A study."""
    (options.out / "new").mkdir(parents=True)
    if options.seeds == 2:
        raise KeyboardInterrupt
    if options.seeds == 4:
        raise FloatingPointError("the gradient is nan")
    return 1 if options.seeds == 3 else None


def called(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    try:
        return command_line({"toy": toy, "other": toy}, "Toys.")
    except SystemExit as stop:
        return stop.code


def test_exit_status(tmp_path, monkeypatch, capsys):
    for seeds, status in ((1, 0), (3, 1), (2, 130)):
        assert called(monkeypatch, "toy", "--seeds", seeds, "--out", tmp_path / str(seeds)) == status
    assert "a study goes on from its finished runs" in capsys.readouterr().err
    assert called(monkeypatch, "toy", "--out", tmp_path / "1") == 2  # new/ is there
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "new" in message and message.count("\n") == 1
    assert called(monkeypatch, "toy", "--seeds", 4, "--out", tmp_path / "4") == 2
    assert capsys.readouterr().err == "error: the gradient is nan\n"
    monkeypatch.setattr(sys, "flags", SimpleNamespace(dev_mode=True))
    with pytest.raises(FileExistsError):  # with -X dev it is said where
        called(monkeypatch, "toy", "--out", tmp_path / "1")


def test_a_terminal_without_letters_and_a_reader_that_goes_away(tmp_path):
    toys = "def toy(): print('λ' * 10**6)\nsys.exit(sweep.command_line(dict(toy=toy, other=toy), 'Toys.'))\n"
    (tmp_path / "toys.py").write_text(f"import sys\nsys.path[:0] = {sys.path}\nimport sweep\n{toys}")
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    with subprocess.Popen([sys.executable, tmp_path / "toys.py", "toy"], **how) as process:
        assert process.stdout.read(3) == b"???"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize("bad", [["toy", "--seeds", "0"], ["toy", "--jobs", "0"], ["toy", "--sede", "1"], ["toys"], []])
def test_bad_options_are_refused(tmp_path, monkeypatch, capsys, bad):
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, *bad) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and (not bad or bad[-1] in message or bad[-2].strip("-") in message)
    assert list(tmp_path.iterdir()) == []
