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
from math import floor, inf
from threading import Event, Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from tqdm import tqdm

from optimizer import Rounding, conditional_expectations
from pgd import PGD
from run import Checkpoint, State
from sdp import principal
from utilities import Graph, cut_values

if TYPE_CHECKING:
    from main import Config

MEMORY, KICK = (0.2, 0.6), (0.2, 0.8)
"""ranges that c and κ are drawn from, beside vectors of length 1"""
STEPS, FRESH_STEPS = 60, 300
"""steps of a descent from a reheated cut, and from μ near 0"""
LR, MOMENTUM = 0.3, 0.9
LAM, GROWTH, FRESH_GROWTH = 0.1, 25.0, 50.0
"""λ at the end of a descent, and the factor by which it grows"""
BATCH_EDGES = 20_000
"""Small graphs are descended on in batches of so many edges: PyTorch's calls take longer than their work on fewer."""


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
    """The cuts of a search, and how the best one grew."""

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

    def best_cut(self) -> np.ndarray:
        """Sides (n,) of ±1 of the best cut."""
        return self.s[int(np.argmax(self.cuts))]

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

    def state_dict(self) -> State:
        """All of it, for a checkpoint."""
        sides = torch.from_numpy(np.array(self.s, dtype=np.int8))
        return dict(s=sides, cuts=self.cuts, descents=self.descents, seconds=self.seconds, best=self.best)

    def load_state_dict(self, state: State) -> None:
        """Go on with the search whose `state_dict` this is."""
        self.s = list(state["s"].numpy().astype(np.float64))
        self.cuts, self.descents, self.seconds, self.best = (
            state[name] for name in ("cuts", "descents", "seconds", "best")
        )


class Reheating:
    """Descents from cuts that a search has kept, in batches of copies of the graph, side by side in threads.

    Args:
        graph: the graph.
        V: (n, k) unit vectors, the SDP's.
        found: the search.
        config: hyperparameters.
        generator: of all randomness.
        over: whether the search is to end.
        checkpoint: keeps the state of the search.
    """

    def __init__(
        self,
        graph: Graph,
        V: Tensor,
        found: Search,
        config: "Config",
        generator: torch.Generator,
        over: Callable[[], bool],
        checkpoint: Checkpoint,
    ) -> None:
        self.graph, self.copies = graph, max(1, BATCH_EDGES // graph.m)
        self.problem = Rounding(graph.copies(self.copies), config.epsilon, torch.float32)
        self.root_d = self.problem.root_d.float()
        self.V = principal(V, config.rank).float()
        self.found, self.generator, self.over, self.checkpoint = found, generator, over, checkpoint
        self.lock = Lock()
        if (kept := checkpoint.resumed("search")) is not None:
            found.load_state_dict(kept)
            generator.set_state(kept["random"])

    def state_dict(self) -> State:
        """The search between two descents; of those that other threads are in nothing is kept."""
        return self.found.state_dict() | {"random": self.generator.get_state()}

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.V.device)

    def start(self) -> tuple[list[int | None], Tensor, Tensor]:
        """Parents, V and μ of a batch; a parent is the better of two, remembered alone or with a third."""
        found, (n, k) = self.found, (self.graph.n, self.V.shape[1])
        fresh = len(found.s) < 0.5 * found.descents**0.5
        parents, mus, Vs = [], [], []
        for _ in range(self.copies):
            c, kappa, *u = torch.rand(6, generator=self.generator, device=self.V.device).tolist()
            kappa = KICK[0] + kappa * (KICK[1] - KICK[0])
            if fresh:
                parent, mu = None, 0.05 * kappa * self._draw(n)
            else:
                one, two, third = (int(len(found.s) * x) for x in u[:3])
                parent = max(one, two, key=lambda member: found.cuts[member])
                memory, other = found.s[parent], found.s[third if u[3] < 0.5 else parent]
                memory = (memory + (other if memory @ other >= 0 else -other)) / 2
                c = MEMORY[0] + c * (MEMORY[1] - MEMORY[0])
                mu = c * torch.from_numpy(memory).to(self.V) + kappa * self._draw(n)
            parents.append(parent)
            mus.append(mu)
            Vs.append(self.V @ torch.linalg.qr(self._draw(k, k))[0])
        return parents, torch.cat(Vs) * self.root_d[:, None], torch.cat(mus) * self.root_d

    def descend(self, V: Tensor, mu: Tensor, steps: int, growth: float) -> np.ndarray | None:
        """Means of the sides, (copies, n), after so many steps of PGD in which λ grows; None if it was over before."""
        lam = LAM

        def closure() -> Tensor:
            V.grad, mu.grad = self.problem.gradient(V, mu, lam)
            return mu

        pgd = PGD([V, mu], lr=LR, rho=0, radius=0, momentum=MOMENTUM)
        for step in range(steps):
            lam = LAM * growth ** (min(1, step / (0.9 * steps)) - 1)
            pgd.step(closure)
            if self.over():
                return None
        return self.problem.means(V, mu).cpu().numpy().reshape(self.copies, -1)

    @torch.no_grad()
    def work(self, progress: Callable[[], float]) -> None:
        """Descend until it is over; `progress` shows how far the search is, and returns the seconds gone."""
        torch.set_flush_denormal(True)  # it is each thread's own
        while not self.over():
            with self.lock:
                parents, V, mu = self.start()
            plan = (FRESH_STEPS, FRESH_GROWTH) if parents[0] is None else (STEPS, GROWTH)
            means = self.descend(V, mu, *plan)
            if means is None:
                return
            for parent, mean in zip(parents, means, strict=True):
                cut = two_flips(self.graph, mean)
                with self.lock:
                    self.found.add(cut, parent, progress())
            with self.lock:
                self.checkpoint.keep("search", self.state_dict)


def search(
    graph: Graph,
    V: Tensor,
    s: Tensor,
    config: "Config",
    generator: torch.Generator,
    since: float,
    bound: float = inf,
    workers: int = 1,
    checkpoint: Checkpoint | None = None,
) -> Search:
    """Descend from reheated cuts until config.seconds after `since`, until the bound is reached, or until Ctrl-C.

    Args:
        graph: the graph.
        V: (n, k) unit vectors, the SDP's.
        s: (n,) sides ±1, the cut to begin with.
        config: hyperparameters; `seconds` is when to stop.
        generator: of all randomness.
        since: `time.perf_counter()` at the start of the run.
        bound: on every cut; a cut that reaches it, or its whole part where the weights are whole, ends the search.
        workers: threads that descend side by side. With one, the descents are always the same, and only their number
            depends on the machine.
        checkpoint: keeps the state of the search; a search that it has is gone on with.
    """
    checkpoint, stop, cut = checkpoint or Checkpoint(), Event(), float(cut_values(graph, s))
    found = Search(graph, [s.cpu().numpy()], [cut], seconds=[time.perf_counter() - since], best=[cut])
    whole = bound < inf and bool((graph.w == graph.w.round()).all())
    ceiling = floor(bound * (1 + 1e-9)) if whole else bound

    def over() -> bool:
        return stop.is_set() or time.perf_counter() - since > config.seconds or max(found.cuts) >= ceiling

    def progress() -> float:
        elapsed = time.perf_counter() - since
        bar.set_postfix_str(f"cut {found.best[-1]:.10g}", refresh=False)
        bar.update(round(elapsed, 1) - bar.n)
        return elapsed

    reheating = Reheating(graph, V, found, config, generator, over, checkpoint)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are the parallelism; threads within a step would wait for each other
    with (
        tqdm(desc="search", total=config.seconds, unit="s", disable=None, leave=False) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for worker in [pool.submit(reheating.work, progress) for _ in range(workers)]:
                worker.result()
        except KeyboardInterrupt:
            found.interrupted = True
        finally:
            stop.set()
    torch.set_num_threads(threads)
    if not found.interrupted:
        checkpoint.keep("search", reheating.state_dict, finished=True)
    return found
