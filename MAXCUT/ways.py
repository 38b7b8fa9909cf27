"""Ways from remembered sides of the vertices to a cut, each a descent that takes randomness out again.

- "vectors": back to the SDP's vectors in a random rotation, which is all of Goemans–Williamson's randomness, while
  μ_i = √d_i (c m_i + κ ζ_i), ζ ~ N(0, I), remembers the sides m as well as c and κ let it; then down f with a heavy
  ball, λ growing (κ ζ is PGD's kick).
- "bifurcation": independent noise alone, V = 0. E[cut] is then multilinear in the means, and descended on with inertia.
- "annealing": thermal noise, by dwave-samplers; it also polishes what the other two end with. Of a "population" of
  cuts the better ones multiply while all are cooled. For "clusters" several cuts are annealed, and then the graph of
  what a few of them agree on, which moves many vertices at once. Both start hot, which finds other valleys, or warm,
  which finds the bottom of a remembered cut's.
"""

import time
from array import array
from collections.abc import Callable
from math import ceil, inf

import numpy as np
import torch
from dwave.samplers.sa.simulated_annealing import simulated_annealing
from torch import Tensor

from kernel import contract, kernel, unite, value
from optimizer import Rounding
from sdp import principal
from utilities import Graph, weighted_sums

MEMORY, KICK = (0.2, 0.6), (0.2, 0.8)
"""ranges that c and κ are drawn from, beside vectors of length 1; without V, c is four times as much"""
LR, MOMENTUM = 0.3, 0.9
LAM, GROWTH = 0.1, 25.0
"""λ at the end of a descent with V, and the factor by which it grows"""
STEP = 0.5
"""Δ of the bifurcation"""
WAYS = {"clusters": 200, "annealing": 100, "vectors": 60, "bifurcation": 100, "population": 3000}
"""ways from a reheated cut, in the order of their first turns, and their steps or sweeps"""
TEAMS = {"population": (32, 200, 1), "clusters": (16, 1, 3)}
"""cuts that are annealed side by side and end as one, stages of their annealing, and rounds of `together` after it"""
TEAM_SIDES = 2**22
"""most sides of all cuts of a population by the clock"""
SHORTEST = 0.2
"""share of its seconds that a team is worth having where there is no time for all"""
FEW = 5
"""cuts that are put together"""
HOT = {"population": (0.4, 2.0), "clusters": (0.4, 2.0), "annealing": (1.1, 2.5)}
"""Ranges of the inverse temperature that annealing starts at, beside 1/rms row norm of W, near which a random graph's
spins freeze: below 1 nothing is remembered but large parts"""
FRESH = 0.4, 1.0
"""The same where nothing is to be remembered."""
JOINED, ONCE, POLISHED, COLD = 0.7, 1.2, 2.5, 10.0
"""The same where parts are annealed, where one cut is by the clock, where it polishes, and where it ends."""
QUICK, SLOWEST = 25, 5.0
"""sweeps with which it is tried whether clusters help, and how long they take; and how slow a machine is said to be"""
LEAST, JOINING = 8, 0.05
"""cuts of a team, at least, and share of the time that is left for putting them together"""
LONGEST = 10.0
"""planned seconds of a compiled call, between two of which it may be over"""
POLISH = 100
"""sweeps after a descent with or without V"""
BATCH_EDGES, BATCH_SIDES, BATCH_SWEEPS = 20_000, 2**17, 2 * 10**6
"""Small graphs are descended on in batches, up to so many edges (with V), sides (without) and visits to a vertex
(annealing): the calls take longer than their work on fewer."""

Left = Callable[[], float]
"""tells the seconds that are left; none: give up"""


class Annealing:
    """dwave-samplers' simulated annealing (Metropolis; Kirkpatrick, Gelatt, Vecchi 1983) of cuts of one graph.

    Its compiled function is called as it is, without the objects that its sampler builds from every edge; it lets other
    threads run.
    """

    def __init__(self, graph: Graph) -> None:
        ends = (array("i", x.cpu().numpy().astype(np.int32).tobytes()) for x in (graph.i, graph.j))
        w = graph.w.cpu().numpy()
        self.edges = (array("d", bytes(8 * graph.n)), *ends, array("d", w.tobytes()))
        self.rms = float(np.sqrt(2 * np.square(w / np.abs(w).max()).sum() / graph.n) * np.abs(w).max())
        self.end = min(COLD / self.rms, 2 / float(np.abs(w).mean()))

    def __call__(
        self,
        s: np.ndarray,
        hot: float,
        sweeps: float,
        seed: int,
        stages: int = 1,
        left: Left = lambda: inf,
        pace: tuple[float, float] = (0.0, 0.0),
    ) -> np.ndarray:
        """Cuts after so many sweeps, from inverse temperature hot/rms on, and three at temperature 0.

        In more than one stage it is population annealing (Hukushima and Iba 2003): before each but the first the cuts
        are drawn again from those that there are, with weights exp(−Δβ E), as the Boltzmann distribution asks.

        Args:
            s: (cuts, n) of ±1.
            hot: beside 1/rms row norm of W.
            sweeps: at least 1; inf for as many as there is time for.
            seed: of the random numbers.
            stages: equally far apart.
            left: asked before each stage, which has its share of the sweeps, or fewer, if its share of the seconds is
                too short for them. If nothing is left the sweeps at temperature 0 are the only ones that follow.
            pace: seconds of a stage that are not its sweeps', and of a sweep of one cut: where sweeps is inf.
        """
        s, energy, rng = s.astype(np.int8), np.zeros(len(s)), np.random.default_rng(seed)
        betas, now = np.linspace(min(hot / self.rms, self.end), self.end, stages + 1), left()
        most, (call, each) = ceil(sweeps / stages) if sweeps < inf else inf, pace
        each *= len(s)
        for stage in range(stages):
            count = most if now == inf or not each else max(1, int(min(most, (now / (stages - stage) - call) / each)))
            late = now <= 0
            schedule = [] if late else np.linspace(betas[stage], betas[stage + 1], count).tolist()
            schedule += [1e9 * self.end] * 3 * (late or stage == stages - 1)
            share = np.exp((betas[1] - betas[0]) * (energy.min() - energy)).cumsum()
            s = s[np.searchsorted(share / share[-1], (np.arange(len(s)) + rng.random()) / len(s))]
            start = time.perf_counter()  # what is left may change otherwise, too
            s, energy = simulated_annealing(len(s), *self.edges, 1, schedule, int(rng.integers(1, 2**31)), s)
            if late:
                break
            spent, now = time.perf_counter() - start, left()
            each = max(spent - call, 0.1 * spent) / count
        return s.astype(np.float64)


def bifurcate(
    W: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, steps: int, a: float, c: float, discrete: bool, left: Left
) -> Tensor | None:
    """Means x ∈ [−1, 1] after so many steps of simulated bifurcation (Goto et al. 2019, 2021); None if it was late.

    E[cut] = ½ Σ_{i<j} w_ij (1 − x_i x_j) of independent sides with means x has the gradient −½ W x:
    y ← y − Δ ((1 − a) x + c W s(x)), x ← x + Δ y, with a growing to 1; where x meets ±1 it stays, and y is 0.

    Args:
        W: parts of the symmetric weight matrix, CSR, float32.
        x, y: (n, cuts) means and their velocities; overwritten.
        steps: so many.
        a: at the start; the term (1 − a) x² rewards variance.
        c: weight of the field.
        discrete: s(x) = sign x instead of x.
        left: see `Left`.
    """
    for a_t in torch.linspace(a, 1, steps).tolist():
        y.sub_(weighted_sums(*W, x.sign() if discrete else x), alpha=STEP * c).sub_(x, alpha=STEP * (1 - a_t))
        x.add_(y, alpha=STEP)
        y[x.abs() > 1] = 0
        x.clamp_(-1, 1)
        if left() <= 0:
            return None
    return x


def descend(problem: Rounding, V: Tensor, mu: Tensor, steps: int, left: Left) -> tuple[Tensor, Tensor] | None:
    """V and μ, in place, after so many steps with a heavy ball in which λ grows by `GROWTH`; None if it was late."""
    velocities = torch.zeros_like(V), torch.zeros_like(mu)
    for step in range(steps):
        lam = LAM * GROWTH ** (min(1, step / (0.9 * steps)) - 1)
        for x, v, slope in zip((V, mu), velocities, problem.gradient(V, mu, lam), strict=True):
            x += v.mul_(MOMENTUM).sub_(slope, alpha=LR)
        if left() <= 0:
            return None
    return V, mu


class Ways:
    """The ways on one graph.

    Args:
        graph: the graph.
        V: (n, k) vectors, the SDP's.
        epsilon, rank: see `Config`.
    """

    def __init__(self, graph: Graph, V: Tensor, epsilon: float, rank: int) -> None:
        self.graph, self.annealing = graph, Annealing(graph)
        self.copies = max(1, BATCH_EDGES // graph.m)
        self.problem = Rounding(graph.copies(self.copies), epsilon, torch.float32)
        self.V = principal(V, rank).float()
        W = graph.matrix
        self.W = W.crow_indices(), W.col_indices(), (W.values() / self.annealing.rms).float()
        self.batch = dict.fromkeys(TEAMS, 1) | {"vectors": self.copies}  # cuts that are made at once
        self.batch["bifurcation"] = min(max(1, BATCH_SIDES // graph.n), 16)
        self.batch["annealing"] = min(max(1, BATCH_SWEEPS // (graph.n * WAYS["annealing"])), 8)
        self.sweep = 1e-8 * graph.n * (1 + graph.n / 200_000)  # a cut's, in seconds; sides in a cache are faster

    def seconds(self, way: str) -> float:
        """What a batch takes, about, on one core: the same for every run, as decisions depend on it."""
        (n, m), (copies, stages, rounds), sweep = (self.graph.n, self.graph.m), TEAMS.get(way, (1, 1, 0)), self.sweep
        if way == "vectors":
            work = 4e-8 * (m + 2 * n) * WAYS[way] + sweep * POLISH
        elif way == "bifurcation":
            work = 5e-10 * (2 * m + 8 * n) * WAYS[way] + sweep * POLISH
        else:
            work = copies * (sweep * WAYS[way] + rounds * (1e-3 + 2e-7 * (n + m)))
        return self._planned(work, self.batch[way], stages)

    def _planned(self, work: float, batch: int = 1, stages: int = 1) -> float:
        """The seconds of a batch in which a cut takes `work`, and edges are read in every stage."""
        n, m = self.graph.n, self.graph.m
        return 2e-7 * m * stages + batch * (1e-7 * (n + m) + work)

    def __call__(
        self, way: str, memory: np.ndarray, seconds: float, rng: np.random.Generator, left: Left
    ) -> np.ndarray | None:
        """Cuts (batch, n) of ±1 from remembered sides (batch, n) in [−1, 1]; None if it was late.

        A team with fewer seconds than `seconds` plans for it has fewer cuts, and if these are too few fewer sweeps.
        """
        if way in HOT:
            return self._annealed(way, memory, seconds, rng, left)
        c, kappa = (rng.uniform(*limits, size=(len(memory), 1)) for limits in (MEMORY, KICK))
        kick = kappa * rng.standard_normal(memory.shape)
        if way == "vectors":
            means = self._with_vectors(c * memory + kick, rng, left)
        else:
            means = self._without_vectors(np.clip(4 * c * memory + kick, -1, 1), rng, left)
        if means is None:
            return None
        return self.annealing(np.where(means.cpu().numpy() < 0, -1, 1), POLISHED, POLISH, int(rng.integers(2**31)))

    def trial(self) -> tuple[bool, float]:
        """Whether a few quick cuts together make a better one than annealing one for as long, as on a torus, and how
        slow the machine is: what that annealing took, beside what is planned for it, from 1 to `SLOWEST`.
        """
        s, start = np.random.default_rng(0).choice([-1, 1], (FEW, self.graph.n)), time.perf_counter()
        one = self.annealing(s[:1], JOINED, FEW * QUICK, 0)[0]
        took = time.perf_counter() - start
        few = self.annealing(s, JOINED, QUICK, 0)
        helped = value(self.graph, together(self.graph, few, QUICK, 0)) > value(self.graph, one)
        return helped, min(max(1.0, took / self._planned(FEW * QUICK * self.sweep)), SLOWEST)

    def by_the_clock(self, s: np.ndarray, rng: np.random.Generator, left: Left) -> np.ndarray:
        """The cut s (n,) annealed for all of the seconds that are left, from where much of it is remembered; where
        there is time for `LEAST` cuts, a population, from nothing.
        """

        def took(sweeps: int) -> float:
            start = time.perf_counter()
            self.annealing(s[None], JOINED, sweeps, 0)
            return time.perf_counter() - start

        # Mostly of preparing the edges, a million vertices' three seconds; twice, as others may hold a call up.
        call, several = min(took(1), took(1)), took(QUICK)
        sweep = max(several - call, 0.1 * call) / (QUICK - 1)
        _, stages, rounds = TEAMS["population"]
        copies = int(np.clip(left() / (WAYS["population"] * sweep), 1, max(1, TEAM_SIDES // self.graph.n)))
        how = int(rng.integers(2**31)), int(np.clip(left() / (10 * call), 1, stages))
        if copies < LEAST:
            return self.annealing(s[None], ONCE, inf, *how, left, (call, sweep))[0]
        s, hot, last = rng.choice([-1, 1], (copies, self.graph.n)), rng.uniform(*FRESH), JOINING * left()
        s = self.annealing(s, hot, inf, *how, lambda: left() - last, (call, sweep))
        return self._joined(s, rounds, rng, left)

    def _annealed(
        self, way: str, memory: np.ndarray, seconds: float, rng: np.random.Generator, left: Left
    ) -> np.ndarray:
        (team, stages, rounds), share = TEAMS.get(way, (1, 1, 0)), seconds / self.seconds(way)
        copies = max(min(team, LEAST), round(team * share))
        shorter = min(1.0, team * share / copies)
        sweeps, stages = (ceil(x * shorter) for x in (WAYS[way], stages))
        memory = memory.repeat(copies, axis=0)
        s = np.where(rng.random(memory.shape) < (1 + memory) / 2, 1, -1)
        hot = rng.uniform(*(HOT[way] if memory.any() else FRESH))
        if copies == 1:
            return self.annealing(s, hot, sweeps, int(rng.integers(2**31)))
        calls = min(copies, ceil(seconds / LONGEST))
        parts, last = [s] if stages > 1 else np.array_split(s, calls), JOINING * seconds
        s = [self.annealing(x, hot, sweeps, int(rng.integers(2**31)), stages, lambda: left() - last) for x in parts]
        return self._joined(np.concatenate(s), rounds, rng, left)[None]

    def _joined(self, s: np.ndarray, rounds: int, rng: np.random.Generator, left: Left) -> np.ndarray:
        """The best of the cuts s (copies, n) after so many rounds in which a few of them are put `together`, each."""
        for _ in range(rounds):
            s = s[np.argsort([-value(self.graph, x) for x in s])]
            few = [np.sort(rng.choice(len(s), min(FEW, len(s)), replace=False)) for _ in s]
            chosen, sweeps = zip(few, rng.integers(2**31, size=len(s)).tolist(), strict=True), WAYS["clusters"]
            s = np.array([s[x[0]] if left() <= 0 else together(self.graph, s[x], sweeps, r) for x, r in chosen])
        return max(s, key=lambda x: value(self.graph, x))

    def _with_vectors(self, mu: np.ndarray, rng: np.random.Generator, left: Left) -> Tensor | None:
        k, count = self.V.shape[1], len(mu)
        mu = np.resize(mu, (self.copies, self.graph.n))  # so many the problem has; fewer are asked for at the end
        rotations = [np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in mu]
        V = torch.cat([self.V @ torch.from_numpy(Q).to(self.V) for Q in rotations])
        root_d = self.problem.root_d.to(V)
        start = V * root_d[:, None], torch.from_numpy(mu).to(V).view(-1) * root_d
        end = descend(self.problem, *start, WAYS["vectors"], left)
        return end and self.problem.means(*end).view(len(mu), -1)[:count]

    def _without_vectors(self, x: np.ndarray, rng: np.random.Generator, left: Left) -> Tensor | None:
        y = 0.1 * rng.standard_normal(x.shape)
        x, y = (torch.from_numpy(z.T).to(self.V).contiguous() for z in (x, y))
        discrete = bool(rng.random() < 0.5)
        x = bifurcate(self.W, x, y, WAYS["bifurcation"], a=0.5, c=0.5, discrete=discrete, left=left)
        return x if x is None else x.T


def together(graph: Graph, cuts: np.ndarray, sweeps: int, seed: int) -> np.ndarray:
    """A cut (n,) no worse than the first of the cuts (count, n): annealed on what they agree on, and united with it."""
    part, parts = contract(graph, cuts)
    if not parts.m:
        return cuts[0]
    reduced = kernel(parts)
    x = Annealing(reduced.graph)(np.ones((1, reduced.graph.n)), JOINED, sweeps, seed)[0]
    return unite(graph, cuts[0], cuts[0] * reduced.extend(x)[part])
