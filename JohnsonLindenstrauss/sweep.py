"""Sweeps for the studies: many independent runs, one after another, in parallel or on a Slurm cluster; finished ones
are kept. The same file, to the byte, in every experiment's folder.
"""

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from unittest.mock import patch

import numpy as np
import submitit
import torch
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

import style
from experiment import refuse, whole_files, writable

HERE = Path(__file__).parent
DRAWING = ("plot.py", "style.py")
Row = dict[str, object]


class Interruptible(Protocol):
    """What a run ends with, as far as `whole` asks."""

    interrupted: bool


Result = TypeVar("Result", bound=Interruptible)


@dataclass(frozen=True)
class Sweep:
    """Where and how a study's runs are done."""

    seeds: int = 10
    """runs of each setting; medians and quartiles are over these"""
    jobs: int = 1
    """processes side by side; on a cluster, jobs of the Slurm array"""
    slurm_partition: str | None = None
    """partition of a Slurm cluster to run on, through submitit; without Slurm here, this machine does it"""
    minutes: int = 240
    """time limit of each Slurm job"""
    out: Path = HERE / "figures"
    """folder for the figure, the table and, in <study>_runs, the finished runs"""


def sweep(run: Callable[[Row], Row], cases: Sequence[Row], name: str, options: Sweep) -> list[Row]:
    """Rows case | run(case), in the order of the cases.

    Each finished run is a line in a file of out/<name>_runs and is not done again, unless a source file has changed
    since: an interrupted sweep goes on where it stopped.

    Args:
        run: function of one case; all its randomness from the case. It returns numbers and words.
        cases: one dictionary of numbers and words a run, all different.
        name: of the study.
        options: see `Sweep`.

    Raises:
        ValueError: an option out of range.
        OSError: the folder can't be written to.
    """
    if options.seeds < 1 or options.jobs < 1:
        raise ValueError(f"--seeds {options.seeds} --jobs {options.jobs}: both must be at least 1")
    folder = options.out / f"{name}_runs"
    folder.mkdir(parents=True, exist_ok=True)
    code = _code()  # once: who edits a source meanwhile changes the next sweep, not this one
    done = _finished(folder, code)
    todo = [case for case in cases if _key(case) not in done]
    if len(todo) < len(cases):
        print(f"{len(cases) - len(todo)} of {len(cases)} runs were finished before", file=sys.stderr)
    bar = tqdm(desc=name, total=len(cases), initial=len(cases) - len(todo), unit=" runs", disable=None, leave=False)
    with bar:
        if options.jobs == 1 and options.slurm_partition is None:
            _work(run, todo, folder, code, bar.update)
        elif todo:
            _submit(run, todo, folder, code, options, bar)
    done = _finished(folder, code)
    return [case | done[_key(case)] for case in cases]


def _submit(run: Callable[[Row], Row], todo: list[Row], folder: Path, code: str, options: Sweep, bar: tqdm) -> None:
    """Deal the cases out to so many jobs, and wait for them."""
    # The workers import the experiment's modules by name, and not the current folder's.
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    executor = submitit.AutoExecutor(folder / "logs", cluster=None if options.slurm_partition else "local")
    if executor.cluster == "local" and options.slurm_partition:
        print("note: there is no Slurm here; the jobs run on this machine", file=sys.stderr)
    executor.update_parameters(
        name=folder.name, timeout_min=options.minutes, cpus_per_task=1, slurm_partition=options.slurm_partition
    )
    shares = [todo[first :: options.jobs] for first in range(min(options.jobs, len(todo)))]
    # submitit's local controllers share this terminal, and would answer Ctrl-C with a traceback each.
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    with patch.dict(os.environ, PYTHONPATH=path, PYTHONSAFEPATH="1"):
        jobs = executor.map_array(_work, [run] * len(shares), shares, *([x] * len(shares) for x in (folder, code)))
    os.dup2(terminal, 2)
    os.close(terminal)
    os.close(nowhere)
    before, wanted = bar.n, {_key(case) for case in todo}
    try:
        while not all(job.done() for job in jobs):
            time.sleep(0.5)
            bar.update(before + len(wanted & _finished(folder, code).keys()) - bar.n)
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        raise
    for job in jobs:
        job.result()  # raises what the job raised


def _work(
    run: Callable[[Row], Row], cases: list[Row], folder: Path, code: str, update: Callable[[], object] = lambda: None
) -> None:
    torch.set_num_threads(1)  # the runs are small, and side by side
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    with (folder / f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}.jsonl").open("a", encoding="utf-8") as file:
        for case in cases:
            row = {"code": code, "case": case, "result": run(case)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            update()


def whole(result: Result) -> Result:
    """The run's result; passes Ctrl-C on, which runs answer with what they have: half a run must not be kept.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _key(case: Row) -> str:
    return json.dumps(case, sort_keys=True)


def _code() -> str:
    """Fingerprint of what the numbers depend on: the folder's sources, without those that draw."""
    sources = (file.read_bytes() for file in sorted(HERE.glob("*.py")) if file.name not in DRAWING)
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def _finished(folder: Path, code: str) -> dict[str, Row]:
    """Results of the finished runs of the sources with this fingerprint, by the key of their case."""
    rows = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):  # else its writer was stopped within the line
                row = json.loads(line)
                if row["code"] == code:
                    rows[_key(row["case"])] = row["result"]
    return rows


def quartiles(rows: Sequence[Row], column: str, **where: object) -> tuple[float, float, float]:
    """First quartile, median and third quartile of a column, over the rows with these values."""
    values = [row[column] for row in rows if all(row[name] == value for name, value in where.items())]
    q1, median, q3 = np.quantile(np.array(values, dtype=float), [0.25, 0.5, 0.75])
    return float(q1), float(median), float(q3)


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns; numbers as they are, quartiles as `median (q1 – q3)`."""

    def text(cell: object) -> str:
        if isinstance(cell, tuple):
            return f"{cell[1]:.4g} ({cell[0]:.4g} – {cell[2]:.4g})"
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)

    lines = [list(map(str, header)), *([text(cell) for cell in line] for line in body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def report(name: str, text: str, figure: Figure, out: Path) -> None:
    """Print a table, and write it and its figure as out/<name>.md, .png and .pdf."""
    writable(out)
    with whole_files(out) as folder:
        style.save(figure, folder, name)
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nfiles: {out.resolve() / name}.png, .pdf, .md")


def command_line(studies: dict[str, Callable[..., None]], description: str) -> int:
    """One subcommand a study; returns the exit status: 2 for bad input, 130 after Ctrl-C."""
    try:
        tyro.extras.subcommand_cli_from_dict(studies, description=description, config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("interrupted: the finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0
