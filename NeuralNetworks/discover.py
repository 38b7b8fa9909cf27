"""Which few directions of the inputs matter: a network with λ‖W‖² on its first layer, along a path of λ.

The theorem behind it (Theorem 4.1) is about the population risk: at its second-order stationary points W has lost every
direction that the answer does not use. On n rows the noise holds some of them up, the more the smaller λ. So λ and the
number of directions are chosen on rows held out, and the network is then fitted again on that many directions:

1. For λ from large to small, minimize f = risk + λ (‖W‖² + ‖a‖²) from where the λ before ended, and from a fresh draw;
   the lower f stays. The draw finds what no descent from W ≈ 0 does: links without linear or quadratic part.
2. At the λ with the least risk on the validation rows, keep W's leading K directions, W = A B with B K × d, and fit;
   drop the least of them, fit, and so on down to 0. For a smaller λ, neurons are drawn anew each time: the path has
   lost many that a network on few directions has a use for.
3. The number of directions is the least whose validation risk exceeds the best by no more than one standard error (of
   the difference row by row) and a share of the answers' variance that nobody would miss.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

from model import Loss

LAMS = tuple(10.0 ** (-e / 2) for e in range(2, 10))
"""the path of λ: 0.1 to 3·10⁻⁵; answers have variance 1, so that it suits them all"""
NEGLIGIBLE = 0.002
"""share of the answers' risk at 0 directions that those left out, all together, may cost beyond a standard error"""
BATCH = 256
Rows = tuple[Tensor, Tensor]
"""inputs x (n, d), whitened, and answers y (n,), of variance 1 or 0 and 1; float32, whose rounding no noise notices"""
Progress = Callable[[str], None]
"""called after each fit, with what was fitted"""


# --- the network and its objective ------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """ŷ(x) = a·σ(A B x + b) + c, σ = GELU, with first layer W = A B of rank k: A (h, k), B (k, d).

    Args:
        d: input dimension.
        width: h.
        generator: of the initial weights, b ~ N(0, 1/4), a ~ N(0, 1/h²), W = A ~ N(0, 1/d): at first k = d and B = I,
            which is not trained.
    """

    def __init__(self, d: int, width: int, generator: torch.Generator) -> None:
        super().__init__()

        def normal(*shape: int, std: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(std * torch.randn(shape, generator=generator))

        self.A = normal(width, d, std=1 / sqrt(d))
        self.B = torch.nn.Parameter(torch.eye(d), requires_grad=False)
        self.b = normal(width, std=0.5)
        self.a = normal(width, std=1 / width)
        self.c = torch.nn.Parameter(torch.zeros(()))
        self.float()  # as the rows are, whatever PyTorch's default is

    @property
    def weights(self) -> Tensor:
        """W = A B (h, d)."""
        return self.A @ self.B

    @property
    def directions(self) -> NDArray:
        """B (k, d)."""
        return self.B.detach().double().numpy()

    def forward(self, x: Tensor) -> Tensor:
        """ŷ (n,) at x (n, d); for two classes, the log-odds of the second."""
        return gelu(torch.addmm(self.b, x @ self.B.T, self.A.T)) @ self.a + self.c

    @torch.no_grad()
    def spectrum(self) -> NDArray:
        """Singular values of W, largest first: k of them."""
        return torch.linalg.svdvals(self.weights)[: len(self.B)].double().numpy()

    @torch.no_grad()
    def along(self, directions: Tensor) -> "Network":
        """A copy with the `directions` (k, d) as B, trained from then on, and A = W Bᵀ: if they are orthonormal, with
        W's part along them.
        """
        copy, A = deepcopy(self), self.weights @ directions.T
        copy.A, copy.B = (torch.nn.Parameter(x.clone(memory_format=torch.contiguous_format)) for x in (A, directions))
        return copy

    @torch.no_grad()
    def restricted(self, k: int) -> "Network":
        """A copy along W's k leading directions.

        They are its right singular vectors, largest singular value first, each with the sign that makes its entry of
        largest size positive.
        """
        V = torch.linalg.svd(self.weights, full_matrices=False)[2][:k]
        return self.along(V * V.gather(1, V.abs().argmax(1, keepdim=True)).sign())


def logistic(prediction: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats of the log-odds ŷ for the class y, 0 or 1, row by row."""
    return binary_cross_entropy_with_logits(prediction, y, reduction="none")


def objective(network: Network, rows: Rows, loss: Loss, lam: float) -> Tensor:
    """f = risk + λ (‖W‖² + ‖a‖²).

    With ‖W‖² alone, W shrinks and a grows, and the function stays what it is where σ is nearly a polynomial. The lemma
    allows any function of the parameters besides W and b, and ‖a‖² is one. For given |a_j| ‖w_j‖ the two are least at
    |a_j| = ‖w_j‖, where they are 2λ Σ_j |a_j| ‖w_j‖: a price of first order on each neuron's share, so that one of too
    little use vanishes instead of growing small.
    """
    x, y = rows
    return loss(network(x), y).mean() + lam * (network.weights.square().sum() + network.a.square().sum())


# --- its minimization -------------------------------------------------------------------------------------------------


def descend(network: Network, rows: Rows, loss: Loss, lam: float, steps: int, generator: torch.Generator) -> Network:
    """The network after so many steps of Adam on batches of rows, its step size falling to 0 as a cosine.

    The batches' noise is the perturbation that leaves the saddle W = 0.
    """
    network, (x, y) = deepcopy(network), rows
    parameters = [p for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, betas=(0.9, 0.99), fused=True)
    for t in range(steps):
        adam.param_groups[0]["lr"] = 0.005 * (1 + cos(pi * t / steps))
        chosen = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
        adam.zero_grad()
        objective(network, (x[chosen], y[chosen]), loss, lam).backward()
        adam.step()
    return network


def polish(network: Network, rows: Rows, loss: Loss, lam: float, iterations: int = 100) -> Network:
    """The network after L-BFGS on all rows, from where it is: on few directions f is a tame function."""
    network = deepcopy(network)
    parameters = [p for p in network.parameters() if p.requires_grad]
    most = dict(max_iter=iterations, max_eval=2 * iterations, history_size=20)
    close = dict(tolerance_grad=1e-5, tolerance_change=1e-7)
    lbfgs = torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", **most, **close)

    def closure() -> Tensor:
        lbfgs.zero_grad()
        f = objective(network, rows, loss, lam)
        f.backward()
        return f

    lbfgs.step(closure)
    return network


# --- the choice of λ and of the number of directions ------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What all fits share."""

    training: Rows
    validation: Rows
    """rows that λ and the number of directions are chosen on"""
    loss: Loss
    """row by row: squared, for answers of mean 0 and variance 1, or logistic, for 0 and 1"""
    counts: Sequence[int]
    """numbers of directions to choose from, largest first"""
    width: int
    """neurons"""
    steps: int
    """of Adam in each descent"""
    generator: torch.Generator
    """of weights and batches"""
    progress: Progress = lambda stage: None
    lams: Sequence[float] = LAMS
    """the path, largest λ first"""

    def drawn(self) -> Network:
        """A network with random weights."""
        return Network(self.training[0].shape[1], self.width, self.generator)

    def descended(self, network: Network, lam: float) -> Network:
        """`descend` on the training rows."""
        return descend(network, self.training, self.loss, lam, self.steps, self.generator)


@dataclass(frozen=True)
class Stage:
    """Where a fit ends, along the path of λ or at a number of directions."""

    lam: float
    network: Network
    directions: int
    """rank that W may have: d along the path of λ"""
    training: float
    """risk on the training rows"""
    validation: float
    """risk on the validation rows"""
    losses: NDArray
    """(rows,) of which `validation` is the mean"""


@dataclass(frozen=True)
class Discovery:
    """What `discover` ends with."""

    initial: NDArray
    """singular values of W as drawn"""
    path: list[Stage]
    """for each λ, largest first"""
    full: Stage
    """of the path, the one with the least validation risk"""
    ranks: list[Stage]
    """for each number of directions, least first, at the better of two λ"""
    chosen: Stage
    """of the ranks"""
    interrupted: bool
    """whether Ctrl-C ended path or ranks early"""


def discover(search: Search) -> Discovery:
    """Find the directions that the answers depend on; see the top of this file.

    Raises:
        KeyboardInterrupt: before there was a fit to keep; after that it only ends the path, or the ranks, early. (After
            the path's early end the ranks are the path's network with directions left out, not fitted again.)
    """
    start = search.drawn()
    path, cut_short = _collected(descents(search, start), search.progress)
    if not path:
        raise KeyboardInterrupt
    full = _least(path)

    def restricted(k: int) -> Stage:
        return _stage(search, full.network.restricted(k), full.lam)

    fits = map(restricted, search.counts) if cut_short else eliminate(search, full)
    ranks, stopped = _collected(fits, search.progress)
    ranks = ranks[::-1] or [restricted(search.counts[0])]
    return Discovery(start.spectrum(), path, full, ranks, choose(ranks), cut_short or stopped)


def descents(search: Search, network: Network) -> Iterator[Stage]:
    """The path of λ: from where the λ before ended, at first `network`, or from a fresh draw, whichever ends lower."""
    for lam in search.lams:
        ends = [search.descended(start, lam) for start in (network, search.drawn())]
        network = min(ends, key=lambda end, lam=lam: objective(end, search.training, search.loss, lam).item())
        yield _stage(search, network, lam)


def eliminate(search: Search, full: Stage) -> Iterator[Stage]:
    """Fits on the leading directions of the network, on ever fewer, at its λ, and anew at a tenth of it.

    At its own λ the path's network pays for all d directions; on few, a smaller λ may do better.
    """
    network, lighter = full.network, full.lam / 10
    for k in search.counts:
        network = polish(network.restricted(k), search.training, search.loss, full.lam)
        anew = search.descended(search.drawn().along(network.B.detach()), lighter)
        anew = polish(anew, search.training, search.loss, lighter)
        yield _least([_stage(search, network, full.lam), _stage(search, anew, lighter)])


def _collected(stages: Iterator[Stage], progress: Progress) -> tuple[list[Stage], bool]:
    found = []
    try:
        for stage in stages:
            found.append(stage)
            progress(f"λ {stage.lam:.0e}, {stage.directions} directions")
    except KeyboardInterrupt:
        return found, True
    return found, False


@torch.no_grad()
def _stage(search: Search, network: Network, lam: float) -> Stage:
    training, losses = (search.loss(network(x), y).double().numpy() for x, y in (search.training, search.validation))
    return Stage(lam, network, len(network.B), float(training.mean()), float(losses.mean()), losses)


def _least(stages: Sequence[Stage]) -> Stage:
    return min(stages, key=lambda stage: stage.validation)


def choose(ranks: Sequence[Stage]) -> Stage:
    """The fewest directions whose validation risk is at most one standard error and a negligible part above the least.

    The standard error is that of the mean difference of the losses, row by row (Hastie, Tibshirani and Friedman 2009,
    section 7.10, have the risk's own, which is larger, as what all fits share is in it).
    """
    best = _least(ranks)
    for stage in ranks:
        excess = stage.losses - best.losses
        error = excess.std(ddof=1) / sqrt(len(excess))
        if excess.mean() <= error + NEGLIGIBLE * ranks[0].validation:
            return stage
    return best


def sine(V: NDArray, U: NDArray) -> float:
    """Sine of the largest principal angle between the spans of the rows; 1 where one has more dimensions."""
    if len(V) != len(U) or not len(V):
        return float(len(V) != len(U))
    return float(np.sin(subspace_angles(V.T, U.T)[0]))
