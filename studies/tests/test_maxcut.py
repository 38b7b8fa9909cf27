"""The studies' graphs, baselines and runs against what is known, and the studies as a user calls them, made small."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

sys.path.insert(1, str(Path(__file__).parents[2] / "MAXCUT"))

import maxcut as study
from main import Config
from maxcut import FAMILIES, PURE, WAYS, Constant, graphs_run, planar_graph, share, to_sosp
from optimizer import Derandomization
from sweep import command_line
from utilities import from_networkx, random_graph


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
    assert 0.878 < row["gw_mean"] < row["gw_best"] <= row["ours"] and row["expected"] <= row["ours"] + 1e-6
    assert (row["ours"] == 1) == (n <= study.EXACT)


def test_one_exchange_is_left_out_of_large_graphs(monkeypatch):
    monkeypatch.setattr(study, "EXCHANGE", 30)
    assert np.isnan(graphs_run(dict(family="planar", n=31, seed=0))["exchange"])


def ends(way: str) -> dict:
    return to_sosp(random_graph(), replace(PURE, **WAYS[way]))


def test_without_a_perturbation_the_saddle_stays():
    row = ends("no perturbation")
    assert not row["is_sosp"] and row["sigma"] > 0.1 and row["expected_cut"] < row["cut"]
    assert row["lambda_min"] == pytest.approx(-0.2, rel=0.05)  # −2 lam: where V ≠ 0, H V = −2 lam V


def test_at_a_constant_lambda_the_rule_is_awake_from_the_first_step_on():
    graph = random_graph()
    config = Config(epsilon=0.1, steps=5000)
    awake, grown = (to_sosp(graph, config, kind) for kind in (Constant, Derandomization))
    assert awake["is_sosp"] and awake["steps"] < 3000 <= grown["steps"]


def test_share():
    rows = [dict(n=1, is_sosp=True), dict(n=1, is_sosp=False), dict(n=2, is_sosp=True)]
    assert (share(rows, n=1), share(rows, n=2), share(rows)) == (0.5, 1, pytest.approx(2 / 3))


STUDIES = {"smoothing": study.smoothing, "graphs": study.graphs, "escape": study.escape}


def call(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["maxcut.py", *map(str, arguments)])
    return command_line(STUDIES, "Studies.")


@pytest.mark.soak
@pytest.mark.parametrize("name, lines", [("smoothing", 6), ("graphs", 8), ("escape", 4)])
def test_a_small_study_writes_its_files(tmp_path, monkeypatch, capsys, name, lines):
    monkeypatch.setattr(study, "EPSILONS", (0.01, 0.3))
    monkeypatch.setattr(study, "MAX_STEPS", 100)
    monkeypatch.setattr(study, "LAMS", (0.01, 0.1))
    sizes = {"graphs": ["--sizes", 20, 30], "escape": ["--sizes", 12]}.get(name, [])
    assert call(monkeypatch, name, *sizes, "--seeds", 1, "--out", tmp_path) == 0
    files = {f"study_{name}.{suffix}" for suffix in ("png", "pdf", "md", "json")}
    assert files <= {file.name for file in tmp_path.iterdir()}
    text = (tmp_path / f"study_{name}.md").read_text()
    assert text in capsys.readouterr().out and text.count("\n") == lines + (0 if name == "smoothing" else 2)
    findings = json.loads((tmp_path / f"study_{name}.json").read_text())
    assert len(findings["body"]) == text.count("\n") - 2 and len(findings) > 3


@pytest.mark.parametrize(
    "bad, word",
    [
        (["graphs", "--sizes", "6"], "--sizes"),
        (["escape", "--sizes", "20", "3"], "--sizes"),
        (["escape", "--sizes"], "--sizes"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, monkeypatch, capsys, bad, word):
    assert call(monkeypatch, *bad, "--out", tmp_path / "new") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and word in message and message.count("\n") == 1
    assert not (tmp_path / "new").exists()
