"""Lets one pytest run test all experiments and studies, although their modules share names (pgd, plot, main, …).

While a test file of an experiment is collected or run, `import pgd` means that experiment's pgd; while one of studies/
is, that of the experiment whose folder it has put on the path.
"""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all is imported
os.environ["OMP_NUM_THREADS"] = "1"  # also of the programs that tests start: waiting threads make a busy machine crawl

# A suite in the background ignores Ctrl-C, and the programs that it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("same", deadline=None, derandomize=True, database=None)  # the same examples in every run
settings.load_profile("same")

ROOT = Path(__file__).parent
HOUSES = {file.parent for file in ROOT.glob("*/main.py")} | {ROOT / "studies"}
_modules: dict[Path, tuple] = {}  # each house's own modules, and its path, while another one's are in use
_current: list[Path] = []


def _house(path: Path) -> Path | None:
    """Whose modules a test file imports: an experiment's folder, or for studies the test file itself."""
    top = ROOT / path.relative_to(ROOT).parts[0]
    return path if top.name == "studies" else top if top in HOUSES else None


def _enter(house: Path | None) -> None:
    if house is None or _current == [house]:
        return
    own = {name for name, x in sys.modules.items() if Path(getattr(x, "__file__", None) or "").parent in HOUSES}
    left = {name: sys.modules.pop(name) for name in own}
    folders = [entry for entry in sys.path if Path(entry) in HOUSES]
    _modules.update({old: (left, folders) for old in _current})
    modules, path = _modules.get(house, ({}, [str(house if house in HOUSES else ROOT / "studies")]))
    sys.modules.update(modules)
    sys.path[:] = path + [entry for entry in sys.path if entry not in folders]
    _current[:] = [house]


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a test file is imported."""
    if isinstance(collector, pytest.Module):
        _enter(_house(collector.path))


def pytest_collection_finish() -> None:
    """Once all is imported: the garbage collector need not look through it again and again."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test runs: for imports inside functions, and undoing what an experiment's main sets for its process."""
    _enter(_house(item.path))
    torch.set_flush_denormal(False)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not written, which takes most of a small run's time: their files are empty."""

    def touch(figure: object, folder: Path, name: str) -> None:
        for kind in ("png", "pdf"):
            (folder / f"{name}.{kind}").touch()

    monkeypatch.setattr(sys.modules["run"], "save_figure", touch)
    if hasattr(plot := sys.modules["plot"], "animate"):
        monkeypatch.setattr(plot, "animate", lambda history, u, path: path.touch())


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, int], None]:
    """ctrl_c(kind, t): from now on Ctrl-C comes at step t of every descent of this kind."""

    def comes(kind: type, t: int) -> None:
        def step(descent: object) -> None:
            if descent.t == t:
                raise KeyboardInterrupt
            whole_step(descent)

        whole_step = kind.step
        monkeypatch.setattr(kind, "step", step)

    return comes


@pytest.fixture
def at_the_prompt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """at_the_prompt(*flags): exit status of the experiment's main.py with these flags, within this process."""

    def called(*flags: str | Path) -> int:
        main = sys.modules["main"]
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, flags)])
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
        with pytest.raises(SystemExit) as end:
            sys.modules["run"].command_line(main.main, main.Config, main.__doc__)
        return end.value.code

    return called
