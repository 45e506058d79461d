"""The deterministic sparse likelihoods, VFE, FITC and DTC, against dense covariances."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from gplvm_xp import backend
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52, Polynomial, White
from gplvm_xp.objectives import ExactObjective, fitc, groups_of, rows
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed
from gplvm_xp.objectives.fitc import FITCObjective
from gplvm_xp.priors import Gamma, Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

KERNELS = {
    "rbf-ard": RBF(1.3, (0.8, 1.3)),
    "matern52": Matern52(0.9, (1.2, 0.7)),
    "rbf+linear": RBF(1.3, 0.8) + Linear((0.5, 0.9)),
    "polynomial": Polynomial(0.5, 0.7, degree=3),
    "noisy": RBF(0.8, 1.1) + Constant(0.3) + White(0.2),
}
NAMES = ("vfe", "fitc", "dtc")
JITTER = 1e-4


def data(n=14, D=5, q=2, M=6, seed=0):
    rng = np.random.default_rng(seed)
    X, Z, Y = (rng.standard_normal(shape) for shape in ((n, q), (M, q), (n, D)))
    return X, Z, Y - Y.mean(0)


def holes(Y):
    """A few missing entries: three patterns of columns where there are five, one complete."""
    Y = Y.copy()
    Y[1, 0] = Y[4, 0] = np.nan
    if Y.shape[1] > 3:
        Y[1, 2] = Y[4, 2] = np.nan
        Y[9:, 3] = np.nan
    return Y


def objective(b, name, kernel, X, Z, Y, noise=0.3, *, reduce=False, **options):
    table = Observed.of(b, Y, reduce=reduce)
    if name == "fitc":
        return FITCObjective(kernel, table, X, None, Z, noise, **options)
    return BayesianObjective(kernel, table, X, None, Z, noise, trace=name == "vfe", **options)


def value(fun):
    return fun.value_and_grad(fun.start())[0]


def parts(kernel, X, Z, jitter=JITTER):
    """Q = K_xu K_uu⁻¹ K_ux and the diagonal of K, dense; K_uu with its jitter, and K_xu."""
    theta = kernel.theta()
    Kuu, Kxu = kernel.gram(theta, Z), kernel.gram(theta, X, Z)
    Kuu = Kuu + jitter * np.mean(np.diag(Kuu)) * np.eye(len(Z))
    return Kxu @ np.linalg.solve(Kuu, Kxu.T), kernel.diag(theta, X), Kuu, Kxu


def dense(name, kernel, X, Z, Y, noise=0.3, jitter=JITTER):
    """The log-likelihood column by column with the full n × n covariance."""
    Q, own, _, _ = parts(kernel, X, Z, jitter)
    spread = own - np.diag(Q)
    total = 0.0
    for y in Y.T:
        seen = ~np.isnan(y)
        K = Q + np.diag(noise + (spread if name == "fitc" else 0.0 * spread))
        total += stats.multivariate_normal(cov=K[np.ix_(seen, seen)]).logpdf(y[seen])
        if name == "vfe":
            total -= 0.5 * spread[seen].sum() / noise
    return total


# -- value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("D", [1, 5])
@pytest.mark.parametrize("name", NAMES)
def test_value_against_the_dense_covariance(case, name, D, missing):
    X, Z, Y = data(D=D)
    Y = holes(Y) if missing else Y
    for kernel in (KERNELS["rbf-ard"], KERNELS["noisy"]):
        fun = objective(case.backend, name, kernel, X, Z, Y, jitter=JITTER)
        f = value(fun)
        want = -dense(name, kernel, X, Z, Y)
        np.testing.assert_allclose(case.to_numpy(f), want, rtol=case.tolerance(1e-11, 1e-4))
        assert f.shape == ()
        assert f.dtype == case.backend.dtype


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_priors_are_added_once(name, kernel):
    X, Z, Y = data()
    kernel = KERNELS[kernel]
    options = {"latent_prior": Gaussian(0.2, 1.5), "priors": {"noise": LogNormal(-1.0, 0.5)}}
    got = value(objective(backend.get("numpy"), name, kernel, X, Z, Y, jitter=JITTER, **options))
    want = dense(name, kernel, X, Z, Y) + stats.norm(0.2, 1.5).logpdf(X).sum()
    want += stats.lognorm(0.5, scale=np.exp(-1.0)).logpdf(0.3)
    np.testing.assert_allclose(got, -want, rtol=1e-11)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", NAMES)
def test_inducing_inputs_at_the_latents_give_the_exact_model(name, missing):
    """Z = X: the exact likelihood, and its gradient in X where Z moves along."""
    X, _, Y = data(n=12, D=4)
    Y, kernel = holes(Y) if missing else Y, KERNELS["matern52"]
    b = backend.get("numpy")
    fun = objective(b, name, kernel, X, X, Y, latent_prior=Gaussian())
    exact = ExactObjective(kernel, groups_of(b, Y), X, 0.3, Gaussian())
    f, g = fun.value_and_grad(fun.start())
    f0, g0 = exact.value_and_grad(exact.start())
    np.testing.assert_allclose(f, f0, rtol=1e-11)
    where, p = fun.layout.slices(), kernel.size + 1
    np.testing.assert_allclose(g[:p], g0[:p], rtol=1e-8)
    np.testing.assert_allclose(g[where["mu"]] + g[where["Z"]], g0[p:], rtol=1e-7, atol=1e-8)


def test_order_of_the_three():
    """VFE is below the exact likelihood and below DTC; more inducing inputs tighten it."""
    X, Z, Y = data(n=20, M=9, seed=4)
    b, kernel = backend.get("numpy"), KERNELS["rbf-ard"]
    exact = -value(ExactObjective(kernel, groups_of(b, Y), X, 0.3))
    bounds = [-value(objective(b, "vfe", kernel, X, Z[:M], Y)) for M in (2, 5, 9)]
    assert bounds[0] < bounds[1] < bounds[2] < exact
    assert bounds[2] < -value(objective(b, "dtc", kernel, X, Z, Y))


@pytest.mark.parametrize("name", NAMES)
def test_more_outputs_than_rows_are_reduced(case, name):
    X, Z, Y = data(n=6, D=25, M=4)
    kernel, b = KERNELS["rbf-ard"], case.backend
    few = objective(b, name, kernel, X, Z, Y, reduce=True, jitter=JITTER)
    all_of_them = objective(b, name, kernel, X, Z, Y, jitter=JITTER)
    assert few.data.Y.shape == (6, 6)
    tight = case.tolerance(1e-10, 2e-3)
    for got, want in zip(
        few.value_and_grad(few.start()), all_of_them.value_and_grad(few.start()), strict=True
    ):
        want = case.to_numpy(want)
        np.testing.assert_allclose(
            case.to_numpy(got), want, rtol=tight, atol=tight * np.abs(want).max()
        )


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_chunks_add_up(case, missing, monkeypatch):
    X, Z, Y = data(n=23)
    Y = holes(Y) if missing else Y
    fun = objective(case.backend, "fitc", KERNELS["noisy"], X, Z, Y, jitter=JITTER)
    whole = [case.to_numpy(a) for a in fun.value_and_grad(fun.start())]
    monkeypatch.setattr(fitc, "ROWS_BYTES", 5 * 6 * case.backend.itemsize)
    seen = []
    monkeypatch.setattr(fitc, "chunks", lambda n, step: seen.append(step) or rows.chunks(n, step))
    tight = case.tolerance(1e-11, 1e-3)
    for got, want in zip(fun.value_and_grad(fun.start()), whole, strict=True):
        np.testing.assert_allclose(
            case.to_numpy(got), want, rtol=tight, atol=tight * np.abs(want).max()
        )
    assert seen == [5, 5]


# -- gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("D", "missing"), [(1, False), (5, True)])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_differences(case, name, D, missing):
    X, Z, Y = data(D=D)
    fun = objective(
        case.backend, name, KERNELS["rbf+linear"], X, Z, holes(Y) if missing else Y,
        jitter=1e-2, latent_prior=Gaussian(), priors={"noise": Gamma(2.0, 3.0)},
    )  # fmt: skip
    loose = {"rtol": 1e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(fun.value_and_grad, fun.start(), **loose)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_autograd(name, kernel, missing):
    """Every entry, several outputs, the dense covariance differentiated by another program."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from test_kernels import torch_gram

    X, Z, Y = data(D=5)
    Y, kernel = holes(Y) if missing else Y, KERNELS[kernel]
    fun = objective(backend.get("numpy"), name, kernel, X, Z, Y, jitter=JITTER)
    x0, where, p = fun.start(), fun.layout.slices(), kernel.size
    f, g = fun.value_and_grad(x0)
    x = torch.tensor(x0, requires_grad=True)
    theta = torch.exp(x[:p])
    noise = torch.exp(x[where["noise"]])[0]
    tZ, tX = x[where["Z"]].reshape(Z.shape), x[where["mu"]].reshape(X.shape)
    Kuu = torch_gram(torch, kernel, theta, tZ, None)
    Kuu = Kuu + JITTER * torch.diagonal(Kuu).mean() * torch.eye(len(Z)).double()
    Kxu = torch_gram(torch, kernel, theta, tX, tZ)
    own = torch.diagonal(torch_gram(torch, kernel, theta, tX, None))
    Q = Kxu @ torch.linalg.solve(Kuu, Kxu.mT)
    spread = own - torch.diagonal(Q)
    total = 0.0
    for y in Y.T:
        seen = np.flatnonzero(~np.isnan(y))
        level = noise + (spread if name == "fitc" else 0.0 * spread)
        K = (Q + torch.diag(level))[seen][:, seen]
        law = torch.distributions.MultivariateNormal(torch.zeros(seen.size).double(), K)
        total = total + law.log_prob(torch.tensor(y[seen]))
        if name == "vfe":
            total = total - 0.5 * spread[seen].sum() / noise
    (-total).backward()
    want = x.grad.numpy()
    np.testing.assert_allclose(f, -total.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(g, want, rtol=1e-8, atol=1e-9 * np.abs(want).max())


def test_held_blocks_leave_the_vector():
    X, Z, Y = data()
    b, kernel = backend.get("numpy"), KERNELS["rbf-ard"]
    whole = objective(b, "fitc", kernel, X, Z, Y, jitter=JITTER)
    part = objective(
        b, "fitc", kernel, X, Z, Y, jitter=JITTER, held=frozenset({"noise", "rbf.lengthscale"})
    )
    assert [block.name for block in part.layout.blocks] == ["rbf.variance", "Z", "mu"]
    g0, g = whole.value_and_grad(whole.start())[1], part.value_and_grad(part.start())[1]
    np.testing.assert_allclose(g, np.concatenate([g0[:1], g0[4:]]), rtol=1e-9)
    with pytest.raises(ValueError, match=r"held names \['X'\]"):
        objective(b, "fitc", kernel, X, Z, Y, held=frozenset({"X"}))


# -- the optimal q(u) ------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", NAMES)
def test_optimum_against_the_dense_posterior(case, name, missing):
    """u | Y of the approximate model, unwhitened, output by output."""
    X, Z, Y = data()
    Y, kernel = holes(Y) if missing else Y, KERNELS["noisy"]
    fun = objective(case.backend, name, kernel, X, Z, Y, jitter=JITTER)
    m, T, ok = fun.optimal(fun.values(fun.start()))
    m, T = case.to_numpy(m), case.to_numpy(T)
    assert bool(case.backend.to_host(ok))
    Q, own, Kuu, Kxu = parts(kernel, X, Z)
    L = np.linalg.cholesky(Kuu)
    level = np.full(len(X), 0.3) + (own - np.diag(Q) if name == "fitc" else 0.0)
    tight = case.tolerance(1e-9, 3e-3)
    for d, y in enumerate(Y.T):
        seen = ~np.isnan(y)
        K, k = Q[np.ix_(seen, seen)] + np.diag(level[seen]), Kxu[seen]
        mean, cov = k.T @ np.linalg.solve(K, y[seen]), Kuu - k.T @ np.linalg.solve(K, k)
        factor = L @ T[fun.data.totals.which[d]]
        np.testing.assert_allclose(L @ m[:, d], mean, rtol=tight, atol=tight)
        np.testing.assert_allclose(factor @ factor.T, cov, rtol=tight, atol=tight)


# -- rounding and trouble --------------------------------------------------------------------------


def test_what_rounding_leaves_of_the_prior_is_nothing(case):
    rest, noise = case.asarray(np.array([-1e-3, 0.0, 2.0])), case.asarray(np.array(0.5))
    spread, inside = fitc._spread(rest, noise)
    np.testing.assert_array_equal(case.to_numpy(spread), [0.5, 0.5, 2.5])
    np.testing.assert_array_equal(case.to_numpy(inside), [0.0, 0.0, 1.0])


@pytest.mark.parametrize("D", [1, 4])
def test_rows_that_coincide_with_inducing_inputs(D):
    """Without jitter, rounding leaves such a row a little less than nothing of its prior."""
    X, _, Y = data(n=40, D=D, seed=2)
    b, kernel = backend.get("numpy"), RBF(1.0, 0.5)
    for noise, tight in ((1e-2, 1e-11), (1e-6, 1e-9)):
        fun = objective(b, "fitc", kernel, X, X[:20], Y, noise)
        f, g = fun.value_and_grad(fun.start())
        np.testing.assert_allclose(f, -dense("fitc", kernel, X, X[:20], Y, noise, 0.0), rtol=tight)
        assert np.all(np.isfinite(g))


def test_no_array_of_rows_by_inducing_inputs():
    n, M = 400_000, 20
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((n, 1)), rng.standard_normal((n, 1))
    fun = objective(backend.get("numpy"), "fitc", RBF(1.0, 0.3), X, X[:M], Y, jitter=JITTER)
    v = fun.values(fun.start())
    tracemalloc.start()
    fun.bound(v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The gradient in the latents, and a chunk or two at work.
    assert peak < 0.6 * (8 * n * M)


@pytest.mark.parametrize("trouble", ["coincident", "overflow", "nan"])
@pytest.mark.parametrize("name", NAMES)
def test_no_factor_is_a_value_and_not_an_exception(case, name, trouble):
    X, Z, Y = data(n=8, D=3, M=4)
    if trouble == "coincident":
        # All in one place, where the distances are 0 in any rounding.
        Z = np.zeros_like(Z)
    fun = objective(case.backend, name, RBF(1.0, 1.0), X, Z, Y)
    x = np.asarray(fun.layout.start())
    if trouble == "overflow":
        x[fun.layout.slices()["rbf.variance"]] = 2000.0
    elif trouble == "nan":
        x[fun.layout.slices()["mu"]] = np.nan
    f, g = fun.value_and_grad(case.asarray(x))
    assert np.isposinf(case.to_numpy(f))
    assert g.shape == x.shape


def test_fitc_refuses_variances():
    X, Z, Y = data()
    table = Observed.of(backend.get("numpy"), Y)
    with pytest.raises(ValueError, match="S was given; FITC is a likelihood of points"):
        FITCObjective(RBF(), table, X, np.ones_like(X), Z, 0.1)
