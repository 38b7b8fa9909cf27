"""What every run has around its mathematics: ranges of flags, the loop, checkpoints, whole files, how figures look.

Each experiment's folder has this file, the same to the byte, as it has pgd.py; a test compares them.
"""

import copy
import gc
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import numpy as np
import torch
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullLocator
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm

from pgd import PGD, Certificate

State = dict[str, Any]
"""what a checkpoint holds: tensors, numbers, words, and lists and dictionaries of these"""


# --- ranges of hyperparameters: `lr: Positive = 0.1` ------------------------------------------------------------------


def _device(name: str) -> str:
    try:
        torch.zeros(1, dtype=torch.float64, device=torch.Generator(name).device)  # mps has no such numbers
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split(". ")[0]
        raise ValueError(f"{name} is not to be had here: {reason}") from None
    return name


Positive = Annotated[float, Field(ge=1e-30, le=1e30)]  # its square neither under- nor overflows
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[str, AfterValidator(_device)]


# --- the loop of a descent, and what it leaves in a file to go on from ------------------------------------------------


class Checkpoint:
    """The state of a run in a file, from which the same command goes on to the same end. Without a file: nothing.

    Writing takes at most a twentieth of the run's time.

    Args:
        file: where to keep it; None for nowhere. If it is there already, the run goes on from it.
        config, data: what must be the same in both runs: data, and flags but for those of places, of a search's length,
            of the baselines and of the toy. (--steps may shape a run from its start.)

    Attributes:
        elapsed: seconds that the run had taken before.
        parts: states, in the file, by the part of the run.

    Raises:
        ValueError: the file is no checkpoint, or that of another run.
        OSError: the file can't be read or written.
    """

    def __init__(self, file: Path | None = None, config: object = None, data: Sequence[Tensor] = ()) -> None:
        self.file, self.elapsed, self.parts, self._due = file, 0.0, {}, -float("inf")
        if file is None:
            return
        free = "graph", "data", "seconds", "descents", "roundings", "gaussians", "toy", "checkpoint", "out"
        digest = hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in data)).hexdigest()
        flags = {f"--{name.replace('_', '-')}": str(value) for name, value in asdict(config).items()}
        self._identity = flags | {"the data": digest}
        if file.exists():
            content = io.BytesIO(file.read_bytes())
            try:
                place = None if torch.cuda.is_available() else "cpu"  # of what a GPU has left: it is refused by name
                saved = torch.load(content, map_location=place, weights_only=True)  # runs no code, whatever is there
                other, self.parts, self.elapsed = dict(saved["identity"]), saved["parts"], saved["elapsed"]
            except Exception:  # whatever unpickling stumbles on
                raise ValueError(f"--checkpoint {file} is there and is no checkpoint of such a run") from None
            for name in self._identity | other:
                if name.removeprefix("--") not in free and self._identity.get(name) != other.get(name):
                    raise ValueError(f"--checkpoint {file} is that of another run: {name} differs; give another name")
        self._start = time.perf_counter() - self.elapsed
        self._write()

    def resume(self, part: str, load: Callable[[State], None]) -> None:
        """Load the state of that part of the run in the file, if there is one.

        Raises:
            ValueError: it has another layout than this code's.
        """
        if part in self.parts:
            try:
                load(self.parts[part])
            except (KeyError, TypeError, ValueError, RuntimeError):
                raise ValueError(
                    f"--checkpoint {self.file} is of another version of this code; give another name"
                ) from None

    def keep(self, part: str, state: Callable[[], State], finished: bool = False) -> None:
        """Keep the part's state if it is time to, or if the part has finished."""
        start = time.perf_counter()
        if self.file is not None and (finished or start >= self._due):
            self.parts[part] = copy.deepcopy(state())  # written again with other parts, when the run has gone on
            try:
                self._write()
            except OSError as error:  # the run is worth more than its checkpoint
                warnings.warn(f"--checkpoint {self.file} could not be written: {error}", stacklevel=2)
            self._due = time.perf_counter() + 20 * (time.perf_counter() - start)

    def _write(self) -> None:
        saved = {"identity": self._identity, "parts": self.parts, "elapsed": time.perf_counter() - self._start}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(f".{self.file.name}.part")
        buffer = io.BytesIO()  # torch.save on a path says RuntimeError where the system says why not
        torch.save(saved, buffer)
        try:
            part.write_bytes(buffer.getbuffer())
            os.replace(part, self.file)
        finally:  # of a full disk, or Ctrl-C, no half of a file is left
            part.unlink(missing_ok=True)


class Descent(ABC):
    """A run of PGD that can be stepped, saved and gone on with; the descents of the three experiments are of this kind.

    A subclass makes its parameters and its PGD in `__init__`, and says what a step is, what a snapshot holds and when
    one is due, and what all that amounts to (`result`).

    Args:
        params: what PGD moves, by name.
        pgd: the optimizer.
        steps: at most so many.
        generator: of all randomness.

    Attributes:
        t: steps taken.
        kicks: steps at which a perturbation struck.
        history: snapshots, a list for each name in the rows.
        interrupted: whether Ctrl-C ended the run.
        hurried: whether it came again before the certificate, which is then left out.
    """

    def __init__(self, params: dict[str, Tensor], pgd: PGD, steps: int, generator: torch.Generator) -> None:
        self.params, self.pgd, self.steps, self.generator = params, pgd, steps, generator
        self.t, self.kicks, self.history, self.interrupted, self.hurried = 0, [], {}, False, False

    @abstractmethod
    def step(self) -> None:
        """One step of PGD, with the hyperparameters of time t."""

    @abstractmethod
    def due(self) -> bool:
        """Whether a snapshot is due at time t."""

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """A snapshot: numbers (or arrays) by name."""

    def says(self) -> str:
        """The latest snapshot in a few words, for the progress bar."""
        return ""

    def run(self, checkpoint: Checkpoint | None = None) -> Self:
        """Step until PGD has converged, the steps are used up, or Ctrl-C; shows its progress in a terminal.

        Raises:
            FloatingPointError: the gradient is no longer finite.
        """
        checkpoint = checkpoint or Checkpoint()
        checkpoint.resume("descent", self.load_state_dict)
        try:
            with tqdm(desc="PGD", initial=self.t, total=self.steps, unit=" steps", disable=None, leave=False) as bar:
                while self.t < self.steps and not self.pgd.converged:
                    if self.due():
                        self.snapshot()
                        bar.set_postfix_str(self.says(), refresh=False)
                        bar.update(self.t - bar.n)
                    self.step()
                    if not isfinite(self.pgd.gradient_norm):
                        raise FloatingPointError(f"the gradient is {self.pgd.gradient_norm} at step {self.t}")
                    self.t += 1
                    if self.pgd.perturbations > len(self.kicks):
                        self.kicks.append(self.t)
                    checkpoint.keep("descent", self.state_dict)
                checkpoint.keep("descent", self.state_dict, finished=True)
        except KeyboardInterrupt:
            self.interrupted = True
        with self.unbroken():
            self.snapshot()
        return self

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Ctrl-C waits for the end of the block, and ends the run then."""
        with held() as pressed:
            yield
        self.hurried |= len(pressed) + self.interrupted > 1
        self.interrupted |= bool(pressed)

    def certified(self, measure: Callable[..., Certificate], *at: object, **how: object) -> Certificate | None:
        """measure(*at, **how), which may take longer than the descent; None where Ctrl-C or lack of memory ends it."""
        if self.hurried:
            return None
        wait = "certificate …" + " (Ctrl-C leaves it out)" * self.interrupted
        try:
            with tqdm(desc=wait, bar_format="{desc}", disable=None, leave=False), enough_memory("no certificate"):
                return measure(*at, **how)
        except KeyboardInterrupt:
            self.interrupted = True
        return None

    def snapshot(self) -> None:
        """Append a row to the history."""
        for name, value in self.row().items():
            self.history.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The history and the kicks as arrays, as they go into history.npz."""
        return {name: np.array(values) for name, values in self.history.items()} | {"kicks": np.array(self.kicks)}

    def state_dict(self) -> State:
        """All that further steps depend on; a subclass adds what it has besides."""
        params, random = {name: x.detach() for name, x in self.params.items()}, self.generator.get_state()
        loop = dict(t=self.t, steps=self.steps, kicks=self.kicks, history=self.history, random=random)
        return loop | dict(params=params, pgd=self.pgd.state_dict())

    def load_state_dict(self, state: State) -> None:
        """Go on where the descent was whose `state_dict` this is."""
        self.t, self.steps, self.kicks, self.history = (state[name] for name in ("t", "steps", "kicks", "history"))
        for name, x in self.params.items():
            x.data.copy_(state["params"][name])
        self.pgd.load_state_dict(state["pgd"])
        self.generator.set_state(state["random"])


def perturbed(
    params: Iterable[Tensor], config: Any, objective: Callable[[], Tensor], generator: torch.Generator, **other: object
) -> PGD:
    """PGD with the config's hyperparameters; the pure algorithms have no momentum, and 2 follows the objective.

    What Algorithm 2 takes for flat is what the certificate does.
    """
    how = dict(lr=config.lr, rho=config.rho, radius=config.radius, patience=config.patience, generator=generator)
    how |= dict(momentum=config.momentum if config.algorithm == "default" else 0.0)
    how |= dict(objective=objective if config.algorithm == "2" else None)
    return PGD(params, **how | dict(curvature=min(sqrt(config.rho), config.lam or inf)) | other)


def short_of_memory(error: BaseException) -> bool:
    """Whether that is what the error says: PyTorch says it by a RuntimeError, as bugs say other things."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


@contextmanager
def enough_memory(without: str) -> Iterator[None]:
    """Where memory runs out within the block, that is noted, and what the run goes on without; it is worth more."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        warnings.warn(f"memory ran out: {without}", stacklevel=3)


# --- files ------------------------------------------------------------------------------------------------------------


def writable(folder: Path) -> None:
    """Make the folder if need be, before the run has cost anything.

    Raises:
        OSError: it can't be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out {folder} can't be written to; give another folder")


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """So many of PyTorch's within the block, None for as many as there are; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def held() -> Iterator[list[int]]:
    """While the block runs Ctrl-C is only noted, in the list."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    first = threading.current_thread() is threading.main_thread() and callable(handler)  # else there is none to hold up
    if first:
        signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield pressed
    finally:
        if first:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def whole_files(folder: Path, sometimes: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder, whose files at the end move to `folder`, each of them whole; Ctrl-C waits for that.

    Args:
        folder: where the files are to be.
        sometimes: names of files that not every run writes: those of an earlier run are removed.

    Raises:
        OSError: `folder` can't be written to, or is full.
    """
    parts: dict[Path, Path] = {}
    with held() as pressed:
        try:
            with tempfile.TemporaryDirectory() as staging:
                yield Path(staging)
                parts = {folder / f".{file.name}.part": file for file in Path(staging).iterdir()}
                for part, file in parts.items():
                    if (folder / file.name).is_dir():
                        raise IsADirectoryError(f"{file.name} is a folder there")
                    shutil.copyfile(file, part)
            for part, file in parts.items():
                os.replace(part, folder / file.name)
            for name in set(sometimes) - {file.name for file in parts.values()}:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OSError(f"the files can't be written to {folder}: {error.strerror or error}") from error
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
    if pressed:
        raise KeyboardInterrupt(f"the files are in {folder}")


def save(
    folder: Path, config: object, results: State, figures: Mapping[str, Figure], **arrays: Mapping[str, np.ndarray]
) -> None:
    """Write figures (name.png and name.pdf), arrays (name.npz) and results.json, which adds config and versions."""
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)
    names = ("torch", "numpy", "scipy", "sklearn", "networkx", "matplotlib")
    versions = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    provenance = {"config": flags, "versions": {"python": platform.python_version()} | versions}
    (folder / "results.json").write_text(json.dumps(provenance | results, indent=2) + "\n", encoding="utf-8")


# --- what the user reads ----------------------------------------------------------------------------------------------


def print_summary(lines: Mapping[str, str]) -> None:
    """Print the lines, each behind its name."""
    print("\n".join(f"{name:13}{text}" for name, text in lines.items()))


def command_line(main: Callable[[Any], bool], config: type, description: str) -> NoReturn:
    """Run main with the flags as a config; it returns whether Ctrl-C cut it short.

    Exit status: 0; 130 after Ctrl-C; 2 for bad input, which is said in one line (`python -X dev` shows where from).
    """
    gc.freeze()  # what is imported stays
    gc.enable()
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a daemon may have closed them
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="replace")  # λ and ‖ where the terminal has none
    flags = None
    try:
        flags = tyro.cli(config, description=description)
        status = 130 if main(flags) else 0
        print(end="", flush=True)
    except BrokenPipeError:  # nobody reads on, as in `| head -1`; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt as interrupt:
        file = getattr(flags, "checkpoint", None)
        saved = f"--checkpoint {file} goes on from what it has" if file and file.exists() else "nothing is saved"
        print("interrupted:", str(interrupt) or f"before the files were written; {saved}", file=sys.stderr)
        status = 130
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        memory = "not enough memory: " if short_of_memory(error) else ""
        if sys.flags.dev_mode or (isinstance(error, RuntimeError) and not memory):
            raise
        smaller = f"--lr {flags.lr / 10:g}" if getattr(flags, "lr", None) else "a smaller --lr"
        hint = f": the run diverges; try {smaller}" if isinstance(error, FloatingPointError) else ""
        print("error:", memory + " ".join(str(error).split()) + hint, file=sys.stderr)
        status = 2
    sys.exit(status)


# --- how the figures look ---------------------------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
PURPLE, SKY = "#CC79A7", "#56B4E9"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.dpi": 200,
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Powers(LogFormatterSciNotation):
    """Labels of a logarithmic axis in plain letters, 10⁻³: Matplotlib would parse each one as a formula, slowly."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of the tick at x."""
        label = re.sub(r"\^{(.*?)}", lambda power: power[1].translate(SUPERSCRIPTS), super().__call__(x, pos))
        return re.sub(r"\\mathdefault|[${}]", "", label.replace(r"\times", "×")).replace("-", "−")


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as folder/name.png and folder/name.pdf, the same bytes for the same figure."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        for ticker in (axis.major, axis.minor):
            if isinstance(ticker.formatter, LogFormatterSciNotation):
                ticker.formatter = Powers()
                ticker.formatter.set_axis(axis)
        if len(axis.get_majorticklocs()) > 4:  # enough: each tick more, with a label or not, is laid out four times
            axis.set_minor_locator(NullLocator())
    with rc_context(STYLE):  # by the canvases, as `savefig` draws everything twice
        figure.set_dpi(STYLE["savefig.dpi"])
        FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
        figure.set_layout_engine("none")  # laid out once is enough
        FigureCanvasPdf(figure).print_pdf(folder / f"{name}.pdf", metadata={"CreationDate": None})


def perturbations(axes: Axes, kicks: Sequence[int]) -> None:
    """A line where each perturbation struck; the last one finds no way down, and PGD returns to where it was."""
    for kick in kicks:
        axes.axvline(kick, color=ORANGE, linewidth=1.5, zorder=0, label="perturbation")


def legend_below(figure: Figure, columns: int | None = None) -> None:
    """One legend for all panels, below them; in one column up to three lines, else two, unless it is said."""
    drawn = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes)
    unique = {label: handle for panel in drawn for handle, label in panel}
    columns = columns or (1 if len(unique) < 4 else 2)
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=columns, fontsize=9)
