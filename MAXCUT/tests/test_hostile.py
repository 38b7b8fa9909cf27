"""Input that no friend would give: files, flags and points at the edge of what numbers can hold."""

import json
import math
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from main import Config, main
from optimizer import Derandomization, Rounding, disagreement
from sdp import goemans_williamson, sdp_value, solve_sdp, upper_bound
from utilities import MAX_TOTAL, Graph, cut_values, exact_maxcut, make_graph, random_graph, read_graph

MAIN = Path(__file__).parents[1] / "main.py"
SAME_FOLDER = [HealthCheck.function_scoped_fixture]


# --- files ------------------------------------------------------------------------------------------------------------

GOOD = {
    ".txt": "3 3\n1 2 1\n2 3 -1.5\n1 3 2e0\n",
    ".edgelist": "# a comment\na b\nb é 2.5\né a -1\n",
    ".adjlist": "# a comment\na b é\nb é\né\n",
    ".gml": 'graph [\n  node [\n    id 0\n    label "a"\n  ]\n  node [\n    id 1\n    label "&#233; b"\n  ]\n'
    "  edge [\n    source 0\n    target 1\n    weight -2.5\n  ]\n]\n",
    ".graphml": '<?xml version="1.0" encoding="utf-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n'
    '<key id="d0" for="edge" attr.name="weight" attr.type="double"/>\n<graph edgedefault="undirected">\n'
    '<node id="a"/><node id="é b"/>\n<edge source="a" target="é b"><data key="d0">-2.5</data></edge>\n'
    "</graph></graphml>\n",
}
"""a file of each format; .txt stands for Gset"""

WORDS = (
    ["0", "1", "2", "3", "-1", "1.5", "+2", "²", "٣", "1_0", "0x1", "4294967296", "99999999999999999999999", "9" * 400]
    + ["1e400", "-1e400", "1e308", "1e-400", "5e-324", "nan", "inf", "-Infinity", "1e", "--1", "", "a", "é", "e\u0301"]
    + ["\x00", "\u2028", "\x85", "\xa0", "\ufeff", "#", '"', "'", '"a b"', "''\"'", "\\", "&quot;", "&#55296;", "&#0;"]
    + ["[", "]", "graph", "node", "edge", "id", "source", "target", "label", "weight", "directed", "multigraph", "key"]
    + ["<graph>", "</graph>", "<node id='a'/>", "<edge source='a' target='a'/>", "<!--", "]]>", "<data key='d0'>"]
)
FORMATS = pytest.mark.parametrize("suffix", GOOD)


def read(path: Path) -> Graph | str:
    """The graph in the file, as it is promised, or the message of the refusal; no warning but the promised ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for promised in (".*self-loop.* dropped", ".*duplicate edge.* added"):
            warnings.filterwarnings("ignore", message=promised)
        try:
            graph = read_graph(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            return str(error)
    assert graph.n >= 2 and len(graph.i) == len(graph.j) == graph.m >= 1
    assert ((0 <= graph.i) & (graph.i < graph.j) & (graph.j < graph.n)).all()
    assert len(set(zip(graph.i.tolist(), graph.j.tolist(), strict=True))) == graph.m
    assert graph.w.isfinite().all() and 1 / MAX_TOTAL <= float(graph.w.abs().sum()) <= MAX_TOTAL
    if graph.names is not None:
        assert len(graph.names) == graph.n and all(len(name.splitlines()) <= 1 for name in graph.names)
        "\n".join(graph.names).encode()
    return graph


@FORMATS
@settings(max_examples=60, suppress_health_check=SAME_FOLDER)
@given(content=st.binary(max_size=300))
def test_any_bytes(tmp_path, suffix, content):
    (path := tmp_path / f"g{suffix}").write_bytes(content)
    read(path)


@FORMATS
@settings(max_examples=100, suppress_health_check=SAME_FOLDER)
@given(data=st.data())
def test_good_files_cut_short_or_with_other_bytes(tmp_path, suffix, data):
    content = bytearray(GOOD[suffix].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["cut", "byte", "insert", "repeat"]))
        if change == "cut":
            content = content[: max(place, 1)]
        elif change == "byte":
            content[place] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[place:place] = data.draw(st.sampled_from(WORDS)).encode()
        else:
            content *= 2
    (path := tmp_path / f"g{suffix}").write_bytes(content)
    read(path)


@FORMATS
@settings(max_examples=60, suppress_health_check=SAME_FOLDER)
@given(
    lines=st.lists(st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r", " \n\n"]),
    start=st.sampled_from(["", "\ufeff", "3 2\n", "2 1\r\n"]),
)
def test_hostile_words(tmp_path, suffix, lines, end, start):
    (path := tmp_path / f"g{suffix}").write_bytes((start + end.join(lines)).encode())
    read(path)


@FORMATS
@pytest.mark.parametrize("content", ["", "\n", " \n\t\n\r\n"])
def test_files_without_a_word_are_refused(tmp_path, suffix, content):
    (path := tmp_path / f"g{suffix}").write_text(content)
    assert isinstance(read(path), str)


@FORMATS
def test_folders_and_missing_files_are_refused(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    assert "directory" in read(tmp_path / f"folder{suffix}")
    assert "No such file" in read(tmp_path / f"nowhere{suffix}")


@FORMATS
def test_byte_order_mark_and_line_ends_of_windows_don_t_matter(tmp_path, suffix):
    (tmp_path / f"unix{suffix}").write_text(GOOD[suffix], encoding="utf-8")
    windows = GOOD[suffix].replace("\n", "\r\n").encode("utf-8-sig")
    (tmp_path / f"windows{suffix}").write_bytes(windows)
    one, other = (read(tmp_path / f"{system}{suffix}") for system in ("unix", "windows"))
    assert one.names == other.names and torch.equal(one.w, other.w)
    assert torch.equal(one.i, other.i) and torch.equal(one.j, other.j)


@pytest.mark.parametrize("text", ["a b\n\n  # a comment\nb c\n \n", "a b\nb a c\nc b\n"])
def test_adjacency_lists_with_blank_lines_or_edges_at_both_ends(tmp_path, text):
    (path := tmp_path / "g.adjlist").write_text(text)
    graph = read(path)
    assert graph.names == ("a", "b", "c") and graph.m == 2 and (graph.w == 1).all()


@pytest.mark.parametrize(
    "text, word",
    [
        ("100000000 1\n1 2\n", "announces"),
        (f"{10**30} 2\n1 2\n2 3\n", "announces"),
        (f"3 {10**15}\n1 2\n", "truncated"),
        ("3 2\n1 2\n2 3 1\n", "not all 'i j' or all 'i j w'"),
        ("9" * 5000 + " 1\n1 2\n", "line 1"),
        ("x" * 10**7, "line 1"),
        ("3 1\n1 1e400\n", "inf"),
        ("3 2\n1 2 1e308\n2 3 1e308\n", "down"),
        ("3 2\n1 2 5e-324\n2 3 1e-310\n", "up"),
    ],
)
def test_no_header_takes_memory_and_no_weight_overflows(tmp_path, text, word):
    (path := tmp_path / "g.txt").write_text(text)
    tracemalloc.start()
    try:
        assert word in read(path)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


@pytest.mark.soak
@pytest.mark.parametrize("suffix", [".txt", ".edgelist"])
def test_a_million_lines(tmp_path, suffix):
    m = 1_000_000
    i = np.arange(m) // 10
    j = i + 1 + np.arange(m) % 10
    lines = [f"{u} {v} 0.5\n" for u, v in zip((i + 1).tolist(), (j + 1).tolist(), strict=True)]
    path = tmp_path / f"g{suffix}"
    path.write_text((f"{j.max() + 1} {m}\n" if suffix == ".txt" else "") + "".join(lines))
    del lines
    graph = read(path)
    assert (graph.n, graph.m) == (j.max() + 1, m) and float(graph.w.sum()) == m / 2


def names(suffix: str) -> st.SearchStrategy[str]:
    """Names that the format can hold, all in one line."""
    text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=6)
    text = text.filter(lambda name: not {"\ufeff", "\ufffe", "\uffff"} & set(name)) | st.sampled_from(WORDS[:30])
    if suffix in (".edgelist", ".adjlist"):
        return text.filter(lambda name: name.split() == [name] and "#" not in name)
    return text.filter(lambda name: len(name.splitlines()) == 1 and name.isprintable())


def named_edges(graph: Graph) -> dict[frozenset[str], float]:
    label = graph.names or [str(v + 1) for v in range(graph.n)]
    ends = zip(graph.i.tolist(), graph.j.tolist(), strict=True)
    return {frozenset((label[i], label[j])): w for (i, j), w in zip(ends, graph.w.tolist(), strict=True)}


@FORMATS
@settings(max_examples=60, suppress_health_check=SAME_FOLDER)
@given(data=st.data())
def test_what_is_written_comes_back(tmp_path, suffix, data):
    words = st.integers(1, 9).map(str) if suffix == ".txt" else names(suffix)
    pairs = st.lists(words, min_size=2, max_size=2, unique=True).map(frozenset)
    sizes = st.floats(1e-290, 1e290)
    weights = st.just(1.0) if suffix == ".adjlist" else sizes | sizes.map(lambda w: -w) | st.integers(1, 9).map(float)
    edges = data.draw(st.dictionaries(pairs, weights, min_size=1, max_size=6))
    triples = [(*sorted(pair), w) for pair, w in edges.items()]
    path, graph = tmp_path / f"g{suffix}", nx.Graph()
    graph.add_weighted_edges_from(triples)
    if suffix == ".txt":
        lines = [f"9 {len(edges)}", *(f"{u} {v} {w!r}" for u, v, w in triples)]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif suffix == ".edgelist":
        path.write_text("".join(f"{u}\t{v}  {w!r}\n" for u, v, w in triples), encoding="utf-8")
    elif suffix == ".adjlist":
        path.write_text("\n".join(nx.generate_adjlist(graph)), encoding="utf-8")
    else:
        {".gml": nx.write_gml, ".graphml": nx.write_graphml}[suffix](graph, path)
    assert named_edges(read(path)) == edges


# --- the command line -------------------------------------------------------------------------------------------------

TINY = Config(n=5, steps=12, roundings=4, patience=3, draws=4)
SIZES = st.sampled_from(
    [0.0, -0.0, 5e-324, 1e-308, 3e-308, 1e-200, 1e-100, 1e-9, 0.3, 1.0, 1e3, 1e9, 1e100, 1e200, 1e308]
)
FLOATS = SIZES | SIZES.map(lambda x: -x) | st.sampled_from([math.nan, math.inf, -math.inf]) | st.floats()
HUGE = st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -1, 0, -(2**63), -(10**30)])
PATHS = ["", ".", "..", "/", "/dev/null", "/dev/null/x", "\0", "nowhere/é", "x" * 300, "a\nb"]
HOSTILE = {
    "graph": st.sampled_from(PATHS),
    "n": st.integers(-3, 20) | st.integers(10**9, 10**30),
    "p": FLOATS,
    "graph_seed": st.integers(),
    "epsilon": FLOATS,
    "gradient": st.sampled_from(["exact", "sampled"]),
    "draws": st.integers(-3, 40) | HUGE,
    "steps": st.integers(-3, 40),
    "descents": st.integers(-3, 3),
    "lr": FLOATS,
    "lam": FLOATS,
    "growth": FLOATS,
    "momentum": FLOATS | st.floats(0, 1),
    "rho": FLOATS,
    "radius": FLOATS,
    "patience": st.integers(-3, 40) | HUGE,
    "algorithm": st.sampled_from(["default", "1", "2"]),
    "rank": st.integers(-3, 40) | HUGE,
    "seconds": FLOATS.filter(lambda x: not 0.1 < x < math.inf),
    "roundings": st.integers(-3, 40) | HUGE,
    "seed": st.integers() | HUGE,
    "device": st.sampled_from(["", "cpu:0", "cpu:7", "meta", "hpu", "é", "a\nb", "\0", "cuda:999"])
    | st.text(max_size=5),
    "checkpoint": st.sampled_from(PATHS[:7]),
    "out": st.sampled_from(["/dev/null", "/dev/null/x", "\0", "x" * 300]),
}
FIGURES = {f"{name}.{kind}" for name in ("fig4_cut", "fig5_sigma", "saddle", "graph") for kind in ("png", "pdf")}


def is_whole(out: Path) -> None:
    """All files are there, and all numbers in results.json finite."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"results.json holds {constant}")

    found = json.loads((out / "results.json").read_text(), parse_constant=refuse)
    written = {file.name for file in out.iterdir()}
    assert written >= FIGURES | {"results.json", "cut.txt", "history.npz"}
    assert not any(name.startswith(".") for name in written)
    assert len((out / "cut.txt").read_text().split()) == found["n"]
    assert 0 <= found["cut"] <= found["optimum"] <= found["upper_bound"] * (1 + 1e-9)
    with np.load(out / "history.npz") as history:
        assert len(history["step"]) == len(history["objective"]) >= 1


def is_empty(out: Path) -> bool:
    """Nothing is written."""
    return not out.is_dir() or not any(out.iterdir())


def test_every_field_is_tried():
    assert set(HOSTILE) == set(Config.__dataclass_fields__)


@pytest.mark.parametrize("name", HOSTILE)
@settings(max_examples=10, suppress_health_check=SAME_FOLDER)
@given(data=st.data())
def test_hostile_flags(tmp_path_factory, monkeypatch, capsys, name, data, undrawn):
    monkeypatch.chdir(folder := tmp_path_factory.mktemp("run"))
    other = data.draw(st.sampled_from([name, *HOSTILE]))
    values = {field: data.draw(HOSTILE[field]) for field in {name, other}}
    for field in values.keys() & {"graph", "checkpoint", "out"}:
        values[field] = Path(values[field])
    out = values.get("out", folder / "out")
    try:
        main(Config(**(vars(TINY) | {"out": out} | values)))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:  # what ends in one line and status 2
        assert len(str(error)) > 5 and ("out" in values or is_empty(out))
    else:
        assert capsys.readouterr().err == ""
        is_whole(out)
    finally:
        torch.set_flush_denormal(False)


def run(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, MAIN, *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_vertex_names_of_the_world_and_huge_weights(tmp_path):
    label = ["$x^$", "é b", "e\u0301", "日本語", '"quoted"', "a\\b", "two\nlines", "\u200f", "{}%s", "$"]
    path, out = tmp_path / "ünï códe 日本.gml", tmp_path / "ö ut"
    graph = nx.relabel_nodes(nx.cycle_graph(10), dict(enumerate(label)))
    nx.set_edge_attributes(graph, 1e300, "weight")
    nx.write_gml(graph, path)
    done = run("--graph", path, "--steps", "30", "--roundings", "5", "--out", out)
    assert (done.returncode, done.stderr) == (0, "") and "10 vertices, 10 edges" in done.stdout
    is_whole(out)
    assert all((out / name).stat().st_size > 1000 for name in FIGURES)
    written = (out / "vertices.txt").read_text(encoding="utf-8").split("\n")
    assert written == [name.replace("\n", " ") for name in label] + [""]


# --- the objective ----------------------------------------------------------------------------------------------------

GRAPHS = {
    "a single edge": make_graph(2, [0], [1]),
    "a single negative edge": make_graph(2, [0], [1], [-2.0]),
    "all equal": make_graph(5, *np.triu_indices(5, 1), np.full(10, 0.1)),
    "equal and huge": make_graph(4, *np.triu_indices(4, 1), np.full(6, 1e300)),
    "equal and tiny": make_graph(4, *np.triu_indices(4, 1), np.full(6, -1e-300)),
    "huge and tiny": make_graph(5, [0, 1, 2, 0], [1, 2, 3, 4], [1e300, 1e-300, -1.0, 1e299]),
    "a weight of zero": make_graph(3, [0, 1], [1, 2], [1.0, 0.0]),
    "mostly isolated": make_graph(60, [0, 1], [1, 2]),
    "a star": make_graph(9, np.zeros(8, dtype=int), np.arange(1, 9)),
}
EVERY_GRAPH = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def vectors(graph: Graph, k: int, direction: str, length: float) -> torch.Tensor:
    """Degree-scaled V whose rows have this length before the scaling, and point anywhere, one way, or two ways."""
    V = torch.randn(graph.n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if direction != "anywhere":
        V = V[:1].repeat(graph.n, 1)
    if direction == "two ways":
        V[::2] *= -1
    return length * V / V.norm(dim=1, keepdim=True) * Rounding(graph, 1.0).root_d[:, None]


@EVERY_GRAPH
@settings(max_examples=40)
@given(
    k=st.integers(1, 12),
    direction=st.sampled_from(["anywhere", "one way", "two ways"]),
    length=st.sampled_from([0.0, 1e-300, 1e-160, 1e-8, 1.0, 1e8]),
    epsilon=st.sampled_from([1e-12, 1e-6, 0.03, 1e6]),
    shift=st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 40.0, 1e6, 1e100]),
    lam=st.sampled_from([0.0, 5e-324, 1e-300, 0.1]),
)
def test_the_objective_and_its_derivatives_are_finite(graph, k, direction, length, epsilon, shift, lam):
    problem, V = Rounding(graph, epsilon), vectors(graph, k, direction, length)
    signs = torch.from_numpy(np.resize([1.0, -1.0, -1.0], graph.n))
    mu = shift * problem.noise * signs
    E = float(problem.expected_cut(V, mu) / problem.total)
    assert -1 - 1e-12 <= E <= 1 + 1e-12
    assert float(problem.objective(V, mu, lam)) == pytest.approx(lam * float(V.square().sum()) - E, abs=1e-12)
    for part in (*problem.gradient(V, mu, lam), *problem.hessian(V, mu)(torch.ones_like(V), torch.ones_like(mu))):
        assert part.isfinite().all()
    if length == 0:
        assert not problem.gradient(V, mu, lam)[0].any()  # nothing is left to remove
    if shift == 0:
        assert not problem.gradient(V, mu, lam)[1].any()  # the trap
    if length <= 1e-6 * epsilon and shift >= 40:
        cut = float(cut_values(graph, signs) / problem.total)
        assert pytest.approx(cut, abs=1e-12) == E  # a deterministic cut


@pytest.mark.parametrize("epsilon", [1e-7, 1e-4, 0.03, 1.0, 1e3])
@pytest.mark.parametrize("direction, sign", [("one way", 1), ("two ways", -1)])
def test_one_edge_with_collinear_vectors_is_an_arctangent(epsilon, direction, sign):
    """r = ±1/(1 + ε²): D = arctan(ε √(2 + ε²))/π or one less that; f's slope along V is that of the formula."""
    problem = Rounding(GRAPHS["a single edge"], epsilon)
    V, mu = vectors(problem.graph, 3, direction, 1.0), torch.zeros(2, dtype=torch.float64)
    angle = math.atan(epsilon * math.sqrt(2 + epsilon**2)) / math.pi
    D = angle if sign > 0 else 1 - angle
    assert float(problem.expected_cut(V, mu)) == pytest.approx(D, abs=2e-8)  # r has 16 digits, arccos of it 8
    if epsilon < 1e-6:
        return
    # Scaling V by 1 + t is scaling ε by 1 − t: dangle/dε = 2/(π (1 + ε²) √(2 + ε²)).
    slope = float((problem.gradient(V, mu, 0.0)[0] * V).sum())
    expected = sign * epsilon * 2 / (math.pi * (1 + epsilon**2) * math.sqrt(2 + epsilon**2))
    assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("a", [0.0, 1e-300, 1e-9, 0.5, 5.0, 30.0, -1.0])
@pytest.mark.parametrize("b", [0.0, -1e-9, 2.0, -30.0])
def test_one_edge_without_randomness_but_epsilon(a, b):
    """V = 0: the signs are independent, and f is a product of Φ."""

    def above(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    problem = Rounding(GRAPHS["a single edge"], 0.03)
    V, mu = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([a, b], dtype=torch.float64) * 0.03
    assert float(problem.objective(V, mu, 0.7)) == pytest.approx(
        -above(a) * above(-b) - above(-a) * above(b), abs=1e-15
    )
    slope = math.exp(-a * a / 2) / math.sqrt(2 * math.pi) * math.erf(b / math.sqrt(2)) / 0.03
    assert float(problem.gradient(V, mu, 0.7)[1][0]) == pytest.approx(slope, rel=1e-12, abs=1e-15)


@given(
    r=st.floats(0, 1),
    close=st.integers(1, 17),
    shifts=st.lists(
        st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0, 6.0, 40.0, 1e6, 1e150, 1e300]), min_size=2, max_size=2
    ),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
@settings(max_examples=300)
def test_disagreement_at_the_ends_of_r(r, close, shifts, signs):
    alpha, beta = (torch.tensor([x * sign], dtype=torch.float64) for x, sign in zip(shifts, signs, strict=False))
    left = r * 10.0**-close
    D = float(disagreement(alpha, beta, torch.tensor([signs[2] * (1 - left)], dtype=torch.float64)))
    above_a, above_b = (math.erfc(-float(x) / math.sqrt(2)) / 2 for x in (alpha, signs[2] * beta))
    limit = abs(above_a - above_b) if signs[2] > 0 else 1 - abs(above_a - above_b)
    assert -1e-15 <= D <= 1 + 1e-15
    # the two variables differ by N(0, 2 (1 − |r|)): few draws come between them
    assert abs(D - limit) <= math.sqrt(left) + 2e-8


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 7.0, 1e300])
def test_the_weights_unit_does_not_matter(unit):
    i, j = np.triu_indices(4, 1)
    w = np.array([1.0, -2.0, 0.5, 3.0, 1.0, 1.0])
    one, other = (Rounding(make_graph(4, i, j, w * u), 0.1) for u in (1.0, unit))
    V, mu = vectors(one.graph, 2, "anywhere", 1.0), 0.3 * one.root_d
    for x, y in zip(one.gradient(V, mu, 0.1), other.gradient(V, mu, 0.1), strict=True):
        assert torch.allclose(x, y, rtol=1e-12, atol=1e-14)
    assert float(other.objective(V, mu, 0.1)) == pytest.approx(float(one.objective(V, mu, 0.1)), rel=1e-13)


@pytest.mark.parametrize("length", [1e-150, 1e-30, 1e-8, 1e-3])
@pytest.mark.parametrize("epsilon", [1e-4, 0.03, 1.0])
def test_steins_identity_as_the_randomness_vanishes(length, epsilon):
    """∇_V E[cut] = (∇²_μ E[cut]) V, however short V."""
    graph = make_graph(5, *np.triu_indices(5, 1), np.linspace(-1, 2, 10))
    problem, V = Rounding(graph, epsilon), vectors(graph, 2, "anywhere", length)
    mu = problem.noise * torch.linspace(-2, 2, 5, dtype=torch.float64)
    product = problem.hessian(V, mu)
    columns = [product(torch.zeros_like(V), v)[1] for v in (V / length).T]
    gradient = problem.gradient(V, mu, 0.0)[0] / length
    assert torch.allclose(torch.stack(columns, dim=1), gradient, rtol=1e-8, atol=1e-9 * float(gradient.norm()))


@EVERY_GRAPH
@pytest.mark.parametrize("algorithm", ["default", "2"])
def test_every_step_of_a_run_on_extreme_graphs(graph, algorithm):
    generator = torch.Generator().manual_seed(0)
    V = solve_sdp(graph, generator=generator)
    bound, rounded = upper_bound(graph, V)[0], goemans_williamson(graph, V, 20, generator)
    config = Config(steps=150, algorithm=algorithm)
    result = Derandomization(graph, V, config, generator).run().result()
    optimum = max(float(graph.w[graph.w > 0].sum()), 0.0) if graph.n > 25 else exact_maxcut(graph)[0]
    size = 1e-6 * float(graph.w.abs().sum())
    assert result.cut == pytest.approx(optimum, rel=1e-12) and rounded.isfinite().all()
    assert optimum <= bound + 1e-9 * size and sdp_value(graph, V) <= bound + 10 * size
    proof = result.certificate
    assert math.isfinite(result.objective) and math.isfinite(proof.gradient_norm) and math.isfinite(proof.lambda_min)
    assert proof.w_norm_bound is None or proof.w_norm <= proof.w_norm_bound < math.inf
    assert all(np.isfinite(values).all() for values in result.history.values())


@pytest.mark.parametrize("wrong", [dict(lr=1e9), dict(lam=1e9)])
def test_runs_that_diverge_say_so(wrong):
    graph = random_graph(6, 0.6, 1)
    generator = torch.Generator().manual_seed(0)
    V = solve_sdp(graph, generator=generator)
    with pytest.raises(FloatingPointError, match="at step"):
        Derandomization(graph, V, Config(steps=300, **wrong), generator).run().result()


def test_dense_random_graphs_are_made_in_time():
    assert random_graph(1001, 1.0).m == 1001 * 1000 / 2
    graph = random_graph(1500, 0.9, 1)
    assert abs(graph.m - 0.9 * 1500 * 1499 / 2) < 5 * math.sqrt(0.09 * 1500 * 1499 / 2)
