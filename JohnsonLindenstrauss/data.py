"""Data matrices: read one from a file, make the paper's, refuse what can't be worked with."""

import os
import tempfile
import warnings
import zipfile
from array import array
from pathlib import Path

import numpy as np
import torch


def random_data(problem: str, n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) random data: for "vectors" the paper's (n = 100, d = 500), of uniform entries from [0, 1], scaled to
    length 1; for "pairs" standard normal points.

    Raises:
        ValueError: n < 2 or d < 1, or n × d numbers are more than there is memory for.
    """
    if n < 2 or d < 1:
        raise ValueError(f"--n is {n} and --d is {d}; at least 2 points in at least 1 dimension are needed")
    check_memory(n * d, f"--n is {n} and --d is {d}")
    draw = torch.rand if problem == "vectors" else torch.randn
    X = draw(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (X / X.norm(dim=1, keepdim=True) if problem == "vectors" else X).numpy()


def read_matrix(name: str) -> np.ndarray:
    """Matrix from a .npy, .npz (holding one array) or .csv file, or "digits": scikit-learn's 1797 × 64.

    A .csv file has numbers separated by commas, semicolons, tabs or blanks, and perhaps a line of column names.

    Raises:
        ValueError: the file is not what its suffix says, or holds no matrix of finite real numbers.
        OSError: the file cannot be read.
    """
    if name == "digits":
        from sklearn.datasets import load_digits  # takes a second

        return load_digits().data
    path = Path(name)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"--data {name} is neither 'digits' nor a file that ends in {', '.join(READERS)}")
    with path.open("rb"):
        pass  # else the OSError says why not
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file is taken or refused
            return check_matrix(reader(path))
    except Exception as error:  # parsers raise whatever they stumble on: BadZipFile, EOFError, UnicodeDecodeError, …
        raise ValueError(" ".join(f"{name}: {error}".split())) from error


def check_memory(numbers: int, what: str) -> None:
    """Raise ValueError, saying what needs them, for more float64 numbers than the machine has memory for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 8 * numbers > memory:
        raise ValueError(f"{what}: that needs more memory than the {memory / 1e9:.0f} GB here")


def check_matrix(X: np.ndarray) -> np.ndarray:
    """X as float64, if it is a matrix of finite real numbers with at least 2 rows.

    Raises:
        ValueError: it is not; says what is wrong and where.
    """
    if X.dtype.kind not in "biuf":
        raise ValueError(f"its entries are of type {X.dtype}, not real numbers")
    if X.ndim != 2:
        raise ValueError(f"its shape is {X.shape}, not that of a matrix: one row a point, one column a feature")
    if len(X) < 2 or X.shape[1] < 1:
        raise ValueError(f"its shape is {X.shape[0]} × {X.shape[1]}; at least 2 rows and 1 column are needed")
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
    """The numbers in a text file, one row a line; a first line that is not of numbers is taken for column names."""
    numbers, width, seen = array("d"), 0, False
    with path.open(encoding="utf-8-sig") as file:
        for count, line in enumerate(file, start=1):
            if line.isspace():
                continue
            fields = line.split("," if "," in line else ";" if ";" in line else None)
            try:
                row = [float(field) for field in fields]
            except ValueError:
                if seen or any(is_number(field) for field in fields):
                    raise ValueError(f"line {count} is {line.strip()[:60]!r}, not a row of numbers") from None
                seen = True
                continue
            seen, width = True, width or len(row)
            if len(row) != width:
                raise ValueError(f"line {count} has {len(row)} numbers, those before it {width}")
            numbers.extend(row)
    return np.array(numbers).reshape(-1, max(width, 1))


def is_number(text: str) -> bool:
    """Whether the text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv}
"""readers by suffix"""
