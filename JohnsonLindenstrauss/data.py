"""Data matrices: the paper's random one, or a user's from a file; what can't be worked with is refused."""

import os
import re
import sys
import tempfile
import warnings
import zipfile
from itertools import chain
from math import inf
from pathlib import Path

import numpy as np
import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None


def random_data(problem: str, n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) random data: for "vectors" the paper's (n = 100, d = 500), of uniform entries from [0, 1], scaled to
    length 1; for "pairs" standard normal points.

    Raises:
        ValueError: n × d numbers are more than there is memory for.
    """
    check_memory(n * d, f"--n is {n} and --d is {d}")
    draw = torch.rand if problem == "vectors" else torch.randn
    X = draw(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (X / X.norm(dim=1, keepdim=True) if problem == "vectors" else X).numpy()


def read_matrix(name: str, n: int | None = None) -> np.ndarray:
    """The first n rows (all) of a .npy, .npz (one array) or .csv file, or of scikit-learn's "digits", 1797 × 64, or
    "breast_cancer", 569 × 30, its columns standardized.

    A .csv file has numbers separated by commas, semicolons, tabs or blanks, and perhaps a line of column names.

    Raises:
        ValueError: the file is not what its suffix says, or holds no matrix of finite real numbers, or too few rows.
        OSError: the file cannot be read.
    """
    if name in ("digits", "breast_cancer"):
        from sklearn import datasets  # takes a second

        X = getattr(datasets, f"load_{name}")().data
        X = (X - X.mean(0)) / X.std(0) if name == "breast_cancer" else X
    else:
        X = _read(Path(name), n)
    if n is not None and n > len(X):
        raise ValueError(f"--n is {n}; {name} has {len(X)} rows")
    return X[:n]


def _read(path: Path, n: int | None) -> np.ndarray:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"--data {path} is neither digits, breast_cancer nor a file that ends in {', '.join(READERS)}")
    with path.open("rb"):
        pass  # else the OSError says why not
    try:
        with warnings.catch_warnings(action="ignore"):  # a file is taken or refused
            X = reader(path)
            return check_matrix(X[:n] if np.ndim(X) == 2 else X)
    except Exception as error:  # parsers raise whatever they stumble on: BadZipFile, EOFError, UnicodeDecodeError, …
        raise ValueError(" ".join(f"{path}: {error}".split())) from error


def check_memory(numbers: int, what: str) -> None:
    """Raise ValueError, saying what needs them, for more float64 numbers than the machine has memory for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else inf
    if 8 * numbers > memory:
        raise ValueError(f"{what}: that needs more memory than the {memory / 1e9:.0f} GB here")


def peak_memory() -> int | None:
    """Bytes that this process has taken at most; None where the system does not say (Windows)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_matrix(X: np.ndarray) -> np.ndarray:
    """X as float64, if it is a matrix of finite real numbers with at least 2 rows.

    Raises:
        ValueError: it is not; says what is wrong and where.
    """
    if X.dtype.kind not in "biuf":
        raise ValueError(f"its entries are of type {X.dtype}, not real numbers")
    if X.ndim != 2 or len(X) < 2 or X.shape[1] < 1:
        raise ValueError(f"its shape is {X.shape}; at least 2 rows (points) and 1 column (features) are needed")
    X = np.array(X, np.float64)
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} (from 0) has a NaN or infinite entry, as have {len(bad) - 1} more: leave them out"
        )
    return X


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped: a header can't ask for more memory than the file is long. No pickles."""
    return np.lib.format.open_memmap(path, mode="r")


def read_npz(path: Path) -> np.ndarray:
    """The one array in a .npz file; no pickles."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays ({', '.join(names)[:60]}); one is needed")
        return np.array(read_npy(Path(archive.extract(names[0], folder))))


def read_csv(path: Path) -> np.ndarray:
    """The numbers in a text file, one row a line; a first line of names is passed over (see `_names`)."""
    with path.open(encoding="utf-8-sig") as file:
        lines = (line for line in file if not line.isspace())
        first, second = next(lines, ""), next(lines, "")
        separator = _separator(second, ",;\t")
        names = _names(first, separator)
        if names and separator and first.startswith((separator, f'""{separator}')):
            raise ValueError("its first column has no name: leave the index out (of pandas' to_csv by index=False)")
        separator = separator or (None if names else _separator(first, ",;"))
        rows = chain([second] if names else [first, second], lines)
        try:
            X = np.loadtxt(rows, delimiter=separator, comments=None, ndmin=2, quotechar='"')
        except ValueError as error:
            raise ValueError(f"it is no table of numbers: {str(error).split('; use')[0]}") from None
    if X.shape[1] > 2 and not names and np.array_equal(X[:1], [np.arange(X.shape[1])]):
        raise ValueError("its first line numbers the columns: leave it out (of pandas' to_csv by header=False)")
    if X.shape[1] > 1 and len(X) > 2 and not names and np.array_equal(X[:, 0], np.arange(len(X))):
        raise ValueError(
            "its first column numbers the rows: leave it out (of pandas' to_csv by index=False), or, if it is data, "
            "name the columns"
        )
    return X


def _separator(line: str, marks: str) -> str | None:
    """The first of the marks that is in the line; None: blanks and tabs."""
    return next((mark for mark in marks if mark in line), None)


def _names(line: str, separator: str | None) -> bool:
    """Whether no cell begins as a number does, and some cell is none of the words for a missing one."""
    within = separator or ("\t" if "\t" in line else r"\s")
    cells = re.findall(rf'"[^"]*"|[^{within}]+', line.strip())
    cells = [cell.strip().strip('"').strip().lower() for cell in cells]
    missing = re.compile(r"[-+]?(|na|n/a|nan|null|none|\?|inf|infinity)")
    return not any(re.match(r"[-+]?\.?\d", cell) for cell in cells) and not all(map(missing.fullmatch, cells))


READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv}
"""readers by suffix"""
