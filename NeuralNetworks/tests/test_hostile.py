"""Hostile hyperparameters end in finite numbers or in one line that says what is wrong; objectives at extremes."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from math import pi, sqrt
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

import numpy as np
import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.special import expit
from torch import Tensor

import main
import outcome
import plot
import toy
from activations import activation
from explore import FLAGS
from model import LOSSES, Student, Teacher, cosines, effective_rank, parallel, perpendicular, quadrature, risk
from run import Checkpoint
from train import Training

MAIN = Path(__file__).parent.parent / "main.py"
SMALL = dict(d=1, width=3, steps=3, toy=False)
HINTS = get_type_hints(main.Config)
PATHS = ("checkpoint", "out")
OF_TABLES = set(FLAGS) - {"data", "target", "seed", "out"}
"""looked at only with --data"""
REFUSED = (ValueError, OSError, FloatingPointError, MemoryError)
"""what `command_line` answers in one line"""

HUGE = st.sampled_from([10**9 + 1, 2**31, 2**40, 2**63 - 1, 2**63, 10**30, 10**400])
INTEGERS = st.integers(-3, 9) | st.integers(-(10**30), -1) | HUGE  # between, they are legitimate and take hours
FLOATS = st.floats() | st.sampled_from(
    [-1.0, 5e-324, 1e-310, 1e-200, 1e-100, 1e-50, 0.5, 1.0, 1e50, 1e100, 1e155, 1e200]
)


def kinds(hint: object) -> list[object]:
    """The types that a hint allows, without their ranges."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in kinds(part)]
    return [get_args(hint)[0] if get_origin(hint) is Annotated else hint]


def hostile(name: str) -> st.SearchStrategy:
    """Values of a field of Config, of its type."""
    if name == "samples":  # 2³⁰ are legitimate, and take the memory
        return INTEGERS | st.sampled_from([2, 16])
    if get_origin(HINTS[name]) is Literal:
        return st.sampled_from(get_args(HINTS[name])) | words(name)
    kind, *others = kinds(HINTS[name])
    values = {int: INTEGERS, float: FLOATS, bool: st.booleans(), str: words(name)}[kind]
    return values | st.none() if others else values


def words(name: str) -> st.SearchStrategy[str]:
    known = ["cpu", "cpu:1", "cuda:99", "meta", "hpu"] if name == "device" else list(main.ACTIVATIONS)
    return st.sampled_from([*known, "", "a\nb", "tanh\n", "../x", "\udc80"]) | st.text(max_size=5)


def run(**config: object) -> int:
    """The exit status of main, which has left all files, with finite numbers, or refused and left no file at all."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()) as said:
        out = Path(folder, "out")
        try:
            assert not main.main(main.Config(**dict(out=out) | SMALL | config))
            status = 0
        except REFUSED as error:
            assert str(error)
            status = 2
        files = {file.name: file.read_bytes() for file in out.iterdir()} if out.is_dir() else {}
        if status == 0:
            assert all(files.values()) and not any(name.startswith(".") for name in files)
            assert {"norms.png", "norms.pdf", "weights.npz", "history.npz", "results.json"} <= files.keys()
            results = json.loads(files["results.json"], parse_constant=pytest.fail)
            with np.load(out / "weights.npz") as weights:
                assert all(np.isfinite(weights[name]).all() for name in weights)
            assert results["certificate"]["w_norm"] == pytest.approx(results["w_perp"], rel=1e-9)
        else:
            assert said.getvalue() == "" and not files
    return status


def run_undrawn(**config: object) -> int:
    """The same in a fraction of the time: the figures' files hold a word each."""

    def drawn(_: Figure, folder: Path, name: str) -> None:
        for kind in ("png", "pdf"):
            (folder / f"{name}.{kind}").write_bytes(b"figure")

    with (
        patch.object(outcome.run, "save_figure", drawn),
        patch.object(plot, "animate", lambda _, __, path: path.write_bytes(b"frames")),
    ):
        return run(**config)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in HINTS if name not in (*PATHS, *OF_TABLES, "toy")])
@settings(max_examples=8)
@given(data=st.data())
def test_one_hostile_hyperparameter(name, data):
    value = data.draw(hostile(name))
    # what it is of no use in would not be looked at; an easy ρ ends a run of very many steps
    change = {"samples": dict(risk="sobol"), "batch": dict(risk="sampled"), "steps": dict(rho=1e9)}.get(name, {})
    if name == "k":
        change = dict(d=3)
    if name == "d":
        change = dict(risk="sobol", samples=16)
    run_undrawn(**change | {name: value})


@settings(max_examples=25)
@given(data=st.data())
def test_all_hyperparameters_at_their_extremes(data):
    """Within the range of each, so that many of these runs are done; the others say that they diverge."""
    d = data.draw(st.integers(1, 5))
    sizes = st.sampled_from([1e-30, 1e-9, 1e-3, 1.0])
    numbers = {name: data.draw(sizes) for name in ("lr", "rho", "iota")} | {"lam": data.draw(sizes | st.just(0.0))}
    choices = {name: data.draw(st.sampled_from(get_args(HINTS[name]))) for name in ("loss", "trained", "algorithm")}
    run_undrawn(
        **numbers | choices,
        d=d,
        k=data.draw(st.integers(0, d)),
        risk=data.draw(st.sampled_from(["quadrature", "sobol", "sampled"] if d < 3 else ["sobol", "sampled"])),
        teacher=data.draw(st.sampled_from(list(main.ACTIVATIONS))),
        activation=data.draw(st.sampled_from(list(main.ACTIVATIONS))),
        noise=data.draw(st.sampled_from([0.0, 5e-324, 1.0, 1e30])),
        width=data.draw(st.integers(1, 4)),
        depth=data.draw(st.sampled_from([2, 2, 2, 3, 20])),
        samples=data.draw(st.sampled_from([2, 16])),
        batch=data.draw(st.sampled_from([1, 2])),
        momentum=data.draw(st.sampled_from([None, 0.0, 5e-324, 0.9, 1 - 2**-53])),
        radius=data.draw(st.sampled_from([0.0, 5e-324, 1.0, 1e30])),
        patience=data.draw(st.sampled_from([1, 10**9])),
        freeze_bias=data.draw(st.booleans()),
        anneal=data.draw(st.booleans()),
        seed=data.draw(st.sampled_from([0, 2**63 - 1])),
    )


@pytest.mark.parametrize(
    "change", [dict(), dict(k=0), dict(d=2, k=2, width=1, steps=1), dict(d=2, k=0, radius=1e30, rho=1e9, patience=1)]
)
def test_figures_of_degenerate_runs_can_be_drawn(change):
    """W⊥ = 0 or W∥ = 0 throughout, on log axes; one neuron, one step; weights out of all bounds."""
    assert run(**change) == 0


@pytest.mark.parametrize("name", PATHS)
def test_hostile_paths(name, tmp_path):
    (tmp_path / "file").write_bytes(b"\0\xff not a checkpoint\n")
    refused = ["file/below", "nul\0", "long" * 100, "file"] + ([""] if name == "checkpoint" else [])
    fine = {"out": ["", "new/folder", "é \U0001f600 'x' \n y"], "checkpoint": ["new/file", "é \n"]}[name]
    for path in (*refused, *fine):
        out = tmp_path / (path if name == "out" else "results")
        change = {} if name == "out" else dict(checkpoint=tmp_path / path)
        try:
            with redirect_stdout(StringIO()):
                main.main(main.Config(**SMALL | dict(out=out) | change))
            assert path in fine, path
        except REFUSED:
            assert path in refused, path
    assert (tmp_path / "file").read_bytes() == b"\0\xff not a checkpoint\n"


def test_a_folder_where_a_file_belongs_is_left_alone_and_so_is_all_else(tmp_path):
    (tmp_path / "results.json").mkdir()
    with redirect_stdout(StringIO()), pytest.raises(OSError, match=r"results\.json"):
        main.main(main.Config(**SMALL | dict(out=tmp_path)))
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_damaged_checkpoints(tmp_path):
    """Each is refused as such or, where the damage hits nothing, gone on from; the file stays as it was."""
    file, config = tmp_path / "checkpoint", main.Config(**SMALL, checkpoint=tmp_path / "checkpoint", out=tmp_path)
    with redirect_stdout(StringIO()):
        main.main(config)
        whole, rng = file.read_bytes(), np.random.default_rng(0)
        assert Checkpoint(file, config).parts
        file.write_bytes(whole)  # as it was
        for place in rng.integers(len(whole), size=20):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], b"\0"):
                file.write_bytes(damaged)
                try:
                    Checkpoint(file, config)
                except ValueError as error:
                    assert "--checkpoint" in str(error) and file.read_bytes() == damaged


@settings(max_examples=60)
@given(name=st.sampled_from([name for name in HINTS if name != "toy"]), data=st.data())
def test_words_of_the_command_line(name, data):
    """They are taken, or refused in tyro's box with the status 2."""
    word = data.draw(
        st.text(max_size=8) | st.sampled_from(["1e400", "-1e400", "nan", "1_0", "１", "0x10", "1.0", "None", "True"])
    )
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            tyro.cli(main.Config, args=[f"--{name.replace('_', '-')}={word}"])
        except SystemExit as error:
            assert error.code == 2


def call(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess:
    """main.py in 6 GiB of memory."""
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); sys.argv.pop(0)"
    start = f"{limited}; sys.path.insert(0, {str(MAIN.parent)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start, MAIN, "--no-toy", *arguments],
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.soak
def test_more_than_the_memory_holds_is_refused(tmp_path):
    for flags in (("--width", "1000000000"), ("--risk", "sampled", "--batch", "1000000000")):
        done = call(*flags, "--out", tmp_path / "out")
        assert done.returncode == 2 and done.stdout == b"" and not list(tmp_path.glob("out/*"))
        assert done.stderr.startswith(b"error: not enough memory") and done.stderr.count(b"\n") == 1, done.stderr


def test_a_terminal_without_unicode_and_a_folder_whose_name_is_none(tmp_path):
    out = os.fsencode(tmp_path) + b"/\xff\n"
    done = call("--d", "1", "--width", "3", "--steps", "3", b"--out", out, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert b"certificate" in done.stdout and (tmp_path / os.fsdecode(b"\xff\n") / "results.json").exists()


# --- the objective at its extremes ------------------------------------------------------------------------------------

ENDS = [0.0, *(sign * 10.0**power for power in (-300, -150, -9, 0, 1, 3, 9, 75, 150) for sign in (1, -1))]


def tensor(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def derivatives(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elementwise: the value, the first and the second derivative, all of them finite."""
    (first,) = torch.autograd.grad(f.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, materialize_grads=True)
    for values in (f, first, second):
        assert values.isfinite().all()
    return f.detach(), first.detach(), second.detach()


@pytest.mark.parametrize("iota", [1e-100, 1e-3, 2.0, 1e3, 1e100])
def test_relu_iota_far_out_and_at_its_limits(iota):
    z = tensor(*ENDS)
    value, first, second = derivatives(activation("relu_iota", iota)(z), z)
    s = torch.from_numpy(expit(iota * np.array(ENDS)))
    torch.testing.assert_close(first, s)
    torch.testing.assert_close(second, iota * s * (1 - s), rtol=1e-6, atol=1e-15 * iota)
    excess = value - z.detach().relu()  # over ReLU: log 2 / ι at 0, and less elsewhere
    assert (excess >= 0).all() and (excess <= np.log(2) / iota * (1 + 1e-12)).all()


@pytest.mark.parametrize("name, left, right", [("tanh", -1.0, 1.0), ("sigmoid", 0.0, 1.0), ("gelu", 0.0, np.inf)])
def test_bounded_activations_far_out(name, left, right):
    z = tensor(*ENDS)
    value, first, second = derivatives(activation(name)(z), z)
    far = z.detach().abs() > 100
    expected = torch.where(z.detach() > 0, z.detach().clamp(max=right), left)
    assert torch.equal(value[far], expected[far]) and not second[far].any()
    assert torch.equal(first[far], ((z.detach() > 0) & (right > 1)).double()[far])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_far_out(name):
    for y in ENDS:
        prediction = tensor(*ENDS)
        value, first, second = derivatives(LOSSES[name](prediction, torch.full_like(prediction, y)), prediction)
        r = prediction.detach() - y
        assert (value >= -1e-15).all() and (second >= -1e-12).all() and (first * r >= -1e-15).all()
        if name == "squared":
            assert torch.equal(first, 2 * r)
        elif name == "logistic":
            torch.testing.assert_close(first, prediction.detach().sigmoid() - torch.tensor(y).double().sigmoid())
        else:  # slope ±1 far out, and r near 0
            torch.testing.assert_close(first, r / torch.from_numpy(np.hypot(1, r.numpy())))


@pytest.mark.parametrize("w", [0.0, 1e-150, 1e-9, 1.0, 1e30])
@pytest.mark.parametrize("b", [0.0, 1.0, -1e9])
def test_the_risk_of_one_he2_neuron_is_a_polynomial_in_w_and_b(w, b):
    """Teacher 1, d = 1: E[(a He₂(wx + b) − 1)²] = a²(3w⁴ + 6w²b² + b⁴ − 2(w² + b²) + 1) − 2a(w² + b² − 1) + 1."""
    a, student, teacher = 0.5, Student(1, [1], activation("he2")), Teacher(cosines(1), 0, activation("tanh"))
    for parameter, number in ((student.W, w), (student.b, b), (student.a, a)):
        parameter.data.fill_(number)
    f = risk(student, LOSSES["squared"], teacher.labelled(*quadrature([16])))
    in_w, in_b = (float(x) for x in torch.autograd.grad(f, (student.W, student.b)))
    exact = a**2 * (3 * w**4 + 6 * w**2 * b**2 + b**4 - 2 * (w**2 + b**2) + 1) - 2 * a * (w**2 + b**2 - 1) + 1
    scale = 1 + abs(w) + abs(b)
    assert float(f.detach()) == pytest.approx(exact, rel=1e-9)
    assert in_w == pytest.approx(a**2 * (12 * w**3 + 12 * w * b**2 - 4 * w) - 4 * a * w, rel=1e-9, abs=1e-12 * scale**3)
    assert in_b == pytest.approx(a**2 * (12 * w**2 * b + 4 * b**3 - 4 * b) - 4 * a * b, rel=1e-9, abs=1e-12 * scale**3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 1e-150, 1e-8, 1e8, 1e150])
def test_the_risk_as_w_vanishes_and_explodes(scale, loss):
    """At W = 0 the student is a constant; far out a tanh is a sign, and the gradient of what is saturated is 0."""
    student = Student(2, [4, 3], activation("tanh"), torch.Generator().manual_seed(0))
    student.W.data = scale * torch.tensor([[1.0, 2.0], [1.0, 2.0], [-2.0, 1.0], [0.5, 0.25]]).double()
    batch = Teacher(cosines(2), 1, activation("tanh")).labelled(*quadrature([8, 8]))
    f = risk(student, LOSSES[loss], batch)
    gradients = torch.autograd.grad(f, list(student.parameters()))
    assert f.isfinite() and all(g.isfinite().all() for g in gradients)
    with torch.no_grad():
        limit = risk(lambda x: student((10 if scale > 1 else 0) * x), LOSSES[loss], batch)
    assert float(f.detach()) == pytest.approx(float(limit), abs=1e-6)
    assert scale < 1 or not gradients[0].any()


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("k, d", [(0, 1), (1, 1), (0, 3), (2, 3), (3, 3)])
def test_w_perp_and_rank_do_not_know_the_scale(scale, k, d):
    W = torch.randn(5, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U = Teacher(cosines(d), k, activation("tanh")).directions
    torch.testing.assert_close(perpendicular(scale * W, U) / scale, perpendicular(W, U), rtol=0, atol=1e-14)
    torch.testing.assert_close(parallel(scale * W, U) / scale, parallel(W, U), rtol=0, atol=1e-14)
    assert effective_rank(scale * W) == pytest.approx(effective_rank(W))
    if k == d:
        assert not perpendicular(W, U).any()
    if k == 0:
        assert torch.equal(perpendicular(W, U), W)


def descend(student: Student, **change: object):
    h, d = student.W.shape
    teacher = Teacher(cosines(d), 1, activation("tanh"))
    batch = teacher.labelled(*quadrature([8] * d))
    config = main.Config(**dict(width=h, d=d, lam=0.1, lr=1.0, rho=1e-6, steps=5, momentum=0.0) | change)
    return Training(student, batch, teacher.directions, config, torch.Generator().manual_seed(0)).run().result()


def test_where_the_output_is_off_weights_shrink_as_their_price_says():
    """a = 0: f is a constant and λ‖W‖², so that W shrinks by 1 − 2 lr λ a step and the lemma's bound is ‖W⊥‖ itself."""
    student = Student(2, [3], activation("tanh"), torch.Generator().manual_seed(0))
    student.a.requires_grad_(False).zero_()
    W = student.W.detach().clone()
    certificate = descend(student).certificate
    torch.testing.assert_close(student.W.detach(), 0.8**5 * W)
    assert certificate.w_norm_bound == pytest.approx(certificate.w_norm, rel=1e-5)
    assert certificate.w_norm_bound >= certificate.w_norm and certificate.lambda_min == pytest.approx(0, abs=1e-9)


def test_twins_stay_twins():
    """Equal neurons have equal gradients: without a kick they stay equal, and W of rank 1 stays so."""
    student = Student(2, [4], activation("gelu"), torch.Generator().manual_seed(0))
    for x in student.parameters():
        x.data[:] = x.data[0]
    certificate = descend(student, steps=20).certificate
    assert (student.W == student.W[0]).all() and effective_rank(student.W.detach()) == pytest.approx(1, abs=1e-6)
    assert np.isfinite(certificate.lambda_min)


@pytest.mark.parametrize("lam", [0.0, 1e-300, 1e-100])
def test_without_a_price_there_is_no_bound_unless_b_is_curved(lam):
    for a, curved in ((1.0, True), (0.0, False)):
        student = Student(1, [1], activation("he2"))  # in b, at W = 0, f is (a(b² − 1) − y)²
        for parameter, number in ((student.W, 0.0), (student.b, 2.0), (student.a, a)):
            parameter.requires_grad_(parameter is not student.a).data.fill_(number)
        certificate = descend(student, lam=lam, lr=1e-3).certificate
        assert certificate.w_norm < 1e-15 and np.isfinite([certificate.gradient_norm, certificate.lambda_min]).all()
        assert (certificate.w_norm_bound is not None) == (curved or lam > 0)


def test_a_risk_that_is_not_finite_is_said_at_the_start():
    with pytest.raises(ValueError, match="objective is inf where the run starts"):
        descend(Student(1, [1] * 12, activation("he4"), torch.Generator().manual_seed(3)))


# --- the toy at its extremes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 6])
def test_moments_where_w_vanishes(k):
    """M_k → max(b, 0)^k, and Stein's ∂M_k/∂w = w ∂²M_k/∂b², so that ∂²M_k/∂w² = ∂²M_k/∂b² there."""
    for size in (0.0, 1e-300, 1e-100, 1e-30):
        b = tensor(-1e9, -1.0, -1e-3, 1e-3, 1.0, 1e9)
        w = torch.full_like(b, size).requires_grad_()
        M = toy.moments(w, b, k)[k]
        positive = b.detach().clamp(min=0)
        _, _, in_w = derivatives(M, w)
        _, _, in_b = derivatives(toy.moments(w, b, k)[k], b)
        torch.testing.assert_close(M.detach(), positive**k)
        torch.testing.assert_close(in_b, k * (k - 1) * positive ** (k - 2))
        torch.testing.assert_close(in_w, in_b)


@pytest.mark.parametrize("w", [1e-90, 1e-3, -1.0, 1e40])
def test_the_toy_without_bias_in_closed_form(w):
    """f = 1 − 2√(2/π)|w|³ + (15/2) w⁶ + λw²."""
    x, zero = tensor(w), tensor(0.0)
    f = toy.objective(x, zero, torch.tensor(0.1).double())
    s = abs(w)
    value, first, _ = derivatives(f, x)
    torch.testing.assert_close(float(value), 1 - 2 * sqrt(2 / pi) * s**3 + 7.5 * s**6 + 0.1 * w * w)
    slope = np.sign(w) * (-6 * sqrt(2 / pi) * s**2 + 45 * s**5 + 0.2 * s)
    torch.testing.assert_close(float(first), float(slope))


@pytest.mark.parametrize(
    "lam, w", [(5e-324, (2 / 15 * sqrt(2 / pi)) ** (1 / 3)), (1e-100, None), (1e100, 0), (1e300, 0)]
)
def test_the_global_minimizer_at_the_ends_of_lambda(lam, w):
    w = (2 / 15 * sqrt(2 / pi)) ** (1 / 3) if w is None else w
    assert toy.global_minimizer(lam, frozen=True) == pytest.approx(w, rel=1e-12)
