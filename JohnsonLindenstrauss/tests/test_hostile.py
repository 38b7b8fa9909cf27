"""Files, flags and data at the edge end in a result that holds, or in one line that says why not.

Hypothesis draws what nobody would write down.
"""

import io
import json
import math
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

import run
from data import READERS, read_matrix
from main import Config, main
from model import Pairs, Vectors, bound, bound_gradient, distortion, distortions, tail
from run import command_line
from train import Derandomization, heavy

FOLDER = Path(__file__).parents[1]
SMALL = dict(n=6, d=4, k=2, steps=12, gaussians=20)
finite = st.floats(allow_nan=False, allow_infinity=False)


def number(x: float | list) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# --- files ------------------------------------------------------------------------------------------------------------


def read(content: bytes, suffix: str) -> np.ndarray | str:
    """The matrix in a file of these bytes, or the one line that says why it is none; nothing else can be."""
    with TemporaryDirectory() as folder:
        path = Path(folder, f"é́ matrix{suffix}")
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                X = read_matrix(str(path))
            except (ValueError, OSError) as error:
                assert path.name in str(error) and len(str(error).splitlines()) == 1
                return str(error)
    assert type(X) is np.ndarray and X.dtype == np.float64 and X.flags.writeable
    assert X.ndim == 2 and len(X) >= 2 and X.shape[1] >= 1 and np.isfinite(X).all()
    return X


def written(X: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == ".csv":
        np.savetxt(file, X, fmt="%.17g", delimiter=",")
    else:
        np.save(file, X) if suffix == ".npy" else np.savez_compressed(file, X=X)
    return file.getvalue()


def npy(header: str) -> bytes:
    """A .npy file with this header and 16 bytes of data."""
    return b"\x93NUMPY\x01\x00" + len(header + "\n").to_bytes(2, "little") + header.encode() + b"\n" + bytes(16)


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@settings(max_examples=60)
@given(
    X=arrays.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=finite),
    suffix=st.sampled_from(list(READERS)),
)
def test_what_is_written_comes_back(X, suffix):
    assert np.array_equal(read(written(X, suffix), suffix), X)


@settings(max_examples=150)
@given(content=st.binary(max_size=200), suffix=st.sampled_from(list(READERS)))
def test_any_bytes(content, suffix):
    read(content, suffix)


@settings(max_examples=300)
@given(data=st.data(), suffix=st.sampled_from(list(READERS)))
def test_damaged_files(data, suffix):
    content = bytearray(written(np.arange(6.0).reshape(3, 2) / 7, suffix))
    place, change = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        read(bytes(content[:place]), suffix)
    else:
        content[place] ^= change
        read(bytes(content), suffix)


@pytest.mark.parametrize("shape", ["(1000000000, 3)", "(3, 10000000000000)", f"({10**30}, 2)", "(-1, 2)", "(True, 2)"])
@pytest.mark.parametrize("type_", ["<f8", "<U200000000", "|O", "<c16", "<M8[s]", "|V8", "nonsense"])
def test_headers_that_promise_too_much(shape, type_):
    content = npy(f"{{'descr': '{type_}', 'fortran_order': False, 'shape': {shape}}}")
    tracemalloc.start()
    assert isinstance(read(content, ".npy"), str) and isinstance(read(npz(**{"X.npy": content}), ".npz"), str)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_headers_of_other_days_and_kinds():
    python2 = npy("{'descr': '<f8', 'fortran_order': True, 'shape': (2L, 1L)}")
    assert read(python2, ".npy").shape == (2, 1)
    for header in ("", "{", "(" * 5000, "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2, 1)}", "\\d"):
        assert isinstance(read(npy(header), ".npy"), str)
    long = np.array([[1, 2], [3, 4]], dtype=np.longdouble)
    assert np.array_equal(read(written(long, ".npy"), ".npy"), long)
    if np.finfo(np.longdouble).max > np.finfo(np.float64).max:
        assert "infinite" in read(written(long * np.longdouble("1e400"), ".npy"), ".npy")
    assert "2 arrays" in read(npz(a=python2, b=python2), ".npz") and "0 arrays" in read(npz(), ".npz")
    for name in ("folder/", "../../X.npy", "/X.npy", "X\n.npy"):
        read(npz(**{name: python2}), ".npz")
    assert isinstance(read(npz(**{"X.npy": npz(a=python2)}), ".npz"), str)


CELLS = st.one_of(
    finite.map(repr),
    st.sampled_from(
        ["1e400", "-1e999", "nan", "inf", "1e-400", "-0", "0x1", "1_0", "٣", '"1"', "'", '"', "", "1,5", "é́"]
    ),
    st.text(max_size=4),
)


@settings(max_examples=200)
@given(
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=4),
    separator=st.sampled_from([",", ";", "\t", "  ", " , "]),
    newline=st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
def test_any_table(rows, separator, newline, encoding):
    read(newline.join(separator.join(row) for row in rows).encode(encoding, errors="replace"), ".csv")


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", " ; "])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\n \n"])
def test_dialects(separator, newline):
    text = newline.join(separator.join(row) for row in (["1", "-2.5", "3e-310"], ["4", "5", "6"]))
    for names in ("", separator.join(['"a, b"', "é́", "c"]) + newline, newline + "x" + newline):
        assert np.array_equal(read(("\ufeff" + names + text).encode(), ".csv"), [[1, -2.5, 3e-310], [4, 5, 6]])


@pytest.mark.parametrize("text", ["1,5;2,5\n3,5;4,5\n", "1,5\t2,5\n3,5\t4,5\n", "1,5 2\n3,5 4\n"])
def test_decimal_commas_are_not_taken_for_separators(text):
    assert "it is no table of numbers" in read(text.encode(), ".csv")


@pytest.mark.parametrize("text", ["", "\n", "\n \r\n\t\n", "\ufeff", "a,b\n", "1,2\n", "\x00", "a\nb\n1\n2\n"])
def test_text_without_a_matrix(text):
    assert isinstance(read(text.encode(), ".csv"), str)


def test_many_lines(tmp_path):
    X = np.arange(4e5).reshape(-1, 2) / 8
    (tmp_path / "X.csv").write_text("x;y\n" + "".join(f"{a};{b}\n" for a, b in X.tolist()))
    assert np.array_equal(read_matrix(str(tmp_path / "X.csv")), X)


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_no_file(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    for name in (f"folder{suffix}", f"none{suffix}", f"none/none{suffix}", f"{'x' * 300}{suffix}", f"a\nb{suffix}"):
        with pytest.raises(OSError) as error:
            read_matrix(str(tmp_path / name))
        assert suffix in str(error.value) and len(str(error.value).splitlines()) == 1


# --- the command line -------------------------------------------------------------------------------------------------


def refuse_constant(name: str) -> None:
    raise AssertionError(f"results.json has a {name}")


def call(**flags: object) -> dict | str:
    """The results of a run with these flags, or what refuses them; nothing else can be."""
    printed, complaints = io.StringIO(), io.StringIO()
    with TemporaryDirectory() as folder:
        out = Path(folder, "out")
        try:
            config = Config(**(SMALL | dict(out=out) | flags))
        except ValueError as error:
            assert any(name in str(error) for name in flags)
            return str(error)
        with (
            patch("run.tyro.cli", lambda *_, **__: config),
            redirect_stdout(printed),
            redirect_stderr(complaints),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as end,
        ):
            warnings.filterwarnings("ignore", "k = .* no projection is needed|.* are too near to be preserved")
            printed.reconfigure = complaints.reconfigure = lambda **_: None
            command_line(main, Config, "")
        lines = complaints.getvalue().splitlines()
        if end.value.code == 2:
            assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1000
            assert not printed.getvalue() and not (out.is_dir() and list(out.iterdir()))
            return lines[0]
        assert (end.value.code, lines) == (0, []) and "certificate" in printed.getvalue()
        assert {"results.json", "projection.npy", "history.npz"} < {file.name for file in out.iterdir()}
        assert np.isfinite(np.load(out / "projection.npy")).all()
        return json.loads((out / "results.json").read_text(), parse_constant=refuse_constant)


@pytest.fixture
def sketches(monkeypatch):
    """Figures are laid out, but not saved twice, which takes most of the time of a small run."""

    def save_figure(figure, folder, name):
        figure.draw_without_rendering()
        (folder / f"{name}.png").touch()

    monkeypatch.setattr(run, "save_figure", save_figure)


EXTREME = st.one_of(
    st.sampled_from(
        [0.0, -1.0, 5e-324, 1e-310, 1e-101, 1e-100, 1e-30, 1e30, 1e100, 1e155, 1.7e308, 1 - 1e-16, 1 + 1e-15]
    ),
    st.sampled_from([math.inf, -math.inf, math.nan]),
    st.floats(),
)
COUNTS = st.sampled_from([-(10**30), -1, 0, 1, 2, 5, 2**33, 2**63 - 1, 2**63, 10**30, 10**400])
FIELDS = dict.fromkeys(("tau", "growth", "epsilon", "lr", "lam", "momentum", "rho", "radius"), EXTREME) | {
    **dict.fromkeys(("k", "draws", "n", "d", "seed", "data_seed", "patience"), COUNTS),
    "steps": st.sampled_from([-(10**30), -1, 0, 1, 2, 11]),
    "gaussians": st.sampled_from([-1, 0, 1, 2, 21]),
    "device": st.sampled_from(["", "meta", "hpu", "cuda:99", "cpu:-1", "CPU", "cpu\n", "\x00", "🙂", "cpu:0"]),
    "data": st.sampled_from(
        ["", ".", "/", ".npy", "digits/", "a\nb.csv", "\ud800.npz", "none.npy", "🙂.csv", "/dev/null"]
    ),
}


@pytest.mark.soak
@pytest.mark.usefixtures("sketches")
@pytest.mark.filterwarnings("ignore:.*function-scoped fixture")
@settings(max_examples=25)
@given(
    flags=st.one_of([st.fixed_dictionaries({name: values}) for name, values in FIELDS.items()]),
    objective=st.sampled_from(["bound", "tail", "sampled"]),
    problem=st.sampled_from(["vectors", "pairs"]),
)
@example(flags=dict(steps=10**400, tau=math.inf), objective="bound", problem="pairs")
@example(flags=dict(radius=1e30, lr=1e30, lam=1e30), objective="sampled", problem="pairs")
@example(flags=dict(radius=1e30, lr=1e30, lam=1e30), objective="bound", problem="vectors")
@example(flags=dict(radius=1e30, lr=1e30, lam=1e30), objective="tail", problem="vectors")
@example(flags=dict(growth=1e300, tau=1e30), objective="bound", problem="vectors")
def test_any_flags(flags, objective, problem):
    call(objective=objective, problem=problem, **flags)


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "results"])
@pytest.mark.usefixtures("sketches")
def test_any_folder(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "results" / "results.json").mkdir(parents=True)
    assert isinstance(call(out=tmp_path / place), str) or place == "results"
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.soak
@pytest.mark.usefixtures("sketches")
@settings(max_examples=8)
@given(data=st.data(), problem=st.sampled_from(["vectors", "pairs"]), objective=st.sampled_from(["bound", "tail"]))
def test_any_data(data, problem, objective):
    elements = st.one_of(finite, st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1e300, 1.7e308, 1 + 1e-15]))
    X = data.draw(arrays.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=elements))
    with TemporaryDirectory() as folder:
        np.save(Path(folder, "X.npy"), X)
        found = call(data=str(Path(folder, "X.npy")), problem=problem, objective=objective, n=None)
    if isinstance(found, dict):
        assert found["distortion"] >= 0 and found["gaussian_min"] <= found["gaussian_mean"]


@pytest.mark.soak
@pytest.mark.parametrize(
    "words, status",
    [
        (["--n", "5", "--d", "3", "--k", "2", "--steps", "3", "--gaussians", "5", "--out", "ü 🙂/é́"], 0),
        (["--data", b"\xff\n.npy", "--out", "out"], 2),
    ],
)
def test_any_words(tmp_path, words, status):
    done = subprocess.run([sys.executable, FOLDER / "main.py", *words], capture_output=True, cwd=tmp_path, timeout=300)
    assert done.returncode == status
    if status == 2:
        assert b"Traceback" not in done.stderr and (b"error: " in done.stderr or b"lam" in done.stderr)
        assert not list(tmp_path.rglob("*"))
    else:
        assert len(list((tmp_path / "ü 🙂/é́").iterdir())) == 9


# --- the objectives at extremes ---------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = {
    "n = 2": normal(2, 3),
    "d = 1": normal(4, 1),
    "one direction": normal(5, 1) @ normal(1, 4, seed=1),
    "collinear points far away": 1e3 + normal(5, 1) @ normal(1, 4, seed=1),
    "the same rows": torch.cat([normal(3, 4), normal(3, 4), normal(3, 4)]),
    "huge": 1e307 * normal(5, 4).clamp(-10, 10),
    "subnormal": 1e-310 * normal(5, 4),
    "of all sizes": normal(5, 4) * torch.logspace(0, -300, 5, dtype=torch.float64)[:, None],
}


@pytest.mark.filterwarnings("ignore:.* are too near to be preserved")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [Vectors, Pairs])
@pytest.mark.parametrize("sigma", [0.0, 5e-324, 1e-200, 1e-9, 0.1])
@pytest.mark.parametrize("k", [1, 4, 6])
def test_extreme_data_and_noise(shape, kind, sigma, k):
    """Values and gradients are finite, and at σ → 0 the worst distortion, or the share of distortions above ε."""
    problem = kind(SHAPES[shape])
    M = (0.5 * normal(k, problem.d, seed=3)).requires_grad_()
    s = number(sigma * math.sqrt(k * problem.d)).requires_grad_()
    for tau in (1e-12, 1.0, 40.0):
        F = bound(problem, M, s, tau)
        for found, exact in zip(
            bound_gradient(problem, M.detach(), s.detach(), tau)[1:], torch.autograd.grad(F, [M, s]), strict=True
        ):
            assert found.isfinite().all() and torch.allclose(found, exact, rtol=1e-8, atol=1e-8)
        worst = distortion(problem, M.detach())
        slack = 1e-12 * (1 + worst + 1 / tau)
        assert worst <= F.item() + slack
        if sigma <= 1e-9:
            assert F.item() <= worst + math.log(2 * problem.N) / tau + slack
    for epsilon in (1e-12, 0.3, 1 - 1e-12):
        share = tail(problem, M, s, epsilon)
        assert all(x.isfinite().all() for x in torch.autograd.grad(share, [M, s]))
        assert 0 <= share <= problem.N * (1 + 1e-12)
        q = torch.cat(list(distortions(problem, M.detach())))
        if sigma <= 1e-9 and ((q - 1).abs() - epsilon).abs().min() > 1e-6:
            assert share.item() == pytest.approx(((q - 1).abs() > epsilon).sum().item())


@settings(max_examples=60)
@given(
    sigma=st.floats(-7, 0).map(lambda x: 10**x),
    z=st.floats(-8, 8),
    epsilon=st.floats(0.01, 0.99),
    k=st.sampled_from([1, 3]),
)
def test_tail_and_its_gradient_are_exact_near_the_edge(sigma, z, epsilon, k):
    """One direction, ‖M x‖ z standard deviations inside √(1 + ε): the law of ‖A x‖ is elementary for k = 1 and 3."""
    m = number(math.sqrt(1 + epsilon) - z * sigma).requires_grad_()
    assume(m > 0.1)
    s = number(sigma * math.sqrt(k)).requires_grad_()
    M = torch.cat([m[None, None], m.new_zeros(k - 1, 1)])
    exact = number(1.0)
    for sign in (1, -1):
        r, noise = math.sqrt(1 + sign * epsilon), s / math.sqrt(k)
        a, b = (r - m) / noise, (r + m) / noise
        inside = torch.special.ndtr(a) - torch.special.ndtr(-b)
        if k == 3:
            inside = inside - noise / m * ((-a.square() / 2).exp() - (-b.square() / 2).exp()) / math.sqrt(2 * math.pi)
        exact = exact - sign * inside
    share = tail(Vectors(torch.ones(1, 1)), M, s, epsilon)
    rounding = 1e-14 / sigma  # of z: r − m has rounding errors of 10⁻¹⁶
    assert share.item() == pytest.approx(exact.item(), rel=1e-7, abs=1e-11 + rounding)
    scale = 1 / sigma
    for found, truth in zip(torch.autograd.grad(share, [m, s]), torch.autograd.grad(exact, [m, s]), strict=True):
        assert found.item() == pytest.approx(truth.item(), rel=1e-6, abs=(1e-9 + rounding) * scale)


def test_tail_of_pairs_that_the_projection_brings_together():
    """q is 0 there, and rounding can leave it below."""
    M = normal(2, 3)
    X = torch.cat(
        [normal(20, 1) * torch.linalg.cross(*M), 10 * normal(1, 3)]
    )  # 20 points on M's kernel, and one off it
    problem, M = Pairs(X), M.requires_grad_()
    q = torch.cat(list(distortions(problem, M.detach())))
    assert -1e-9 < q.min() < 0
    s = number(1e-3).requires_grad_()
    share = tail(problem, M, s, 0.5)
    assert share.item() == pytest.approx(((q - 1).abs() > 0.5).sum().item())
    assert all(x.isfinite().all() for x in torch.autograd.grad(share, [M, s]))


@pytest.mark.parametrize("tau", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("k", [1, 3])
def test_one_direction_in_closed_form(tau, k):
    """N = 1 and M = 0: F_τ = (1/τ) log(e^−τ (1 − 2τσ²)^(−k/2) + e^τ (1 + 2τσ²)^(−k/2)), up to 2τσ² → 1."""
    problem = Pairs(number([[1e300], [-1e300]])) if k == 1 else Vectors(number([[1e-300]]))
    M = number([[0.0]] * k)
    for part in (1e-300, 1e-9, 0.5, 1 - 1e-12):  # 2τσ²
        s = number(math.sqrt(k * part / (2 * tau)))
        logs = [-tau - k / 2 * math.log1p(-part), tau - k / 2 * math.log1p(part)]
        exact = np.logaddexp(*logs) / tau
        assert bound(problem, M, s, tau).item() == pytest.approx(exact, rel=1e-5 if part > 0.9 else 1e-12)
        f, f_M, f_s = bound_gradient(problem, M, s, tau)
        assert f == pytest.approx(exact, rel=1e-5 if part > 0.9 else 1e-12)
        assert not f_M.any() and f_s.isfinite()


@pytest.mark.filterwarnings("ignore:.* are too near to be preserved")
@pytest.mark.parametrize("objective", ["bound", "tail"])
@pytest.mark.parametrize("kind", [Vectors, Pairs])
@pytest.mark.parametrize("shape", SHAPES)
def test_descent_on_extreme_data(shape, kind, objective):
    """λ too small to matter, and as many rows as columns or more: finite numbers, and no worse than M = 0."""
    problem = kind(SHAPES[shape])
    options = dict(objective=objective, lam=1e-30, steps=60, growth=1.2, tau=100)
    config = Config(problem=kind.__name__.lower(), k=problem.d + 1, **options)
    result = Derandomization(problem, config, torch.Generator().manual_seed(0)).run().result()
    certificate = result.certificate
    assert result.M.isfinite().all() and math.isfinite(result.objective) and math.isfinite(result.sigma)
    assert math.isfinite(certificate.gradient_norm) and math.isfinite(certificate.lambda_min)
    assert result.distortion == pytest.approx(distortion(problem, result.M), abs=1e-13) and result.distortion <= 1


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6), tau=st.floats(0, 5).map(lambda x: 10**x), part=st.floats(0, 0.9), size=st.floats(0, 1)
)
def test_pairs_left_out_do_not_matter(seed, tau, part, size):
    """At whatever noise that F_τ allows."""
    problem, M = Pairs(normal(30, 3, seed=seed)), size * normal(2, 3, seed=seed + 1)
    s = number(math.sqrt(part / (2 * tau) * 6))
    few, _ = heavy(problem, M, s, tau, distortion(problem, M), 25)
    left_out = problem.N * math.exp(-25)
    assert bound(few, M, s, tau).item() == pytest.approx(bound(problem, M, s, tau).item(), rel=1e-9, abs=left_out / tau)
