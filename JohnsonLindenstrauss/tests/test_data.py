"""Matrices are read from files as they are, and what is none is refused with a word on why."""

import numpy as np
import pytest

from data import check_matrix, random_data, read_matrix

X = np.array([[1.5, -2, 3e10], [4, 5, 6]])


def test_reads_what_numpy_writes(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "x.npz", anything=X)
    np.savetxt(tmp_path / "x.csv", X, delimiter=",")
    for suffix in ("npy", "npz", "csv"):
        assert np.array_equal(read_matrix(str(tmp_path / f"x.{suffix}")), X)
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    assert read_matrix(str(tmp_path / "x.npy")).dtype == np.float64


@pytest.mark.parametrize(
    "text",
    ["a,b,c\n1.5,-2,3e10\n4,5,6\n", "1.5;-2;3e10\r\n\r\n4;5;6", "\ufeff1.5\t-2\t3e10\n4 5 6", "1.5, -2, 3e10\n4, 5 ,6"],
)
def test_reads_csv_of_several_dialects(tmp_path, text):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    assert np.array_equal(read_matrix(str(tmp_path / "x.csv")), X)


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "shape"),
        ("a,b\n", "shape"),
        ("1,2\n3\n", "changed from 2 to 1"),
        ("1,2\n3,x\n", "convert string 'x'"),
        ("1,2\n3,\n", "convert string ''"),
        ("1,2\nnan,3\n4,inf\n", "row 1"),
        ("1,2\n", "at least 2 rows"),
    ],
)
def test_refuses_csv_that_is_no_matrix(tmp_path, text, word):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=word) as error:
        read_matrix(str(tmp_path / "x.csv"))
    assert "x.csv" in str(error.value) and "\n" not in str(error.value)


def test_rows_that_are_not_asked_for_are_not_looked_at(tmp_path):
    np.save(tmp_path / "x.npy", np.vstack([X, np.full((1, 3), np.nan)]))
    assert np.array_equal(read_matrix(str(tmp_path / "x.npy"), len(X)), X)
    for n, word in ((len(X) + 1, "NaN"), (9, "NaN")):
        with pytest.raises(ValueError, match=word):
            read_matrix(str(tmp_path / "x.npy"), n)


def test_refuses_files_that_are_not_what_their_suffix_says(tmp_path):
    for suffix in ("npy", "npz", "csv"):
        (tmp_path / f"x.{suffix}").write_bytes(b"\x93PK\xff\x00 nothing of the kind")
        with pytest.raises(ValueError, match=f"x.{suffix}"):
            read_matrix(str(tmp_path / f"x.{suffix}"))
    np.savez(tmp_path / "two.npz", a=X, b=X)
    with pytest.raises(ValueError, match="2 arrays"):
        read_matrix(str(tmp_path / "two.npz"))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pickle\.npy"):
        read_matrix(str(tmp_path / "pickle.npy"))
    with pytest.raises(ValueError, match=r"x\.txt is neither"):
        read_matrix("x.txt")
    with pytest.raises(OSError, match="absent"):
        read_matrix("absent.npy")


@pytest.mark.parametrize(
    "bad, word",
    [
        (np.zeros(3), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((1, 3)), "at least 2"),
        (np.zeros((3, 0)), "at least 2"),
        (np.zeros((2, 2), dtype=complex), "complex"),
        (np.array([["a", "b"]]), "type"),
        (np.array([[0, 1], [np.nan, 1], [np.inf, 2]]), "row 1 .* 1 more"),
    ],
)
def test_refuses_what_is_no_matrix_of_finite_real_numbers(bad, word):
    with pytest.raises(ValueError, match=word):
        check_matrix(bad)


def test_random_data():
    vectors, points = random_data("vectors", 100, 500, 42), random_data("pairs", 100, 500, 42)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) and (vectors > 0).all()
    assert abs(points.mean()) < 3 / np.sqrt(50_000) and points.std() == pytest.approx(1, abs=0.02)
    assert np.array_equal(vectors, random_data("vectors", 100, 500, 42))
    with pytest.raises(ValueError, match="--n is 1000000 and --d is 1000000: that needs more memory"):
        random_data("pairs", 10**6, 10**6, 0)


def test_scikit_learns_data():
    digits, table = read_matrix("digits", 100), read_matrix("breast_cancer")
    assert digits.shape == (100, 64) and set(np.unique(digits)) == set(range(17))  # grey levels as they are
    assert table.shape == (569, 30) and np.allclose(table.mean(0), 0) and np.allclose(table.std(0), 1)


@pytest.mark.parametrize(
    "head, separator",
    [("feature 0,feature 1", ","), ('"f 1";"f 2"', ";"), ("a b", " "), ("x1\tx2", "\t"), ("nano,info", ","), ("", ",")]
    + [("RI,Na", ","), ("none;all", ";"), ("a b ", " "), ('"a, b" c', " "), ("x" * 200_000 + ",y", ",")],
)
def test_column_names_are_passed_over_and_numbers_are_not(tmp_path, head, separator):
    (tmp_path / "t.csv").write_text("\n".join([head, f'"1"{separator}2', f"3{separator}4e0"]))
    assert read_matrix(str(tmp_path / "t.csv")).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "row",
    [
        "nan,nan",
        "NA,NA",
        "?,1",
        "-inf,inf",
        "NA\t3",
        "nan\tnan",
        "none null",
        "-nan,-nan",
        "+inf,-nan",
        "Infinity,NaN",
        "-,-",
    ],
)
def test_a_first_row_without_values_is_no_row_of_names(tmp_path, row):
    mark = next(mark for mark in ",\t " if mark in row)
    (tmp_path / "t.csv").write_text(f"{row}\n1{mark}2\n3{mark}4\n")
    with pytest.raises(ValueError, match=r"no table of numbers|NaN or infinite"):
        read_matrix(str(tmp_path / "t.csv"))


def test_empty_cells_between_tabs_are_not_closed_up(tmp_path):
    (tmp_path / "t.csv").write_text("1\t\t3\n\t5\t6\n7\t8\t\n")
    with pytest.raises(ValueError, match="no table of numbers"):
        read_matrix(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "text, word",
    [
        (",a,b\n0,1.5,2\n1,3,4\n", "index=False"),
        ("0,1.5,2\n1,3,4\n2,3,5\n", "numbers the rows.*index=False"),
        ('"","a","b"\n"x",1.5,2\n"y",3,4\n', "index=False"),
        ("0,1,2\n1.5,2,7\n3,4,5\n", "header=False"),
        ("0\t1\t2\t3\n1.5\t2\t7\t1\n3\t4\t5\t1\n", "header=False"),
    ],
)
def test_what_pandas_writes_by_default_is_no_more_data(tmp_path, text, word):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=word):
        read_matrix(str(tmp_path / "t.csv"))
