"""The benchmarks: families, rivals on graphs whose maximum cut is known, and the command line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

sys.path.insert(1, str(Path(__file__).parents[2] / "MAXCUT"))

import benchmark
import rivals
from benchmark import cuts, family, one_descent, read_folder, steps, torus
from maxcut import planar_graph
from rivals import RIVALS
from sdp import goemans_williamson, solve_sdp
from sweep import command_line
from utilities import exact_maxcut, from_networkx, make_graph, random_graph


def test_families():
    assert family(torus(20, 0)) == "toroidal ±"
    assert family(from_networkx(nx.grid_2d_graph(8, 9, periodic=True))) == "toroidal"
    assert family(planar_graph(500, 0)) == "planar"
    assert family(random_graph(300, 0.1, 0)) == family(random_graph(2000, 0.002, 0)) == "random"
    graph = random_graph(300, 0.1, 0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], graph.m)
    assert family(make_graph(300, graph.i.numpy(), graph.j.numpy(), signs)) == "random ±"


@pytest.mark.soak
@pytest.mark.parametrize("rival", RIVALS)
def test_every_rival_is_one(rival):
    """On 22 vertices all of them find the optimum with weights of either sign: no sign is turned."""
    graph = random_graph(22, 0.5, 3)
    weights = np.random.default_rng(0).standard_normal(graph.m)
    graph = make_graph(22, graph.i.numpy(), graph.j.numpy(), weights)
    curve = RIVALS[rival](graph, 2.5 if rival.startswith("ours") else 0.4, 0)
    seconds, best = np.array(curve).T
    assert (np.diff(seconds) > 0).all() and (np.diff(best) > 0).all()
    assert best[-1] == pytest.approx(exact_maxcut(graph)[0])


def test_what_is_found_late_does_not_count_ours_no_more_than_others(monkeypatch):
    def late() -> Iterator[float]:
        for cut in (1.0, 3.0, 2.0, 4.0, 5.0):
            clock[0] += 0.3
            yield cut

    clock = [0.0]
    monkeypatch.setattr(rivals, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    curve = rivals.improvements(0.0, 1.25, late())
    assert [cut for _, cut in curve] == [1, 3, 4] and curve[-1][0] == pytest.approx(1.2)
    found = SimpleNamespace(seconds=[0.1, 0.9, 1.3], best=[1.0, 2.0, 3.0], interrupted=False)
    monkeypatch.setattr(rivals, "search", lambda *_, **__: found)
    graph = random_graph(30, 0.2, 0)
    assert RIVALS["ours"](graph, 1.0, 0) == [(0.1, 1.0), (0.9, 2.0)]
    found.seconds = [1.1, 1.2, 1.3]  # the first cut is all that there is
    assert RIVALS["ours-random-V"](graph, 1.0, 0) == [(1.1, 1.0)]


def test_bifurcation_has_both_cores_and_one_exchange_another_start_each_time(monkeypatch):
    graph, threads, starts = random_graph(30, 0.2, 0), [], []

    def minimize(W: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        threads.append(torch.get_num_threads())
        return torch.ones(30), None

    monkeypatch.setattr("simulated_bifurcation.minimize", minimize)
    before = torch.get_num_threads()
    RIVALS["bifurcation"](graph, 0.01, 0)
    torch.set_num_threads(before)
    assert set(threads) == {2}
    monkeypatch.setattr(rivals, "one_exchange", lambda plain, initial_cut, **_: starts.append(initial_cut) or (1, None))
    for _ in range(2):
        RIVALS["one_exchange"](graph, 0.01, 0)
        starts.append("again")
    assert starts[0] == starts[starts.index("again") + 1] != starts[1] and 5 < len(starts[1]) < 25


def test_one_descent_before_its_rounding():
    graph, generator = random_graph(22, 0.5, 3), torch.Generator().manual_seed(0)
    expected, cut = one_descent(graph, solve_sdp(graph, generator=generator), generator)
    assert expected <= cut + 1e-9 <= exact_maxcut(graph)[0] + 1e-6


def test_flips_are_worth_something():
    graph, generator = random_graph(400, 0.05, 1), torch.Generator().manual_seed(0)
    V = solve_sdp(graph, generator=generator)
    plain = float(goemans_williamson(graph, V, 20, generator).max())
    assert RIVALS["GW-1-flips"](graph, 0.5, 0)[-1][1] > plain


def call(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
    return command_line({"cuts": cuts, "steps": steps}, benchmark.__doc__)


@pytest.mark.soak
def test_cuts_of_a_folder(tmp_path, monkeypatch, capsys):
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "square.txt").write_text("4 4\n1 2 1\n2 3 1\n3 4 1\n4 1 1\n")
    (graphs / "path.edgelist").write_text("a b 2\nb c 3\n")
    (graphs / "best_known.csv").write_text("instance,best_known\nsquare,4\n")
    few = ("--rivals", "ours", "annealing", "GW-2-flips")
    assert call(monkeypatch, "cuts", graphs, "--seconds", "0.1", "0.2", *few, "--out", tmp_path / "out") == 0
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert "4 (best known)" in rows["square"] and rows["square"].count("4 (100.00%)") == 9
    found = json.loads((tmp_path / "out" / "benchmark_graphs.json").read_text())
    assert (found["pairs"], found["behind"]) == (4, 0)
    assert "5 (optimum)" in rows["path"] and rows["path"].count("5 (100.00%)") == 9
    written = {file.name for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert written == {f"benchmark_graphs.{suffix}" for suffix in ("png", "pdf", "md", "json")}


def test_pairs_of_runs_in_which_ours_is_behind_are_counted(tmp_path, monkeypatch):
    cut = {("ours", 0): 3.0, ("ours", 1): 4.0, ("annealing", 0): 4.0, ("annealing", 1): 4.0}
    for rival in ("ours", "annealing"):
        monkeypatch.setitem(RIVALS, rival, lambda graph, limit, seed, rival=rival: [(0.1, cut[rival, seed])])
    monkeypatch.setattr(benchmark, "read_folder", lambda *_: ({"path": random_graph(5, 0.9, 0)}, {"path": 4.0}))
    cuts(seconds=(1.0, 2.0), rivals=("ours", "annealing"), seeds=2, out=tmp_path)
    found = json.loads((tmp_path / "benchmark_cuts.json").read_text())
    assert (found["pairs"], found["behind"]) == (4, 2)


@pytest.mark.soak
def test_cuts_of_another_graph_of_the_same_name_and_of_one_that_has_none(tmp_path, monkeypatch, capsys):
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "none.txt").write_text("3 2\n1 2 -1\n2 3 -1\n")
    for edges, cut in ((((1, 2), (2, 3), (1, 3)), 2), (((1, 2), (2, 3), (3, 4), (1, 4)), 4)):
        lines = [f"{len(edges)} {len(edges)}", *(f"{i} {j}" for i, j in edges)]
        (graphs / "one.txt").write_text("\n".join(lines) + "\n")
        benchmark.read_folder.cache_clear()
        few = ("--seconds", "0.1", "--rivals", "GW-1-flips", "--out", tmp_path / "out")
        assert call(monkeypatch, "cuts", graphs, *few) == 0
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| one", "| none"))]
        assert rows[0].count(f"| {cut} (100.00%)") == 4 and rows[1].count("| 0 (100.00%)") == 4
    (graphs / "one.txt").write_text("600 599\n" + "".join(f"{i} {i + 1}\n" for i in range(1, 600)))
    benchmark.read_folder.cache_clear()
    (graphs / "none.txt").unlink()
    assert call(monkeypatch, "cuts", graphs, "--seconds", "0.1", "--rivals", "one_exchange", "--out", tmp_path) == 0


def test_without_a_folder_there_are_graphs_of_every_family():
    graphs, known = read_folder(None)
    families = {"random", "random ±", "planar", "toroidal ±"}
    assert {family(graph) for graph in graphs.values()} == families and known == {}


def test_steps(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "steps", "--edges", "1000", "2000", "--repeats", "1", "--out", tmp_path) == 0
    assert "ns an edge" in capsys.readouterr().out and (tmp_path / "benchmark_steps.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("cuts", "nowhere"),
        ("cuts", "--seconds", "-1"),
        ("cuts", "--seconds"),
        ("steps", "--edges"),
        ("steps", "--edges", "1"),
        ("steps", "--edges", "inf"),
        ("steps", "--repeats", "0"),
    ],
)
def test_bad_input_is_refused_in_one_line(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1


def test_hidden_files_are_no_graphs_and_two_of_a_name_are_refused(tmp_path):
    for name in ("g.txt", ".g.txt.swp"):
        (tmp_path / name).write_text("2 1\n1 2\n")
    benchmark.read_folder.cache_clear()
    assert list(read_folder(tmp_path)[0]) == ["g"]
    (tmp_path / "g.edgelist").write_text("1 2\n")
    benchmark.read_folder.cache_clear()
    with pytest.raises(ValueError, match="two graphs of the name g"):
        read_folder(tmp_path)


def test_best_known_values_without_their_columns_are_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "g.txt").write_text("2 1\n1 2\n")
    (tmp_path / "best_known.csv").write_text("graph,cut\ng,1\n")
    benchmark.read_folder.cache_clear()
    assert call(monkeypatch, "cuts", tmp_path, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "best_known" in message and message.count("\n") == 1 and not (tmp_path / "out").exists()
