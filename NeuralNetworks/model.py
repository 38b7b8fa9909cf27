"""Teachers, students, losses, and the population risk that is minimized.

Inputs are x ~ N(0, I_d). The teacher sees only U x, U of k orthonormal rows; label noise is one more Gaussian
coordinate of its input, so that what integrates over x integrates over the noise too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor
from torch.nn.functional import softplus

from activations import Activation, activation

if TYPE_CHECKING:
    from main import Config

Batch = tuple[Tensor, Tensor, Tensor]
"""inputs x (N, d), labels y (N,), and weights p (N,) that sum to 1: Σ p φ(x, y) stands for E[φ(x, y)]"""


# --- teachers ---------------------------------------------------------------------------------------------------------


def cosines(d: int) -> Tensor:
    """An orthonormal basis of R^d, (d, d) float64: the rows of the cosine transform; first (1, …, 1)/√d."""
    return torch.from_numpy(dct(np.eye(d), axis=0, norm="ortho"))


@dataclass(frozen=True)
class Teacher:
    """y = Σ_j h(u_j·x)/√k + noise·ξ, ξ ~ N(0, 1): single-index if k = 1, multi-index beyond; 1 + noise·ξ if k = 0.

    Raises:
        ValueError: k > d or k < 0.
    """

    basis: Tensor
    """(d, d) orthogonal; its first k rows are the teacher's directions"""
    k: int
    link: Activation
    """h"""
    noise: float = 0.0
    """standard deviation of the label noise, in the label's unit"""

    def __post_init__(self) -> None:
        if not 0 <= self.k <= len(self.basis):
            raise ValueError(f"k is {self.k} and d is {len(self.basis)}; the teacher can use 0 ≤ k ≤ d directions")

    @property
    def directions(self) -> Tensor:
        """U (k, d): the rows u_j."""
        return self.basis[: self.k]

    @property
    def inputs(self) -> int:
        """Gaussian coordinates that a label may depend on: d, and one more for the noise if there is any."""
        return len(self.basis) + (self.noise > 0)

    def labelled(self, z: Tensor, p: Tensor) -> Batch:
        """The batch of the standard normal points z (N, inputs), coordinates in the basis, weighted by p (N,).

        In these coordinates x⊥ stands apart. At W⊥ = 0 any product rule then has ∇_W⊥ f = 0 to the last bit, as the
        population risk has; on tilted axes the error of the quadrature would take its place.
        """
        d = len(self.basis)
        y = self.link(z[:, : self.k]).sum(1) / sqrt(self.k) if self.k else torch.ones_like(p)
        return z[:, :d] @ self.basis, y + self.noise * z[:, d] if self.noise > 0 else y, p


# --- students ---------------------------------------------------------------------------------------------------------


class Student(torch.nn.Module):
    """MLP a·σ(… V₁σ(W x + b)/√h₁ + c₁ …)/h with any number of hidden layers, of widths h₁, …, h.

    W ~ N(0, 1/d) and a, V ~ N(0, 1), divided by h and √h_l where they act, so that a two-layer student starts as the
    paper's, a/h ~ N(0, 1/h²). In this parametrization (Yang and Hu 2021) every layer learns at the same speed, and one
    step size proportional to the width suits all. b, c ~ N(0, 1/h_l²). Freeze any of them by `requires_grad_(False)`.

    Args:
        d: input dimension.
        widths: of the hidden layers, first to last.
        activation: σ.
        generator: of the initial weights.

    Raises:
        ValueError: a width below 1, or none.
    """

    def __init__(
        self, d: int, widths: Sequence[int], activation: Activation, generator: torch.Generator | None = None
    ) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(f"the widths are {list(widths)}; there must be one hidden layer, each of width 1 or more")
        super().__init__()
        self.activation = activation

        def normal(*shape: int, std: float = 1.0) -> torch.nn.Parameter:
            device = "cpu" if generator is None else generator.device
            return torch.nn.Parameter(std * torch.randn(shape, generator=generator, dtype=torch.float64, device=device))

        self.W = normal(widths[0], d, std=1 / sqrt(d))
        self.a = normal(widths[-1])
        self.b = normal(widths[0], std=1 / widths[0])
        self.V = torch.nn.ParameterList(normal(n, m) for m, n in pairwise(widths))
        self.c = torch.nn.ParameterList(normal(n, std=1 / n) for n in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N,) for inputs (N, d)."""
        z = self.activation(torch.addmm(self.b, x, self.W.T))
        for V, c in zip(self.V, self.c, strict=True):
            z = self.activation(torch.addmm(c, z, V.T / sqrt(V.shape[1])))
        return z @ self.a / len(self.a)


# --- losses: smooth, and 0 where the prediction is the label ----------------------------------------------------------


def squared(prediction: Tensor, y: Tensor) -> Tensor:
    """(ŷ − y)²."""
    return (prediction - y).square()


def logistic(prediction: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, in nats, of log-odds ŷ for a class of log-odds y, less its entropy: the mean over the class."""
    return softplus(prediction) - softplus(y) - y.sigmoid() * (prediction - y)


def huber(prediction: Tensor, y: Tensor) -> Tensor:
    """√(1 + (ŷ − y)²) − 1: quadratic near 0, linear far out, analytic between."""
    r = (prediction - y).square()
    return r / (1 + (1 + r).sqrt())


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {f.__name__: f for f in (squared, logistic, huber)}


PART = 512
"""points that are passed through a network at a time: what it computes of them should fit in the cache"""


def risk(student: Callable[[Tensor], Tensor], loss: Loss, batch: Batch) -> Tensor:
    """Σ p ℓ(student(x), y): the population risk E[ℓ], exact, estimated or on a fixed set, as the batch is."""
    parts = zip(*(part.split(PART) for part in batch), strict=True)
    return sum(p @ loss(student(x), y) for x, y, p in parts)


# --- standard normal points and their weights -------------------------------------------------------------------------


def quadrature(nodes: Sequence[int], trapezoids: int = 0) -> tuple[Tensor, Tensor]:
    """Product rule for E[φ(z)], z ~ N(0, I): points (N, len(nodes)), weights (N,), float64.

    The trapezoidal rule on [−8.5, 8.5] in the first `trapezoids` coordinates, Gauss–Hermite in the others. The first
    converges faster where φ has poles near the real line, as a trained network has along the teacher's directions
    (Trefethen and Weideman 2014); the second is exact for polynomials of degree below 2·nodes[i] in z_i. Points of
    weight below 10⁻¹⁴, far out and many, are left out.
    """
    rules = [np.polynomial.hermite_e.hermegauss(n) for n in nodes[trapezoids:]]
    lines = [np.linspace(-8.5, 8.5, n) for n in nodes[:trapezoids]]
    rules = [(z, np.exp(-z * z / 2)) for z in lines] + rules
    points = np.stack(np.meshgrid(*(z for z, _ in rules), indexing="ij"), -1).reshape(-1, len(nodes))
    weights = np.prod(np.meshgrid(*(p / p.sum() for _, p in rules), indexing="ij"), axis=0).ravel()
    keep = weights > 1e-14
    return torch.from_numpy(points[keep]), torch.from_numpy(weights[keep] / weights[keep].sum())


def sobol(dimensions: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """A scrambled Sobol set through the normal quantile (Owen 1998): points (samples, dimensions), equal weights.

    `samples` should be a power of two.
    """
    from scipy.stats import qmc  # takes longer to import than the rest of SciPy

    points = qmc.MultivariateNormalQMC(np.zeros(dimensions), rng=np.random.default_rng(seed)).random(samples)
    return torch.from_numpy(points), torch.full((samples,), 1 / samples, dtype=torch.float64)


def sampled(dimensions: int, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Independent draws: points (samples, dimensions), equal weights."""
    options = dict(dtype=torch.float64, device=generator.device)
    points = torch.randn(samples, dimensions, generator=generator, **options)
    return points, torch.full((samples,), 1 / samples, **options)


Level = tuple[int, int]
"""how fine a rule is along the teacher's directions, and across, where a student soon hardly depends on x"""


def finer(level: Level, along: int, across: int) -> Level:
    """The level so much finer."""
    return level[0] + along, level[1] + across


HELD_OUT = 4096
"""points at least of the Sobol sets on which a risk in more than 3 dimensions is measured"""
NODES = 36, 4
"""of the coarsest rule up to 3 dimensions: 36/√k along each of the teacher's k directions, and 4 across"""


def build(
    config: "Config", generator: torch.Generator
) -> tuple[Teacher, Student, Batch | Callable[[], Batch] | None, Callable[[Level], Batch]]:
    """The teacher, the student, the data to train on (None: the rule), and a rule for the population, as a function.

    rule(level): from level (0, 0) on, rules of √2 times as many nodes each along or across, or beyond 3 dimensions
    other Sobol sets, of at least twice as many points as one that is trained on.

    config: with all its hyperparameters (`train.complete`); generator: of the initial weights and fresh batches.
    """
    basis, iota = cosines(config.d).to(config.device), config.iota
    teacher = Teacher(basis, config.k, activation(config.teacher, iota), config.noise)
    widths = [config.width] * (config.depth - 1)
    student = Student(config.d, widths, activation(config.activation, iota), generator)
    for name, parameter in student.named_parameters():
        kept = config.trained == "first" and name not in ("W", "b")
        parameter.requires_grad_(not (kept or (name == "b" and config.freeze_bias)))
    n, k = teacher.inputs, max(config.k, 1)  # a constant teacher is integrated as if it used the first direction

    def labelled(points: tuple[Tensor, Tensor]) -> Batch:
        return teacher.labelled(*(x.to(config.device) for x in points))

    @cache
    def rule(level: Level) -> Batch:
        if config.d > 3:
            points = max(HELD_OUT, 2 * config.samples) if config.risk == "sobol" else HELD_OUT
            return labelled(sobol(n, points, seed=config.seed + 1 + level[0]))
        if config.risk != "quadrature":
            # trained on other points: nothing refines this rule, so it starts finer
            level = finer(level, 4 // k, 4 // k)
        along, across = round(NODES[0] / sqrt(k) * 2 ** (level[0] / 2)), round(NODES[1] * 2 ** (level[1] / 2))
        return labelled(quadrature([along] * k + [across] * (n - k), trapezoids=k))

    if config.risk == "quadrature":
        return teacher, student, None, rule
    if config.risk == "sobol":
        return teacher, student, labelled(sobol(n, config.samples, seed=config.seed)), rule
    return teacher, student, lambda: labelled(sampled(n, config.batch, generator)), rule


# --- what is left of the weights --------------------------------------------------------------------------------------


def parallel(W: Tensor, U: Tensor) -> Tensor:
    """W∥ = W UᵀU (h, d): the part along the teacher's directions."""
    return W @ U.T @ U


def perpendicular(W: Tensor, U: Tensor) -> Tensor:
    """W⊥ = W (I − UᵀU) (h, d): what must vanish (Theorem 4.1); where U spans R^d it is 0 to the last bit."""
    return W - parallel(W, U) if len(U) < U.shape[1] else torch.zeros_like(W)


def effective_rank(W: Tensor) -> float:
    """exp of the entropy of W's normalized singular values (Roy and Vetterli 2007): 1 to min(h, d); 0 for W = 0."""
    s = torch.linalg.svdvals(W)
    return float(torch.special.entr(s / s.sum()).sum().exp()) if s.any() else 0.0
