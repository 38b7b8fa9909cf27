"""A user's table: read from a file, checked, and split into rows to train on and rows to test on.

Every way in which a table can be unfit raises ValueError with one sentence: what was found, and what to do.
"""

import shlex
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import train_test_split

SHIPPED = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "digits": load_digits}
LEAST_ROWS, LEAST_OF_CLASS = 20, 10
FEW = 10
"""different whole numbers from which on nobody takes them for classes"""


@dataclass(frozen=True)
class Table:
    """Inputs and answers, checked: finite, no column constant or twice there, fewer columns than rows."""

    X: NDArray[np.float64]
    """(n, d) inputs, in the columns' own units"""
    y: NDArray
    """(n,) answers: numbers, or 0 and 1 for the two classes"""
    columns: list[str]
    """names of the inputs"""
    target: str
    """name of the answer"""
    classes: tuple[str, str] | None = None
    """names of the classes 0 and 1; None where the answers are numbers"""
    notes: list[str] = field(default_factory=list)
    """what was done to the table, for its owner to know"""


def read(
    data: str | Path, target: str | None = None, *, drop_missing: bool = False, without: Sequence[str] = ()
) -> Table:
    """The table in a file, or one that scikit-learn ships.

    Args:
        data: a .csv with a header; an .npz with X (n, d), y (n,) and, if it likes, columns (d,), the names; or
            diabetes, breast_cancer, digits.
        target: column of the .csv with the answers; for digits, a digit to tell from the others, none: the digit itself
            as a number.
        drop_missing: leave out rows where a value is missing.
        without: columns to leave out.

    Raises:
        ValueError: there is no such file or column, or the table is unfit.
    """
    frame, target = _shipped(str(data), target) if str(data) in SHIPPED else _file(Path(data), target)
    unknown = [name for name in without if name not in frame.columns or name == target]
    if unknown:
        raise ValueError(f"--without {' '.join(unknown)}: {data} has no such input; it has {_named(frame.columns)}")
    frame, name, notes = frame.drop(columns=list(without)), str(data), []
    if numbers := [c for c in frame if str(c).startswith("Unnamed") and c != target and _numbers_rows(frame[c])]:
        notes.append("a column without a name numbers the rows: it is left out")
        frame = frame.drop(columns=numbers)
    if nameless := [c for c in frame if str(c).startswith("Unnamed: ")]:  # so pandas calls them
        raise ValueError(
            f"{name}, {nameless[0]}: name that column, or leave an index out (pandas: to_csv(index=False))"
        )
    columns = [c for c in frame if c != target]
    if not columns:
        raise ValueError(f"{name} has no columns besides {target}; there is nothing to find directions in")
    if rows := _missing(frame, name, drop_missing):
        frame = frame.dropna().infer_objects()
        notes.append(f"{rows} rows with missing values are left out, {len(frame)} are left")
    _check_text(frame[columns], name)
    if len(frame) < max(LEAST_ROWS, len(columns) + 1):
        raise ValueError(
            f"{name} has {len(frame)} rows and {len(columns)} input columns; there must be more rows than columns, and "
            f"at least {LEAST_ROWS}: leave out columns by --without, or give more rows"
        )
    sizes = frame.select_dtypes("number").abs().max()
    if infinite := list(sizes[np.isinf(sizes)].index):
        raise ValueError(f"{_named(infinite)} of {name}: infinite values; replace them, or leave out the rows")
    if odd := list(sizes[(sizes > 1e100) | (sizes < 1e-100) & (sizes > 0)].index):
        raise ValueError(f"{_named(odd)} of {name}: too large or too small to compute with; take another unit")
    y, classes = _answers(frame[target], name)
    if classes is None and (count := len(np.unique(y))) < FEW and not (y % 1).any():
        notes.append(
            f"{target} has {count} values, taken as numbers; if they are classes, give the rows of two of them"
        )
    X = frame[columns].to_numpy(np.float64)
    correlations = _correlations(X, columns, name)
    if np.linalg.eigvalsh(correlations)[0] < 1e-10:
        notes.append("the columns are linearly dependent, so that other loadings give the same coordinates")
    return Table(X, y, columns, target, classes, notes)


def split(y: NDArray, held_out: float, seed: int, classes: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers, by chance: to train on, and, a share `held_out` of all, to hold out; alike in both classes."""
    stratify = y if classes and min(np.unique(y, return_counts=True)[1]) > 1 else None
    parts = train_test_split(np.arange(len(y)), test_size=held_out, random_state=seed, stratify=stratify)
    return np.sort(parts[0]), np.sort(parts[1])


# --- reading ----------------------------------------------------------------------------------------------------------


def _shipped(name: str, target: str | None) -> tuple[pd.DataFrame, str]:
    bunch, digit = SHIPPED[name](as_frame=True), name == "digits" and target in map(str, range(10))
    frame, answer = bunch.data.loc[:, bunch.data.nunique() > 1], bunch.target  # some pixels are always white
    if digit:
        answer = np.where(answer == int(target), f"digit {target}", "another")
    elif target not in (None, "target"):
        allowed = "a digit, 0 to 9, or none" if name == "digits" else "the one that it has: leave --target out"
        raise ValueError(f"--target {target}: the target of {name} is {allowed}")
    elif name == "breast_cancer":
        answer = bunch.target_names[answer]
    return frame.assign(target=answer), "target"


def _file(path: Path, target: str | None) -> tuple[pd.DataFrame, str]:
    kind = path.suffix.lower()
    if not path.is_file():
        known = f"an .npz with X and y, or one of {', '.join(SHIPPED)}"
        raise ValueError(f"--data {path}: there is no such file; give a .csv with a header, {known}")
    if kind not in (".csv", ".npz"):
        raise ValueError(f"--data {path} must end in .csv (with a header) or .npz (with X and y)")
    try:
        if kind == ".csv":
            content = pd.read_csv(path, skipinitialspace=True)
            how = dict(skipinitialspace=True, dtype=str, keep_default_na=False)
            given = pd.read_csv(path, header=None, nrows=1, **how).iloc[0].str.strip()
        else:
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:  # also pandas'
        raise ValueError(f"--data {path} can't be read as {kind[1:]}: {error}") from None
    frame = _headed(content, given, path) if kind == ".csv" else _framed(content, path)
    target = "y" if target is None and kind == ".npz" else target
    if target is None or target not in frame.columns:
        given = "--target is missing" if target is None else f"--target {target}: there is no such column"
        raise ValueError(f"{given}; {path} has {_named(frame.columns)}")
    return frame, target


def _headed(frame: pd.DataFrame, given: pd.Series, path: Path) -> pd.DataFrame:
    frame.columns = frame.columns.astype(str).str.strip()
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first fields for names of the rows
        raise ValueError(f"--data {path}: its rows hold more values than the first line has names; name every column")
    if len(twice := given[given.duplicated() & (given != "")]):  # pandas has called the second of them y.1
        raise ValueError(f"--data {path}: two columns are called {twice.iloc[0]}")
    if pd.to_numeric(frame.columns, errors="coerce").notna().all():
        raise ValueError(f"--data {path}: the first line holds numbers; it must name the columns")
    return frame


def _framed(found: dict[str, NDArray], path: Path) -> pd.DataFrame:
    if not {"X", "y"} <= set(found):
        raise ValueError(f"--data {path} must hold X (n, d) and y (n,); it holds {', '.join(found) or 'nothing'}")
    X, y = found["X"], found["y"]
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"--data {path}: X is {X.shape} and y is {y.shape}; they must be (n, d) and (n,)")
    names = found.get("columns", np.array([f"x{j + 1}" for j in range(X.shape[1])])).astype(str)
    if names.shape != X.shape[1:] or len({*names, "y"}) <= X.shape[1]:
        raise ValueError(f"--data {path}: columns must be {X.shape[1]} different names, none of them y")
    return pd.DataFrame(X, columns=names).assign(y=y)


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_text(inputs: pd.DataFrame, name: str) -> None:
    text = [c for c in inputs if not (pd.api.types.is_numeric_dtype(inputs[c]) and np.isrealobj(inputs[c]))]
    if text:
        values = inputs[text[0]]
        odd = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()]
        example = f", such as {odd.iloc[0]!r} in row {odd.index[0] + 1}" if len(odd) else ""
        todo = f"leave out by --without {shlex.join(text)}, or encode as numbers (categories as 0/1 columns)"
        raise ValueError(f"{_named(text)} of {name}: text{example}; {todo}")


def _missing(frame: pd.DataFrame, name: str, drop: bool) -> int:
    missing = frame.isna()
    empty = list(frame.columns[missing.all()])
    if empty and len(frame):
        raise ValueError(f"{_named(empty)} of {name}: no values at all; leave out by --without")
    rows = int(missing.any(axis=1).sum())
    if rows and not drop:
        counts = missing.sum()[lambda c: c > 0].sort_values(ascending=False)
        where = ", ".join(f"{c} ({k})" for c, k in counts.head(5).items()) + (", …" if len(counts) > 5 else "")
        found = f"{rows} of the {len(frame)} rows of {name} have missing values, in {where}"
        raise ValueError(f"{found}; --drop-missing leaves those rows out, or fill them in")
    return rows


def _answers(column: pd.Series, name: str) -> tuple[NDArray, tuple[str, str] | None]:
    target = f"the target {column.name} of {name}"
    values, counts = np.unique(column.astype(str) if column.dtype == object else column, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"{target} is {values[0]} in every row; there is nothing to explain")
    if len(values) == 2:
        if min(counts) < LEAST_OF_CLASS:
            rare = f"{values[counts.argmin()]} in only {min(counts)} rows"
            raise ValueError(f"{target} is {rare}; each class needs {LEAST_OF_CLASS}")
        second = np.asarray(column.astype(str) if column.dtype == object else column) == values[1]
        return second.astype(np.int64), (str(values[0]), str(values[1]))
    if not (pd.api.types.is_numeric_dtype(column) and np.isrealobj(column)):
        raise ValueError(f"{target} has {len(values)} different texts or complex numbers; give numbers, or two classes")
    return column.to_numpy(np.float64), None


def _correlations(X: NDArray, columns: list[str], name: str) -> NDArray:
    constant = [c for c, x in zip(columns, X.T, strict=True) if x.min() == x.max()]
    if constant:
        todo = f"leave out by --without {shlex.join(constant)}"
        raise ValueError(f"{_named(constant)} of {name}: the same value in every row; {todo}")
    Z = (X - X.mean(0)) / X.std(0)
    C = Z.T @ Z / len(Z)
    # Of two columns the same up to scale and shift, no data can tell which one matters.
    i, j = np.nonzero(np.triu(np.abs(C) > 1 - 1e-12, 1))
    if len(i):
        a, b = columns[i[0]], columns[j[0]]
        same = "are the same" if np.array_equal(X[:, i[0]], X[:, j[0]]) else "say the same in other units"
        raise ValueError(f"the columns {a} and {b} of {name} {same}; leave one out by --without {shlex.quote(b)}")
    return C


def _numbers_rows(column: pd.Series) -> bool:
    return any(np.array_equal(column, np.arange(start, start + len(column))) for start in (0, 1))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"column{'s' * (len(names) > 1)} {shown}"
