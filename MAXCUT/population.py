"""The cuts that a search keeps, united part by part, and the bandit that says how the next ones are made."""

import numpy as np
import torch

from kernel import Kernel, nearer, unite, value
from run import State
from ways import WAYS

STALLED = 0.25, 20
"""Another cut is begun from nothing once a larger share of the descents than this, and so many more, gained nothing."""
MEMBERS = 0.1
"""times the square root of the descents so far: while fewer cuts are kept, each thread may begin another"""
MIXED = 0.3
"""share of the descents that remember what two cuts agree on, instead of one"""
FADING = 2
"""What a way gained or spent at time t counts as (t / now) to this power."""


class Search:
    """Cuts found so far, how the best one grew, and what each way gained; `search` runs one.

    Args:
        kernel: the graph's.
        s: (n,) sides ±1 of the whole graph, the cut to begin with.
        elapsed: seconds since the run's start.

    Attributes:
        s: the cuts that are kept: (n,) of ±1 each, of the kernel.
        cuts: their values on the whole graph, in the weights' unit.
        seconds, best: when the best cut grew, since the run's start, and to what.
        descents, grown: descents so far, and those when the best cut last grew.
        batches: of descents, begun so far.
        gained, spent: by way, what the best cut grew by, in mean weights, and planned seconds; what is long ago counts
            less.
        tried: ways that were begun at least once.
        total: planned seconds so far.
        interrupted: whether Ctrl-C ended the search.
    """

    def __init__(self, kernel: Kernel, s: np.ndarray, elapsed: float) -> None:
        self.kernel, self.offset, self.unit = kernel, kernel.offset(), float(kernel.graph.w.abs().mean())
        self.s = [s[kernel.vertices]]
        self.cuts = [value(kernel.graph, self.s[0]) + self.offset]
        self.seconds, self.best, self.interrupted = [elapsed], list(self.cuts), False
        self.descents, self.batches, self.grown, self.total, self.tried = 0, 0, 0, 0.0, []
        self.gained, self.spent = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)

    def best_cut(self) -> np.ndarray:
        """(n,) sides ±1 of the whole graph."""
        return self.kernel.extend(self.s[int(np.argmax(self.cuts))])

    def wants_fresh(self) -> bool:
        """Whether the best cut has not grown for long, and another may be kept."""
        stalled = self.descents - self.grown > STALLED[0] * self.descents + STALLED[1]
        return stalled and len(self.s) < MEMBERS * self.descents**0.5

    def choose(self, costs: dict[str, float], rng: np.random.Generator) -> str:
        """A way that was not tried yet, or one by Thompson sampling, gains being Poisson processes of unknown rates."""
        for way in costs:
            if way not in self.tried:
                self.tried.append(way)
                return way
        rates = {way: rng.gamma(1 + self.gained[way]) / (costs[way] + self.spent[way]) for way in costs}
        return max(rates, key=rates.get)

    def account(self, way: str, seconds: float, gain: float) -> None:
        """Add to the way's sums; what was gained and spent before fades."""
        fade = (self.total / (self.total + seconds)) ** FADING
        for name in WAYS:
            self.gained[name] *= fade
            self.spent[name] *= fade
        self.total += seconds
        self.gained[way] += gain / self.unit
        self.spent[way] += seconds

    def state_dict(self) -> State:
        """All of it, for a checkpoint."""
        sides = torch.from_numpy(np.array(self.s, dtype=np.int8))
        return {"s": sides} | {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state: State) -> None:
        """Go on with the search whose `state_dict` this is."""
        self.s = list(state["s"].numpy().astype(np.float64))
        for name in KEPT:
            setattr(self, name, state[name])

    def add(self, s: np.ndarray, parent: int | None, elapsed: float) -> None:
        """Take in the cut s of a descent from the cut `parent`, or from none."""
        self.descents += 1
        best = int(np.argmax(self.cuts))
        if parent is None:
            self.s.append(s)
            self.cuts.append(value(self.kernel.graph, s) + self.offset)
            parent = best
        for member in dict.fromkeys((parent, best)):
            united = unite(self.kernel.graph, self.s[member], s)
            cut = value(self.kernel.graph, united) + self.offset
            if cut >= self.cuts[member] and not any((united == nearer(united, other)).all() for other in self.s):
                self.s[member], self.cuts[member] = united, cut
        if max(self.cuts) > self.best[-1]:
            self.seconds.append(elapsed)
            self.best.append(max(self.cuts))
            self.grown = self.descents

    def parents(self, count: int, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
        """The better of two, so many times, and what is remembered: it alone, or what it and a third agree on."""
        parents, memory = [], np.empty((count, len(self.s[0])))
        for row in memory:
            one, two, third = rng.integers(len(self.s), size=3)
            parents.append(int(max(one, two, key=lambda member: self.cuts[member])))
            s = self.s[parents[-1]]
            row[:] = (s + nearer(s, self.s[third])) / 2 if rng.random() < MIXED else s
        return parents, memory


KEPT = ("cuts", "descents", "batches", "seconds", "best", "gained", "spent", "tried", "total", "grown")
