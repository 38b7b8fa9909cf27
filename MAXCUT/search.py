"""More than one second-order point: what the time of `--seconds` is used for.

A perturbation large enough to leave the basin *reheats* a cut s: V goes back to the SDP's vectors in a random rotation,
which is all of Goemans–Williamson's randomness, while μ_i = √d_i (c s_i + κ ζ_i), ζ ~ N(0, I), remembers s, or what two
cuts agree on, as well as c and κ let it. From there PGD on the same f, with λ growing, takes the randomness out again.
The new cut and the old are united part by part. A few cuts are kept side by side, and the more descents there were, the
more of them, so that none is the end of all.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import floor
from threading import Event, Lock

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from experiment import Checkpoint, State, random_state, restore_random_state
from optimizer import Result, Rounding, conditional_expectations, derandomize
from pgd import PGD
from sdp import principal
from utilities import Graph, cut_values

MEMORY, KICK = (0.2, 0.6), (0.2, 0.8)
"""ranges that c and κ are drawn from, beside vectors of length 1"""
STEPS, FRESH_STEPS = 60, 300
"""steps of a descent from a reheated cut, and from μ near 0"""
LR, MOMENTUM = 0.3, 0.9
LAM, GROWTH, FRESH_GROWTH = 0.1, 25.0, 50.0
"""λ at the end of a descent, and the factor by which it grows"""
BATCH_EDGES = 20_000
"""Small graphs are descended on in batches of so many edges: PyTorch's calls take longer than their work on fewer."""
SECONDS_PER_STEP = 1e-7
"""times edges and twice the vertices, about, on one core: plans the first descent, the same for every run"""


def unite(graph: Graph, s: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cut s with every connected part of its difference to the other that does not lose by being flipped.

    Parts that no edge joins add up: the result cuts at least as much as either (of `other` and its complement, the same
    cut, the one nearer to s is taken).

    Args:
        graph: the graph.
        s, other: (n,) sides ±1.
    """
    W = graph.adjacency
    different = np.flatnonzero(s != (other if s @ other >= 0 else -other))
    if not len(different):
        return s
    inside, s_d = W[different][:, different], s[different]
    parts, part = connected_components(inside, directed=False)
    gain = np.bincount(part, weights=s_d * (W[different] @ s - inside @ s_d), minlength=parts)
    united = s.copy()
    united[different[gain[part] >= 0]] *= -1
    return united


def two_flips(graph: Graph, s: np.ndarray) -> np.ndarray:
    """A cut that neither the flip of one vertex nor that of two neighbours improves, at least as good as s.

    Flipping i and j gains g_i + g_j − 2 w_ij s_i s_j, g_i = s_i (W s)_i. Gains of pairs that no edge joins add up.

    Args:
        graph: the graph.
        s: (n,) sides ±1, or means in [−1, 1].
    """
    W, i, j, w = graph.adjacency, *(x.cpu().numpy() for x in (graph.i, graph.j, graph.w))
    while True:
        s = conditional_expectations(graph, s)
        gain = s * (W @ s)
        pair = gain[i] + gain[j] - 2 * w * s[i] * s[j]
        better = np.flatnonzero(pair > 1e-9 * np.abs(w).max())
        if not len(better):
            return s
        waiting = np.zeros(graph.n, dtype=bool)
        for edge in better[np.argsort(-pair[better])]:
            ends = [i[edge], j[edge]]
            if not waiting[ends].any():
                s[ends] *= -1
                for end in ends:  # both ends are each other's neighbours
                    waiting[W.indices[W.indptr[end] : W.indptr[end + 1]]] = True


@dataclass
class Search:
    """Cuts found so far, and how the best one grew. `search` makes one and runs it."""

    graph: Graph
    s: list[np.ndarray]
    """the cuts that are kept: (n,) of ±1 each"""
    cuts: list[float]
    """their values, in the weights' unit"""
    descents: int = 0
    seconds: list[float] = field(default_factory=list)
    """when the best cut grew, since the run's start"""
    best: list[float] = field(default_factory=list)
    """to what"""
    interrupted: bool = False
    """whether Ctrl-C ended the search"""

    def add(self, s: np.ndarray, parent: int | None, elapsed: float) -> None:
        """Take in the cut s of a descent from the cut `parent`, or from none."""
        self.descents += 1
        if parent is not None:
            s = two_flips(self.graph, unite(self.graph, self.s[parent], s))
        cut = float(cut_values(self.graph, torch.from_numpy(s).to(self.graph.w.device)))
        if cut > max(self.cuts):
            self.seconds.append(elapsed)
            self.best.append(cut)
        if parent is None:
            self.s.append(s)
            self.cuts.append(cut)
        elif cut >= self.cuts[parent] and not any(abs(s @ other) == self.graph.n for other in self.s):
            self.s[parent], self.cuts[parent] = s, cut


def descend(
    problem: Rounding, V: Tensor, mu: Tensor, steps: int, growth: float, over: Callable[[], bool]
) -> tuple[Tensor, Tensor] | None:
    """V and μ after so many steps of PGD in which λ grows by `growth`; None if it was over before."""
    lam = LAM

    def closure() -> Tensor:
        V.grad, mu.grad = problem.gradient(V, mu, lam)
        return mu

    pgd = PGD([V, mu], lr=LR, rho=0, radius=0, momentum=MOMENTUM)
    for step in range(steps):
        lam = LAM * growth ** (min(1, step / (0.9 * steps)) - 1)
        pgd.step(closure)
        if over():
            return None
    return V, mu


def search(
    graph: Graph,
    V: Tensor,
    s: np.ndarray,
    seconds: float,
    since: float,
    *,
    ceiling: float = float("inf"),
    epsilon: float = 0.03,
    rank: int = 8,
    workers: int = 1,
    generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[float, float], None] = lambda elapsed, best: None,
) -> Search:
    """Descend from reheated cuts until `seconds` after `since`, until the ceiling is reached, or until Ctrl-C.

    Args:
        graph: the graph.
        V: (n, k) unit vectors, the SDP's.
        s: (n,) sides ±1, the cut to begin with.
        seconds: when to stop.
        since: `time.perf_counter()` at the start of the run.
        ceiling: a bound on every cut; a cut that reaches it ends the search.
        epsilon, rank: as in `optimizer.derandomize`.
        workers: threads that descend side by side. With one, the descents are always the same, and only their number
            depends on the machine.
        generator: of all randomness.
        checkpoint: keeps the state of the search; a search that it has is gone on with.
        progress: called after every descent with the seconds gone and the best cut.
    """
    device, copies = graph.w.device, max(1, BATCH_EDGES // graph.m)
    problem = Rounding(graph.copies(copies), epsilon, torch.float32)
    root_d = problem.root_d.float()
    V = principal(V, rank).float()
    found = Search(graph, [s], [float(cut_values(graph, torch.from_numpy(s).to(device)))])
    found.seconds, found.best = [time.perf_counter() - since], list(found.cuts)
    stop, lock, checkpoint = Event(), Lock(), checkpoint or Checkpoint()

    def state() -> State:
        """Of the search between two descents; of those that other threads are in nothing is kept."""
        sides = torch.from_numpy(np.array(found.s, dtype=np.int8))
        numbers = dict(cuts=found.cuts, descents=found.descents, seconds=found.seconds, best=found.best)
        return dict(s=sides, random=random_state(generator), **numbers)

    if (kept := checkpoint.resumed("search")) is not None:
        found.s = list(kept["s"].numpy().astype(np.float64))
        found.cuts, found.descents = kept["cuts"], kept["descents"]
        found.seconds, found.best = kept["seconds"], kept["best"]
        restore_random_state(generator, kept["random"])

    def over() -> bool:
        return stop.is_set() or time.perf_counter() - since > seconds or max(found.cuts) >= ceiling

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def start() -> tuple[list[int | None], Tensor, Tensor]:
        """Parents, V and μ of a batch; a parent is the better of two, remembered alone or with a third."""
        fresh = len(found.s) < 0.5 * found.descents**0.5
        parents, mus, Vs = [], [], []
        for _ in range(copies):
            c, kappa, *u = torch.rand(6, generator=generator, device=device).tolist()
            kappa = KICK[0] + kappa * (KICK[1] - KICK[0])
            if fresh:
                parent, mu = None, 0.05 * kappa * draw(graph.n)
            else:
                one, two, third = (int(len(found.s) * x) for x in u[:3])
                parent = max(one, two, key=lambda member: found.cuts[member])
                memory, other = found.s[parent], found.s[third if u[3] < 0.5 else parent]
                memory = (memory + (other if memory @ other >= 0 else -other)) / 2
                c = MEMORY[0] + c * (MEMORY[1] - MEMORY[0])
                mu = c * torch.from_numpy(memory).to(root_d) + kappa * draw(graph.n)
            parents.append(parent)
            mus.append(mu)
            Vs.append(V @ torch.linalg.qr(draw(V.shape[1], V.shape[1]))[0])
        return parents, torch.cat(Vs) * root_d[:, None], torch.cat(mus) * root_d

    @torch.no_grad()
    def work() -> None:
        torch.set_flush_denormal(True)  # it is each thread's own
        while not over():
            with lock:
                parents, V, mu = start()
            steps, growth = (FRESH_STEPS, FRESH_GROWTH) if parents[0] is None else (STEPS, GROWTH)
            end = descend(problem, V, mu, steps, growth, over)
            if end is None:
                return
            for parent, mean in zip(parents, problem.means(*end).cpu().numpy().reshape(copies, -1), strict=True):
                cut = two_flips(graph, mean)
                with lock:
                    elapsed = time.perf_counter() - since
                    found.add(cut, parent, elapsed)
                    progress(elapsed, found.best[-1])
            with lock:
                checkpoint.keep("search", state)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are the parallelism; threads within a step would wait for each other
    with ThreadPoolExecutor(workers) as pool:
        try:
            for worker in [pool.submit(work) for _ in range(workers)]:
                worker.result()
        except KeyboardInterrupt:
            found.interrupted = True
        finally:
            stop.set()
    torch.set_num_threads(threads)
    if not found.interrupted:
        checkpoint.keep("search", state, finished=True)
    return found


def derandomize_within(
    graph: Graph,
    V: Tensor,
    seconds: float,
    since: float,
    bound: float,
    *,
    steps: int = 1500,
    epsilon: float = 0.03,
    rank: int = 8,
    workers: int = 1,
    generator: torch.Generator | None = None,
    checkpoint: Checkpoint | None = None,
    searching: Callable[[float, float], None] = lambda elapsed, best: None,
    **hyperparameters: object,
) -> tuple[Result, Search | None]:
    """`optimizer.derandomize`, `search` from its cut until the seconds are over, and an SOSP at the best cut found.

    Args:
        graph, V, seconds, since, epsilon, rank, workers, generator, checkpoint: as in `search`.
        bound: on every cut; a cut that reaches it, or its whole part where the weights are whole, ends the search.
        steps: of the first descent, at most; fewer where it would take more than a fifth of the time, but not fewer
            than 300.
        searching: `progress` of the search.
        hyperparameters: further ones of `derandomize`.

    Returns:
        The result, and the search; None instead where Ctrl-C came before it.
    """
    found: Search | None = None
    whole = bool((graph.w == graph.w.round()).all())

    def improve(s: np.ndarray) -> np.ndarray:
        nonlocal found
        found = search(
            graph,
            V,
            s,
            seconds,
            since,
            ceiling=floor(bound * (1 + 1e-9)) if whole else bound,
            epsilon=epsilon,
            rank=rank,
            workers=workers,
            generator=generator,
            checkpoint=checkpoint,
            progress=searching,
        )
        return found.s[int(np.argmax(found.cuts))]

    affordable = seconds / 5 / SECONDS_PER_STEP / (graph.m + 2 * graph.n)
    result = derandomize(
        graph,
        V,
        steps=int(min(steps, max(300, affordable))),
        epsilon=epsilon,
        rank=rank,
        improve=improve,
        generator=generator,
        checkpoint=checkpoint,
        **hyperparameters,
    )
    return result, found
