"""What every run has around its mathematics: flags in their range, checkpoints, whole files, an exit status.

This file is the same to the byte in every experiment's folder, as pgd.py is.
"""

import copy
import hashlib
import io
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import tyro
from torch import Tensor

State = dict[str, Any]
"""what a checkpoint holds: tensors, numbers, words, and lists and dictionaries of these"""


# --- flags ------------------------------------------------------------------------------------------------------------


def check(
    config: object,
    positive: Sequence[str] = (),
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
) -> None:
    """Check the hyperparameters that all experiments have, and those named; None stands for a default and is allowed.

    Args:
        config: the dataclass of the command line.
        positive: fields that must be above 0, as well as lr, lam and rho; their powers don't under- or overflow.
        least: fields that must be at least so much.
        most: those of them that must be at most so much; the others at most 10⁹ or, if not whole, 10³⁰.

    Raises:
        ValueError: names the flag, its value and what is allowed.
    """
    given = {name: value for name, value in vars(config).items() if value is not None}
    for name in ("lr", "lam", "rho", *positive):
        if name in given and not 1e-30 <= given[name] <= 1e30:
            raise ValueError(f"{flag(name)} is {given[name]}; it must be a positive number, from 1e-30 to 1e+30")
    for name, bound in {"steps": 1, "patience": 1, "radius": 0, **(least or {})}.items():
        limit = (most or {}).get(name, 10**9 if isinstance(given.get(name), int) else 1e30)
        if name in given and not bound <= given[name] <= limit:
            raise ValueError(f"{flag(name)} is {given[name]}; it must be at least {bound}, at most {limit:g}")
    if not 0 <= given.get("momentum", 0) < 1:
        raise ValueError(f"--momentum is {given['momentum']}; it must lie in [0, 1)")
    for name in given:
        if name.endswith("seed") and not 0 <= given[name] < 2**63:
            raise ValueError(f"{flag(name)} is {given[name]}; it must be a whole number from 0 to 2^63 − 1")
    try:
        torch.zeros(1, device=torch.Generator(config.device).device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {config.device} is not to be had here: {str(error).splitlines()[0]}") from None


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Checkpoint:
    """The state of a run in a file, from which a run that was killed goes on to the same end. Without a file: nothing.

    Each part of a run keeps its state under a name of its own. Writing takes at most a twentieth of the run's time.

    Args:
        file: where to keep it; None for nowhere.
        resume: checkpoint to go on from.
        identity: what must be the same in both runs, by the flag that it comes from.

    Attributes:
        elapsed: seconds that the resumed run had taken.

    Raises:
        ValueError: `resume` is no checkpoint, or that of another run.
        OSError: `resume` can't be read, or `file` can't be written.
    """

    def __init__(self, file: Path | None = None, resume: Path | None = None, identity: State | None = None) -> None:
        self.file, self.identity, self.elapsed = file or resume, identity or {}, 0.0
        self._parts: dict[str, State] = {}
        self._due = -float("inf")
        if resume is not None:
            content = io.BytesIO(resume.read_bytes())
            try:
                saved = torch.load(content, weights_only=True)  # runs no code, whatever is in the file
                other, self._parts, self.elapsed = dict(saved["identity"]), saved["parts"], saved["elapsed"]
            except Exception:  # whatever unpickling stumbles on
                raise ValueError(f"--resume {resume}: this is not a checkpoint of such a run") from None
            for name in self.identity | other:
                here, there = self.identity.get(name), other.get(name)
                if here != there:
                    what = f"{name} is {here}, and was {there}" if len(f"{here}{there}") < 80 else f"{name} has changed"
                    raise ValueError(f"--resume {resume}: {what}; only the same run can go on")
        self._start = time.perf_counter() - self.elapsed
        if self.file is not None:
            if self.file.exists() and not self.file.is_file():
                raise ValueError(f"--checkpoint {self.file} is a directory or a device, not a file")
            if self.file.exists() and self.file != resume:
                raise ValueError(f"--checkpoint {self.file} exists: --resume it, delete it or give another name")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def resumed(self, part: str) -> State | None:
        """The part's state in the resumed checkpoint; None if there is none."""
        return self._parts.get(part)

    def keep(self, part: str, state: Callable[[], State], finished: bool = False) -> None:
        """Keep the part's state if it is time to, or if the part has finished."""
        start = time.perf_counter()
        if self.file is not None and (finished or start >= self._due):
            self._parts[part] = copy.deepcopy(state())  # written again with other parts, when the run has gone on
            try:
                self._write()
            except OSError as error:  # the run is worth more than its checkpoint
                warnings.warn(f"--checkpoint {self.file} could not be written: {error}", stacklevel=2)
            self._due = time.perf_counter() + 20 * (time.perf_counter() - start)

    def _write(self) -> None:
        saved = {"identity": self.identity, "parts": self._parts, "elapsed": time.perf_counter() - self._start}
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        part = self.file.with_name(f".{self.file.name}.part")
        try:
            part.write_bytes(buffer.getbuffer())
            os.replace(part, self.file)
        except BaseException:  # Ctrl-C too
            part.unlink(missing_ok=True)
            raise


def random_state(generator: torch.Generator | None) -> Tensor:
    """The state of the generator, None being PyTorch's own."""
    return torch.get_rng_state() if generator is None else generator.get_state()


def restore_random_state(generator: torch.Generator | None, state: Tensor) -> None:
    """Set the state of the generator, None being PyTorch's own."""
    if generator is None:
        torch.set_rng_state(state)
    else:
        generator.set_state(state)


def identity(config: object, *data: Tensor) -> State:
    """What a resumed run must share with the one before: all flags but those that say where and how long, and data."""
    free = ("graph", "data", "seconds", "checkpoint", "resume", "out")
    digest = hashlib.sha256()
    for x in data:
        digest.update(x.cpu().numpy().tobytes())
    flags = {flag(name): _plain(value) for name, value in asdict(config).items() if name not in free}
    return flags | {"the data": digest.hexdigest()}


# --- files ------------------------------------------------------------------------------------------------------------


def writable(folder: Path) -> None:
    """Make the folder if need be.

    Raises:
        OSError: it can't be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"--out {folder} can't be written to; give another folder")


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files at the end move to `folder`, each of them whole.

    Raises:
        OSError: `folder` can't be written to, or is full.
    """
    parts: dict[Path, Path] = {}
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
    except OSError as error:
        raise OSError(f"the files can't be written to {folder}: {error.strerror or error}") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def provenance(config: object) -> State:
    """What produced the numbers of results.json: the config, and the versions of what computed."""
    names = ("torch", "numpy", "scipy", "networkx", "matplotlib")
    versions = {name: sys.modules[name].__version__ for name in names if name in sys.modules}
    return {
        "config": {name: _plain(value) for name, value in asdict(config).items()},
        "versions": {"python": platform.python_version()} | versions,
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


# --- what the user reads ----------------------------------------------------------------------------------------------


def print_summary(lines: Mapping[str, str]) -> None:
    """Print the lines, each behind its name."""
    print("\n".join(f"{name:13}{text}" for name, text in lines.items()))


def refuse(error: Exception) -> int:
    """Say in one line what is wrong; returns the exit status 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def diverged(error: FloatingPointError, lr: float) -> int:
    """Say in one line that the run diverges; returns the exit status 2."""
    return refuse(FloatingPointError(f"{error}: the run diverges with --lr {lr:g}; try --lr {lr / 10:g}"))


def command_line(main: Callable[[Any], int], config: type, description: str) -> NoReturn:
    """Run main with the flags as a config, and exit with the status that it returns; 130 after Ctrl-C."""
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    # Where one was closed, as a daemon's may be, it goes nowhere.
    sys.stdout, sys.stderr = (x or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for x in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # λ and ‖ where the terminal has none
    status = 0
    try:
        status = main(tyro.cli(config, description=description))
        sys.stdout.flush()
    except OSError as error:  # nobody reads on, as in `| head -1`, or its disk is full; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0 if isinstance(error, BrokenPipeError) else refuse(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # PyTorch's way to say so
            raise
        status = refuse(MemoryError(f"not enough memory, take smaller sizes: {error}"))
    except KeyboardInterrupt:
        print("interrupted before the files were written: nothing is saved", file=sys.stderr)
        status = 130
    sys.exit(status)
