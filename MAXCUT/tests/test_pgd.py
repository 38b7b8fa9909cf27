"""PGD leaves strict saddles and stops at minima; the certificate agrees with the dense Hessian."""

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pgd import FAILURE, PGD, _recurrence, certify, lambda_min, lanczos, lipschitz


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def two_dimensional(x: Tensor) -> Tensor:
    """x² − y² + y⁴/4: a strict saddle at 0, minima −1 at (0, ±√2)."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4


def octopus(x: Tensor) -> Tensor:
    """A chain of d strict saddles, met one after the other, like the octopus of Du et al. (2017) but smooth.

    Coordinate i turns from a bowl into a double well as coordinate i − 1 moves from 0 to ±1.
    """
    s = torch.cat([torch.ones(1), 2 * x[:-1] ** 2 / (1 + x[:-1] ** 2)])
    return ((1 - 2 * s) * x**2 / 2 + x**4 / 4).sum()


def descend(f: Callable[[Tensor], Tensor], x: Tensor, steps: int = 20_000, follows: bool = False, **options) -> PGD:
    x.requires_grad_()

    def closure() -> Tensor:
        x.grad = None
        value = f(x)
        value.backward()
        return value

    defaults = dict(lr=0.05, rho=1e-4, radius=1e-2, patience=200, generator=torch.Generator().manual_seed(0))
    pgd = PGD([x], **(defaults | options), objective=(lambda: f(x)) if follows else None)
    for _ in range(steps):
        pgd.step(closure)
        if pgd.converged:
            break
    return pgd


@pytest.mark.parametrize(
    "how, flat", [({}, False), ({"K": 4.0}, True), ({"curvature": 0.05}, False), ({"curvature": 0.2}, True)]
)
def test_what_algorithm_2_takes_for_flat(how, flat):
    """λ_min is −0.15; √(K rho) is 0.1 for K = 1, and 0.2 for 4."""
    x = torch.zeros(2)
    pgd = descend(lambda x: x[0] ** 2 - 0.075 * x[1] ** 2, x, steps=1, follows=True, rho=1e-2, **how)
    assert pgd.converged is flat and bool(x.any()) is not flat


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"follows": True}, {"follows": True, "momentum": 0.5}])
@pytest.mark.parametrize("f, start", [(two_dimensional, [1.0, 0.0]), (octopus, [0.0] * 10)])
def test_leaves_saddles_on_which_gradient_descent_stays(f, start, options):
    stuck = torch.tensor(start)
    assert descend(f, stuck, radius=0.0).converged  # a kick of length 0: gradient descent to first order
    assert lambda_min(lambda: f(stuck), [stuck])[0] < -0.9

    x = torch.tensor(start)
    pgd = descend(f, x, **options)
    assert pgd.converged and pgd.perturbations >= 1 and pgd.gradient_norm <= 1e-4
    assert lambda_min(lambda: f(x), [x])[0] >= -math.sqrt(1e-4)
    if f is octopus:
        assert (x.abs() > 0.9).all()  # it has passed all ten saddles
    else:
        assert torch.allclose(x.abs(), torch.tensor([0.0, math.sqrt(2)]), atol=1e-3)


def test_stops_at_the_minimum_it_is_at_and_returns_there():
    x = torch.tensor([0.0, math.sqrt(2)])
    pgd = descend(two_dimensional, x, radius=0.1)
    assert pgd.converged and pgd.perturbations == 1
    assert torch.equal(x, torch.tensor([0.0, math.sqrt(2)]))


def test_is_the_algorithm_of_jin_et_al_to_the_step():
    """Against Algorithm 1 written out as in the paper, from a point where it kicks and escapes."""
    lr, rho, radius, patience, f_decrease = 0.1, 1e-3, 0.05, 30, 1e-4
    generator = torch.Generator().manual_seed(1)
    x, t_noise, path = torch.tensor([0.3, 0.0]), -math.inf, []
    for t in range(400):
        gradient = torch.func.grad(two_dimensional)(x)
        if gradient.norm() <= rho and t - t_noise > patience:
            remembered, t_noise = x, t
            noise, uniform = torch.randn(2, generator=generator), torch.rand((), generator=generator)
            x = x + radius * uniform**0.5 * noise / noise.norm()
            gradient = torch.func.grad(two_dimensional)(x)
        if t - t_noise == patience and two_dimensional(x) - two_dimensional(remembered) > -f_decrease:
            break
        path.append(x)
        x = x - lr * gradient
    y = torch.tensor([0.3, 0.0])
    options = dict(lr=lr, rho=rho, radius=radius, patience=patience, f_decrease=f_decrease)
    pgd = descend(two_dimensional, y, steps=400, generator=torch.Generator().manual_seed(1), **options)
    assert pgd.converged and pgd.perturbations == 2 and len(path) > 100
    assert torch.allclose(y, remembered, atol=1e-12)


@pytest.mark.parametrize("slope", [1e-5, -1e-5])
def test_the_curvature_step_goes_the_way_that_leads_down(slope):
    x = torch.zeros(2)
    pgd = descend(lambda x: x[0] ** 2 - x[1] ** 2 + slope * x[1], x, steps=1, follows=True)
    assert pgd.perturbations == 1 and float(x[1].detach()) * slope < 0 and abs(float(x[1].detach())) > 1e-2


def test_the_kick_is_uniform_in_the_ball():
    x = torch.zeros(3)
    pgd = PGD([x], lr=0.1, rho=1e-3, radius=2.0, generator=torch.Generator().manual_seed(0))
    points = []
    for _ in range(4000):
        x.zero_()
        pgd.perturb()
        points.append(x.clone())
    points = torch.stack(points)
    volume_inside = (points.norm(dim=1) / 2) ** 3  # uniform on [0, 1]
    assert volume_inside.max() <= 1
    assert abs(volume_inside.mean() - 0.5) < 3 * math.sqrt(1 / 12 / 4000)
    assert (points.mean(0).abs() < 3 * math.sqrt(4 / 5 / 4000)).all()


@pytest.mark.parametrize("K", [1.0, 4.0])
@pytest.mark.parametrize("fall, escaped", [(0.95, False), (1.05, True)])
def test_a_kick_must_lower_f_by_the_order_of_jin_et_al(K, fall, escaped):
    """√(ρ³/K) by default: a scripted f that falls by a little less, or more, within the patience."""
    x, rho = torch.zeros(2), 1e-4
    values = iter([1.0, 1.0 - fall * math.sqrt(rho**3 / K), 0.5, 0.5])
    pgd = PGD([x], lr=0.1, rho=rho, radius=1e-2, patience=5, K=K, generator=torch.Generator().manual_seed(0))

    def closure() -> Callable[[], float]:
        x.grad = torch.zeros(2)
        return lambda: next(values)

    for _ in range(6):
        pgd.step(closure)
    assert pgd.converged != escaped and pgd.perturbations == 1
    assert bool(x.any()) == escaped  # else it is back where it was kicked


def test_at_rho_0_the_rule_sleeps_though_it_has_kicked():
    x = torch.tensor([0.0, math.sqrt(2)])
    pgd = descend(two_dimensional, x, steps=10, patience=20)
    assert pgd.perturbations == 1
    pgd.param_groups[0]["rho"] = 0.0
    for _ in range(30):
        pgd.step(lambda: two_dimensional(x))
    assert not pgd.converged and pgd.perturbations == 1


def test_a_costly_objective_is_evaluated_only_for_the_stopping_rule():
    x, calls = torch.tensor([0.0, math.sqrt(2)]), []

    def value() -> Tensor:
        calls.append(1)
        return two_dimensional(x)

    def closure() -> Callable[[], Tensor]:
        x.grad = torch.func.grad(two_dimensional)(x)
        return value

    pgd = PGD([x], lr=0.05, rho=1e-4, radius=1e-2, patience=20, generator=torch.Generator().manual_seed(0))
    while not pgd.converged:
        pgd.step(closure)
    assert pgd.perturbations == 1 and len(calls) == 2


@pytest.mark.parametrize("n", [1, 2, 3, 40, 300])
def test_lambda_min_agrees_with_the_dense_hessian(n):
    generator = torch.Generator().manual_seed(n)
    A = torch.randn(n, n, generator=generator)
    x = torch.randn(n, generator=generator, requires_grad=True)

    def f() -> Tensor:
        return (torch.tanh(A @ x) ** 2).sum() + (x**3).sum() / 3

    dense = torch.autograd.functional.hessian(lambda y: (torch.tanh(A @ y) ** 2).sum() + (y**3).sum() / 3, x)
    exact, vectors = torch.linalg.eigh(dense)
    value, direction = lambda_min(f, [x])
    (vector,) = direction()
    width = float(exact[-1] - exact[0])
    assert exact[0] - 1e-2 * width - 1e-11 <= value <= exact[0] + 1e-8 * width  # cautious: never above
    assert abs(vector @ vectors[:, 0]) > 0.99 and vector.norm() == pytest.approx(1)


@pytest.mark.parametrize("n, problems", [(3000, 8), (15_000, 2)])
def test_lambda_min_finds_one_small_negative_eigenvalue_of_a_wide_spectrum(n, problems):
    """100 curvatures from 1 to 3·10⁴, a large null space, and one direction that leads down, in a random basis."""
    for seed in range(problems):
        generator = torch.Generator().manual_seed(seed)
        planted = -(10 ** (-2 - 0.7 * float(torch.rand((), generator=generator))))
        curvatures = torch.cat([torch.logspace(0, math.log10(3e4), 100), torch.tensor([planted]), torch.zeros(n - 101)])
        mirrors = torch.linalg.qr(torch.randn(n, 3, generator=generator))[0]
        x = torch.zeros(n, requires_grad=True)

        def f(x=x, mirrors=mirrors, curvatures=curvatures) -> Tensor:
            y = x - 2 * mirrors @ (mirrors.T @ x)
            return curvatures @ y.square() / 2

        value, ritz_vector = lambda_min(f, [x], accuracy=1e-4)
        (u,) = ritz_vector()
        assert planted - 1.1e-4 <= value <= planted + 1e-9
        direction = u - 2 * mirrors @ (mirrors.T @ u)
        assert abs(direction[100]) > 0.99


def test_lanczos_goes_on_when_no_more_vectors_can_be_kept(monkeypatch):
    start, eigenvalues = np.random.default_rng(0).standard_normal(300), np.linspace(1, 2, 300)
    for kept in (4 * 300, 299):  # four vectors, none
        monkeypatch.setattr("pgd.REMEMBERED", kept)
        bound, ritz_vector = lanczos(lambda v: eigenvalues * v, start, accuracy=1e-2)
        assert 1 - 1.1e-2 <= bound <= 1 and abs(np.linalg.norm(ritz_vector()) - 1) < 1e-9


def test_lanczos_vectors_stay_orthonormal_long_after_an_eigenvalue_has_converged():
    """The failure probability rests on Σ_j (u·q_j)² ≤ 1; without reorthogonalization ghosts of the outlier come in."""
    eigenvalues = np.append(np.linspace(-1, 1, 299), 1e3)
    steps = _recurrence(lambda v: eigenvalues * v, np.random.default_rng(0).standard_normal(300))
    Q = np.array([v for _, (*_, v) in zip(range(100), steps, strict=False)])
    assert np.abs(Q @ Q.T - np.eye(100)).max() < 1e-8


def test_lanczos_looks_early_where_eigenvalues_are_as_good_as_two():
    """As at the end of every search, whose Hessian is 2λ in V and nearly 0 in μ: five products tell."""
    rng, products = np.random.default_rng(0), []
    eigenvalues = np.repeat([0.2, 0.0], 5000) + 1e-8 * rng.standard_normal(10_000)
    bound, _ = lanczos(lambda v: products.append(1) or eigenvalues * v, rng.standard_normal(10_000), accuracy=2.5e-4)
    assert len(products) == 5 and eigenvalues.min() - 2.5e-4 <= bound <= eigenvalues.min()


def test_lambda_min_fails_as_often_as_it_says(monkeypatch):
    """With the failure probability raised to 30 %, that many starts miss the eigenvalue at most, and some do."""
    import pgd

    monkeypatch.setattr(pgd, "FAILURE", 0.3)
    x = torch.zeros(400, requires_grad=True)
    curvatures = torch.cat([torch.tensor([-1.0]), torch.linspace(0, 1, 399)])
    f = lambda: curvatures @ x.square() / 2  # noqa: E731
    missed = sum(lambda_min(f, [x], accuracy=10.0, seed=seed)[0] > -1 for seed in range(100))
    assert missed <= 45
    assert FAILURE == 1e-6


def test_the_lipschitz_constant_of_a_cubic():
    x = torch.zeros(30, requires_grad=True)
    a = torch.linspace(0.1, 7, 30)
    K = lipschitz(lambda: a @ x**3 / 6, [x], radius=1e-2, rounds=100)
    assert 3.5 < K <= 7 + 1e-9  # a local maximum, from below
    assert not x.detach().any()


def test_lambda_min_takes_several_tensors_and_the_degenerate_cases():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    value, direction = lambda_min(lambda: (a**2).sum() - 2 * b**2, [a, b])
    u, v = direction()
    assert value == pytest.approx(-4, abs=1e-8) and abs(float(v)) == pytest.approx(1) and u.shape == (2,)
    assert lambda_min(lambda: a.sum() + 0 * b, [a, b])[0] == 0  # linear
    assert lambda_min(lambda: (b**2 + a.sum()) ** 1, [a])[0] == 0


def test_lambda_min_at_a_hundred_thousand_parameters():
    x = torch.linspace(-1, 1, 100_000, requires_grad=True)
    assert lambda_min(lambda: (x**3).sum() / 6, [x], accuracy=1e-2)[0] == pytest.approx(-1, abs=1.2e-2)


def test_certificate_of_a_quadratic_is_the_lemma_with_equality():
    """f = ½ tr(Wᵀ H W) + ½ bᵀ H b + lam ‖W‖²: ∇_W f = (H + 2 lam I) W exactly."""
    H = torch.diag(torch.tensor([-0.5, 1.0, 2.0]))
    W = torch.tensor([[1e-3], [0.0], [0.0]], requires_grad=True)
    b = torch.zeros(3, requires_grad=True)

    def f(lam: float) -> Tensor:
        return (W * (H @ W)).sum() / 2 + b @ H @ b / 2 + lam * (W**2).sum()

    certificate = certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1e-2, K=100)
    # √(K_estimate rho) is 0, and the point no SOSP for that K: its own λ_min takes the root's place
    assert certificate.lemma_bound == pytest.approx(1e-2 / 1.5) and certificate.K_estimate == 0
    assert certificate.gradient_norm == pytest.approx(1.5e-3)
    assert certificate.lambda_min == pytest.approx(-0.5)
    assert certificate.w_norm <= certificate.w_norm_bound == pytest.approx(1e-3, rel=1e-5)
    assert certificate.is_sosp and "SOSP" in str(certificate) and "Lemma 3.1 with K ≈ 0e+00 says ≤" in str(certificate)
    assert not certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1e-2).is_sosp  # −0.5 < −√(1e-2)
    assert not certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1e-3, K=1e3).is_sosp  # 1.5e-3 > rho
    assert certify(lambda: f(0.5), [W, b], W, b, lam=0.5 + 1e-9, rho=1e-2, K=100).is_sosp
    assert not certify(lambda: f(0.4), [W, b], W, b, lam=0.4, rho=1e-2, K=100).is_sosp  # −0.5 < −lam
    assert certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1.6e-3, K=160).is_sosp
    assert not certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1.4e-3, K=1000).is_sosp  # just above rho
    unsure = certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1e-2, K=100, gradient_error=2e-3, slope_error=1e-3)
    rough = certify(lambda: f(1.0), [W, b], W, b, lam=1.0, rho=1e-2, K=100, gradient_error=2e-3)
    assert rough.w_norm_bound == pytest.approx((1.5e-3 + 2e-3) / 1.5, rel=1e-5)
    assert "Lemma 3.1 with K ≈ 0e+00 is silent" in str(unsure)  # at no SOSP it says nothing
    assert rough.lemma_bound == unsure.lemma_bound == pytest.approx((1e-2 + 2e-3) / 1.5)
    assert not unsure.is_sosp and unsure.w_norm_bound == pytest.approx((1.5e-3 + 1e-3) / 1.5, rel=1e-5)
    assert certify(lambda: f(0.1), [W, b], W, b, lam=0.1, rho=1e-2).w_norm_bound is None  # 0.2 − 0.5 < 0


def test_a_bound_that_the_norm_itself_refutes_is_none():
    """Of an f that is no expectation, or one by too coarse a rule, ∇_W f is not (∇²_b f + 2 lam I) W."""
    W, b = torch.ones(2, 1, requires_grad=True), torch.zeros(2, requires_grad=True)
    for slope, told in ((1.5, True), (0.5, False)):  # 1 would be right
        found = certify(lambda slope=slope: slope * W.sum() + b @ b / 2 + (W**2).sum(), [W, b], W, b, lam=1.0, rho=1.0)
        bound = (slope + 2) * 2**0.5 / 3
        assert found.w_norm == pytest.approx(2**0.5) and (bound > 2**0.5) == told
        assert found.w_norm_bound == pytest.approx(bound, rel=1e-5) if told else found.w_norm_bound is None


@pytest.mark.parametrize(
    "bad, word",
    [({"lr": -1}, "lr"), ({"rho": -1}, "rho"), ({"radius": -1}, "radius"), ({"momentum": 1}, "momentum")]
    + [({"lr": float("nan")}, "lr"), ({"patience": 0}, "patience")],
)
def test_refuses_bad_arguments_by_name(bad, word):
    with pytest.raises(ValueError, match=word):
        PGD([torch.zeros(2)], **(dict(lr=0.1, rho=1e-3, radius=1e-2) | bad))


def test_takes_one_parameter_group():
    with pytest.raises(ValueError, match="one parameter group"):
        PGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}], lr=0.1, rho=1e-3, radius=0.1)


@pytest.mark.parametrize("first", [37, 400])
def test_a_pgd_with_the_state_of_another_goes_on_as_it_would(first):
    def closure() -> Tensor:
        x.grad = None
        value = octopus(x)
        value.backward()
        return value

    x = torch.zeros(10, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    pgd = PGD([x], lr=0.05, rho=1e-4, radius=1e-2, momentum=0.5, generator=generator)
    for step in range(600):
        if step == first:
            there, state, random = x.detach().clone(), copy.deepcopy(pgd.state_dict()), generator.get_state()
        pgd.step(closure)
    end, kicks = x.detach().clone(), pgd.perturbations

    x = there.requires_grad_()
    pgd = PGD([x], lr=1.0, rho=1.0, radius=1e-2, generator=generator)
    pgd.load_state_dict(state)
    generator.set_state(random)
    for _ in range(first, 600):
        pgd.step(closure)
    assert torch.equal(x, end) and pgd.perturbations == kicks >= 2
