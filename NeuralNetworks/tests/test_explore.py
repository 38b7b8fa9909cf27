"""A table from the file to the files: what is printed and saved is what was measured, and bad input leaves nothing."""

import json
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr
from sklearn.metrics import d2_log_loss_score, r2_score

from discover import Search, polish
from estimator import StructureDiscovery, StructureDiscoveryClassifier
from explore import explore, predictors, score
from main import Config

POLISHING = "discover", "estimator", "explore"
QUICK = dict(adam_steps=80, max_directions=3, neurons=40, bootstrap=4, repeats=0)


def table(n: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4)) @ (np.eye(4) + 0.3) * [1, 10, 0.1, 1]
    z = X[:, 0] - X[:, 1] / 10
    return pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(answer=5 + 2 * np.tanh(z) + 0.2 * rng.normal(size=n))


def predicted(arrays: dict[str, np.ndarray], X: np.ndarray) -> np.ndarray:
    """The network of weights.npz, by nothing but the formula."""
    z = (X - arrays["mean"]) @ arrays["M"].T
    t = z @ arrays["B"].T @ arrays["A"].T + arrays["b"]
    return ((t * ndtr(t)) @ arrays["a"] + arrays["c"]) * arrays["answer_scale"] + arrays["answer_mean"]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Fewer λ, and fewer iterations of L-BFGS, in which most of the time goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("estimator.Search", partial(Search, lams=(0.1, 0.01, 0.001)))
        for module in POLISHING:
            patch.setattr(f"{module}.polish", lambda *fit, **_: polish(*fit[:4], iterations=30))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    table().to_csv(folder / "t.csv", index=False)
    config = Config(data=str(folder / "t.csv"), target="answer", out=folder / "out", **QUICK | dict(repeats=1))
    assert not explore(config)
    return folder / "out", json.loads((folder / "out" / "results.json").read_text())


def test_the_files_say_what_was_planted(finished):
    folder, results = finished
    names = {"table_answer", "table_path", "table_spectrum"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert {x.name for x in folder.iterdir()} == expected | {"directions.csv", "results.json", "weights.npz"}
    assert results["n_directions"] == 1 and results["repeats"][0]["n_directions"] == 1
    assert results["repeats"][0]["sine"] < 0.2
    directions = pd.read_csv(folder / "directions.csv")
    assert set(directions["column"][:2]) == {"a", "b"}
    assert (directions["standardized"].abs().diff().dropna() <= 0).all()
    loading = directions.set_index("column")["loading"]
    assert loading["a"] / loading["b"] == pytest.approx(-10, rel=0.1)
    assert directions["standardized_sd"].between(1e-4, 0.1).all()
    assert 1e-3 < min(results["bootstrap_sines"]) <= max(results["bootstrap_sines"]) < 0.2
    assert np.allclose(loading[results["columns"]], results["directions"][0])
    test = {name: s["explained"] for name, s in results["test"].items()}
    assert test["the network, these directions"] > 0.93 > 0.9 > test["least squares"]
    assert len(test) == 5 and len(results["path"]) == 3 and [r["directions"] for r in results["ranks"]] == [0, 1, 2, 3]


def test_the_rows_of_the_test_are_seen_by_no_fit_before_it(tmp_path, monkeypatch, undrawn):
    seen, fit = [], StructureDiscovery.fit

    def fitted(model: StructureDiscovery, X: np.ndarray, y: np.ndarray, progress: object) -> StructureDiscovery:
        seen.append(y)
        return fit(model, X, y, progress)

    def scored(y: np.ndarray, prediction: np.ndarray, classes: bool) -> dict:
        seen.append(y)
        return score(y, prediction, classes)

    monkeypatch.setattr(StructureDiscovery, "fit", fitted)
    monkeypatch.setattr("explore.score", scored)
    table().to_csv(tmp_path / "t.csv", index=False)
    how = QUICK | dict(adam_steps=5, directions=1, bootstrap=0)
    assert not explore(Config(data=str(tmp_path / "t.csv"), target="answer", out=tmp_path / "out", **how))
    trained, *tests = seen
    assert len(tests) == 5 and all(set(y) == set(tests[0]) for y in tests)
    assert (len(trained), len(tests[0])) == (400, 100) and not set(trained) & set(tests[0])


def test_the_weights_give_the_predictions(finished):
    arrays = dict(np.load(finished[0] / "weights.npz"))
    t = table()
    X, y = t.drop(columns="answer").to_numpy(), t["answer"].to_numpy()
    assert r2_score(y, predicted(arrays, X)) > 0.95
    model = StructureDiscovery(1, steps=20, random_state=0).fit(X, y)
    assert np.allclose(predicted(model.arrays(), X), model.predict(X), atol=1e-4)


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, p = rng.integers(2, size=50), rng.uniform(0.05, 0.95, 50)
    assert score(y, p, classes=True)["explained"] == pytest.approx(d2_log_loss_score(y, p))
    assert score(y, p, classes=True)["accuracy"] == np.mean((p > 0.5) == y)
    x, z = rng.normal(size=(2, 50))
    assert score(x, z, classes=False)["explained"] == pytest.approx(r2_score(x, z))
    spread = np.std([np.mean((x - z)[rows] ** 2) for rows in rng.integers(50, size=(4000, 50))]) / x.var()
    assert score(x, z, classes=False)["error"] == pytest.approx(spread, rel=0.05)  # as the bootstrap has it


def planted() -> pd.DataFrame:
    """Two directions of one weight, so that only the plane is known."""
    X = np.random.default_rng(0).normal(size=(600, 3))
    return pd.DataFrame(X + 5, columns=["a", "b", "c"]).assign(y=np.tanh(X[:, 0]) + np.tanh(X[:, 1]))


def test_directions_of_a_plane_are_turned_before_their_spread_is_measured(tmp_path, undrawn):
    planted().to_csv(tmp_path / "t.csv", index=False)
    how = QUICK | dict(directions=2, bootstrap=6)
    assert not explore(Config(data=str(tmp_path / "t.csv"), target="y", out=tmp_path / "out", **how))
    directions = pd.read_csv(tmp_path / "out" / "directions.csv")
    assert len(directions) == 6 and (directions["standardized_sd"] < 0.1).all()


@pytest.mark.parametrize("inputs", ["whiten", "raw"])
def test_a_plane_is_drawn_at_the_rows_mean_where_nearly_all_answers_are_the_same(
    tmp_path, monkeypatch, inputs, undrawn
):
    for module in POLISHING:
        monkeypatch.setattr(f"{module}.polish", polish)  # this takes all its iterations
    t, planes = planted(), []
    t = t.assign(y=1 * (np.arange(600) % 60 == 0))
    t.to_csv(tmp_path / "t.csv", index=False)
    how = QUICK | dict(directions=3, bootstrap=0, adam_steps=5, inputs=inputs)
    asked = StructureDiscoveryClassifier.answers_along
    monkeypatch.setattr(
        StructureDiscoveryClassifier, "answers_along", lambda model, x: planes.append(x) or asked(model, x)
    )
    assert not explore(Config(data=str(tmp_path / "t.csv"), target="y", out=tmp_path / "out", **how))
    assert (tmp_path / "out" / "table_answer.png").exists() and len(planes) == 2
    third = planes[1][:, 2]
    assert np.ptp(third) == 0 and (abs(third[0]) < 0.2 if inputs == "whiten" else abs(third[0]) > 1)


def test_rivals_do_not_mind_the_unit_of_the_answers():
    X, y = table(200)[["a", "b", "c", "d"]].to_numpy(), 1e39 * table(200)["answer"].to_numpy()
    model = StructureDiscovery(steps=2, max_directions=1, width=5, random_state=0).fit(X, y)
    found = dict(predictors(model, X, y, Config(data="", **QUICK | dict(adam_steps=2, neurons=5))))
    assert min(r2_score(y, found[name](X)) for name in ("gradient boosting", "least squares")) > 0.8


def test_nothing_is_found_in_noise_and_it_says_so(tmp_path, capsys, undrawn):
    table().assign(answer=np.random.default_rng(1).normal(size=500)).to_csv(tmp_path / "t.csv", index=False)
    config = Config(data=str(tmp_path / "t.csv"), target="answer", out=tmp_path / "out", **QUICK)
    assert not explore(config)
    out = capsys.readouterr().out
    assert "none found" in out and "certificate" not in out
    assert len(pd.read_csv(tmp_path / "out" / "directions.csv")) == 0
    assert {file.stem for file in (tmp_path / "out").glob("*.png")} == {"table_path", "table_spectrum"}


def test_two_classes_and_scores_of_columns(tmp_path, capsys):
    t = table().rename(columns={"answer": "answer_$"})
    t = t.assign(**{"answer_$": np.where(t["answer_$"] > 5, "<=$5_", ">$5_"), "b": np.exp(t["b"] / 5)})
    t.to_csv(tmp_path / "t.csv", index=False)
    how = QUICK | dict(inputs="scores", directions=1)
    config = Config(data=str(tmp_path / "t.csv"), target="answer_$", out=tmp_path / "out", **how)
    assert not explore(config)
    assert ">$5_ against <=$5_" in (out := capsys.readouterr().out) and "% of classes right" in out
    directions = pd.read_csv(tmp_path / "out" / "directions.csv").set_index("column")["loading"]
    assert directions["a"] / directions["b"] == pytest.approx(-1, rel=0.25)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "z"], "there is no such column"),
        (["--target", "answer", "--directions", "9"], "with 4 columns it can be 0 to 4"),
        (["--target", "answer", "--neurons", "0"], "greater than or equal to 1"),
        (["--target", "answer", "--width", "9"], "--width is the experiment's"),
        (["--target", "answer", "--freeze-bias"], "--freeze-bias is the experiment's"),
        (["--target", "answer", "--inputs", "scaled"], "whiten"),
        (["--target", "answer", "--seed", str(2**32 - 1)], "must be below 2³²"),
        (["--target", "rare"], "the target rare is the same in all 100 rows held out"),
        (["--target", "answer", "--out", "/proc/nowhere"], "/proc"),
    ],
)
def test_bad_input_is_status_2_and_leaves_nothing(tmp_path, capsys, at_the_prompt, flags, message):
    rare = dict(rare=1 * (np.arange(500) == 7) - (np.arange(500) == 9)) if "rare" in flags else {}
    table().assign(**rare).to_csv(tmp_path / "t.csv", index=False)
    status = at_the_prompt("--data", tmp_path / "t.csv", "--out", tmp_path / "out", *flags)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and message in captured.err
    assert "Traceback" not in captured.err and not (tmp_path / "out").exists()


def test_a_target_needs_a_table():
    with pytest.raises(ValueError, match="--data says which one"):
        Config(target="y")


@pytest.mark.parametrize(
    ("where", "call", "left"),
    [
        ("discover.descend", 5, dict(path=2, ranks=4, test=1, bootstrap_sines=0, repeats=0)),
        ("estimator.polish", 1, dict(path=3, ranks=4, test=1, bootstrap_sines=0, repeats=0)),
        ("explore.polish", 1, dict(path=3, ranks=4, test=1, bootstrap_sines=0, repeats=0)),
        ("estimator.polish", 2, dict(path=3, ranks=4, test=5, bootstrap_sines=0, repeats=0)),
        ("explore.polish", 4, dict(path=3, ranks=4, test=5, bootstrap_sines=2, repeats=0)),
        ("discover.descend", 15, dict(path=3, ranks=4, test=5, bootstrap_sines=4, repeats=0)),
    ],
    ids=["path", "refit", "rivals", "refit to all", "bootstrap", "another seed"],
)
def test_ctrl_c_keeps_what_there_is(tmp_path, capsys, monkeypatch, undrawn, where, call, left):
    calls, (module, name) = [], where.split(".")
    function = getattr(sys.modules[module], name)

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(where)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    table().to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(where, interrupted)
    how = QUICK | dict(adam_steps=40, neurons=20, repeats=1)
    assert explore(Config(data=str(tmp_path / "t.csv"), target="answer", out=tmp_path / "out", **how))
    assert capsys.readouterr().out.startswith("interrupted: what follows, and is saved, is what there was")
    assert name == "polish" or len(calls) == call  # what would take long is not begun any more
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["interrupted"] and {name: len(results[name]) for name in left} == left
    assert set(pd.read_csv(tmp_path / "out" / "directions.csv")["column"][:2]) == {"a", "b"}
