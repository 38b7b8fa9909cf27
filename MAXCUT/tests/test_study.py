"""The studies' graphs, baselines and runs against what is known, and the studies as a user calls them, made small."""

import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

import study
from study import FAMILIES, graphs_run, pgd_to_sosp, planar_graph, sosp_share
from sweep import command_line
from utilities import from_networkx, random_graph

FOLDER = Path(__file__).parents[1]
METHODS = list(study.METHODS)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_same_mean_degree(family):
    graph = FAMILIES[family](300, 1)
    assert graph.n == 300 and 5 < 2 * graph.m / graph.n < 7 and (graph.w == 1).all()
    again, other = FAMILIES[family](300, 1), FAMILIES[family](300, 2)
    assert torch.equal(graph.i, again.i) and torch.equal(graph.j, again.j)
    assert graph.m != other.m or not torch.equal(graph.j, other.j)


def test_families_are_what_they_are_called():
    degree = {family: np.sort(FAMILIES[family](300, 0).degree.numpy()) for family in FAMILIES}
    assert (degree["regular"] == 6).all()
    assert degree["power-law"][-1] > 3 * degree["G(n, p)"][-1] / 2  # hubs
    triangulation = nx.from_scipy_sparse_array(planar_graph(300, 0).adjacency)
    assert nx.check_planarity(triangulation)[0] and nx.is_connected(triangulation)
    assert 3 * 300 - 3 - 30 < triangulation.number_of_edges() <= 3 * 300 - 6  # 3n − 3 less the hull's corners


def known(monkeypatch, graph: nx.Graph) -> dict:
    monkeypatch.setitem(FAMILIES, "known", lambda n, seed: from_networkx(graph))
    return graphs_run(dict(family="known", n=len(graph), seed=0))


def test_every_method_cuts_the_complete_graph_in_halves(monkeypatch):
    row = known(monkeypatch, nx.complete_graph(20))
    assert all(row[method] == 1 for method in ("ours", "gw_best", "exchange", "expectations"))
    assert 0.878 < row["gw_mean"] <= 1


@pytest.mark.parametrize("n, ratio", [(30, 1), (31, 30 / (31 * (1 + np.cos(np.pi / 31)) / 2))])
def test_cycles_against_the_bound(monkeypatch, n, ratio):
    """The relaxation of an odd cycle is worth n (1 + cos(π/n))/2, its maximum cut n − 1."""
    row = known(monkeypatch, nx.cycle_graph(n))
    assert row["ours"] == pytest.approx(ratio, rel=1e-4)
    assert row["ours"] >= row["gw_best"] >= row["gw_mean"] > 0.878


@pytest.mark.parametrize("n", [20, 60])
def test_methods_keep_their_places(n):
    row = graphs_run(dict(family="regular", n=n, seed=1))
    assert 0.5 < row["expectations"] <= row["ours"] <= 1 and row["exchange"] <= row["ours"]
    assert 0.878 < row["gw_mean"] < row["gw_best"] <= row["ours"]
    assert (row["ours"] == 1) == (n <= study.EXACT)


def test_one_exchange_is_left_out_of_large_graphs(monkeypatch):
    monkeypatch.setattr(study, "EXCHANGE", 30)
    row = graphs_run(dict(family="planar", n=31, seed=0))
    assert np.isnan(row["exchange"]) and row["sizes"] == "> 30"


def test_without_a_perturbation_the_saddle_stays():
    row = pgd_to_sosp(random_graph(), lr=0.05, kick_first=False, radius=0.0)
    assert not row["is_sosp"] and row["sigma"] > 0.1 and row["expected_cut"] < row["cut"]
    assert row["lambda_min"] == pytest.approx(-0.2, rel=0.05)  # −2 lam: where V ≠ 0, H V = −2 lam V


@pytest.mark.parametrize("way", [dict(patience=200), dict(escape="curvature")], ids=["noise", "curvature"])
def test_either_perturbation_leaves_the_saddle(way):
    row = pgd_to_sosp(random_graph(), lr=0.05, kick_first=False, **way)
    assert row["is_sosp"] and row["sigma"] < 1e-3 and row["steps"] < study.MAX_STEPS
    assert row["expected_cut"] == pytest.approx(row["cut"])
    # one step along the curvature; of the kicks, the second proves that the point is an SOSP
    assert row["perturbations"] == (1 if "escape" in way else 2)


def test_a_first_kick_spares_the_saddle():
    row = pgd_to_sosp(random_graph(), epsilon=0.1, lam=0.1)
    later = pgd_to_sosp(random_graph(), epsilon=0.1, lam=0.1, kick_first=False, patience=200)
    assert row["is_sosp"] and later["is_sosp"] and row["steps"] < later["steps"]


def test_steps_are_limited(monkeypatch):
    monkeypatch.setattr(study, "MAX_STEPS", 20)
    row = pgd_to_sosp(random_graph())
    assert row["steps"] == 20 and not row["is_sosp"]


def test_sosp_share():
    rows = [dict(n=1, is_sosp=True), dict(n=1, is_sosp=False), dict(n=2, is_sosp=True)]
    assert (sosp_share(rows, n=1), sosp_share(rows, n=2), sosp_share(rows)) == (0.5, 1, pytest.approx(2 / 3))


STUDIES = {"smoothing": study.smoothing, "graphs": study.graphs, "escape": study.escape}


def call(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    return command_line(STUDIES, "Studies.")


def kept(folder: Path) -> list[dict]:
    """Finished runs in the folder, without their seconds."""
    rows = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    rows = [row["case"] | row["result"] | {"seconds": None} for row in rows]
    return sorted(rows, key=lambda row: row["seed"])


def test_processes_take_up_the_sweep_and_give_the_same_rows(tmp_path, monkeypatch, capsys):
    arguments = ["smoothing", "--epsilons", "0.1", "--lams", "0.1"]
    assert call(monkeypatch, *arguments, "--seeds", "1", "--out", tmp_path / "two") == 0
    command = [sys.executable, FOLDER / "study.py", *arguments, "--seeds", "3", "--jobs", "2", "--out", "two"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and done.stderr == "1 of 3 runs were finished before\n", done.stderr
    assert call(monkeypatch, *arguments, "--seeds", "3", "--out", tmp_path / "one") == 0
    assert kept(tmp_path / "one" / "smoothing_runs") == kept(tmp_path / "two" / "smoothing_runs")
    tables = [(tmp_path / name / "study_smoothing.md").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1] and tables[0] in done.stdout
    assert "| 0.1 | 0.1 | 0.9" in tables[0] and tables[0].count("\n") == 3


@pytest.mark.parametrize("name, lines", [("graphs", 10), ("escape", 10)])
def test_a_small_study_writes_its_files(tmp_path, monkeypatch, capsys, name, lines):
    assert call(monkeypatch, name, "--sizes", "20", "30", "--seeds", "1", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    files = {f"study_{name}.{suffix}" for suffix in ("png", "pdf", "md")}
    assert {file.name for file in tmp_path.iterdir()} == files | {f"{name}_runs"}
    text = (tmp_path / f"study_{name}.md").read_text()
    assert text in out and text.count("\n") == lines and "nan" not in text


@pytest.mark.parametrize(
    "bad, word",
    [
        (["graphs", "--sizes", "6"], "--sizes"),
        (["escape", "--sizes", "20", "3"], "--sizes"),
        (["escape", "--sizes"], "--sizes"),
        (["smoothing", "--epsilons", "0"], "--epsilons"),
        (["smoothing", "--lams", "nan"], "--lams"),
        (["smoothing", "--lams"], "--lams"),
        (["smoothing", "--seeds", "0"], "--seeds"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, bad, word):
    assert call(monkeypatch, *bad, "--out", tmp_path / "new") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
