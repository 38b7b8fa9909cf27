"""Random small problems, 300 in the soak: certificates say what the dense Hessian does, of f written here again."""

from math import sqrt

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from torch import Tensor

from activations import activation
from main import Config
from model import Batch, Student, Teacher, cosines, quadrature, sampled, sobol
from pgd import Certificate
from train import Training


def log_1_exp(z: Tensor) -> Tensor:
    """log(1 + e^z) without overflow, in its derivatives too."""
    return z.clamp(min=0) + (-z.abs()).exp().log1p()


SIGMA = {
    "relu_iota": lambda z, iota: log_1_exp(iota * z) / iota,
    "tanh": lambda z, _: 1 - 2 / ((2 * z).exp() + 1),
    "gelu": lambda z, _: z * (1 + torch.erf(z / sqrt(2))) / 2,
    "sigmoid": lambda z, _: 1 / (1 + (-z).exp()),
    "relu3": lambda z, _: z.clamp(min=0) ** 3,
    "he2": lambda z, _: z**2 - 1,
    "he3": lambda z, _: z**3 - 3 * z,
    "he4": lambda z, _: z**4 - 6 * z**2 + 3,
}
LOSS = {
    "squared": lambda r, _: r**2,
    "logistic": lambda r, y: log_1_exp(r + y) - log_1_exp(y) - r / (1 + (-y).exp()),
    "huber": lambda r, _: (1 + r**2).sqrt() - 1,
}
STEEP = {"relu3": 0.02, "he2": 0.3, "he3": 0.01, "he4": 0.0005}
"""polynomials, which need smaller steps, by so much, and still diverge at times"""


def draw(number: int) -> dict:
    """The hyperparameters of problem `number`."""
    rng = np.random.default_rng([0, number])
    smooth = [name for name in SIGMA if name not in STEEP]
    depth, d = int(rng.choice([2, 2, 2, 3, 4])), int(rng.choice([1, 2, 2, 2, 3, 4]))
    name = str(rng.choice(smooth if depth > 2 or rng.random() < 0.7 else list(STEEP)))
    width, lam, trained = (
        int(rng.integers(1, 6 - depth // 2)),
        10 ** rng.uniform(-1.7, 0),
        str(rng.choice(["first", "all"])),
    )
    return dict(
        d=d,
        k=int(rng.integers(d + 1)),
        link=str(rng.choice(smooth)),
        noise=float(rng.choice([0, 0, 0.3])),
        depth=depth,
        width=width,
        activation=name,
        iota=rng.uniform(0.5, 4),
        loss=str(rng.choice(list(LOSS))),
        trained=trained,
        freeze_bias=bool(rng.random() < 0.3),
        fresh=bool(rng.random() < 0.1),
        options=dict(
            lam=lam,
            rho=10 ** rng.uniform(-2.5, -0.7),
            lr=width / (1 + 2 * lam * width) * STEEP.get(name, 1) * (0.4 if trained == "all" else 1),
            momentum=float(rng.choice([0, 0.5, 0.7])),
            radius=10 ** rng.uniform(-4, -1),
            patience=int(rng.integers(1, 6)),
            algorithm=str(rng.choice(["default", "2"])),
            anneal=bool(rng.random() < 0.2),
            steps=30,
        ),
    )


def solve(number: int, problem: dict) -> tuple[Student, Teacher, Batch, Certificate]:
    """The problem's run: the student as trained, the teacher, the batch certified on, and the certificate."""
    generator = torch.Generator().manual_seed(number)
    d, k, iota = problem["d"], problem["k"], problem["iota"]
    teacher = Teacher(cosines(d), k, activation(problem["link"], iota), problem["noise"])
    widths = [problem["width"]] * (problem["depth"] - 1)
    student = Student(d, widths, activation(problem["activation"], iota), generator)
    for name, x in student.named_parameters():
        kept = problem["freeze_bias"] if name == "b" else problem["trained"] == "first" and name != "W"
        x.requires_grad_(not kept)
    n = teacher.inputs
    batch = teacher.labelled(*(quadrature([48] * k + [48] * (n - k)) if exact(problem) else sobol(n, 64, number)))
    fresh = (lambda: teacher.labelled(*sampled(n, 20, generator))) if problem["fresh"] else None
    options = problem["options"]
    if problem["fresh"]:
        options |= dict(risk="sampled", algorithm="default")
    if options["algorithm"] == "2":
        options |= dict(momentum=0.0, anneal=False, steps=60)  # pure: without momentum it takes longer
    options = dict(risk="sobol") | options
    config = Config(**options, d=d, k=k, width=problem["width"], loss=problem["loss"])
    training = Training(student, fresh or batch, teacher.directions, config, generator, lambda level: batch)
    return student, teacher, batch, training.run().result().certificate


def exact(problem: dict) -> bool:
    """Whether it is certified on a quadrature, and not on few points of a Sobol set."""
    return problem["d"] + (problem["noise"] > 0) <= 2


def f(problem: dict, x: dict[str, Tensor], batch: Batch) -> Tensor:
    """Σ p ℓ(a·σ(… σ(W x + b) …)/h, y) + λ‖W‖²."""
    inputs, y, p = batch
    sigma, h = SIGMA[problem["activation"]], problem["width"]
    z = sigma(inputs @ x["W"].T + x["b"], problem["iota"])
    for layer in range(problem["depth"] - 2):
        z = sigma(z @ x[f"V.{layer}"].T / sqrt(h) + x[f"c.{layer}"], problem["iota"])
    return p @ LOSS[problem["loss"]](z @ x["a"] / h - y, y) + problem["options"]["lam"] * (x["W"] ** 2).sum()


def derivatives(problem: dict, student: Student, batch: Batch) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Gradient and dense Hessian of f in W, b and what else was trained, and where each parameter stands in them."""
    x = {name: value.detach() for name, value in student.named_parameters()}
    names = [name for name, value in student.named_parameters() if value.requires_grad or name in ("W", "b")]
    sizes = [x[name].numel() for name in names]

    def of_vector(v: Tensor) -> Tensor:
        parts = (part.view(x[name].shape) for name, part in zip(names, v.split(sizes), strict=True))
        return f(problem, x | dict(zip(names, parts, strict=True)), batch)

    v = torch.cat([x[name].flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(of_vector, v)
    hessian = torch.autograd.functional.hessian(of_vector, v, vectorize=True)
    places = np.split(np.arange(len(v)), np.cumsum(sizes)[:-1])
    return gradient.numpy(), hessian.numpy(), dict(zip(names, places, strict=True))


@pytest.mark.parametrize("numbers", [range(40), pytest.param(range(40, 300), marks=pytest.mark.soak)], ids=len)
def test_every_certificate_says_what_the_dense_hessian_does(numbers, monkeypatch):
    # Snapshots, and K's estimate, which is not looked at here, take a fifth of the time each.
    monkeypatch.setattr(Training, "due", lambda training: training.t % 50 == 0)
    monkeypatch.setattr("pgd.lipschitz", lambda *_: 0.0)
    claims = bounds = 0
    for number in numbers:
        problem = draw(number)
        try:
            student, teacher, batch, certificate = solve(number, problem)
        except FloatingPointError:  # nothing is certified
            assert problem["activation"] in STEEP, number
            continue
        lam, rho = problem["options"]["lam"], problem["options"]["rho"]
        gradient, hessian, places = derivatives(problem, student, batch)
        which = f"problem {number}, {certificate}: {problem}"

        trained = np.concatenate([places[name] for name, x in student.named_parameters() if x.requires_grad])
        gradient_norm, (smallest, spread) = np.linalg.norm(gradient[trained]), extremes(hessian, trained)
        assert np.isclose(certificate.gradient_norm, gradient_norm, rtol=1e-9, atol=1e-12), which
        least = -min(sqrt(rho), lam)
        slack = 1e-3 * spread - least / 4  # Lanczos' accuracy
        assert smallest - slack <= certificate.lambda_min <= smallest + 1e-12 * spread, which
        sosp = certificate.gradient_norm <= rho and certificate.lambda_min >= least
        assert certificate.is_sosp == sosp and certificate.rho == rho, which
        if sosp:
            claims += 1
            assert gradient_norm <= rho * (1 + 1e-9) and smallest >= least, which

        U, W = teacher.directions.numpy(), student.W.detach().numpy()
        across = np.eye(problem["d"]) - U.T @ U
        W_perp, slope = W @ across, gradient[places["W"]].reshape(W.shape) @ across
        assert np.isclose(certificate.w_norm, np.linalg.norm(W_perp), rtol=1e-9, atol=1e-12), which
        smallest, spread = extremes(hessian, places["b"])
        if certificate.w_norm_bound is None:  # the denominator is none, or ‖W⊥‖ refutes a bound by few points
            fine = exact(problem) and problem["activation"] not in STEEP
            least = certificate.w_norm * (2 * lam + smallest)
            assert 2 * lam + smallest <= 1e-3 * spread + lam / 4 or 0.99 * fine * least <= norm(slope) < least, which
        elif certificate.w_norm > 1e-9:  # else rounding errors
            denominator = np.linalg.norm(slope) / certificate.w_norm_bound
            least = 2 * lam + smallest - 1e-3 * spread - lam / 4
            assert least * (1 - 1e-5) <= denominator <= 2 * lam + smallest, which
            if (
                exact(problem) and problem["activation"] not in STEEP
            ):  # up to the error of the quadrature, the gradient is (∇²_b E[g] + 2λI) W⊥
                bounds += 1
                H = hessian[np.ix_(places["b"], places["b"])]
                error = np.linalg.norm(slope - H @ W_perp - 2 * lam * W_perp)
                assert error <= 1e-3 * np.linalg.norm(W_perp), which
                assert certificate.w_norm <= certificate.w_norm_bound + error / denominator, which
    assert claims > 0.55 * len(numbers) and bounds > 0.2 * len(numbers)


def extremes(hessian: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """Smallest eigenvalue, and largest absolute one, of the Hessian in the parameters at these places."""
    eigenvalues = np.linalg.eigvalsh(hessian[np.ix_(places, places)])
    return eigenvalues[0], np.abs(eigenvalues).max()
