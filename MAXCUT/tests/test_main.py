"""The command line as a user calls it: files, summary, bad input, Ctrl-C."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from main import Config, main
from optimizer import Derandomization, unperturbed
from search import search
from utilities import cut_values, random_graph

FOLDER = Path(__file__).parents[1]
FIGURES = {f"{name}.{suffix}" for name in ("fig4_cut", "fig5_sigma", "graph", "saddle") for suffix in ("png", "pdf")}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_papers_graph(tmp_path, capsys, at_the_prompt):
    assert at_the_prompt("--out", tmp_path) == 0
    said = capsys.readouterr()
    assert "cut          41, the optimum is 41" in said.out and "certificate  SOSP" in said.out
    assert "E[cut]       41 where the descent ended, before any rounding" in said.out
    assert said.err == ""  # no progress bar where nobody watches
    assert {file.name for file in tmp_path.iterdir()} == FIGURES | {"cut.txt", "history.npz", "results.json"}

    found = results(tmp_path)
    assert found["experiment"] == "MAXCUT" and (found["n"], found["m"]) == (15, 62)
    assert found["expected_cut"] == pytest.approx(41, abs=1e-6) and found["upper_bound_proof"] == "Cholesky"
    assert found["cut"] == found["optimum"] == 41 <= found["sdp_value"] <= found["upper_bound"]
    assert found["gw_mean"] < found["gw_best"] <= 41
    assert found["certificate"]["is_sosp"] and found["sigma"] < 1e-3 and found["perturbations"] >= 2
    assert found["certificate"]["w_norm"] <= found["certificate"]["w_norm_bound"]
    assert found["config"]["epsilon"] == Config().epsilon and "torch" in found["versions"]

    sides = np.loadtxt(tmp_path / "cut.txt", dtype=int)
    assert sides.shape == (15,) and set(sides) == {0, 1}
    with np.load(tmp_path / "history.npz") as history:
        assert history["expected_cut"][-1] == pytest.approx(41) and history["sigma"][0] == pytest.approx(1, abs=0.2)
        assert len(history["gw"]) == 1000 and history["kicks"][0] == 0


def test_a_users_graph_with_names_loops_and_duplicates(tmp_path):
    (tmp_path / "my graph.edgelist").write_text("ä b 2\nb c 1\nc ä 1\nb ä 1\nc c 5\nd e -1\n", encoding="utf-8")
    command = [sys.executable, FOLDER / "main.py", "--graph", "my graph.edgelist", "--out", "my figures"]
    done = subprocess.run([*command, "--steps", "300"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "note: 1 self-loop(s) dropped" in done.stderr and "note: 1 duplicate edge(s)" in done.stderr
    assert "Traceback" not in done.stderr
    folder = tmp_path / "my figures"
    assert (folder / "vertices.txt").read_text(encoding="utf-8").split() == ["ä", "b", "c", "d", "e"]
    a, b, _, d, e = np.loadtxt(folder / "cut.txt", dtype=int)
    assert results(folder)["cut"] == 4 and a != b and d == e


def test_a_large_graph_has_a_bound_and_no_optimum(tmp_path, capsys, undrawn):
    assert not main(Config(n=300, p=0.05, out=tmp_path, steps=500))
    found = results(tmp_path)
    assert found["optimum"] is None and found["cut"] <= found["upper_bound"] <= 1.0015 * found["sdp_value"]
    assert found["cut"] > found["gw_best"]
    assert (tmp_path / "saddle.png").exists() and not (tmp_path / "graph.png").exists()
    assert "of the bound" in capsys.readouterr().out


def test_stopped_early_it_does_not_claim_an_sosp(tmp_path, capsys, undrawn):
    assert not main(Config(out=tmp_path, steps=5))
    assert not results(tmp_path)["certificate"]["is_sosp"]
    assert "not an SOSP" in capsys.readouterr().out


def test_the_expected_cut_is_of_the_descents_end_before_any_rounding_or_search(tmp_path, undrawn):
    """Stopped early it is random still, and below the cut that rounding and flips make of it."""
    main(Config(n=150, p=0.1, out=tmp_path, steps=40))
    found = results(tmp_path)
    with np.load(tmp_path / "history.npz") as history:
        assert found["expected_cut"] == history["expected_cut"][-1]
        draws = history["drawn_cut"][-10:]
    assert found["sigma"] > 0.1 and abs(found["expected_cut"] - draws.mean()) < 20
    assert found["expected_cut"] < found["cut"] - 10


def test_seconds_are_used_for_a_better_cut(tmp_path, capsys, undrawn):
    config = Config(n=80, p=0.15, roundings=10, steps=500)
    main(replace(config, out=tmp_path / "one"))
    main(replace(config, out=tmp_path / "many", seconds=2))
    one, many = results(tmp_path / "one"), results(tmp_path / "many")
    assert one["cut"] <= many["cut"] <= many["upper_bound"] and many["descents"] > one["descents"] == 1
    assert many["expected_cut"] <= many["cut"] + 1e-6
    assert many["certificate"]["is_sosp"] and many["sigma"] < 1e-3
    assert (tmp_path / "many" / "search.png").exists() and not (tmp_path / "one" / "search.png").exists()
    with np.load(tmp_path / "many" / "history.npz") as history:
        assert history["search_cut"][-1] == many["cut"]
    sides = torch.from_numpy(np.loadtxt(tmp_path / "many" / "cut.txt"))
    assert float(cut_values(random_graph(80, 0.15), 2 * sides - 1)) == many["cut"]
    assert "more descents" in capsys.readouterr().out


def test_the_number_of_threads_is_afterwards_what_it_was(tmp_path, undrawn, monkeypatch):
    """In a notebook the next search would have one worker."""
    cores, workers = torch.get_num_threads(), []
    monkeypatch.setattr("main.search", lambda *how: workers.append(how[6]) or search(*how))
    torch.set_num_threads(2)
    for _ in range(2):
        main(Config(n=30, p=0.2, roundings=10, steps=50, seconds=0.2, out=tmp_path))
    assert workers == [2, 2] and torch.get_num_threads() == 2
    torch.set_num_threads(cores)


@pytest.mark.parametrize(
    "bad, word",
    [
        (dict(graph=Path("nowhere.txt")), "nowhere.txt"),
        (dict(p=0.0), "no edges"),
        (dict(algorithm="1", seconds=3.0), "--seconds"),
        (dict(n=1), "n\n.*greater than or equal to 2"),
        (dict(p=1.5), "p\n"),
        (dict(p=float("nan")), "p\n"),
        (dict(epsilon=0.0), "epsilon"),
        (dict(lr=float("nan")), "lr"),
        (dict(lam=float("inf")), "lam"),
        (dict(rho=0.0), "rho"),
        (dict(radius=-0.1), "radius"),
        (dict(momentum=1.0), "momentum"),
        (dict(steps=0), "steps"),
        (dict(draws=1), "draws"),
        (dict(rank=0), "rank"),
        (dict(growth=0.5), "growth"),
        (dict(seed=-1), "seed"),
        (dict(seconds=0.0), "seconds"),
        (dict(algorithm="3"), "algorithm"),
        (dict(device="abacus"), "abacus"),
    ],
)
def test_bad_input_is_refused_by_name_before_anything_is_written(tmp_path, bad, word):
    with pytest.raises((ValueError, OSError), match=word):
        main(Config(out=tmp_path / "figures", **bad))
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        main(Config(out=tmp_path / "taken"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--gradient", "guessed"),
        ("--lr", "-1"),
        ("--graph", "nowhere.txt"),
        ("--rho", "1e400"),
        ("--graph", sys.executable),
    ]
    + [
        ("--algorithm", "1", "--seconds", "3"),
        ("--momentum", "0.5", "--algorithm", "2"),
        ("--growth", "3", "--algorithm", "1"),
        ("--n", "99999999"),
    ],
)
def test_bad_input_ends_with_status_2_and_says_which(tmp_path, capsys, flags, at_the_prompt):
    assert at_the_prompt(*flags, "--out", tmp_path / "figures") == 2
    said = capsys.readouterr().err
    assert flags[0][2:] in said or flags[1] in said
    assert not (tmp_path / "figures").exists()


def test_a_diverging_run_is_told_which_step_to_try(tmp_path, capsys, at_the_prompt):
    assert at_the_prompt("--lr", "1e9", "--out", tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "try --lr 1e+08" in said and said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_help_names_every_hyperparameter(capsys, at_the_prompt):
    assert at_the_prompt("--help") == 0
    said = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in said


def test_ctrl_c_in_the_certificate_saves_the_cut(tmp_path, capsys, monkeypatch, undrawn):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["optimizer"], "certify", interrupted)
    assert main(Config(out=tmp_path))
    assert "certificate  none: interrupted" in capsys.readouterr().out
    assert results(tmp_path)["certificate"] is None and results(tmp_path)["cut"] == 41


@pytest.mark.parametrize("where", ["optimizer.certify", "ways.Ways.__init__", "ways.Ways.trial"])
def test_a_run_that_is_short_of_memory_keeps_its_cut(tmp_path, capsys, monkeypatch, undrawn, where):
    def short(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(where, short)
    with pytest.warns(UserWarning, match="memory ran out"):
        assert not main(Config(n=60, p=0.2, seconds=0.5, roundings=10, steps=100, out=tmp_path))
    found, certified = results(tmp_path), where != "optimizer.certify"
    assert len(np.loadtxt(tmp_path / "cut.txt")) == 60 and found["cut"] > found["gw_mean"]
    assert (found["certificate"] is not None) == certified == ("memory ran out" not in capsys.readouterr().out)


def test_a_search_ends_at_the_optimum_where_it_is_known_and_goes_on_only_as_a_search(tmp_path, undrawn):
    checkpoint = tmp_path / "run.checkpoint"
    main(Config(seconds=600, checkpoint=checkpoint, out=tmp_path))
    found = results(tmp_path)
    assert found["cut"] == 41 == found["optimum"] and found["seconds"] < 100 and not found["interrupted"]
    with pytest.raises(ValueError, match="goes on with --seconds or --descents"):
        main(Config(checkpoint=checkpoint, out=tmp_path))


def test_a_resumed_run_counts_the_seconds_before_and_wants_the_same_graph(tmp_path, undrawn):
    file, graph = tmp_path / "run", tmp_path / "g.txt"
    graph.write_text("3 2\n1 2 1\n2 3 1\n")
    config = Config(graph=graph, steps=20, roundings=5, checkpoint=file, out=tmp_path)
    main(config)
    torch.save(torch.load(file, weights_only=True) | dict(elapsed=1000.0), file)
    main(config)
    found = results(tmp_path)
    assert 1000 < found["seconds_pgd"] <= found["seconds"] < 1100
    assert torch.load(file, weights_only=True)["elapsed"] > 1000
    graph.write_text("3 2\n1 2 1\n1 3 1\n")
    with pytest.raises(ValueError, match="the data differs"):
        main(config)


def test_a_search_ends_at_an_optimum_that_is_no_whole_number(tmp_path, undrawn):
    rng = np.random.default_rng(2)  # the cut that has it adds up to 4e-15 less
    edges = [f"{i} {j} {rng.uniform(0.1, 1)}" for i in range(14) for j in range(i) if rng.random() < 0.5]
    (tmp_path / "g.edgelist").write_text("\n".join(edges))
    main(Config(graph=tmp_path / "g.edgelist", seconds=30, steps=300, out=tmp_path))
    found = results(tmp_path)
    assert found["cut"] == pytest.approx(found["optimum"]) and found["seconds"] < 15


def test_files_of_another_graph_do_not_stay(tmp_path, undrawn):
    mine = {"graph.txt", "search.py", "vertices.csv"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    main(Config(n=30, p=0.2, steps=100, descents=1, out=tmp_path))
    assert {"graph.png", "search.pdf", "search.png"} <= {file.name for file in tmp_path.iterdir()}
    main(Config(n=201, p=0.05, steps=100, out=tmp_path))
    left = {file.name for file in tmp_path.iterdir()}
    assert not {"graph.png", "graph.pdf", "search.png", "search.pdf"} & left and mine < left


def test_after_a_search_nothing_is_said_of_the_descent_that_is_the_planted_ends(tmp_path, capsys, monkeypatch, undrawn):
    plot, shown = sys.modules["plot"], []
    saddle = plot.saddle
    monkeypatch.setattr(plot, "saddle", lambda run, still: shown.append(run.certificate) or saddle(run, still))
    main(Config(n=60, p=0.2, steps=100, descents=1, roundings=10, out=tmp_path))
    assert "where the search's cut was planted; the first descent took 100 steps" in capsys.readouterr().out
    main(Config(steps=100, roundings=10, out=tmp_path))
    assert shown[0] is None and shown[1] is not None


def test_after_ctrl_c_no_other_descent_is_begun_nor_is_the_bound_awaited(tmp_path, ctrl_c, monkeypatch, undrawn):
    module, late = sys.modules[main.__module__], Event()
    monkeypatch.setattr(module, "unperturbed", lambda *_: pytest.fail("after Ctrl-C"))
    monkeypatch.setattr("sdp.upper_bound", lambda *_: late.wait(60))
    ctrl_c(Derandomization, 5)
    start = time.perf_counter()
    assert main(Config(steps=10**6, out=tmp_path)) and time.perf_counter() - start < 30
    late.set()
    found = results(tmp_path)
    assert found["interrupted"] and found["steps"] == 5 and found["upper_bound_proof"] == "the weights' sum"
    assert {"graph.png", "saddle.png"} <= {file.name for file in tmp_path.iterdir()}


def test_ctrl_c_in_the_run_without_perturbation_leaves_it_out(tmp_path, monkeypatch, undrawn):
    module, shown = sys.modules[main.__module__], []
    monkeypatch.setattr(module, "unperturbed", lambda *given: replace(unperturbed(*given), interrupted=True))
    monkeypatch.setattr(module.plot, "saddle", lambda run, still: shown.append(still) or Figure())
    assert main(Config(steps=100, out=tmp_path)) and shown == [None] and results(tmp_path)["interrupted"]


def test_ctrl_c_while_a_search_is_prepared_saves_the_descents_cut(tmp_path, monkeypatch, undrawn):
    module = sys.modules["search"]
    prepared = module.kernel

    def interrupted(graph: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return prepared(graph)

    monkeypatch.setattr(module, "kernel", interrupted)
    assert main(Config(steps=300, descents=5, out=tmp_path))
    found = results(tmp_path)
    assert found["interrupted"] and found["cut"] == 41 and found["descents"] == 1


def test_the_least_step_size_is_also_that_of_the_run_without_perturbation(tmp_path, undrawn):
    assert not main(Config(lr=1e-30, steps=3, out=tmp_path))


def test_ctrl_c_while_the_bound_is_awaited_saves_the_cut(tmp_path, capsys, monkeypatch, undrawn):
    monkeypatch.setattr("sdp.Baselines.wait", lambda *_: False)
    assert main(Config(out=tmp_path))
    assert "weights' sum" in capsys.readouterr().out
    found = results(tmp_path)
    assert found["cut"] == 41 <= found["upper_bound"] == found["m"] and found["roundings"] == 1


def test_a_bound_that_fails_does_not_take_the_cut_along(tmp_path, monkeypatch, undrawn):
    def fails(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sdp.upper_bound", fails)
    assert not main(Config(n=30, p=0.3, steps=100, roundings=20, descents=3, out=tmp_path))
    found = results(tmp_path)
    assert found["roundings"] == 20
    assert found["upper_bound_proof"] == "the weights' sum" and found["cut"] <= found["upper_bound"] == found["m"]


def test_ctrl_c_saves_the_cut_so_far(tmp_path):
    """In the first descent, with a search to come."""
    flags = "--seconds", "600", "--steps", "100000"
    arguments = ["--n", "210", "--p", "0.1", *flags, "--out", tmp_path]
    terminal, stderr = pty.openpty()  # a progress bar shows that the descent is under way
    termios.tcsetwinsize(stderr, (24, 120))
    command = [sys.executable, FOLDER / "main.py", *arguments]
    own = os.environ | {"OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=own) as process:
        shown = b""
        while b"E[cut]" not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=60)[0]
    os.close(terminal)
    os.close(stderr)
    assert process.returncode == 130 and "interrupted" in out
    assert results(tmp_path)["cut"] > results(tmp_path)["gw_best"]
    assert {"cut.txt", "results.json", "fig4_cut.png"} <= {file.name for file in tmp_path.iterdir()}
