"""Three hundred random small problems: every certificate against the dense Hessian of f, written out anew here."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.functional import normalize

import optimizer
from main import Config
from optimizer import Derandomization
from pgd import Certificate
from utilities import Graph, cut_values, exact_maxcut, make_graph

PROBLEMS, CHUNKS = 300, 4


def problem(number: int) -> tuple[Graph, Tensor, Config, torch.Generator]:
    """Graph, unit vectors, hyperparameters and random source of the random problem with this number."""
    rng = np.random.default_rng([number, 7])
    n = int(rng.integers(2, 7))
    i, j = np.triu_indices(n, 1)
    chosen = np.union1d(np.flatnonzero(rng.random(len(i)) < rng.uniform(0.2, 1)), rng.integers(len(i)))
    m = len(chosen)
    w = [np.ones(m), rng.standard_normal(m), rng.choice([-1.0, 1.0], m), rng.lognormal(0, 2, m)][rng.integers(4)]
    graph = make_graph(n, i[chosen], j[chosen], w * rng.choice([1e-200, 1e-3, 1, 1e6, 1e200]))
    generator = torch.Generator().manual_seed(number)
    V = normalize(torch.randn(n, int(rng.integers(1, 6)), generator=generator))
    epsilon, lam = 10 ** rng.uniform(-1.3, 0), 10 ** rng.uniform(*((-0.7, 0.5) if rng.random() < 0.9 else (-4, -0.7)))
    options = dict(
        epsilon=epsilon,
        lam=lam,
        growth=float(rng.choice([1, 1, 10])),
        rank=int(rng.integers(1, 5)),
        steps=5 if rng.random() < 0.1 else 110,
        lr=min(0.5, 1.5 * epsilon, 0.5 / lam),
        momentum=rng.uniform(0.75, 0.9),
        rho=10 ** rng.uniform(-4, -1.5),
        radius=10 ** rng.uniform(-3, -0.5),
        patience=int(rng.integers(5, 20)),
        algorithm="2" if rng.random() < 0.2 else "default",
        gradient="sampled" if rng.random() < 0.05 else "exact",
        draws=8,
    )
    if options["algorithm"] == "2":  # pure: without momentum it takes longer, and λ is constant
        options |= dict(momentum=0, growth=1, steps=2 * options["steps"])
    return graph, V, Config(**options), generator


def dense(graph: Graph, epsilon: float, lam: float, V: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of f and its Hessian at V and μ (degree-scaled), all variables as one vector, V first.

    From ∂D/∂α = −φ(α) erf((β − rα)/√(2(1 − r²))) and ∂D/∂r = −exp(−(α² + β² − 2rαβ)/(2(1 − r²)))/(π√(1 − r²)).
    """
    w = graph.w / graph.w.abs().sum()
    d = torch.zeros(graph.n, dtype=w.dtype).index_add(0, graph.i, w.abs()).index_add(0, graph.j, w.abs())
    noise = epsilon * torch.where(d > 0, d, 2 / graph.n).sqrt()

    def of_edges(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        V_x, mu_x = x[: V.numel()].view(V.shape), x[V.numel() :]
        s = (V_x.square().sum(1) + noise.square()).sqrt()
        alpha, U = mu_x / s, V_x / s[:, None]
        return alpha[graph.i], alpha[graph.j], (U[graph.i] * U[graph.j]).sum(1)

    def gradient(x: Tensor) -> Tensor:
        a, b, r = of_edges(x)
        left = 1 - r.square()
        d_a, d_b = (
            -(y.square() / -2).exp() / (2 * torch.pi) ** 0.5 * torch.erf((z - r * y) / (2 * left).sqrt())
            for y, z in ((a, b), (b, a))
        )
        d_r = -(-(a.square() + b.square() - 2 * r * a * b) / (2 * left)).exp() / (torch.pi * left.sqrt())
        of_cut = torch.autograd.grad((a, b, r), x, (w * d_a, w * d_b, w * d_r), create_graph=True)[0]
        return torch.cat([2 * lam * x[: V.numel()], torch.zeros_like(mu)]) - of_cut

    x = torch.cat([V.reshape(-1), mu]).requires_grad_()
    return gradient(x).detach(), jacobian(gradient, x, vectorize=True)


def test_some_certificates_are_the_dense_hessians(monkeypatch):
    check(range(0, PROBLEMS, 15), monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_certificate_is_the_dense_hessians(chunk, monkeypatch):
    check(range(chunk, PROBLEMS, CHUNKS), monkeypatch)


def check(numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificates of the problems with these numbers."""
    ends: list[tuple[Tensor, Tensor, Certificate]] = []

    def certify(objective, params, *rest):
        ends.append((*(x.detach() for x in params), certificate(objective, params, *rest)))
        return ends[-1][2]

    certificate = optimizer.certify
    monkeypatch.setattr(optimizer, "certify", certify)
    # Snapshots take half of the time, and K's estimate, which is not looked at here, a fifth.
    monkeypatch.setattr(Derandomization, "due", lambda descent: descent.t % 50 == 0)
    monkeypatch.setattr("pgd.lipschitz", lambda *_: 0.0)
    claims, optimal = 0, 0
    for number in numbers:
        graph, V, config, generator = problem(number)
        result = Derandomization(graph, V, config, generator).run().result()
        V, mu, proof = ends.pop()
        assert proof == result.certificate, number
        lam, rho = config.lam, config.rho
        gradient, hessian = dense(graph, config.epsilon, lam, V, mu)
        of_V, eigenvalues = gradient[: V.numel()].norm(), torch.linalg.eigvalsh(hessian)
        of_mu = float(torch.linalg.eigvalsh(hessian[V.numel() :, V.numel() :])[0])
        width = float(eigenvalues[-1] - eigenvalues[0])

        assert proof.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-6, abs=1e-12), number
        assert proof.w_norm == pytest.approx(float(V.norm()), rel=1e-9), number
        lowest = float(eigenvalues[0])
        assert lowest - 1e-3 * width - proof.lam / 4 <= proof.lambda_min <= lowest + 1e-9 * (1 + width), number
        left = 2 * lam + of_mu  # what the lemma divides by
        if proof.w_norm_bound is None:
            assert left <= 1e-3 * (width + lam), number
        else:
            assert left > 0 and proof.w_norm <= proof.w_norm_bound, number
            assert proof.w_norm_bound >= float(of_V) / left * (1 - 1e-9), number
            if left > 1e-2 * width:
                assert proof.w_norm_bound <= float(of_V) / left * 1.2 + 1e-12, number
        claim = float(gradient.norm()) <= rho * (1 + 1e-6) and lowest >= -(rho**0.5) - 1e-9 * width
        assert claim or not proof.is_sosp, number
        claims += proof.is_sosp
        # and the cut is what it is said to be
        assert result.cut == float(cut_values(graph, result.s)), number
        optimum = exact_maxcut(graph)[0]
        assert result.cut <= optimum + 1e-9 * float(graph.w.abs().sum()), number
        optimal += result.cut >= optimum - 1e-9 * float(graph.w.abs().sum())
    assert claims > len(numbers) / 2 and optimal > 0.8 * len(numbers)
