"""The benchmarks: families, counted bytes, and the command line."""

import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from benchmark import Traffic, family, torus
from study import planar_graph
from utilities import from_networkx, make_graph, random_graph

FOLDER = Path(__file__).parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / "benchmark.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_families():
    assert family(torus(20, 0)) == "toroidal ±"
    assert family(from_networkx(nx.grid_2d_graph(8, 9, periodic=True))) == "toroidal"
    assert family(planar_graph(500, 0)) == "planar"
    assert family(random_graph(300, 0.1, 0)) == family(random_graph(2000, 0.002, 0)) == "random"
    graph = random_graph(300, 0.1, 0)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], graph.m)
    assert family(make_graph(300, graph.i.numpy(), graph.j.numpy(), signs)) == "random ±"


def test_traffic_counts_what_is_read_and_written():
    x, index = torch.zeros(100), torch.tensor([1, 2, 3])
    with Traffic() as traffic:
        x + x
    assert traffic.bytes == 3 * 400
    with Traffic() as traffic:
        x.exp_()
    assert traffic.bytes == 2 * 400
    with Traffic() as traffic:  # three numbers fetched and written, and their indices
        x.index_select(0, index)
    assert traffic.bytes == 3 * (4 + 4 + 8)


def test_cuts_of_a_folder(tmp_path):
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "square.txt").write_text("4 4\n1 2 1\n2 3 1\n3 4 1\n4 1 1\n")
    (graphs / "path.edgelist").write_text("a b 2\nb c 3\n")
    (graphs / "best_known.csv").write_text("instance,best_known\nsquare,4\n")
    done = run("cuts", graphs, "--seconds", "0.3", "0.6", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("|")}
    assert "4 (best known)" in rows["square"] and rows["square"].count("4 (100.00%)") >= 2
    assert "5 (optimum)" in rows["path"] and "5 (100.00%)" in rows["path"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"benchmark_graphs.{suffix}" for suffix in ("png", "pdf", "md")
    }


def test_steps(tmp_path):
    done = run("steps", "--edges", "1000", "2000", "--repeats", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a copy's bandwidth" in done.stdout and (tmp_path / "benchmark_steps.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [("cuts", "nowhere"), ("cuts", "--seconds", "-1"), ("steps", "--edges", "1"), ("steps", "--repeats", "0")],
)
def test_bad_input_is_refused_in_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
