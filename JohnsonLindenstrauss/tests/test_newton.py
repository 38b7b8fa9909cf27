"""Newton's method ends at second-order points of f over all pairs, as code that shares nothing with it measures."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import newton
from model import Pairs, Problem, Vectors, bound, distortion, metric
from newton import Newton, certificate, hessian, product, weigh
from pgd import certify


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(n: int, d: int) -> Tensor:
    """Points of columns of different variance."""
    return normal(n, d) * torch.logspace(0, -1, d, dtype=torch.float64)


def none(M: Tensor) -> Tensor:
    """No ridge."""
    return M.new_zeros(M.shape[1], M.shape[1])


def ridge(r: int) -> Tensor:
    """A ridge that weighs directions differently."""
    A = normal(r, r, seed=9)
    return 1e-2 * A @ A.T


def differences(X: Tensor) -> Tensor:
    """All unit differences, by brute force."""
    i, j = np.triu_indices(len(X), 1)
    D = X[i] - X[j]
    return D / D.norm(dim=1, keepdim=True)


def f(U: Tensor, M: Tensor, s: Tensor, tau: float, lam: float, d: int) -> Tensor:
    """F_τ + λ s², from the moment generating function of ‖A u‖², A = M + σZ, s = σ√(kd): nothing of the project."""
    v, q = s**2 / (len(M) * d), (U @ M.T).square().sum(1)
    t = torch.tensor([tau, -tau], dtype=torch.float64)[:, None]
    logs = -len(M) / 2 * torch.log1p(-2 * t * v) + t * q / (1 - 2 * t * v) - t
    return torch.logsumexp(logs.flatten(), 0) / tau + lam * s**2


def derivatives(U: Tensor, M: Tensor, tau: float, lam: float, d: int, weight: float = 0.0) -> tuple[float, Tensor]:
    """‖∇f‖ and the eigenvalues of ∇²f over M and s at s = 0, by autograd; weight: the ridge's."""
    x = torch.cat([M.flatten(), M.new_zeros(1)]).requires_grad_()
    of = lambda x: f(U, x[:-1].view_as(M), x[-1], tau, lam, d) + weight * x.square().sum()  # noqa: E731
    g = torch.autograd.grad(of(x), x)[0]
    return float(g.norm()), torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, x))


def run(problem: Problem, M: Tensor, tau: float, tau_end: float, G: Tensor | None = None) -> Newton:
    method = Newton(problem, M, tau, tau_end, none(M) if G is None else G)
    for _ in range(500):
        if method.converged:
            break
        method.step()
    return method


@pytest.mark.parametrize("tau", [0.5, 20.0, 3000.0])
def test_derivatives_are_those_of_f(tau):
    """In all entries and in some; and without the lightest pairs the Hessian is no larger in any direction."""
    U, M, G = differences(normal(9, 5)), 0.4 * normal(3, 5, seed=1), ridge(5)
    value = lambda M: f(U, M, M.new_zeros(()), tau, 0.0, 5) + (M @ G * M).sum()  # noqa: E731
    at, free, everything = weigh(U, M, tau, G), normal(3, 5, seed=3) > -0.5, torch.ones(3, 5, dtype=torch.bool)
    H = torch.autograd.functional.hessian(value, M).view(15, 15)
    near = dict(rtol=1e-9, atol=1e-9 * float(H.abs().max()))
    assert at.f == pytest.approx(float(value(M)), rel=1e-12) and float(at.p.sum()) == pytest.approx(1)
    assert torch.allclose(at.g, torch.autograd.functional.jacobian(value, M), rtol=1e-9, atol=1e-12)
    D, w = tau * at.p, at.p[0] - at.p[1]
    assert torch.allclose(hessian(U, at.Z, D, w, G, everything, 0.0), H, **near)
    assert torch.allclose(hessian(U, at.Z, D, w, G, free, 0.0), H[free.flatten()][:, free.flatten()], **near)
    assert torch.linalg.eigvalsh(H - hessian(U, at.Z, D, w, G, everything, 0.1))[0] > -near["atol"]
    v, h = normal(3, 5, seed=2), 1e-6
    assert torch.allclose(product(U, at, tau, G, v).flatten(), H @ v.flatten(), **near)
    differs = (weigh(U, M + h * v, tau, G).f - weigh(U, M - h * v, tau, G).f) / (2 * h)
    assert differs == pytest.approx(float((at.g * v).sum()), rel=1e-4 * max(1, tau / 100), abs=1e-6)


@pytest.mark.parametrize("most", [newton.DENSE, 0])
def test_the_step_solves_newtons_equations(monkeypatch, most):
    """K x by the Hessian of autograd and the secants, in the variables that are left: −K⁻¹ of it is −x."""
    monkeypatch.setattr(newton, "DENSE", most)
    monkeypatch.setattr(newton, "LEFT_OUT", 0.0)
    small, _ = metric(Pairs(table(12, 6)))
    method = Newton(small, 0.15 * normal(3, 6, seed=1), 4.0, 8.0, ridge(6))
    method.before = 2.0
    method._turn()
    at, last, U = method._at, weigh(method.U, method.M, 2.0, method.G), method.U
    D, w = method._secants()
    assert torch.allclose(D * (at.log_p - last.log_p), 4 * (at.p - last.p), rtol=1e-6, atol=1e-12)
    assert torch.equal(w, last.p[0] - last.p[1]) and float((D - 4 * at.p).abs().max()) > 1e-2
    J = torch.autograd.functional.jacobian(lambda M: (U @ M.T).square().sum(1), method.M).flatten(1)
    delta = D[0] - D[1]
    K = J.T @ (D.sum(0)[:, None] * J) - torch.outer(delta @ J, delta @ J) / D.sum()
    K += torch.kron(torch.eye(3), 2 * ((w * U.T) @ U + method.G))
    free = method.free.flatten() if most else torch.ones(18, dtype=torch.bool)
    solve, x = next(method._trials())[0], torch.zeros(18, dtype=torch.float64)
    K.diagonal().add_(method.mu)
    x[free] = normal(int(free.sum()), seed=2)
    y = torch.zeros_like(x)
    y[free] = (K @ x)[free]
    assert torch.allclose(
        solve(y.view(3, 6)).flatten(), -x, atol=1e-3 if most else 1e-9
    )  # single precision, and double


def test_a_step_has_no_larger_matrix_than_there_is_room_for(monkeypatch):
    """Where ∇²f is not formed K lacks the lightest pairs: no matrix is larger, and K is so in no direction."""
    monkeypatch.setattr(newton, "DENSE", 0)
    small, _ = metric(Pairs(table(12, 6)))
    method, factor = Newton(small, 0.15 * normal(3, 6, seed=1), 4.0, 8.0, ridge(6)), torch.linalg.lu_factor
    method._turn()
    sizes, inverses, method.mu = [], [], 10.0
    monkeypatch.setattr(torch.linalg, "lu_factor", lambda A: sizes.append(len(A)) or factor(A))
    for most in (newton.PAIRS, 20):
        monkeypatch.setattr(newton, "PAIRS", most)
        solve = next(method._trials())[0]
        inverses.append(-torch.stack([solve(x.view(3, 6)).flatten() for x in torch.eye(18, dtype=torch.float64)]))
    assert sizes == [66, 20]
    assert -1e-12 < torch.linalg.eigvalsh(inverses[1] - inverses[0])[0] < 1e-6 < (inverses[1] - inverses[0]).max()


@pytest.mark.parametrize("most", [newton.DENSE, 0])
@pytest.mark.parametrize("weight", [0.0, 1e-2])
def test_ends_at_an_sosp_of_all_pairs(monkeypatch, most, weight):
    """Dense, and by Woodbury; without a ridge and with one: gradient and all eigenvalues by autograd, of all pairs
    built by brute force.
    """
    monkeypatch.setattr(newton, "DENSE", most)
    X, k, tau, lam = table(40, 12), 4, 1e4, 1e-3
    problem = Pairs(X)
    small, B = metric(problem)
    method = run(small, 0.3 * normal(k, 12, seed=3), 3.0, tau, weight * B @ B.T)
    again, M = Newton(small, method.M, tau, tau, weight * B @ B.T), method.M @ B
    again.step()
    assert method.converged and method.tau == tau and not (most and again.converged)  # single precision is no end
    norm, eigenvalues = derivatives(differences(X), M, tau, lam, 12, weight)
    assert norm < (1e-8 if most else 1e-7) and eigenvalues[0] > -1e-4
    assert (eigenvalues.abs() < 1e-4).sum() == k * (k - 1) // 2  # those of the rotations, and no others
    worst = float(((differences(X) @ M.T).square().sum(1) - 1).abs().max())
    assert distortion(problem, M) == pytest.approx(worst, abs=1e-12) == method.worst
    proof = certificate(problem, M, tau, lam, 1e-6, weight)
    assert proof.is_sosp and proof.w_norm == 0 == proof.w_norm_bound
    assert -1e-3 < proof.lambda_min < min(0, float(eigenvalues[0]) + 1e-9)  # of rotations some are 0
    assert proof.gradient_norm == pytest.approx(norm, abs=1e-10)


def test_leaves_a_planted_saddle():
    """A minimum in k − 1 rows and a row of zeros: ∇F_τ = 0, and the new row is a way down."""
    X, tau = table(30, 8), 2000.0
    problem = Pairs(X)
    small, B = metric(problem)
    before = run(small, 0.3 * normal(2, 8, seed=1), 3.0, tau)
    saddle = torch.cat([before.M, torch.zeros(1, 8, dtype=torch.float64)])
    norm, eigenvalues = derivatives(differences(X), saddle @ B, tau, 1e-3, 8)
    assert norm < 1e-6 and eigenvalues[0] < -0.1
    proof = certificate(problem, saddle @ B, tau, 1e-3, 1e-6)
    assert not proof.is_sosp and proof.lambda_min == pytest.approx(float(eigenvalues[0]), rel=1e-6)
    after = run(small, saddle, tau, tau)
    assert after.escapes >= 1 and after.converged and after.f < before.f - 0.01
    assert derivatives(differences(X), after.M @ B, tau, 1e-3, 8)[1][0] > -1e-4


@pytest.mark.parametrize("tau", [5.0, 1e4])
def test_leaves_zero(tau):
    """M = 0 is a saddle with no direction to begin with."""
    small, _ = metric(Vectors(normal(20, 6)))
    method = run(small, small.X.new_zeros(2, 6), tau, tau)
    assert method.converged and method.escapes >= 1 and method.worst < 0.99


def test_certificate_wants_a_stationary_point_and_sigma_to_vanish():
    problem = Pairs(table(20, 6))
    small, B = metric(problem)
    M = run(small, 0.3 * normal(3, 6), 3.0, 1e3).M @ B
    assert certificate(problem, M, 1e3, 1e-3, 1e-6).is_sosp
    moved = certificate(problem, M + 1e-4 * normal(3, 6, seed=5), 1e3, 1e-3, 1e-6)
    assert not moved.is_sosp and moved.gradient_norm > 1e-6
    # With one row and τ far below k/2 noise would raise ‖A x‖² to where it should be.
    short = certificate(problem, 0.1 * normal(9, 6), 0.5, 1e-3, 1e-6)
    eigenvalues = derivatives(differences(problem.X), 0.1 * normal(9, 6), 0.5, 1e-3, 6)[1]
    assert short.lambda_min <= eigenvalues[0] + 1e-9 < 0 and not short.is_sosp


def test_same_in_any_units_and_a_saved_state_goes_on_to_the_same_end():
    small, _ = metric(Pairs(table(30, 8)))
    start = 0.3 * normal(3, 8)
    whole, part = (Newton(small, start, 5.0, 1e4, none(start)) for _ in range(2))
    while not whole.converged:
        whole.step()
    for _ in range(7):
        part.step()
    resumed = Newton(small, start, 5.0, 1e4, none(start))
    resumed.load_state_dict(part.state_dict())
    assert (resumed.worst, resumed.f) == (part.worst, part.f)
    while not resumed.converged:
        resumed.step()
    assert torch.equal(resumed.M, whole.M) and resumed.f == whole.f
    scaled, _ = metric(Pairs(1e9 * table(30, 8) + 3.0))
    assert run(scaled, 0.3 * normal(3, 8), 5.0, 1e4).f == pytest.approx(whole.f, abs=1e-6)


def test_secants_lead_nearer_to_the_minimum_at_a_larger_tau():
    """From a minimum, τ four times as large: a step by secants, and one by the weights there."""
    small, _ = metric(Pairs(table(30, 8)))
    here = run(small, 0.3 * normal(3, 8), 3.0, 200.0)
    there = run(small, here.M, 200.0, 800.0)
    left = []
    for before in (200.0, 800.0):
        here.tau, here.before, here.mu = 800.0, before, 1e-6
        here._turn()
        left.append(weigh(here.U, here.M + next(here._trials())[3], 800.0, here.G).f - there.f)
    assert 0 < left[0] < 0.7 * left[1]


def test_the_walk_goes_on_along_negative_curvature(monkeypatch):
    """Past where one Newton step leads, and never up, over all pairs."""
    small, _ = metric(Pairs(table(30, 8)))
    fs = []
    for walk in (newton.WALK, 0):
        monkeypatch.setattr(newton, "WALK", walk)
        method = Newton(small, 0.3 * normal(3, 8), 20.0, 1e4, none(small.X[:, :8]))
        method.step()
        fs.append(method.f)
        assert method.f == pytest.approx(bound(small, method.M, method.M.new_zeros(()), 20.0).item(), abs=1e-10)
    assert fs[0] < fs[1] - 1e-3


def test_the_walk_takes_in_what_it_has_made_heavy(monkeypatch):
    """Where f rises by pairs that it had not looked at, it goes back, and with these it gets on: here three times."""
    small, _ = metric(Pairs(table(60, 12)))
    method = Newton(small, 0.3 * normal(3, 12), 300.0, 1e4, none(small.X))
    method._turn()
    solve, look, before, fs = next(method._trials())[0], method._look, method.f, []

    def looked(M: Tensor) -> tuple:
        there = look(M)
        fs.append(there[-1].f)
        return there

    monkeypatch.setattr(method, "_look", looked)
    method._walk(solve)
    best = np.minimum.accumulate([before, *fs])
    rose = np.array(fs) > best[:-1]
    assert (rose[:-1] & ~rose[1:]).sum() >= 3
    assert method.f == best[-1] < before - 0.05
    assert method.f == pytest.approx(bound(small, method.M, method.M.new_zeros(()), 300.0).item(), abs=1e-10)


def test_f_never_rises_at_one_tau():
    small, _ = metric(Pairs(table(30, 8)))
    start = 0.3 * normal(3, 8)
    method, last = Newton(small, start, 5.0, 1e4, none(start)), (5.0, math.inf)
    while not method.converged:
        method.step()
        if method.tau == last[0]:
            assert method.f <= last[1] + 1e-12
        assert method.f == pytest.approx(bound(small, method.M, method.M.new_zeros(()), method.tau).item(), abs=1e-10)
        last = method.tau, method.f


def test_the_certificates_own_bound_is_that_of_the_general_one():
    """At so small a τ K is small enough for Lemma 3.1 to say something; pgd.certify measures the same by autograd."""
    problem, tau, lam, rho = Vectors(normal(12, 5)), 0.2, 1.0, 1e-3
    M, s = 0.3 * normal(3, 5, seed=1), torch.zeros((), dtype=torch.float64)
    proof = certificate(problem, M, tau, lam, rho)
    leaves = [M.clone().requires_grad_(), s.requires_grad_()]
    general = certify(
        lambda: bound(problem, *leaves, tau) + lam * leaves[1].square(), leaves, leaves[1], leaves[0], lam, rho
    )
    assert proof.K_estimate == pytest.approx(general.K_estimate, rel=0.3)
    slack = 2 * lam - max(math.sqrt(proof.K_estimate * rho), -proof.lambda_min)
    assert proof.lemma_bound == pytest.approx(rho / slack) == pytest.approx(general.lemma_bound, rel=0.01)


def test_where_all_weight_is_on_one_pair_it_ends_all_the_same():
    problem, _ = metric(Pairs(normal(50, 10)))
    method = Newton(problem, 0.5 * normal(3, 10, seed=1), 1e17, 1e18, none(normal(3, 10)))
    method.mu = 1e30
    for _ in range(3):
        method.step()
    assert math.isfinite(method.f)


def test_where_too_many_pairs_would_matter_the_cheap_bound_is_taken(monkeypatch):
    X, M, tau = table(40, 5), 0.4 * normal(3, 5, seed=1), 2.0
    least = float(derivatives(differences(X), M, tau, 1e-3, 5)[1][0])
    full = certificate(Pairs(X), M, tau, 1e-3, 1e-6)
    monkeypatch.setattr(newton, "CERTIFIABLE", 100)
    monkeypatch.setattr(newton, "_proven", lambda *_: pytest.fail("all pairs are looked at one by one"))
    proof = certificate(Pairs(X), M, tau, 1e-3, 1e-6)
    assert proof.lambda_min == pytest.approx(-2 * math.tanh(tau * distortion(Pairs(X), M))) and not proof.is_sosp
    assert proof.lambda_min <= least and proof.gradient_norm == pytest.approx(full.gradient_norm, rel=1e-9)


def test_the_gradient_of_near_pairs_is_as_exact_as_their_differences():
    X = table(12, 5)
    X[1] = X[0] + 1e-4 * normal(5, seed=2)  # by the Gram matrix this distance has an error of 10⁻⁸
    M, tau = 0.4 * normal(3, 5, seed=1), 200.0
    exact = derivatives(differences(X.double()), M, tau, 1e-3, 5)[0]
    assert certificate(Pairs(X), M, tau, 1e-3, 1e-6).gradient_norm == pytest.approx(exact, rel=1e-10)


def test_no_threshold_is_finer_than_rounding():
    """M is the best for three rows: rotating it changes nothing, and 0 is an eigenvalue that no doubles can prove."""
    problem, tau = Vectors(normal(12, 5)), 20.0
    method = run(problem, 0.4 * normal(3, 5, seed=1), tau, tau)
    proof = certificate(problem, method.M, tau, 1e-300, 1e-6)
    assert method.converged and proof.lambda_min < -1e-15 and not proof.is_sosp
