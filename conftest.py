"""Lets one pytest run test all experiments, although their modules share names (pgd, plot, main, …).

While a test file of an experiment is collected or run, `import pgd` means that experiment's pgd.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"  # also of the programs that tests start: waiting threads make a busy machine crawl

# A suite in the background ignores Ctrl-C, and the programs that it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("same", deadline=None, derandomize=True, database=None)  # the same examples in every run
settings.load_profile("same")

ROOT = Path(__file__).parent
_modules: dict[Path, dict] = {}  # each experiment's own modules, kept while another one's are in use
_current: list[Path] = []


def _experiment(path: Path) -> Path | None:
    top = ROOT / path.relative_to(ROOT).parts[0]
    return top if (top / "main.py").exists() else None


def _enter(folder: Path | None) -> None:
    if folder is None or _current == [folder]:
        return
    for old in _current:
        sys.path.remove(str(old))
        own = {name for name, module in sys.modules.items() if _lies_in(module, old)}
        _modules[old] = {name: sys.modules.pop(name) for name in own}
    sys.path.insert(0, str(folder))
    sys.modules.update(_modules.get(folder, {}))
    _current[:] = [folder]


def _lies_in(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent == folder


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a test file is imported."""
    if isinstance(collector, pytest.Module):
        _enter(_experiment(collector.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before a test runs: for imports inside functions, and undoing what an experiment's main sets for its process."""
    _enter(_experiment(item.path))
    torch.set_flush_denormal(False)
