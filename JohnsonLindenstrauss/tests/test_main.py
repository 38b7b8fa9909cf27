"""The command line as a user calls it: files, summary, bad input, Ctrl-C."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from main import Config, main
from model import Pairs, distortion
from train import Derandomization

FIGURES = {
    f"{name}.{suffix}" for name in ("fig6_distortion", "fig7_variance", "distortions") for suffix in ("png", "pdf")
}
SMALL = dict(n=20, d=40, k=8, gaussians=50, growth=1.02, steps=500)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_papers_problem(tmp_path, capsys, at_the_prompt):
    assert at_the_prompt("--out", tmp_path) == 0
    said = capsys.readouterr()
    assert "certificate  SOSP" in said.out
    assert said.err == ""  # no progress bar where nobody watches
    assert {file.name for file in tmp_path.iterdir()} == FIGURES | {"projection.npy", "history.npz", "results.json"}

    found = results(tmp_path)
    assert found["experiment"] == "JohnsonLindenstrauss" and found["problem"] == "vectors"
    assert (found["n"], found["d"], found["k"]) == (100, 500, 30)
    assert found["distortion"] <= 1e-5 and found["sigma"] <= 1e-5
    assert found["distortion"] < found["pca"] < found["gaussian_scaled_min"] < found["gaussian_min"]
    assert found["gaussian_scaled_mean"] < found["gaussian_mean"] and found["sparse_scaled"] < found["sparse"]
    assert found["interpolation"] < 1e-13 and "one row keeps all norms" in said.out
    assert found["certificate"]["is_sosp"] and found["perturbations"] >= 1
    assert found["certificate"]["w_norm"] <= found["certificate"]["w_norm_bound"]
    assert found["certificate"]["w_norm"] == pytest.approx(found["sigma"] * np.sqrt(30 * 500))
    assert found["config"]["tau"] == Config().tau and "torch" in found["versions"]

    M = np.load(tmp_path / "projection.npy")
    assert M.shape == (30, 500) and M.dtype == np.float64
    with np.load(tmp_path / "history.npz") as history:
        assert history["sigma"][0] == pytest.approx(1 / np.sqrt(30), rel=1e-2) and history["distortion"][-1] < 1e-5
        assert len(history["gaussian"]) == 1000 and history["kicks"][0] == 0


def test_a_users_points_with_duplicates(tmp_path, monkeypatch, capsys, at_the_prompt):
    X = np.random.default_rng(0).standard_normal((30, 12))
    X[4] = X[5]
    np.savetxt(tmp_path / "my points.csv", X, delimiter=",")
    arguments = ["--problem", "pairs", "--k", "6", "--growth", "1.02", "--steps", "500", "--gaussians", "50"]
    monkeypatch.chdir(tmp_path)
    assert at_the_prompt("--data", "my points.csv", "--out", "my figures", *arguments) == 0
    said = capsys.readouterr().out
    assert "30 × 12, 434 pairs (1 of duplicate or too near points left out), to 6 dimensions" in said
    M, found = np.load(tmp_path / "my figures" / "projection.npy"), results(tmp_path / "my figures")
    i, j = np.triu_indices(30, 1)
    i, j = (end[(i != 4) | (j != 5)] for end in (i, j))
    U = X[i] - X[j]
    q = np.square(U @ M.T).sum(1) / np.square(U).sum(1)
    assert found["distortion"] == pytest.approx(np.abs(q - 1).max(), rel=1e-9) and found["duplicates"] == 1
    assert found["distortion"] < found["pca"] and found["distortion"] < found["gaussian_scaled_min"]
    assert found["interpolation"] is None and "one row" not in said


def test_points_that_differ_and_are_too_near_are_warned_of(tmp_path, undrawn):
    """Ten columns of N(0, 1) beside one of 0 and 10⁷: pairs that agree in it are lost in its rounding errors."""
    X = np.random.default_rng(0).standard_normal((30, 11))
    X[:, 0] = 1e7 * (np.arange(30) % 2)
    X[4] = X[6]
    np.save(tmp_path / "X.npy", X)
    options = dict(data=str(tmp_path / "X.npy"), problem="pairs", k=3, steps=20, gaussians=5)
    with pytest.warns(UserWarning, match="209 pairs of points that differ are too near"):
        main(Config(out=tmp_path, **options))
    assert results(tmp_path)["duplicates"] == 210 == 2 * 15 * 14 // 2 and results(tmp_path)["preserved"] == 225


def test_a_draw_is_measured_on_all_pairs(monkeypatch):
    X = torch.randn(40, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Pairs(X * torch.arange(1.0, 10))
    descent = Derandomization(problem, Config(problem="pairs", k=3), torch.Generator().manual_seed(0))
    monkeypatch.setattr(descent, "look", lambda: 1.0)
    descent.few, random = descent.small.subset(torch.tensor([0]), torch.tensor([1])), descent.generator.get_state()
    drawn = descent.row()["drawn_distortion"]
    M, s = descent.point()
    noise = torch.randn(M.shape, generator=torch.Generator().set_state(random), dtype=M.dtype)
    lengths = descent.basis.norm(dim=1)
    few = distortion(descent.few, M + float(s) / 27**0.5 * (noise / lengths))
    assert drawn == distortion(descent.small, M + float(s) / 27**0.5 * (noise / lengths)) > 1.5 * few
    assert drawn > 3 * distortion(descent.few, M)
    directions = descent.basis / lengths[:, None]  # so that A = (M + σ noise / lengths) basis is that of σ N(0, I)
    torch.testing.assert_close(directions @ directions.T, torch.eye(9, dtype=M.dtype))
    assert lengths.max() > 5 * lengths.min()
    drawn = distortion(descent.problem, (s / (3 * 9) ** 0.5 * noise / lengths) @ descent.basis)
    assert drawn == pytest.approx(distortion(descent.small, s / (3 * 9) ** 0.5 * noise / lengths))


def test_results_have_what_was_completed(tmp_path, undrawn):
    main(Config(problem="pairs", **SMALL | dict(growth=None, steps=3), out=tmp_path))
    found = results(tmp_path)
    assert found["completed"] == dict(growth=1.003, ridge=1e-4) and not found["interrupted"]
    assert "sklearn" in found["versions"]


def test_digits_and_the_first_rows_of_a_file(tmp_path, capsys, undrawn):
    assert not main(Config(data="digits", problem="pairs", n=40, k=10, steps=50, gaussians=20, out=tmp_path))
    found = results(tmp_path)
    assert (found["n"], found["d"], found["gaussians"]) == (40, 64, 20) and not found["certificate"]["is_sosp"]
    assert "not an SOSP" in capsys.readouterr().out


def test_as_many_dimensions_as_there_are(tmp_path, undrawn):
    with pytest.warns(UserWarning, match="no projection is needed"):
        main(Config(n=20, d=6, k=6, problem="pairs", gaussians=20, growth=1.02, out=tmp_path))
    assert results(tmp_path)["distortion"] < 1e-5


def test_a_resumed_run_counts_the_seconds_before_and_wants_the_same_data(tmp_path, undrawn):
    file, data, X = tmp_path / "run", tmp_path / "x.npy", np.random.default_rng(0).standard_normal((20, 6))
    np.save(data, X)
    config = Config(data=str(data), problem="pairs", k=3, steps=20, gaussians=20, checkpoint=file, out=tmp_path)
    main(config)
    torch.save(torch.load(file, weights_only=True) | dict(elapsed=1000.0), file)
    main(config)
    assert 1000 < results(tmp_path)["seconds"] < 1100
    np.save(data, X[::-1])
    with pytest.raises(ValueError, match="the data differs"):
        main(config)


@pytest.mark.parametrize("options", [dict(objective="tail", epsilon=0.5), dict(objective="sampled", lr=0.1)])
def test_the_other_objectives_run(tmp_path, options, undrawn):
    assert not main(Config(out=tmp_path, problem="pairs", **SMALL | dict(steps=150), **options))
    found = results(tmp_path)
    assert found["distortion"] < found["gaussian_mean"] and found["sigma"] < 1 / np.sqrt(8)
    assert (found["certificate"] is None) == (options["objective"] == "sampled")


@pytest.mark.parametrize(
    "name, bad",
    [
        *[(name, x) for name in ("k", "d", "steps", "patience", "draws", "gaussians") for x in (0, -1, 10**10)],
        *[(name, x) for name in ("tau", "lr", "lam", "rho") for x in (0.0, -1.0, 1e31, float("nan"), float("inf"))],
        *[(name, x) for name in ("seed", "data_seed") for x in (-1, 2**63)],
        *[("n", x) for x in (1, 0, -5)],
        *[("growth", x) for x in (1.0, 0.5, float("nan"))],
        *[("epsilon", x) for x in (0.0, 1.0)],
        *[("momentum", x) for x in (-0.1, 1.0)],
        *[("radius", x) for x in (-0.1, float("inf"))],
        *[(name, "abacus") for name in ("device", "problem", "objective", "algorithm")],
    ],
)
def test_hyperparameters_out_of_range(name, bad):
    with pytest.raises(ValueError, match=name):
        Config(**{name: bad})


def refusal(status: int, capsys: pytest.CaptureFixture) -> str:
    """What a command line that ended with this status, 2, has printed to stderr."""
    printed = capsys.readouterr()
    assert status == 2 and not printed.out
    return printed.err


@pytest.mark.parametrize(
    "flags, word",
    [
        ("--data nowhere.npy", "nowhere.npy"),
        ("--data nowhere.txt", "neither"),
        ("--data digits --n 5000", "1797 rows"),
        ("--n 1000000000 --d 1000000000", "more memory"),
        ("--k 1000000000", "--k is 1000000000"),
        ("--objective sampled --draws 1000000000", "--draws 1000000000"),
        ("--algorithm 1 --lr 10", "--lr 1"),
        ("--algorithm 2 --radius 0", "radius is 0"),
        ("--problem pairs --objective sampled --lam 100 --lr 1e20", "--lr 1e+19"),
        ("--out {}/taken", "taken"),
        ("--checkpoint {}/taken", "no checkpoint"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, at_the_prompt, flags, word):
    (tmp_path / "taken").write_text("")
    flags = f"--out {tmp_path}/figures {flags.format(tmp_path)}".split()
    message = refusal(at_the_prompt(*flags), capsys)
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not list(tmp_path.glob("figures/*")) and (tmp_path / "taken").read_text() == ""


@pytest.mark.parametrize(
    "flags",
    [
        *("--k 0", "--lam 1e999", "--problem triples", "--algorithm 2 --objective sampled"),
        *("--momentum 0.5 --algorithm 1", "--growth 2 --algorithm 1"),
    ],
)
def test_flags_out_of_range_are_refused_in_a_box_that_names_them(tmp_path, capsys, at_the_prompt, flags):
    message = refusal(at_the_prompt(*flags.split(), "--out", tmp_path / "figures"), capsys)
    assert (
        flags.split()[0].lstrip("-") in message and "Traceback" not in message and not (tmp_path / "figures").exists()
    )


@pytest.mark.parametrize(
    "X, problem, word",
    [
        ([[1.0, 2], [np.nan, 1], [3, 4]], "pairs", "row 1"),
        ([[1.0, 2], [3, 4], [np.inf, 1]], "vectors", "row 2"),
        ([[1.0, 2]], "pairs", "at least 2"),
        ([1.0, 2, 3], "pairs", "shape"),
        ([[1.0, 2], [0, 0]], "vectors", "row 1 is the zero vector"),
        ([[1.0, 2], [1, 2], [1, 2]], "pairs", "the same"),
    ],
)
def test_bad_data_is_refused_in_one_line(tmp_path, capsys, at_the_prompt, X, problem, word):
    np.save(tmp_path / "X.npy", np.array(X))
    flags = f"--data {tmp_path}/X.npy --problem {problem} --k 1 --out {tmp_path}/figures".split()
    message = refusal(at_the_prompt(*flags), capsys)
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_help_names_every_hyperparameter(capsys, at_the_prompt):
    assert at_the_prompt("--help") == 0
    said = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in said


def test_ctrl_c_in_the_certificate_saves_the_matrix(tmp_path, capsys, monkeypatch, undrawn):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["train"], "certificate", interrupted)
    assert main(Config(n=20, d=40, k=5, gaussians=20, out=tmp_path))
    said = capsys.readouterr().out
    assert "certificate  none: interrupted" in said and "so far" not in said and "Ctrl-C and" not in said
    assert results(tmp_path)["gaussians"] == 1  # no more than the figures need
    assert results(tmp_path)["certificate"] is None and results(tmp_path)["distortion"] < 1e-10


def test_ctrl_c_in_the_comparison_saves_the_matrix(tmp_path, capsys, monkeypatch, undrawn):
    module = sys.modules[main.__module__]
    asked, compare = [], module.compare

    def interrupted(problem: object, M: object, count: int, seed: int) -> object:
        asked.append(count)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return compare(problem, M, count, seed)

    monkeypatch.setattr(module, "compare", interrupted)
    assert main(Config(**SMALL, out=tmp_path)) and asked == [50, 1]
    said = capsys.readouterr().out
    assert ", cut short by Ctrl-C\n" in said and "so far" not in said and "after Ctrl-C" not in said
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["certificate"]["is_sosp"] and found["gaussians"] == 1 and (tmp_path / "projection.npy").exists()
    assert found["interrupted"]


def test_ctrl_c_saves_the_matrix_so_far(tmp_path, capsys, ctrl_c, undrawn):
    ctrl_c(Derandomization, 150)
    assert main(Config(problem="pairs", n=200, d=50, gaussians=20, out=tmp_path))
    summary = capsys.readouterr().out
    assert "the best matrix so far" in summary and "certificate  none: interrupted" in summary
    found = results(tmp_path)
    assert found["distortion"] < 1 and found["steps"] == 150 and found["certificate"] is None
    assert np.load(tmp_path / "projection.npy").shape == (30, 50)
