"""Exact Hessian-vector products of the exact objective: oracles, the metric, refusals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from test_kernels import KERNELS as TREES
from test_kernels import InverseMultiquadric, torch_gram
from test_objective import KERNELS, PRIORS, data, holes, objective

from gplvm_xp import backend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52, Periodic, White
from gplvm_xp.latents import Latents, RowPrior
from gplvm_xp.objectives.exact import ExactObjective, Group
from gplvm_xp.objectives.exact_point import ExactPoint
from gplvm_xp.optim import newton_krylov
from gplvm_xp.priors import Gamma, Gaussian, LogNormal, Prior
from gplvm_xp.testing import check_hvp
from gplvm_xp.testing._gradients import richardson

CASES = [*((name, False) for name in KERNELS), ("rbf-ard", True), ("tree", True)]


def problem(b, name, missing=False, n=10, D=5, **options):
    X, Y = data(n=n, D=D)
    options = {
        "latent_prior": Gaussian(0.2, 1.5), "priors": PRIORS[name], "jitter": 1e-3, **options
    }  # fmt: skip
    return objective(b, KERNELS[name], X, holes(Y) if missing else Y, **options)


def dense(point, product=None):
    """The matrix of a product, column by column."""
    b = backend.of(point.x)
    columns = [(product or point.hvp)(b.asarray(e)) for e in np.eye(point.x.shape[0])]
    return np.stack([b.to_host(c).astype(float) for c in columns], axis=1)


# -- the same value and gradient -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "missing"), CASES)
def test_value_and_gradient_are_the_objectives(case, name, missing):
    fun = problem(case.backend, name, missing)
    x = fun.start() + 0.1
    point = ExactPoint(fun, x)
    f, g = fun.value_and_grad(x)
    tight = case.tolerance(1e-12, 2e-4)
    np.testing.assert_allclose(case.to_numpy(point.value), case.to_numpy(f), rtol=tight)
    want = case.to_numpy(g)
    got = case.to_numpy(point.gradient())
    np.testing.assert_allclose(got, want, rtol=tight, atol=tight * np.abs(want).max())
    assert point.value.shape == ()
    assert point.gradient().dtype == case.backend.dtype


# -- oracles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "missing"), CASES)
def test_against_differences_of_the_gradient(case, name, missing):
    fun = problem(case.backend, name, missing)
    loose = {"rtol": 2e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    if case.single:
        hold_single(fun, **loose)
        return
    check_hvp(
        lambda x: fun.value_and_grad(x)[1],
        lambda x, u: ExactPoint(fun, x).hvp(u),
        fun.start() + 0.05,
        directions=2,
        **loose,
    )


def hold_single(fun, rtol, step):
    """As check_hvp, which asks for more than differences of float32 gradients have."""
    b, x = fun.backend, fun.start() + 0.05
    point = ExactPoint(fun, x)
    u, w = np.random.default_rng(0).standard_normal((2, x.shape[0]))
    u /= np.linalg.norm(u)

    def slope(h):
        sides = [b.to_host(fun.value_and_grad(x + s * h * b.asarray(u))[1]) for s in (1.0, -1.0)]
        return (sides[0].astype(float) - sides[1]) / (2.0 * h)

    got, want = b.to_host(point.hvp(b.asarray(u))).astype(float), richardson(slope, step)
    assert np.linalg.norm(got - want) <= rtol * np.linalg.norm(want)
    one, two = w @ got, u @ b.to_host(point.hvp(b.asarray(w))).astype(float)
    assert abs(one - two) <= 1e-4 * np.linalg.norm(got) * np.linalg.norm(w)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", [*KERNELS, "deep", "three-factors", "active-product", "hexagonal"])
def test_against_autograd(name, missing):
    """The objective as one would write it, priors and logarithms included, differentiated twice."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kernel = KERNELS.get(name) or TREES[name]
    priors = PRIORS.get(name, {"noise": LogNormal(-1.0, 0.7)})
    X, Y = data(n=9, D=4, q=2 if name in KERNELS else 3)
    Y = holes(Y) if missing else Y
    fun = objective(
        backend.get("numpy"), kernel, X, Y, latent_prior=Gaussian(0.3, 1.3), priors=priors,
        jitter=1e-4,
    )  # fmt: skip
    x0, u = fun.start(), np.random.default_rng(3).standard_normal(fun.layout.size)

    def log_prior(prior, value):
        match prior:
            case Gamma():
                law = torch.distributions.Gamma(number(prior.shape), number(prior.rate))
            case LogNormal():
                law = torch.distributions.LogNormal(number(prior.mu), number(prior.sigma))
            case Gaussian():
                law = torch.distributions.Normal(number(prior.mean), number(prior.sd))
        return law.log_prob(value).sum()

    def number(value):
        return torch.tensor(value, dtype=torch.float64)

    def negative_log_posterior(x):
        natural, place = {}, 0
        for block in fun.layout.blocks:
            flat = x[place : place + block.size]
            natural[block.name] = torch.exp(flat) if block.transform == "log" else flat
            place += block.size
        theta = torch.cat([natural[block.name] for block in kernel.blocks()])
        Z, total = natural["X"].reshape(X.shape), 0.0
        for d in range(Y.shape[1]):
            seen = ~np.isnan(Y[:, d])
            K = torch_gram(torch, kernel, theta, Z[torch.tensor(np.flatnonzero(seen))], None)
            K = K + (natural["noise"] + 1e-4) * torch.eye(int(seen.sum()), dtype=torch.float64)
            y = torch.tensor(Y[seen, d])
            total = total - 0.5 * torch.logdet(K) - 0.5 * y @ torch.linalg.solve(K, y)
        for block, prior in priors.items():
            total = total + log_prior(prior, natural[block])
        return -(total + log_prior(Gaussian(0.3, 1.3), Z))

    x = torch.tensor(x0, requires_grad=True)
    (gradient,) = torch.autograd.grad(negative_log_posterior(x), x, create_graph=True)
    (want,) = torch.autograd.grad(gradient @ torch.tensor(u), x)
    got, want = ExactPoint(fun, x0).hvp(u), want.numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


@pytest.mark.parametrize(("name", "missing"), [("rbf-ard", False), ("tree", True)])
def test_the_matrix_is_symmetric_and_the_product_linear(case, name, missing):
    fun = problem(case.backend, name, missing, n=7, D=4)
    point = ExactPoint(fun, fun.start())
    H = dense(point)
    tight = case.tolerance(1e-12, 1e-4)
    np.testing.assert_allclose(H, H.T, rtol=0, atol=tight * np.abs(H).max())
    for scale in (1.0, 1e-9, 1e7):
        u = scale * np.random.default_rng(2).standard_normal(H.shape[0])
        got = case.to_numpy(point.hvp(case.asarray(u)))
        np.testing.assert_allclose(got, H @ u, rtol=0, atol=100 * tight * scale * np.abs(H).max())
    assert not case.to_numpy(point.hvp(case.asarray(0.0 * u))).any()


def test_few_and_many_outputs_are_the_same_numbers(case):
    """Columns of zeros change nothing but which of the two ways is taken."""
    X, Y = data(n=20, D=3)
    padded = np.concatenate([Y, np.zeros((20, 7))], axis=1)
    b = case.backend
    products = []
    for table in (Y, padded):
        group = Group(np.arange(3), None, b.asarray(table), 3)
        fun = ExactObjective(RBF(1.2, (0.8, 1.1)), (group,), X, 0.2, Gaussian())
        x = fun.start()
        u = case.asarray(np.random.default_rng(1).standard_normal(x.shape[0]))
        products.append(case.to_numpy(ExactPoint(fun, x).hvp(u)))
    tight = case.tolerance(1e-11, 1e-3)
    np.testing.assert_allclose(*products, rtol=0, atol=tight * np.abs(products[0]).max())


def test_more_outputs_than_rows():
    X, Y = data(n=6, D=25)
    b, u = backend.get("numpy"), np.random.default_rng(1).standard_normal(16)
    whole = objective(b, KERNELS["rbf-ard"], X, Y)
    parts = [objective(b, KERNELS["rbf-ard"], X, Y[:, c : c + 1]) for c in range(25)]
    want = sum(ExactPoint(part, part.start()).hvp(u) for part in parts)
    got = ExactPoint(whole, whole.start()).hvp(u)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * np.abs(want).max())


def test_held_and_fixed_blocks_are_left_out(case):
    """The Hessian of what is learned is a part of the whole Hessian."""
    X, Y = data(n=6)
    whole = objective(case.backend, RBF(1.3, (0.8, 1.3)), X, Y, latent_prior=Gaussian())
    H = dense(ExactPoint(whole, whole.start()))
    names = ["variance", "lengthscale", "lengthscale", "noise", *["X"] * X.size]
    fixed = RBF(1.3, (0.8, 1.3), fixed=("variance",))
    tight = case.tolerance(1e-11, 1e-4)
    for kernel, held, left in (
        (RBF(1.3, (0.8, 1.3)), {"rbf.lengthscale"}, {"lengthscale"}),
        (fixed, {"noise"}, {"variance", "noise"}),
        (RBF(1.3, (0.8, 1.3)), {"X"}, {"X"}),
        (fixed, {"rbf.lengthscale", "noise"}, {"variance", "lengthscale", "noise"}),
    ):
        fun = objective(case.backend, kernel, X, Y, latent_prior=Gaussian(), held=frozenset(held))
        point = ExactPoint(fun, fun.start())
        keep = np.array([name not in left for name in names])
        want = H[np.ix_(keep, keep)]
        np.testing.assert_allclose(dense(point), want, rtol=0, atol=tight * np.abs(H).max())
        P = dense(point, point.precondition)
        assert np.linalg.eigvalsh(0.5 * (P + P.T))[0] > 0.0


# -- the expected Hessian and the metric -----------------------------------------------------------


@pytest.mark.parametrize("kernel", [RBF(1.2, (0.8, 1.1)), Linear(0.7) + Periodic() + White(0.2)])
def test_fisher_is_the_hessian_where_the_data_are_as_expected(case, kernel):
    """Where Y Yᵀ = D K the gradient in K is zero, and the Hessian is its own expectation."""
    X, _ = data(n=8)
    K = kernel.gram(kernel.theta(), X) + 0.3 * np.eye(8)
    b = case.backend
    group = Group(np.arange(5), None, b.asarray(np.sqrt(5.0) * np.linalg.cholesky(K)), 5)
    fun = ExactObjective(kernel, (group,), X, 0.3)
    point = ExactPoint(fun, fun.start())
    F, tight = dense(point, point.fisher), case.tolerance(1e-11, 2e-3)
    assert np.abs(case.to_numpy(point.gradient())).max() <= tight * np.abs(F).max()
    np.testing.assert_allclose(dense(point), F, rtol=0, atol=tight * np.abs(F).max())
    least = np.linalg.eigvalsh(0.5 * (F + F.T))[0]
    assert least >= -tight * np.abs(F).max()


@pytest.mark.parametrize(("name", "missing"), [("rbf-ard", False), ("tree", True)])
def test_the_metric_is_positive_definite(case, name, missing):
    fun = problem(case.backend, name, missing, n=7, D=4)
    point = ExactPoint(fun, fun.start())
    P = dense(point, point.precondition)
    tight = case.tolerance(1e-10, 1e-3)
    np.testing.assert_allclose(P, P.T, rtol=0, atol=tight * np.abs(P).max())
    assert np.linalg.eigvalsh(0.5 * (P + P.T))[0] > 0.0


def test_the_metric_by_its_formula():
    X, Y = data(n=9, D=4)
    kernel = RBF(1.3, 0.8)
    fun = objective(backend.get("numpy"), kernel, X, Y, latent_prior=Gaussian(0.0, 2.0))
    point = ExactPoint(fun, fun.start())
    P = np.linalg.inv(dense(point, point.precondition))
    K = kernel.gram(kernel.theta(), X) + 0.3 * np.eye(9)
    S, T = np.linalg.inv(K), kernel.input_jacobian(kernel.theta(), X)
    J = np.einsum("ija,jd->iad", T, S @ Y)
    blocks = np.einsum("i,iad,ibd->iab", np.diag(S), J, J) + 0.25 * np.eye(2)
    want = np.zeros((21, 21))
    want[:3, :3] = dense(point, point.fisher)[:3, :3]
    for i in range(9):
        rows = slice(3 + 2 * i, 5 + 2 * i)
        want[rows, rows] = blocks[i]
    np.testing.assert_allclose(P, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


def test_newton_finds_a_minimum_that_nothing_leaves(case):
    if case.single:
        pytest.skip("float32: the gradient's own rounding is above the tolerance asked for")
    rng = np.random.default_rng(0)
    t = np.linspace(-1.0, 1.0, 12)[:, None]
    Y = np.sin(t * rng.uniform(1.0, 3.0, 6) + rng.uniform(0.0, 6.0, 6))
    Y = Y - Y.mean(0) + 0.1 * rng.standard_normal(Y.shape)
    fun = objective(
        case.backend, RBF(1.0, 0.5), t, Y, noise=0.05, latent_prior=Gaussian(),
        held=frozenset({"rbf.lengthscale"}),
    )  # fmt: skip
    found = newton_krylov(lambda x: ExactPoint(fun, x), fun.start(), gtol=1e-6)
    assert found.status == "converged", found.message
    H = dense(ExactPoint(fun, found.x))
    assert np.linalg.eigvalsh(0.5 * (H + H.T))[0] > 0.0


def test_the_metric_saves_products():
    rng = np.random.default_rng(1)
    Z, W = rng.standard_normal((40, 2)), rng.standard_normal((2, 8))
    Y = np.sin(Z @ W) + 0.05 * rng.standard_normal((40, 8))
    fun = objective(
        backend.get("numpy"), RBF(1.0, 1.0), Z, Y - Y.mean(0), noise=0.02, latent_prior=Gaussian(),
        held=frozenset({"rbf.lengthscale"}),
    )  # fmt: skip
    used = [
        newton_krylov(
            lambda x: ExactPoint(fun, x), fun.start(), gtol=1e-6, preconditioned=flag
        ).hvps
        for flag in (True, False)
    ]
    assert used[0] < 0.6 * used[1], used


# -- points share a buffer -------------------------------------------------------------------------


def test_points_do_not_disturb_each_other(case):
    fun = problem(case.backend, "rbf-ard", missing=True)
    x = fun.start()
    u = case.asarray(np.random.default_rng(0).standard_normal(x.shape[0]))
    alone = ExactPoint(fun, x).hvp(u)
    one, two = ExactPoint(fun, x), ExactPoint(fun, x + 0.2)
    two.hvp(u)
    fun.value_and_grad(x - 0.1)
    first = one.hvp(u)
    two.gradient()
    again = one.hvp(u)
    for got in (first, again):
        np.testing.assert_array_equal(case.to_numpy(got), case.to_numpy(alone))


def test_a_point_that_fails_is_a_value(case):
    fun = problem(case.backend, "rbf-ard")
    x = fun.start() + case.asarray(np.where(np.arange(fun.layout.size) < 3, 200.0, 0.0))
    point = ExactPoint(fun, x * 4.0)
    assert not np.isfinite(case.to_numpy(point.value))
    u = x * 0.0 + 1.0
    assert point.gradient().shape == point.hvp(u).shape == x.shape


# -- priors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior", [Gaussian(0.4, 0.7), LogNormal(0.2, 0.6), Gamma(2.3, 1.7), Gamma(0.6, 0.4)]
)
def test_curvatures_of_priors(case, prior):
    value = np.array([[0.3, 1.1], [2.7, 0.8]])
    got = prior.curvatures(case.asarray(value))
    assert got.shape == (2, 2)
    assert got.dtype == case.backend.dtype

    def slope(h):
        return (prior.log_densities(value + h)[1] - prior.log_densities(value - h)[1]) / (2.0 * h)

    tight = case.tolerance(1e-9, 1e-5)
    np.testing.assert_allclose(case.to_numpy(got), richardson(slope, 1e-3), rtol=tight)


# -- refusals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flat(Prior):
    def log_densities(self, value):
        return 0.0 * value, 0.0 * value


def test_what_has_no_second_derivatives_is_refused():
    b = backend.get("numpy")
    X, Y = data()
    fun = objective(b, InverseMultiquadric() + RBF(), X, Y)
    with pytest.raises(
        NotImplementedError, match=r"InverseMultiquadric has no second deriv.*lbfgs"
    ):
        ExactPoint(fun, fun.start())
    fun = objective(b, RBF(), X, Y, priors={"noise": Flat()})
    point = ExactPoint(fun, fun.start())
    assert np.all(np.isfinite(point.gradient()))
    for product in (point.hvp, point.precondition):
        with pytest.raises(NotImplementedError, match=r"Flat has no curvatures\(\).*'lbfgs'"):
            product(fun.start())


def test_other_latents_are_refused():
    @dataclass(frozen=True)
    class Map(Latents):
        @property
        def shape(self):
            return 9, 2

        def blocks(self):
            return ()

        def positions(self, values):
            return data()[0], lambda gX: {}

    class Tied(RowPrior):
        def blocks(self):
            return ()

        def log_density(self, values, X):
            return 0.0 * X[0, 0], 0.0 * X, {}

        def require_memory(self, b):
            pass

    X, Y = data()
    b = backend.get("numpy")
    for fun in (objective(b, RBF(), Map(), Y), objective(b, RBF(), X, Y, latent_prior=Tied())):
        with pytest.raises(ValueError, match=r"use optimizer='scipy'.*ties rows together"):
            ExactPoint(fun, fun.start())


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch):
    X, Y = data()
    fun = objective(backend.get("numpy"), RBF() + Constant(0.1), X, Y)
    monkeypatch.setattr(type(fun.backend), "memory_available", lambda self: 8 * 81 * 5 - 1)
    with pytest.raises(
        NotEnoughMemoryError, match=r"second derivatives of the exact likel.*9 rows"
    ):
        ExactPoint(fun, fun.start())
    monkeypatch.setattr(type(fun.backend), "memory_available", lambda self: 8 * 81 * 5)
    ExactPoint(fun, fun.start())
    # Few outputs take less.
    monkeypatch.setattr(type(fun.backend), "memory_available", lambda self: 8 * 81 * 3)
    fun = objective(backend.get("numpy"), RBF() + Constant(0.1), X, Y[:, :2])
    ExactPoint(fun, fun.start())


def test_a_matern_has_its_products_at_coincident_latents():
    X, Y = data()
    X[4] = X[2]
    fun = objective(backend.get("numpy"), Matern52(), X, Y, latent_prior=Gaussian())
    check_hvp(
        lambda x: fun.value_and_grad(x)[1], lambda x, u: ExactPoint(fun, x).hvp(u), fun.start(),
        rtol=1e-6, step=1e-3,
    )  # fmt: skip
