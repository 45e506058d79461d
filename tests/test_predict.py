"""What a fitted model says about other points, against computations written from the textbook."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import why_not
from scipy import stats

from gplvm_xp import backend, predict
from gplvm_xp.errors import NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52, White
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Gaussian
from gplvm_xp.testing import check_gradient

KERNELS = {
    "rbf": RBF(1.2, (0.9, 1.3)),
    "sum": Matern52(1.0, 0.8) + Linear(0.4) + Constant(0.3) + White(0.05),
    "product": RBF(1.0, 0.9) * Linear((0.5, 0.8)),
}
NOISE = 0.15


def problem(n=12, D=5, q=2, seed=0, missing=False):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, q)), rng.standard_normal((n, D))
    if missing:
        Y[3, 1] = Y[3, 2] = Y[7:, 4] = np.nan
    return X, Y


def textbook(kernel, X, Y, at):
    """Mean and variance of the noiseless outputs, one column after the other."""
    theta = kernel.theta()
    mean, var = np.empty((2, len(at), Y.shape[1]))
    for d in range(Y.shape[1]):
        rows = np.flatnonzero(~np.isnan(Y[:, d]))
        K = kernel.gram(theta, X[rows]) + NOISE * np.eye(rows.size)
        Ks = kernel.gram(theta, at, X[rows])
        mean[:, d] = Ks @ np.linalg.solve(K, Y[rows, d])
        var[:, d] = kernel.diag(theta, at) - np.sum(Ks * np.linalg.solve(K, Ks.T).T, axis=1)
    return mean, var


# -- the posterior ---------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_moments(case, name, missing):
    X, Y = problem(missing=missing)
    at = np.random.default_rng(1).standard_normal((6, 2))
    posterior = Posterior.of(case.backend, KERNELS[name], NOISE, X, Y)
    mean, var = (case.to_numpy(a) for a in posterior.moments(case.asarray(at)))
    want_mean, want_var = textbook(KERNELS[name], X, Y, at)
    tight = case.tolerance(1e-11, 1e-4)
    np.testing.assert_allclose(mean, want_mean, rtol=tight, atol=tight)
    np.testing.assert_allclose(var, want_var, rtol=tight, atol=tight)


def test_outputs_never_observed_keep_their_prior(case):
    X, Y = problem()
    Y[:, 2] = np.nan
    posterior = Posterior.of(case.backend, KERNELS["sum"], NOISE, X, Y)
    mean, var = (case.to_numpy(a) for a in posterior.moments(case.asarray(X)))
    assert np.all(mean[:, 2] == 0.0)
    prior = KERNELS["sum"].diag(KERNELS["sum"].theta(), X)
    np.testing.assert_allclose(var[:, 2], prior, rtol=case.tolerance(1e-13, 1e-5))


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_log_likelihood(case, missing):
    X, Y = problem(missing=missing)
    kernel = KERNELS["sum"]
    K = kernel.gram(kernel.theta(), X) + NOISE * np.eye(len(X))
    want = 0.0
    for y in Y.T:
        rows = np.flatnonzero(~np.isnan(y))
        want += stats.multivariate_normal(cov=K[np.ix_(rows, rows)]).logpdf(y[rows])
    got = Posterior.of(case.backend, kernel, NOISE, X, Y).log_likelihood()
    np.testing.assert_allclose(case.to_numpy(got), want, rtol=case.tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_leave_one_out_against_leaving_one_out(case, missing):
    """Every row is really taken out, and predicted from the others."""
    X, Y = problem(missing=missing)
    kernel = KERNELS["sum"]
    mean, var = Posterior.of(case.backend, kernel, NOISE, X, Y).leave_one_out()
    tight = case.tolerance(1e-10, 1e-3)
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        m, v = textbook(kernel, X[rest], Y[rest], X[i : i + 1])
        seen = ~np.isnan(Y[i])
        np.testing.assert_allclose(mean[i, seen], m[0, seen], rtol=tight, atol=tight)
        np.testing.assert_allclose(var[i, seen], v[0, seen] + NOISE, rtol=tight)
        assert np.all(np.isnan(mean[i, ~seen]))
        assert np.all(np.isnan(var[i, ~seen]))


def test_no_factor_is_an_error_with_advice():
    X, Y = problem()
    with pytest.raises(NotPositiveDefiniteError, match=r"no Cholesky factor.*larger jitter"):
        Posterior.of(backend.get("numpy"), RBF(1.0, 1.0), 0.0, np.zeros_like(X), Y)


def test_memory_is_asked_for_first(monkeypatch):
    X, Y = problem(missing=True)
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 500)
    with pytest.raises(NotEnoughMemoryError, match=r"pattern\(s\) needs .* bytes.*fewer rows"):
        Posterior.of(backend.get("numpy"), RBF(1.0, 1.0), 0.1, X, Y)


# -- new rows --------------------------------------------------------------------------------------


def rows_problem(b, kernel, missing=False, prior=None, new=4, seed=2, noise=NOISE):
    X, Y = problem(missing=missing)
    rng = np.random.default_rng(seed)
    Ynew = rng.standard_normal((new, Y.shape[1]))
    seen = np.ones_like(Ynew)
    if missing:
        seen[0, 0] = seen[1, 2:] = 0.0
        seen[2] = 0.0
    posterior = Posterior.of(b, kernel, noise, X, Y)
    rows = NewRows(posterior, prior, b.asarray(np.where(seen > 0, Ynew, 7.0)), b.asarray(seen))
    return rows, X, Y, np.where(seen > 0, Ynew, np.nan), rng.standard_normal((new, X.shape[1]))


def everything(b, n):
    return b.xp.arange(n, dtype=b.xp.int64, device=b.device)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_rows_value(case, name, missing):
    b = case.backend
    rows, X, Y, Ynew, at = rows_problem(b, KERNELS[name], missing, Gaussian(0.1, 1.2))
    f, g = rows.value_and_grad(case.asarray(at), everything(b, 4))
    mean, var = textbook(KERNELS[name], X, Y, at)
    density = stats.norm(mean, np.sqrt(var + NOISE)).logpdf(Ynew)
    want = -np.nansum(density, axis=1) - stats.norm(0.1, 1.2).logpdf(at).sum(axis=1)
    np.testing.assert_allclose(case.to_numpy(f), want, rtol=case.tolerance(1e-11, 1e-4))
    assert g.shape == (4, 2)


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", KERNELS)
def test_rows_gradient_against_differences(case, name, missing):
    """All rows at once: the sum's gradient is every row's own, as no row sees another."""
    b = case.backend
    rows, _, _, _, at = rows_problem(b, KERNELS[name], missing, Gaussian())
    xp, shape = b.xp, at.shape

    def total(x):
        f, g = rows.value_and_grad(xp.reshape(x, shape), everything(b, shape[0]))
        return xp.sum(f), xp.reshape(g, (-1,))

    loose = {"rtol": 1e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(total, case.asarray(at.ravel()), **loose)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_gradient_one_row_at_a_time(name):
    b = backend.get("numpy")
    rows, _, _, _, at = rows_problem(b, KERNELS[name], True, Gaussian())
    f_all, g_all = rows.value_and_grad(at, everything(b, 4))
    for i in range(4):

        def one(x, i=i):
            f, g = rows.value_and_grad(x[None, :], np.asarray([i]))
            return f[0], g[0]

        check_gradient(one, at[i], rtol=1e-7, step=4e-3)
        f, g = one(at[i])
        np.testing.assert_allclose(f, f_all[i], rtol=1e-13)
        np.testing.assert_allclose(g, g_all[i], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_gradient_against_autograd(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from test_kernels import torch_gram

    kernel = KERNELS[name]
    rows, X, Y, Ynew, at = rows_problem(backend.get("numpy"), kernel, False, Gaussian())
    _, g = rows.value_and_grad(at, everything(backend.get("numpy"), 4))
    x = torch.tensor(at, requires_grad=True)
    theta, T = torch.tensor(kernel.theta()), torch.tensor(X)
    K = torch_gram(torch, kernel, theta, T, None) + NOISE * torch.eye(len(X), dtype=T.dtype)
    Ks = torch_gram(torch, kernel, theta, x, T)
    own = torch.stack([torch_gram(torch, kernel, theta, r[None], None)[0, 0] for r in x])
    mean = Ks @ torch.linalg.solve(K, torch.tensor(Y))
    s = own - (Ks * torch.linalg.solve(K, Ks.mT).mT).sum(1) + NOISE
    value = 0.5 * ((mean - torch.tensor(Ynew)) ** 2 / s[:, None] + torch.log(s)[:, None]).sum()
    (value + 0.5 * (x**2).sum()).backward()
    np.testing.assert_allclose(g, x.grad.numpy(), rtol=1e-9, atol=1e-10)


def smooth(n, D, q, seed=0, noise=1e-2):
    """Rows of D smooth functions of latents, half of them to learn from."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, (n, q))
    kernel = RBF(1.0, 1.0)
    K = kernel.gram(kernel.theta(), X) + 1e-10 * np.eye(n)
    F = np.linalg.cholesky(K) @ rng.standard_normal((n, D))
    return kernel, X, F + noise * rng.standard_normal((n, D))


# float32 can't see deviations of 1e-3; "strictest" asks all that the other strict cases ask.
@pytest.mark.only_backend(
    "numpy-f64", "numpy-readonly", "strictest", "torch-cpu", "emulated", "cupy"
)
def test_latents_of_held_out_rows_are_recovered(case):
    b = case.backend
    kernel, X, Y = smooth(70, 12, 2)
    posterior = Posterior.of(b, kernel, 1e-4, X[:60], Y[:60])
    rows = NewRows(posterior, Gaussian(), b.asarray(Y[60:]), b.asarray(np.ones((10, 12))))
    Z, f, converged = rows.solve()
    assert np.all(case.to_numpy(b.xp.astype(converged, b.dtype)) == 1.0)
    sd = np.sqrt(np.diagonal(case.to_numpy(rows.laplace(Z)[0]), axis1=1, axis2=2))
    assert sd.max() < 0.02
    assert np.all(np.abs(case.to_numpy(Z) - X[60:]) < 4.0 * sd)
    at_truth = case.to_numpy(rows.value_and_grad(b.asarray(X[60:]), everything(b, 10))[0])
    assert np.all(case.to_numpy(f) <= at_truth)


def test_many_rows_at_once_are_as_one_after_the_other(monkeypatch):
    b = backend.get("numpy")
    kernel, X, Y = smooth(40, 6, 2)
    rng = np.random.default_rng(1)
    new = Y[rng.integers(0, 40, 2000)] + 0.05 * rng.standard_normal((2000, 6))
    seen = (rng.random(new.shape) > 0.1) * 1.0
    posterior = Posterior.of(b, kernel, 1e-2, X, Y)
    Z, f, converged = NewRows(posterior, Gaussian(), new * seen, seen).solve()
    assert np.mean(converged) > 0.99
    for i in range(0, 2000, 97):
        one = NewRows(posterior, Gaussian(), (new * seen)[i : i + 1], seen[i : i + 1]).solve()
        np.testing.assert_allclose(one[1][0], f[i], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(one[0][0], Z[i], atol=1e-6)
    # Batches are cut to a budget of memory, and cover every row once.
    monkeypatch.setattr(predict, "_BATCH_BYTES", 8 * 40 * 300 * predict.STARTS)
    parts = posterior.batches(2000)
    assert [p.start for p in parts] == list(range(0, 2000, 300))
    assert parts[-1].stop == 2000


def test_a_row_with_nothing_observed_goes_to_the_mode_of_the_prior(case):
    b = case.backend
    rows, *_ = rows_problem(b, KERNELS["rbf"], True, Gaussian(0.3, 0.8))
    Z = case.to_numpy(rows.solve()[0])
    np.testing.assert_allclose(Z[2], 0.3, atol=case.tolerance(1e-7, 1e-3))


# -- uncertainty of the latents --------------------------------------------------------------------


def grid_moments(rows, i, centre, width, points=161):
    """Log integral, mean and covariance of exp(−f) of row i, by the trapezium rule."""
    q = centre.size
    axes = [np.linspace(c - width, c + width, points) for c in centre]
    Z = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, q)
    f = rows.value_and_grad(Z, np.full(len(Z), i))[0]
    w = np.exp(f.min() - f)
    cell = math.prod(a[1] - a[0] for a in axes)
    mean = w @ Z / w.sum()
    cov = (w[:, None] * (Z - mean)).T @ (Z - mean) / w.sum()
    return -f.min() + math.log(w.sum() * cell), mean, cov


@pytest.mark.parametrize("q", [1, 2])
def test_laplace_against_integration(q):
    """Well-determined latents have a nearly Gaussian posterior, where Laplace's method is exact."""
    b = backend.get("numpy")
    kernel, X, Y = smooth(40, 30, q, noise=0.03)
    new = Y[:3] + 0.01
    posterior = Posterior.of(b, kernel, 9e-4, X, Y)
    rows = NewRows(posterior, Gaussian(), new, np.ones_like(new))
    Z, f, _ = rows.solve()
    covariance, log_det = rows.laplace(Z)
    for i in range(3):
        width = 8.0 * np.sqrt(np.diag(covariance[i]).max())
        integral, mean, cov = grid_moments(rows, i, Z[i], width)
        np.testing.assert_allclose(covariance[i], cov, atol=0.05 * np.diag(cov).max())
        np.testing.assert_allclose(Z[i], mean, atol=0.1 * np.sqrt(np.diag(cov).max()))
        got = -f[i] + 0.5 * q * math.log(2 * math.pi) - 0.5 * log_det[i]
        np.testing.assert_allclose(got, integral, atol=0.01)


def test_hessian_against_autograd():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from test_kernels import torch_gram

    kernel = KERNELS["rbf"]
    rows, X, Y, Ynew, at = rows_problem(backend.get("numpy"), kernel, False, Gaussian())
    theta, T = torch.tensor(kernel.theta()), torch.tensor(X)
    inverse = torch.linalg.inv(
        torch_gram(torch, kernel, theta, T, None) + NOISE * torch.eye(len(X), dtype=T.dtype)
    )

    def value(x, y):
        k = torch_gram(torch, kernel, theta, x[None], T)[0]
        s = theta[0] - k @ inverse @ k + NOISE
        return 0.5 * ((k @ inverse @ torch.tensor(Y) - y) ** 2 / s + torch.log(s)).sum() + x @ x / 2

    got = rows.hessian(at)
    for i in range(len(at)):
        y = torch.tensor(Ynew[i])
        want = torch.autograd.functional.hessian(lambda x, y=y: value(x, y), torch.tensor(at[i]))
        np.testing.assert_allclose(got[i], want.numpy(), rtol=1e-6, atol=1e-7)


def test_the_data_cannot_make_a_latent_less_certain_than_the_prior(case):
    b = case.backend
    rows, _, _, _, at = rows_problem(b, KERNELS["rbf"], True, Gaussian(0.0, 0.7))
    covariance, log_det = (case.to_numpy(a) for a in rows.laplace(case.asarray(at)))
    assert covariance.shape == (4, 2, 2)
    largest = np.linalg.eigvalsh(covariance)[:, -1]
    assert np.all(largest <= 0.49 * (1 + 1e-5))
    np.testing.assert_allclose(covariance[2], 0.49 * np.eye(2), atol=case.tolerance(1e-9, 1e-3))
    want = -np.linalg.slogdet(covariance)[1]
    np.testing.assert_allclose(log_det, want, atol=case.tolerance(1e-10, 1e-3))


def test_emulated_gpu_gives_the_same_latents():
    if why_not("emulated"):
        pytest.skip(why_not("emulated"))
    from conftest import open_case

    found = []
    for name in ("numpy-f64", "emulated"):
        with open_case(name) as case:
            rows, *_ = rows_problem(case.backend, KERNELS["rbf"], True, Gaussian())
            found.append([case.to_numpy(a) for a in rows.solve()[:2]])
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-9)
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-6)
