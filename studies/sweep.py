"""Studies: many independent runs, side by side or on a Slurm cluster, their quartiles, tables and figures.

A study file puts its experiment's folder on the path, before it imports this file or the experiment.
What a run computes stands above the line `# --- figures`: a change below it, or in plot.py, runs nothing again.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError, validate_call
from pydantic.dataclasses import dataclass
from tqdm import tqdm

import run as housekeeping
from run import STYLE, Count, save_figure, whole_files, writable

EXPERIMENT = Path(housekeeping.__file__).parent
FIGURES = Path(__file__).parent / "figures"
RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, object]


@dataclass(frozen=True)
class Sweep:
    """Where and how a study's runs are done."""

    seeds: Count = 10
    """runs of each setting; medians and quartiles are over these"""
    jobs: Count = 1
    """processes side by side; on a cluster, jobs of the Slurm array"""
    slurm_partition: str | None = None
    """partition of a Slurm cluster to run on, through submitit; without Slurm here, this machine does it"""
    minutes: Count = 240
    """time limit of each Slurm job"""
    out: Path = FIGURES
    """folder for the figure, the table and, in <study>_runs, the finished runs"""


def sweep(run: Callable[[Row], Row], cases: Sequence[Row], name: str, options: Sweep) -> list[Row]:
    """Rows case | run(case), in the order of the cases.

    Each finished run is a file of out/<name>_runs and is not done again, unless a source that it depends on has
    changed since: an interrupted sweep goes on where it stopped.

    Args:
        run: function of one case; all its randomness from the case. It returns numbers and words.
        cases: one dictionary of numbers and words a run, all different.
        name: of the study.
        options: see `Sweep`.

    Raises:
        OSError: the folder can't be written to.
    """
    folder, code = options.out / f"{name}_runs", fingerprint(run)  # once: who edits a source changes the next sweep
    writable(folder)
    files = [folder / f"{joblib.hash([code, case])}.json" for case in cases]
    todo = [(run, case, file) for case, file in zip(cases, files, strict=True) if not file.exists()]
    if done := len(cases) - len(todo):
        print(f"{done} of {len(cases)} runs were finished before", file=sys.stderr)
    with tqdm(desc=name, total=len(cases), initial=done, unit=" runs", disable=None, leave=False) as bar:
        for _ in _finished(todo, folder, options) if todo else ():
            bar.update()
    return [case | json.loads(file.read_text(encoding="utf-8")) for case, file in zip(cases, files, strict=True)]


def _finished(todo: Sequence[tuple], folder: Path, options: Sweep) -> Iterator[None]:
    """Do the runs, and yield whenever one is done."""
    if options.slurm_partition is not None:
        import submitit

        executor = submitit.AutoExecutor(folder / "logs")
        if executor.cluster == "slurm":
            path = f"export PYTHONPATH={EXPERIMENT}:{Path(__file__).parent}"  # jobs import modules by name
            where = dict(slurm_partition=options.slurm_partition, slurm_setup=[path])
            many = dict(timeout_min=options.minutes, cpus_per_task=1, slurm_array_parallelism=options.jobs)
            executor.update_parameters(name=folder.name, **where, **many)
            jobs = executor.map_array(_work, *zip(*todo, strict=True))
            try:
                yield from (job.result() for job in submitit.helpers.as_completed(jobs, poll_frequency=1))
            finally:
                for job in jobs:
                    job.cancel(check=False)
            return
        print("note: there is no Slurm here; the runs are done on this machine", file=sys.stderr)
    parallel = joblib.Parallel(n_jobs=options.jobs, return_as="generator_unordered")
    yield from parallel(joblib.delayed(_work)(*task) for task in todo)


def _work(run: Callable[[Row], Row], case: Row, file: Path) -> None:
    torch.set_num_threads(1)  # the runs are small, and side by side
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")
    text = json.dumps(run(case))
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def fingerprint(run: Callable[[Row], Row]) -> str:
    """Hash of the sources that a run's numbers depend on: the experiment's, and its study's down to `# --- figures`.

    Other methods' count too, where the study has them: peers.py and rivals.py.
    """
    sources = [file.read_bytes() for file in sorted(EXPERIMENT.glob("*.py")) if file.name != "plot.py"]
    sources += [Path(sys.modules[x].__file__).read_bytes() for x in ("peers", "rivals") if x in sys.modules]
    study = Path(run.__code__.co_filename)
    return joblib.hash([*sources, study.read_bytes().split(b"\n# --- figures")[0]])


def whole(result: Any) -> Any:
    """The run's result; passes Ctrl-C on, which runs answer with what they have: half a run must not be kept.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def quartiles(rows: Sequence[Row], column: str, **where: object) -> tuple[float, float, float]:
    """First quartile, median and third quartile of a column, over the rows with these values; where it is None aside.

    Without any they are nan.

    Raises:
        ValueError: no row has these values.
    """
    chosen = [row[column] for row in rows if where.items() <= row.items()]
    if not chosen:
        raise ValueError(f"no run has {where}")
    values = [value for value in chosen if value is not None]
    q1, median, q3 = np.quantile(np.array(values or [nan], dtype=float), [0.25, 0.5, 0.75])
    return float(q1), float(median), float(q3)


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers to four digits, quartiles as `median (q1 – q3)`."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(map(in_words, line))} |" for line in lines)


def in_words(cell: object) -> str:
    """A table's cell: a number, quartiles, or words."""
    if isinstance(cell, tuple | list):
        return f"{cell[1]:.4g} ({cell[0]:.4g} – {cell[2]:.4g})"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def band(
    axes: Axes, x: Sequence[float], lines: Sequence[tuple[float, float, float]], style: str, **how: object
) -> None:
    """A line through the medians, and a band between the quartiles; how: color and label, as in `axes.plot`."""
    q1, median, q3 = np.array(lines).reshape(-1, 3).T
    axes.plot(x, median, style, **({"markersize": 4} | how))
    axes.fill_between(x, q1, q3, color=how["color"], alpha=0.2, linewidth=0)


def report(
    name: str,
    header: Sequence[str],
    body: Sequence[Sequence[object]],
    figure: Figure,
    out: Path,
    findings: Mapping[str, object] | None = None,
) -> None:
    """Print a table; write it and its figure as out/<name>.md, .png and .pdf, and what READMEs show as <name>.json.

    The .json goes to results/ where `out` is the default and READMEs show it, else to `out`: {"header", "body",
    …findings}, in which findings are the numbers that a README's prose names, by a name for each.
    """
    writable(out)
    text, kept = table(header, body), RESULTS if out == FIGURES and (RESULTS / f"{name}.json").exists() else out
    with whole_files(out) as folder:
        save_figure(figure, folder, name)
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    with whole_files(kept) as results:
        content = {"header": header, "body": body} | dict(findings or {})
        (results / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{text}\n\nfiles: {out.resolve() / name}.png, .pdf, .md; {kept.resolve() / name}.json")


def command_line(studies: dict[str, Callable[..., int | None]], description: str) -> int:
    """One subcommand a study; returns the exit status: the study's, 130 after Ctrl-C, or 2 for bad input.

    That is said in one line (`python -X dev` shows where from).
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # λ and ‖ where the terminal has none
    try:
        with rc_context(STYLE):
            flat = (tyro.conf.OmitArgPrefixes,)
            studies = {name: validate_call(study) for name, study in studies.items()}  # tyro does not know of ranges
            status = tyro.extras.subcommand_cli_from_dict(studies, description=description, config=flat) or 0
            print(end="", flush=True)
            return status
    except BrokenPipeError:  # nobody reads on, as in `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if sys.flags.dev_mode:
            raise
        found = error.errors() if isinstance(error, ValidationError) else ()
        text = "; ".join(f"--{x['loc'][0]} is {x['input']}: {x['msg']}" for x in found if x["loc"])
        text = text or str(error) or "not enough memory"
        print("error:", " ".join(text.split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, and a study goes on from its finished runs", file=sys.stderr)
        return 130
