"""What the theorem leaves open about networks, answered by many runs: one subcommand a study.

`python study.py lemma --jobs 2`, and so on; each prints a table of medians and quartiles and leaves it, its figure and
the finished runs in figures/.
"""

import sys
from collections.abc import Callable
from functools import partial
from math import inf, isnan, log10, nan, sqrt

import numpy as np
import torch
from scipy.stats import ortho_group
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import plot
from activations import activation
from model import Batch, Student, Teacher, cosines, quadrature, risk, squared
from sweep import Row, Sweep, command_line, quartiles, report, sweep, table, whole
from train import train

# --- the lemma's bound: exact risk in the plane, first layer trained, as in figure 3 ----------------------------------

EXACT_WIDTH = 64
NODES = (64, 8)
"""Gauss–Hermite nodes along and across the teacher's direction, main.py's"""
EXACT_STEPS = 20_000
"""at most; nearly every run stops long before, at its SOSP"""
LAMS = [10 ** (-i / 2) for i in range(14, 3, -1)]
"""λ from 10⁻⁷ to 10⁻², at ρ = λ/5, main.py's"""
RHOS = {1e-2: [10 ** (-i / 2) for i in range(12, 3, -1)], 1e-4: [10 ** (-i / 2) for i in range(12, 5, -1)]}
"""ρ for two λ: Lemma 3.1 with K = 1 has a say at one only"""
ROUNDING = 1e-12
"""‖W⊥‖ below which bound and norm are both rounding errors"""

# --- the other studies: fresh batches, all parameters trained, one factor at a time around this -----------------------

BASE = dict(inputs="Gaussian", d=10, k=1, width=64, depth=2, iota=2.0, noise=0.0, points=inf)
"""inputs: see `source`; iota ∞: plain ReLU; noise: of the labels; points: ∞ is a fresh batch each step"""
LAM = 0.01
"""λ times the width: a neuron's curvature falls like 1/width, and this keeps its share of λ‖W‖² the same"""
BATCH = 256
STEPS = 1500
"""‖W⊥‖ would contract by e⁻¹¹ if λ alone drove it; what is left is the batches' noise, or the inputs' doing"""
HELD_OUT = 8192
"""points for the excess risk"""

INPUTS = (
    *("Gaussian", "correlated Gaussian, whitened", "correlated Gaussian"),
    *("Gaussian mixture", "Laplace", "Student t, 5 degrees", "uniform", "digits"),
)
COVERED = 2
"""for so many of them, the first, the theorem holds"""
DIMENSIONS = (2, 5, 10, 20, 50, 100)
DIRECTIONS = (1, 2, 4, 8)
DEPTHS = (2, 3, 4, 5)
WIDTHS = (16, 64, 256, 1024, 4096)
DEAR = 1024
"""width from which on a run takes long (two minutes at 4096), and only a third of the seeds are run"""
IOTAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, inf)
POINTS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000, inf)
NOISES = (0.0, 0.3)
MEASURED = {"left": "‖W⊥‖ / ‖W⊥‖ at the start", "leak": "‖W⊥‖ / ‖W∥‖", "risk": "excess risk / label variance"}
"""columns of `learn`, and of the tables"""


def spread(d: int) -> np.ndarray:
    """Standard deviations of the correlated inputs' principal axes, (d,): condition number 10, mean variance 1."""
    variances = np.geomspace(0.1, 1, d)
    return np.sqrt(variances / variances.mean())


def source(inputs: str, d: int, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """A function that draws n points, (n, d), of mean 0 and mean variance 1, white but for the correlated ones.

    The coordinates are independent but for the digits: scikit-learn's, in their first d principal components, whitened.
    """
    if inputs == "digits":
        return partial(rng.choice, PCA(d, whiten=True, svd_solver="full").fit_transform(load_digits().data))
    if inputs.startswith("correlated"):
        return lambda n: rng.standard_normal((n, d)) * spread(d)
    return {
        "Gaussian": lambda n: rng.standard_normal((n, d)),
        "Gaussian mixture": lambda n: 0.6 * rng.standard_normal((n, d)) + rng.choice([-0.8, 0.8], (n, d)),
        "Laplace": lambda n: rng.laplace(scale=sqrt(1 / 2), size=(n, d)),
        "Student t, 5 degrees": lambda n: rng.standard_t(5, (n, d)) / sqrt(5 / 3),
        "uniform": lambda n: rng.uniform(-sqrt(3), sqrt(3), (n, d)),
    }[inputs]


# --- runs -------------------------------------------------------------------------------------------------------------


def descend(case: Row) -> Row:
    """PGD on the exact risk to a ρ-SOSP, from one seed.

    The teacher is tanh(u·x), x ~ N(0, I₂).

    Returns:
        w_perp_initial, w_perp, steps, is_sosp; bound: the lemma's with the measured gradient and Hessian, ∞ where it
        says nothing; holds: whether ‖W⊥‖ is below it.
    """
    lam, generator = case["lam"], torch.Generator().manual_seed(case["seed"])
    teacher = Teacher(cosines(2), 1, activation("tanh"))
    student = Student(2, [EXACT_WIDTH], activation("relu_iota"), generator)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in ("W", "b"))
    data = teacher.labelled(*quadrature(NODES))
    result = train(
        student,
        data,
        teacher.directions,
        squared,
        held_out=data,
        lam=lam,
        lr=min(2 * EXACT_WIDTH, 1 / lam),  # λ's own curvature is 2λ
        rho=case["rho"],
        momentum=0.99,  # so that W⊥ contracts by 200 λ lr a step: at λ = 10⁻⁷ it takes thousands
        patience=25,
        steps=EXACT_STEPS,
        generator=generator,
    )
    whole(result)
    certificate = result.certificate
    bound = inf if certificate.w_norm_bound is None else certificate.w_norm_bound
    return {
        "w_perp_initial": float(result.history["w_perp"][0]),
        "w_perp": certificate.w_norm,
        "steps": result.steps,
        "is_sosp": certificate.is_sosp,
        "bound": bound,
        "holds": certificate.w_norm <= max(bound, ROUNDING),
    }


def learn(case: Row) -> Row:
    """SGD with momentum and a falling step size on batches, all parameters trained, from one seed.

    The teacher is Σ_j tanh(u_j·x)/√k; the u_j are random, orthonormal, and another choice for each seed: along an
    axis, or the diagonal, inputs that are not Gaussian can be symmetric enough to hide that they are not.

    Returns:
        left: ‖W⊥‖/‖W⊥(0)‖ where it ended; leak: ‖W⊥‖/‖W∥‖ there; risk: the excess risk, over the variance of the
        labels, on points not trained on.
    """
    d, k, width, seed = (case[name] for name in ("d", "k", "width", "seed"))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    teacher = Teacher(torch.from_numpy(ortho_group.rvs(d, random_state=seed)), k, activation("tanh"))
    whitened = case["inputs"].endswith("whitened")
    scale = torch.from_numpy(spread(d)) if whitened else torch.ones(d, dtype=torch.float64)
    # x = A z: the teacher uses U A z.
    U = torch.linalg.qr((teacher.directions * scale).T).Q.T
    points = source(case["inputs"], d, rng)

    def draw(n: int, noise: float = 0.0) -> Batch:
        x = torch.from_numpy(points(n))
        x, y, p = teacher.labelled(x @ teacher.basis.T, torch.full((n,), 1 / n, dtype=torch.float64))
        return x / scale, y + noise * torch.from_numpy(rng.standard_normal(n)), p

    if case["points"] == inf:
        batches = partial(draw, BATCH, case["noise"])
    else:
        x, y, _ = draw(case["points"], case["noise"])
        p = torch.full((BATCH,), 1 / BATCH, dtype=torch.float64)

        def batches() -> Batch:
            chosen = torch.from_numpy(rng.integers(len(x), size=BATCH))
            return x[chosen], y[chosen], p

    relu = torch.relu if case["iota"] == inf else activation("relu_iota", case["iota"])
    student = Student(d, [width] * (case["depth"] - 1), relu, generator)
    result = train(
        student,
        batches,
        U,
        squared,
        held_out=draw(BATCH),  # for the certificate, which is of no use here: few points, so that it costs little
        lam=LAM / width,
        lr=width / 20,  # main.py's
        rho=1e-12,  # never reached: the batches' noise does what kicks are for
        momentum=0.9,
        steps=STEPS,
        anneal=True,
        generator=generator,
    )
    whole(result)
    w_perp, w_parallel, test = result.history["w_perp"], result.history["w_parallel"], draw(HELD_OUT)
    with torch.no_grad():
        excess_risk = float(risk(student, squared, test))
    return {
        "left": float(w_perp[-1] / w_perp[0]),
        "leak": float(w_perp[-1] / w_parallel[-1]),
        "risk": excess_risk / float(test[1].var()),
    }


def lemma_bound(lam: float, rho: float) -> float:
    """ρ/(2λ − √(Kρ)), K = 1: Lemma 3.1's bound on ‖W⊥‖ at every ρ-SOSP; nan where λ ≤ √(Kρ)/2 and it says nothing."""
    return rho / (2 * lam - sqrt(rho)) if 2 * lam > sqrt(rho) else nan


def cases_of(change: Row, seeds: int) -> list[Row]:
    """The cases that differ from BASE so, one for each seed."""
    return [BASE | change | dict(seed=seed) for seed in range(seeds)]


def measured(rows: list[Row], change: Row) -> list[tuple[float, float, float]]:
    """Quartiles of each of MEASURED over the runs that differ from BASE so."""
    return [quartiles(rows, name, **(BASE | change)) for name in MEASURED]


# --- studies ----------------------------------------------------------------------------------------------------------


def lemma(options: Sweep) -> None:
    """‖W⊥‖ where PGD ends against λ and against ρ, under the lemma's bound."""
    lines = {"λ": [(lam, lam / 5) for lam in LAMS]}
    lines |= {f"ρ, λ = {lam:g}": [(lam, rho) for rho in rhos] for lam, rhos in RHOS.items()}
    pairs = sorted({pair for line in lines.values() for pair in line})
    cases = [dict(lam=lam, rho=rho, seed=seed) for lam, rho in pairs for seed in range(options.seeds)]
    rows = sweep(descend, cases, "lemma", options)

    def column(line: str, name: str) -> plot.Band:
        return [quartiles(rows, name, lam=lam, rho=rho) for lam, rho in lines[line]]

    def count(name: str, lam: float, rho: float) -> str:
        return f"{sum(row[name] for row in rows if (row['lam'], row['rho']) == (lam, rho))} of {options.seeds}"

    body = []
    for lam, rho in [pair for line in lines.values() for pair in line]:
        norm, bound, steps = (quartiles(rows, name, lam=lam, rho=rho) for name in ("w_perp", "bound", "steps"))
        known = "none" if isnan(lemma_bound(lam, rho)) else lemma_bound(lam, rho)
        counts = count("holds", lam, rho), count("is_sosp", lam, rho)
        body.append([f"{lam:.2g}", f"{rho:.2g}", norm, bound, known, *counts, steps])
    header = ["λ", "ρ", "‖W⊥‖", "bound, measured", "bound, K = 1", "bound holds", "SOSP", "steps"]
    figure = plot.study_lemma(
        [[pair[0] for pair in lines["λ"]], *RHOS.values()],
        [column(line, "w_perp") for line in lines],
        [column(line, "bound") for line in lines],
        [[lemma_bound(*pair) for pair in line] for line in lines.values()],
        [r"$\lambda$, at $\rho = \lambda/5$", *(rf"$\rho$, at $\lambda = 10^{{{log10(lam):g}}}$" for lam in RHOS)],
        start=quartiles(rows, "w_perp_initial")[1],
    )
    report("study_lemma", table(header, body), figure, options.out)


def inputs(options: Sweep) -> None:
    """How far W⊥ falls where inputs are not standard normal, and Stein's lemma no longer holds.

    Correlated Gaussian inputs x = A z: Stein's lemma gives (H W + 2λ W C⁻¹)(I − UᵀU) = 0 with C = AAᵀ, so that W⊥
    need not vanish, but for whitened ones, the student's input z, it is (H + 2λI) W (I − UᵀU) = 0, U of rows spanning
    U A.
    """
    cases = [case for name in INPUTS for case in cases_of(dict(inputs=name), options.seeds)]
    rows = sweep(learn, cases, "inputs", options)
    body = [[name, *measured(rows, dict(inputs=name))] for name in INPUTS]
    figure = plot.study_inputs({line[0]: line[1] for line in body}, covered=COVERED)
    report("study_inputs", table(["inputs", *MEASURED.values()], body), figure, options.out)


def architecture(options: Sweep) -> None:
    """W⊥ at depths 2 to 5, widths 16 to 4096, for 1 to 8 directions and 2 to 100 dimensions."""
    factors = dict(depth=DEPTHS, width=WIDTHS, k=DIRECTIONS, d=DIMENSIONS)
    settings = [(name, value) for name, values in factors.items() for value in values]

    def runs(name: str, value: int) -> int:
        return max(1, options.seeds // 3) if name == "width" and value >= DEAR else options.seeds

    cases = cases_of({}, options.seeds)  # BASE lies on every line, and is run once
    for name, value in settings:
        if value != BASE[name]:
            cases += cases_of({name: value}, runs(name, value))
    rows = sweep(learn, cases, "architecture", options)
    body = [[name, value, runs(name, value), *measured(rows, {name: value})] for name, value in settings]
    bands = {name: [line[3] for line in body if line[0] == name] for name in factors}
    figure = plot.study_architecture({name: list(values) for name, values in factors.items()}, bands, BASE)
    report("study_architecture", table(["factor", "value", "runs", *MEASURED.values()], body), figure, options.out)


def iota(options: Sweep) -> None:
    """Plain ReLU beside ReLU_ι, ι from 1 to 100."""
    cases = [case for value in IOTAS for case in cases_of(dict(iota=value), options.seeds)]
    rows = sweep(learn, cases, "iota", options)
    body = [[f"ReLU_{value:g}" if value < inf else "ReLU", *measured(rows, dict(iota=value))] for value in IOTAS]
    figure = plot.study_iota(IOTAS[:-1], [line[1] for line in body], [line[3] for line in body])
    report("study_iota", table(["activation", *MEASURED.values()], body), figure, options.out)


def samples(options: Sweep) -> None:
    """The same N points for the whole run, N from 100 to 100,000, in batches, beside fresh ones."""
    changes = [dict(points=points, noise=noise) for noise in NOISES for points in POINTS]
    rows = sweep(learn, [case for change in changes for case in cases_of(change, options.seeds)], "samples", options)
    body = [
        [change["noise"], change["points"] if change["points"] < inf else "fresh", *measured(rows, change)]
        for change in changes
    ]
    left = {noise: [line[2] for line in body if line[0] == noise] for noise in NOISES}
    figure = plot.study_samples(POINTS[:-1], left)
    report("study_samples", table(["label noise", "N", *MEASURED.values()], body), figure, options.out)


if __name__ == "__main__":
    studies = dict(lemma=lemma, inputs=inputs, architecture=architecture, iota=iota, samples=samples)
    sys.exit(command_line(studies, __doc__))
