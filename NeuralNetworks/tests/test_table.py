"""Tables are read as they are, and what can't be used is refused in one line that says what to do."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from table import read, split

RNG = np.random.default_rng(0)


def frame(n: int = 40) -> pd.DataFrame:
    return pd.DataFrame(RNG.normal(size=(n, 3)), columns=["a", "b", "c"]).assign(y=RNG.normal(size=n))


def saved(tmp_path, table: pd.DataFrame) -> str:
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    return str(path)


def test_csv_and_npz_hold_the_same(tmp_path):
    t = frame()
    a = read(saved(tmp_path, t), "b")
    assert a.columns == ["a", "c", "y"] and a.target == "b" and a.classes is None and a.notes == []
    assert np.allclose(a.X, t[["a", "c", "y"]]) and np.allclose(a.y, t["b"])
    np.savez(tmp_path / "t.npz", X=t[["a", "c", "y"]].to_numpy(), y=t["b"].to_numpy(), columns=["a", "c", "z"])
    b = read(tmp_path / "t.npz")
    assert np.allclose(a.X, b.X) and np.allclose(a.y, b.y) and b.columns == ["a", "c", "z"]
    assert read(saved(tmp_path, t), "b", without=("a",)).columns == ["c", "y"]


@pytest.mark.parametrize("values", [("no", "yes"), (False, True), (-1, 1), (2.5, 7.5)])
def test_two_values_are_two_classes(tmp_path, values):
    second = np.arange(40) % 3 == 0
    t = frame().assign(y=np.where(second, values[1], values[0]))
    table = read(saved(tmp_path, t), "y")
    assert table.classes == (str(values[0]), str(values[1])) and np.array_equal(table.y, second)


def test_two_values_in_single_precision_are_two_classes(tmp_path):
    second = np.arange(40) % 3 == 0
    np.savez(tmp_path / "t.npz", X=frame()[["a", "c"]], y=np.where(second, 0.9, 0.1).astype(np.float32))
    assert np.array_equal(read(tmp_path / "t.npz").y, second)


def test_a_few_whole_numbers_are_taken_as_numbers_and_their_owner_is_told(tmp_path):
    t = frame()
    table = read(saved(tmp_path, t.assign(y=np.arange(40) % 3)), "y")
    assert table.classes is None and np.array_equal(table.y, np.arange(40) % 3)
    assert ["y has 3 values, taken as numbers" in note for note in table.notes] == [True]
    for others in (np.arange(40) % 3 / 2, np.arange(40)):
        assert read(saved(tmp_path, t.assign(y=others)), "y").notes == []


def test_what_scikit_learn_ships():
    diabetes, cancer, digits = read("diabetes"), read("breast_cancer"), read("digits", "3")
    assert np.allclose(diabetes.X, load_diabetes().data) and np.allclose(diabetes.y, load_diabetes().target)
    assert cancer.classes == ("benign", "malignant") and cancer.X.shape == load_breast_cancer().data.shape
    assert np.array_equal(cancer.y, 1 - load_breast_cancer().target)
    assert digits.X.shape == (1797, 61) and digits.classes == ("another", "digit 3")
    assert np.array_equal(digits.y == 1, load_digits().target == 3)
    assert np.array_equal(read("digits").y, load_digits().target)
    with pytest.raises(ValueError, match="a digit, 0 to 9, or none"):
        read("digits", "10")
    with pytest.raises(ValueError, match="leave --target out"):
        read("diabetes", "bmi")


def test_missing_values_are_counted_and_dropped_only_if_asked(tmp_path):
    t = frame()
    t.loc[[3, 4], "a"] = np.nan
    t.loc[[4, 9], "y"] = np.nan
    path = saved(tmp_path, t)
    with pytest.raises(ValueError, match=r"3 of the 40 rows .* in a \(2\), y \(2\); --drop-missing"):
        read(path, "y")
    table = read(path, "y", drop_missing=True)
    assert len(table.X) == 37 and table.notes == ["3 rows with missing values are left out, 37 are left"]
    assert np.allclose(table.X, t.drop(index=[3, 4, 9])[["a", "b", "c"]])


BAD = {
    "text": (lambda t: t.assign(c=["red", "blue"] * 20), r"column c .*text, such as 'red' in row 1; .*--without c"),
    "two of text": (lambda t: t.assign(c="?", d="u v"), r"columns c, d .*--without c d"),
    "text among numbers": (lambda t: t.assign(c=["1", "2", "n.d.", "4"] * 10), r"column c .*'n.d.' in row 3"),
    "constant column": (lambda t: t.assign(b=7.0), r"column b .*same value in every row"),
    "constant target": (lambda t: t.assign(y=7.0), r"target y .* 7.0 in every row"),
    "fewer rows than columns": (
        lambda t: t.assign(**{f"x{j}": RNG.normal(size=40) for j in range(40)}),
        "40 rows and 43",
    ),
    "few rows": (lambda t: t.head(9), "9 rows .*at least 20"),
    "no rows": (lambda t: t.head(0), "0 rows|text"),
    "target twice": (lambda t: t.assign(**{"y ": t["b"]}), "two columns are called y$"),
    "target twice to the letter": (lambda t: t.assign(z=2 * t["y"]).rename(columns={"z": "y"}), "two .* called y$"),
    "equal columns": (lambda t: t.assign(d=t["b"]), "columns b and d .* are the same; leave one out by --without d"),
    "the same in other units": (lambda t: t.assign(d=3 - 2 * t["b"]), "columns b and d .*in other units"),
    "infinite": (lambda t: t.assign(c=[np.inf] + [1.0] * 19 + [2.0] * 20), "column c .*infinite"),
    "huge": (lambda t: t.assign(c=1e200 * t["c"]), "column c .*too large or too small"),
    "tiny target": (lambda t: t.assign(y=1e-200 * t["y"]), "column y .*too large or too small"),
    "infinite target": (lambda t: t.assign(y=[np.inf, *range(39)]), "column y .*infinite"),
    "empty column": (lambda t: t.assign(c=np.nan), "column c .*no values at all"),
    "texts as target": (lambda t: t.assign(y=["r", "g", "b", "w"] * 10), "target y .*4 different texts"),
    "rare class": (lambda t: t.assign(y=[1] * 3 + [0] * 37), "target y .* is 1 in only 3 rows"),
    "target alone": (lambda t: t[["y"]], "no columns besides y"),
    "text with a blank in its name": (
        lambda t: t.assign(**{"the c": "x", "d": "u"}),
        r"--without 'the c' d, or encode",
    ),
    "constant with a blank in its name": (lambda t: t.assign(**{"the b": 7.0}), r"--without 'the b'$"),
    "equal columns with blanks": (lambda t: t.assign(**{"the b": t["b"]}), r"--without 'the b'$"),
    "names the same but for blanks": (lambda t: t.assign(**{"a ": t["b"]}), "two columns are called a$"),
    "no header": (lambda t: t.set_axis([1, 2, 3, 4], axis=1), "first line holds numbers"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("drop", [False, True])
def test_unfit_tables_are_refused_in_one_line(tmp_path, case, drop):
    spoil, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        read(saved(tmp_path, spoil(frame())), "y", drop_missing=drop)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "t.txt").touch()
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    (tmp_path / "bytes.csv").write_bytes(bytes(range(128, 256)))
    np.savez(tmp_path / "x.npz", X=np.eye(3))
    np.save(tmp_path / "array.npy", np.eye(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "shape.npz", X=np.eye(3), y=np.eye(2))
    np.savez(tmp_path / "twice.npz", X=np.eye(3), y=np.ones(3), columns=["a", "b", "a"])
    np.savez(tmp_path / "object.npz", X=np.array([[{}]]), y=np.ones(1))
    np.savez(tmp_path / "complex.npz", X=frame()[["a", "c"]], y=np.arange(40) + 1j)
    for name, message in {
        "none.csv": "no such file",
        "t.txt": "must end in .csv",
        "empty.csv": "can't be read",
        "bytes.csv": "can't be read",
        "broken.npz": "can't be read",
        "object.npz": "can't be read",
        "array.npz": "can't be read",
        "x.npz": "it holds X",
        "twice.npz": "3 different names",
        "shape.npz": r"\(3, 3\) and y is \(2, 2\)",
        "complex.npz": "or complex numbers",
    }.items():
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name, "y")
    for rows in ("Mazda RX4,1,2,x\n", "1,2,3,\n"):  # as R writes names of rows, or a comma too many
        (tmp_path / "longer.csv").write_text("a,b,y\n" + 30 * rows)
        with pytest.raises(ValueError, match="more values than the first line has names"):
            read(tmp_path / "longer.csv", "y")
    path = saved(tmp_path, frame())
    with pytest.raises(ValueError, match=r"--target z: there is no such column; .* has columns a, b, c, y"):
        read(path, "z")
    with pytest.raises(ValueError, match="--target is missing"):
        read(path)
    with pytest.raises(ValueError, match=r"--without z: .* has no such input"):
        read(path, "y", without=("z",))


def test_split_keeps_the_classes_shares():
    y = np.repeat([0, 1], [90, 10])
    rows, held_out = split(y, 0.2, 0, True)
    assert (y[held_out].sum(), y[rows].sum()) == (2, 8)


def test_what_is_done_to_a_table_is_noted(tmp_path):
    t = frame()
    t.to_csv(tmp_path / "i.csv")  # with the row's number as a column without name
    table = read(tmp_path / "i.csv", "y")
    assert table.columns == ["a", "b", "c"] and "numbers the rows" in table.notes[0]
    t.drop(index=3).to_csv(tmp_path / "gap.csv")  # one that does not number them any more
    with pytest.raises(ValueError, match="Unnamed: 0: name that column, or leave an index out"):
        read(tmp_path / "gap.csv", "y")
    assert read(tmp_path / "gap.csv", "y", without=("Unnamed: 0",)).columns == ["a", "b", "c"]
    assert "linearly dependent" in read(saved(tmp_path, t.assign(d=t["a"] + t["b"])), "y").notes[0]


def test_a_column_of_two_words_with_gaps_is_one_of_numbers_once_the_gaps_are_left_out(tmp_path):
    yes = np.arange(40) % 3 == 0
    path = saved(tmp_path, frame().assign(b=np.where(np.arange(40) == 5, None, yes)))
    with pytest.raises(ValueError, match="1 of the 40 rows"):
        read(path, "y")
    assert np.array_equal(read(path, "y", drop_missing=True).X[:, 1], np.delete(yes, 5))
