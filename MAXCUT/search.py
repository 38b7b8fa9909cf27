"""More than one second-order point: what the time of `--seconds` is used for.

A perturbation large enough to leave the basin *reheats* a cut, or what two cuts agree on, and one of the `ways` takes
the randomness out again. The new cut and the old are united part by part. A bandit gives the time to the ways that
lately gained most on this graph. A few cuts are kept, and one more where the best has not grown for long, so that none
is the end of all. All this happens on the graph's `kernel`. With little time there is one annealing and no more, but
where clusters help.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import inf
from threading import Event, Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kernel import kernel
from population import Search
from run import Checkpoint, enough_memory, held, threads
from utilities import Graph, trim
from ways import SHORTEST, TEAMS, WAYS, Ways

if TYPE_CHECKING:
    from main import Config

LITTLE = 4
"""times what the ways take, all of them once: with less time than that one of them, annealing, has all of it"""
IN_TIME = 0.03
"""share of that time by which it is to end earlier, so that it does not end too late"""


@dataclass(frozen=True)
class Batch:
    """Descents that are made at once."""

    way: str
    parents: list[int | None]
    """the cuts that are remembered; None for a cut from nothing"""
    memory: np.ndarray
    """(cuts, n) sides in [−1, 1]"""
    seconds: float
    """planned, on a core of the usual speed"""
    rng: np.random.Generator


class Reheating:
    """Descents from the cuts that a search has kept, in batches, side by side in threads.

    Args:
        ways: to cuts of the kernel.
        found: the search.
        config: hyperparameters; `seconds` and `descents` end the search.
        left: tells the seconds that are left; none, once the search is to end.
        checkpoint: keeps the state of the search.
    """

    def __init__(
        self,
        ways: Ways,
        found: Search,
        config: "Config",
        left: Callable[[], float],
        checkpoint: Checkpoint,
    ) -> None:
        trim()  # of what came before
        self.ways, self.found, self.checkpoint = ways, found, checkpoint
        self.left, self.descents, self.seed, self.lock = left, config.descents or inf, config.seed, Lock()
        self.slowness = 1.0  # of the machine, beside what is planned
        self.menu = list(WAYS)
        checkpoint.resume("search", found.load_state_dict)
        self.begun = found.descents

    def random(self) -> np.random.Generator:
        """A source of its own for each batch, in a search that is gone on with too."""
        self.found.batches += 1
        return np.random.default_rng([self.seed, self.found.batches])

    def plan(self) -> Batch | None:
        """The next batch, such that it ends in time; None if there is no time, or were descents enough."""
        left, found = 0.9 * self.left() / self.slowness, self.found
        whole = {way: self.ways.seconds(way) for way in self.menu}
        costs = {way: min(s, left) for way, s in whole.items() if s * (SHORTEST if way in TEAMS else 1) < left}
        room = self.descents - self.begun
        if not costs or room <= 0:
            return None
        rng, teams = self.random(), [way for way in TEAMS if way in costs]
        if teams and found.wants_fresh():
            way = teams[len(found.s) % len(teams)]
            parents, memory = [None], np.zeros((1, len(found.s[0])))
        else:
            way = found.choose(costs, rng)
            parents, memory = found.parents(min(self.ways.batch[way], room), rng)
        self.begun += len(parents)
        return Batch(way, parents, memory, costs[way], rng)

    def task(self, workers: int) -> Callable[[Callable[[], float]], None]:
        """What each thread does. With little time: all ways but the dearest if clusters help, else `anneal`."""
        if self.descents < inf:
            return self.work
        helped, self.slowness = self.ways.trial()
        if 0 < workers * self.left() < LITTLE * self.slowness * sum(map(self.ways.seconds, WAYS)):
            if not helped:
                return self.anneal
            self.menu.remove("population")
        return self.work

    def anneal(self, progress: Callable[[], float]) -> None:
        """One annealing for all of the time that is left."""
        in_time = IN_TIME * self.left()

        def left() -> float:
            with self.lock:
                progress()
            return self.left() - in_time

        with self.lock:
            rng, best = self.random(), self.found.s[int(np.argmax(self.found.cuts))]
        cut = self.ways.by_the_clock(best, rng, left)
        with self.lock:
            self.found.add(cut, None, progress())
            self.checkpoint.keep("search", self.found.state_dict, finished=True)

    def run(self, workers: int, progress: Callable[[], float], stop: Event) -> None:
        """Search in so many threads until it is over; Ctrl-C, however often, only tells them to stop."""
        task, made = self.task(workers), []
        with ThreadPoolExecutor(workers) as pool:
            while True:
                try:
                    made += [pool.submit(task, progress) for _ in range(workers - len(made))]
                    wait(made, return_when=FIRST_EXCEPTION)
                    break
                except KeyboardInterrupt:
                    stop.set()
                    self.found.interrupted = True
            stop.set()
        for worker in made:
            worker.result()
        if not self.found.interrupted:
            self.checkpoint.keep("search", self.found.state_dict, finished=True)

    @torch.no_grad()
    def work(self, progress: Callable[[], float]) -> None:
        """Descend until it is over; `progress` shows how far the search is, and returns the seconds gone."""
        torch.set_flush_denormal(True)  # it is each thread's own
        while True:
            with self.lock:
                batch = self.plan()
            if batch is None:
                return
            start = time.perf_counter()
            cuts = self.ways(batch.way, batch.memory, batch.seconds, batch.rng, self.left)
            if cuts is None:
                return
            with self.lock:
                self.take_in(batch, cuts, progress())
                self.slowness += 0.2 * ((time.perf_counter() - start) / batch.seconds - self.slowness)
                self.checkpoint.keep("search", self.found.state_dict)

    def take_in(self, batch: Batch, cuts: np.ndarray, elapsed: float) -> None:
        """Add the batch's cuts to the search."""
        found, before = self.found, self.found.best[-1]
        for cut, parent in zip(cuts, batch.parents, strict=True):
            found.add(cut, parent, elapsed)
        found.account(batch.way, batch.seconds, found.best[-1] - before)


def reached(cut: float, bound: float, size: float, whole: bool) -> bool:
    """Whether the cut is as large as the bound lets it be, but for rounding errors: at most 10⁻¹² of size, Σ|w|.

    whole: whether all weights are whole numbers, and so all cuts.
    """
    return cut >= bound - 1e-12 * size or (whole and cut + 1 > bound + 1e-9 * abs(bound))


def search(
    graph: Graph,
    V: Tensor,
    s: Tensor,
    config: "Config",
    since: float,
    bound: Callable[[], float] = lambda: inf,
    workers: int = 1,
    checkpoint: Checkpoint | None = None,
    reserve: Callable[[], float] = lambda: 0.0,
) -> Search:
    """Descend from reheated cuts until config.seconds after `since`, until the bound is reached, or until Ctrl-C.

    Args:
        graph, V: the graph, and (n, k) unit vectors, the SDP's.
        s: (n,) sides ±1, the cut to begin with.
        config: hyperparameters; `seconds` is when to stop, `descents` after how many; `seed` of all randomness.
        since: `time.perf_counter()` at the start of the run.
        bound: tells what no cut is above, inf while nobody knows; a cut that reaches it (`reached`) ends the search.
        workers: threads side by side; with one, and without `seconds`, nothing depends on the machine.
        checkpoint: keeps the state of the search; a search that it has is gone on with.
        reserve: tells by how many seconds it is to end earlier, for what the run has still to do.
    """
    checkpoint, stop = checkpoint or Checkpoint(), Event()
    size, whole = float(graph.w.abs().sum()), bool((graph.w == graph.w.round()).all())

    def left() -> float:
        if stop.is_set() or reached(found.best[-1], bound(), size, whole):
            return 0.0
        limit = inf if config.seconds is None else max(config.seconds - reserve(), config.seconds / 2)
        return limit - (time.perf_counter() - since)

    def progress() -> float:
        bar.set_postfix_str(f"cut {found.best[-1]:.10g}", refresh=False)
        bar.update(round(time.perf_counter() - since, 1) - bar.n)
        return time.perf_counter() - since

    with held() as pressed:
        reduced = kernel(graph)
        found = Search(reduced, s.cpu().numpy(), time.perf_counter() - since)
    found.interrupted = bool(pressed)
    bar = tqdm(desc="search", total=config.seconds, unit="s", disable=None, leave=False)
    # The workers are the parallelism: threads within a step would wait for each other.
    with threads(1), bar, enough_memory("the search has ended early, with its best cut so far"):
        try:
            if not found.interrupted:
                V = V[torch.from_numpy(reduced.vertices).to(V.device)]
                ways = Ways(reduced.graph, V, config.epsilon, config.rank)
                Reheating(ways, found, config, left, checkpoint).run(workers, progress, stop)
        except KeyboardInterrupt:
            found.interrupted = True
    return found
