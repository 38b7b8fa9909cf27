"""Which few directions of the inputs matter: a network with λ‖W‖² on its first layer, along a path of λ.

The theorem behind it (Theorem 4.1) is about the population risk: at its second-order stationary points W has lost every
direction that the answer does not use. On n rows the noise holds some of them up, the more the smaller λ. So λ and the
number of directions are chosen on rows held out, and the network is then fitted again on that many directions:

1. For λ from large to small, minimize f = risk + λ (‖W‖² + ‖a‖²) from where the λ before ended, and from a fresh draw;
   the lower f stays. The draw finds what no descent from W ≈ 0 does: links without linear or quadratic part.
2. At the λ with the least risk on the validation rows, keep W's leading K directions, W = A B with B K × d, and fit;
   drop the least of them, fit, and so on down to 0.
3. The number of directions is the least whose validation risk is within one standard error of the best (of the
   difference row by row), give or take a share of the answers' variance that nobody would miss.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

from model import Loss

LAMS = tuple(10.0 ** (-e / 2) for e in range(2, 10))
"""the path of λ: 0.1 to 3·10⁻⁵; answers have variance 1, so that it suits them all"""
NEGLIGIBLE = 0.002
"""share of the answers' risk at 0 directions that an added direction must explain"""
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
        generator: of the initial weights, W ~ N(0, 1/d), as at first k = d and B = I, b ~ N(0, 1/4), a ~ N(0, 1/h²).
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
    def restricted(self, k: int) -> "Network":
        """A copy with W's k leading directions as rows of B, which is trained from there.

        They are its right singular vectors, largest singular value first, each with the sign that makes its entry of
        largest size positive.
        """
        V = torch.linalg.svd(self.weights, full_matrices=False)[2][:k]
        return self.along(V * V.gather(1, V.abs().argmax(1, keepdim=True)).sign()).requires_grad_()

    @torch.no_grad()
    def along(self, directions: Tensor) -> "Network":
        """A copy whose B is the orthonormal `directions` (k, d) and stays so: what a network can do that knows them."""
        copy, parts = deepcopy(self), (self.weights @ directions.T, directions)
        copy.A, copy.B = (torch.nn.Parameter(x.clone(memory_format=torch.contiguous_format)) for x in parts)
        copy.B.requires_grad_(False)
        return copy


def logistic(prediction: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats of the log-odds ŷ for the class y, 0 or 1, row by row."""
    return binary_cross_entropy_with_logits(prediction, y, reduction="none")


def objective(network: Network, rows: Rows, loss: Loss, lam: float) -> Tensor:
    """f = risk + λ (‖W‖² + ‖a‖²).

    With ‖W‖² alone, W shrinks and a grows, and the function stays what it is where σ is nearly a polynomial. The lemma
    allows any function of the parameters besides W and b, and ‖a‖² is one. Together they are at their least
    2λ Σ_j |a_j| ‖w_j‖, which neurons pay that turn to a direction of their own.
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
class Stage:
    """Where the path is at one λ, or at one number of directions."""

    lam: float
    directions: int
    """rank that W may have: d along the path of λ"""
    spectrum: NDArray
    """singular values of W"""
    training: float
    """risk on the training rows"""
    validation: float
    """risk on the validation rows"""
    losses: NDArray
    """(rows,) of which `validation` is the mean"""
    network: Network


@dataclass(frozen=True)
class Discovery:
    """What `discover` ends with, from the training and the validation rows."""

    initial: NDArray
    """singular values of W as drawn"""
    path: list[Stage]
    """for each λ, largest first"""
    full: Stage
    """of the path, the one with the least validation risk"""
    ranks: list[Stage]
    """for 0, 1, … directions, each at the better of two λ"""
    chosen: Stage
    """of the ranks"""
    interrupted: bool
    """whether Ctrl-C ended the path early"""


def discover(
    training: Rows,
    validation: Rows,
    loss: Loss,
    n_directions: int | None,
    max_directions: int,
    width: int,
    steps: int,
    generator: torch.Generator,
    progress: Progress = lambda stage: None,
    lams: Sequence[float] = LAMS,
) -> Discovery:
    """Find the directions that the answers depend on; see the top of this file.

    Args:
        training, validation: rows with whitened inputs.
        loss: squared, for answers of mean 0 and variance 1, or logistic, for 0 and 1.
        n_directions: that many; None: chosen on the validation rows, at most max_directions.
        max_directions: see n_directions.
        width: neurons.
        steps: of Adam, at each λ, twice.
        generator: of weights and batches.
        progress: see `Progress`.
        lams: the path, largest λ first.
    """
    d = training[0].shape[1]
    start = Network(d, width, generator)
    path, interrupted = [], False
    try:
        for lam in lams:
            starts = path[-1].network if path else start, Network(d, width, generator)
            ends = [descend(network, training, loss, lam, steps, generator) for network in starts]
            lower = min(ends, key=lambda network: objective(network, training, loss, lam).item())
            path.append(_stage(lower, training, validation, loss, lam))
            progress(f"λ {lam:.0e}")
    except KeyboardInterrupt:
        if not path:
            raise
        interrupted = True
    full = min(path, key=lambda stage: stage.validation)
    largest = min(d, max_directions) if n_directions is None else n_directions
    ranks = eliminate(full, largest, training, validation, loss, progress, least=n_directions or 0)
    chosen = choose(ranks) if n_directions is None else ranks[-1]
    return Discovery(start.spectrum(), path, full, ranks, chosen, interrupted)


def eliminate(
    full: Stage,
    largest: int,
    training: Rows,
    validation: Rows,
    loss: Loss,
    progress: Progress = lambda stage: None,
    least: int = 0,
) -> list[Stage]:
    """Fits on the leading directions of the network, `largest` of them, and on ever fewer; from `least` to `largest`.

    At its own λ the path's network pays for all d directions; on few, a smaller λ may do better. Two are tried.
    """
    ranks, network = [], full.network
    for k in range(largest, least - 1, -1):
        network = polish(network.restricted(k), training, loss, full.lam)
        lighter = polish(network, training, loss, full.lam / 10)
        tried = ((network, full.lam), (lighter, full.lam / 10))
        stages = [_stage(candidate, training, validation, loss, lam) for candidate, lam in tried]
        ranks.append(min(stages, key=lambda stage: stage.validation))
        progress(f"{k} directions")
    return ranks[::-1]


def choose(ranks: Sequence[Stage]) -> Stage:
    """The fewest directions whose validation risk is within one standard error of the least, or negligibly above it.

    The standard error is that of the mean difference of the losses, row by row (Hastie, Tibshirani and Friedman 2009,
    section 7.10, have the risk's own, which is larger, as what all fits share is in it).
    """
    best = min(ranks, key=lambda stage: stage.validation)
    for stage in ranks:
        excess = stage.losses - best.losses
        error = excess.std(ddof=1) / sqrt(len(excess))
        if excess.mean() <= error + NEGLIGIBLE * ranks[0].validation:
            return stage
    return best


def sine(V: NDArray, U: NDArray) -> float:
    """Sine of the largest principal angle between the spans of the rows; 1 where one has more dimensions."""
    if len(V) != len(U):
        return 1.0
    if not len(V):
        return 0.0
    p, q = (np.linalg.qr(x.T)[0] for x in (V, U))
    return float(np.linalg.norm(p - q @ (q.T @ p), 2))  # 1 − cos² would lose half of the digits


@torch.no_grad()
def _stage(network: Network, training: Rows, validation: Rows, loss: Loss, lam: float) -> Stage:
    losses = loss(network(validation[0]), validation[1]).double().numpy()
    risk = float(loss(network(training[0]), training[1]).mean())
    return Stage(lam, len(network.B), network.spectrum(), risk, float(losses.mean()), losses, network)
