"""The harness of the studies: what is kept, what is run again, processes side by side, quartiles and tables."""

import json
import runpy
import shutil
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import sweep as harness
from sweep import Row, Sweep, command_line, quartiles, report, sweep, table

FOLDER = Path(__file__).parents[1]
CASES = [dict(x=x, seed=seed) for x in (1, 2) for seed in range(3)]


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A folder of sources that the numbers depend on, in place of the experiment's own."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("sweep.py", "experiment.py", "style.py"):
        shutil.copy(FOLDER / name, folder)
    (folder / "model.py").write_text("a = 1\n")
    monkeypatch.setattr(harness, "HERE", folder)
    return folder


def options(folder: Path, **changes: object) -> Sweep:
    return Sweep(**(dict(seeds=3, out=folder / "figures") | changes))


class Counted:
    """A run that keeps count of the cases it was called with, and stops like Ctrl-C after `limit` of them."""

    def __init__(self, limit: int = 1000) -> None:
        self.cases, self.limit = [], limit

    def __call__(self, case: dict) -> dict:
        if len(self.cases) == self.limit:
            raise KeyboardInterrupt
        self.cases.append(case)
        return {"y": case["x"] ** 2 + case["seed"], "word": "ja"}


def test_rows_are_the_cases_with_their_results(tmp_path, sources):
    rows = sweep(Counted(), CASES, "toy", options(tmp_path))
    assert rows == [case | {"y": case["x"] ** 2 + case["seed"], "word": "ja"} for case in CASES]


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, sources, capsys):
    stopped, again, third = Counted(limit=4), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        sweep(stopped, CASES, "toy", options(tmp_path))
    rows = sweep(again, CASES, "toy", options(tmp_path))
    assert (stopped.cases, again.cases) == (CASES[:4], CASES[4:])
    assert "4 of 6 runs were finished before" in capsys.readouterr().err
    assert sweep(third, CASES, "toy", options(tmp_path)) == rows and third.cases == []


def test_more_seeds_add_runs_and_other_studies_are_apart(tmp_path, sources):
    sweep(Counted(), CASES[:2], "toy", options(tmp_path))
    more, other = Counted(), Counted()
    assert len(sweep(more, CASES, "toy", options(tmp_path))) == 6 and more.cases == CASES[2:]
    sweep(other, CASES, "other", options(tmp_path))
    assert other.cases == CASES


def test_a_changed_source_runs_everything_again_but_a_changed_figure_nothing(tmp_path, sources):
    sweep(Counted(), CASES, "toy", options(tmp_path))
    drawn, changed, back = Counted(), Counted(), Counted()
    (sources / "plot.py").write_text("colour = 'blue'\n")
    sweep(drawn, CASES, "toy", options(tmp_path))
    (sources / "model.py").write_text("a = 2\n")
    sweep(changed, CASES, "toy", options(tmp_path))
    (sources / "model.py").write_text("a = 1\n")
    sweep(back, CASES, "toy", options(tmp_path))
    assert (drawn.cases, changed.cases, back.cases) == ([], CASES, [])


def test_a_source_that_changes_meanwhile_counts_for_the_next_sweep(tmp_path, sources):
    def edited(case: Row) -> Row:
        (sources / "model.py").write_text(f"a = {case['seed']}\n")
        return {"y": 0}

    assert sweep(edited, CASES, "toy", options(tmp_path)) == [case | {"y": 0} for case in CASES]
    again = Counted()
    sweep(again, CASES, "toy", options(tmp_path))
    assert again.cases == CASES


def test_a_half_written_last_line_is_run_again(tmp_path, sources):
    rows = sweep(Counted(), CASES, "toy", options(tmp_path))
    (file,) = (tmp_path / "figures" / "toy_runs").glob("*.jsonl")
    text = file.read_text(encoding="utf-8")
    for cut in (1, 20):  # the line's end only, or its closing braces with it
        file.write_text(text[:-cut], encoding="utf-8")
        again = Counted()
        assert sweep(again, CASES, "toy", options(tmp_path)) == rows and again.cases == CASES[-1:]
        for other in set(file.parent.glob("*.jsonl")) - {file}:
            other.unlink()


STUDY = """
import time
from pathlib import Path
import toy_model

def run(case):
    while case["seed"] == 4 and not Path(case["gate"]).exists():
        time.sleep(0.01)
    return {"y": toy_model.draw(case["seed"])}
"""
MODEL = """
import torch

def draw(seed):
    return float(torch.randn(10_000, generator=torch.Generator().manual_seed(seed)).std())
"""


def kept(folder: Path) -> list[Row]:
    """Case and result of every finished run in the folder, in the order of the seeds."""
    rows = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted((row["case"] | row["result"] for row in rows), key=lambda row: row["seed"])


def test_two_processes_interrupted_and_resumed_give_the_same_rows_as_one(tmp_path, sources, monkeypatch, capfd):
    (sources / "toy_model.py").write_text(MODEL)
    (sources / "study.py").write_text(STUDY)
    monkeypatch.setenv("PYTHONPATH", "")  # which the sweep changes, so that its processes find toy_model
    monkeypatch.syspath_prepend(sources)
    run = runpy.run_path(str(sources / "study.py"), run_name="the study")["run"]
    gate, folder, sleep = tmp_path / "gate", tmp_path / "two" / "toy_runs", time.sleep
    cases = [dict(seed=seed, gate=str(gate)) for seed in range(8)]

    def ctrl_c(seconds: float) -> None:
        sleep(seconds)
        if len(kept(folder)) == 6:  # one process waits in the run with seed 4, the other one has done its share
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(time, "sleep", ctrl_c)
        sweep(run, cases, "toy", Sweep(jobs=2, out=tmp_path / "two"))
    sleep(0.5)  # for the process to end
    gate.touch()
    sleep(0.5)  # a process that had not ended would now go on
    assert [row["seed"] for row in kept(folder)] == [0, 1, 2, 3, 5, 7]

    two = sweep(run, cases, "toy", Sweep(jobs=2, slurm_partition="gpu", out=tmp_path / "two"))
    said = capfd.readouterr().err  # of the processes too
    assert "Traceback" not in said
    assert "there is no Slurm here" in said and "6 of 8 runs were finished before" in said
    one = sweep(run, cases, "toy", Sweep(jobs=1, out=tmp_path / "one"))
    assert one == two == kept(folder) and [row["seed"] for row in one] == list(range(8))


def test_what_a_process_raises_is_raised(tmp_path, sources, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    (sources / "study.py").write_text("def run(case):\n    raise ValueError('a bad case')\n")
    run = runpy.run_path(str(sources / "study.py"), run_name="the study")["run"]
    with pytest.raises(Exception, match="a bad case"):
        sweep(run, CASES[:1], "toy", Sweep(jobs=2, out=tmp_path))


def test_quartiles():
    rows = [dict(a=a, y=y) for a in ("p", "q") for y in (1, 2, 3, 4, 10)]
    rows[-1]["y"] = 110
    assert quartiles(rows, "y", a="p") == (2, 3, 4)
    assert quartiles(rows, "y", a="q", y=110) == (110, 110, 110)
    assert quartiles(rows[:5] + [dict(a="p", y=11)], "y") == (2.25, 3.5, 8.5)


def test_table():
    assert table(["λ", "what", "y"], [[0.1, "cut", (1.0, 2.0, 30.125)], [1e-7, 12345, 1 / 3]]) == (
        "| λ     | what  | y             |\n"
        "| ----- | ----- | ------------- |\n"
        "| 0.1   | cut   | 2 (1 – 30.12) |\n"
        "| 1e-07 | 12345 | 0.3333        |"
    )


def test_report_prints_the_table_and_writes_the_files(tmp_path, capsys):
    report("toy", "| a |", Figure(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"toy.png", "toy.pdf", "toy.md"}
    assert (tmp_path / "toy.md").read_text() == "| a |\n"
    assert capsys.readouterr().out.startswith("| a |\n")


def toy(options: Sweep) -> None:
    """A study."""
    sweep(Counted(limit=2), CASES, "toy", options)


@pytest.mark.parametrize("bad, word", [(["--seeds", "0"], "--seeds 0"), (["--jobs", "0"], "--jobs 0"), ([], "taken")])
def test_bad_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, sources, bad, word):
    (tmp_path / "taken").write_text("")
    out = tmp_path / ("new" if bad else "taken")
    monkeypatch.setattr(sys, "argv", ["study.py", "toy", *bad, "--out", str(out)])
    assert command_line({"toy": toy, "other": toy}, "Toys.") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [["toy", "--sede", "1"], ["toys"], []])
def test_unknown_words_end_with_status_2(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        command_line({"toy": toy, "other": toy}, "Toys.")
    assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130_and_says_that_it_goes_on(tmp_path, monkeypatch, capsys, sources):
    monkeypatch.setattr(sys, "argv", ["study.py", "toy", "--out", str(tmp_path)])
    assert command_line({"toy": toy, "other": toy}, "Toys.") == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert len(kept(tmp_path / "toy_runs")) == 2
