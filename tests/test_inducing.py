"""What a model with inducing inputs says about other points, against other computations."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from conftest import open_case, why_not
from scipy import stats
from scipy.special import gammaln, roots_hermitenorm
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp import backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._inducing import FittedInducing
from gplvm_xp.inducing import InducingPosterior, NewLatents, NewPoints, base
from gplvm_xp.inducing.nodes import nodes
from gplvm_xp.kernels import RBF, Linear
from gplvm_xp.likelihoods import BernoulliLogit, Poisson
from gplvm_xp.priors import Gaussian
from gplvm_xp.testing import check_gradient

NOISE, JITTER = 0.15, 1e-6
KERNELS = {"rbf": RBF(1.2, (0.9, 1.3)), "sum": RBF(1.0, (0.8, 1.2)) + Linear((0.4, 0.3))}
GROUPS = np.array([0, 1, 0, 1, 1])


def numbers(M=7, D=5, q=2, r=2, seed=0):
    """Inducing inputs, whitened means and factors: free numbers, as a fit may leave any."""
    rng = np.random.default_rng(seed)
    T = np.tril(0.3 * rng.standard_normal((r, M, M))) + 0.2 * np.eye(M)
    return 1.2 * rng.standard_normal((M, q)), rng.standard_normal((M, D)), T


def posterior(b, kernel=KERNELS["rbf"], noise=NOISE, offset=None, **shape):
    Z, mean, T = numbers(**shape)
    which = GROUPS[: mean.shape[1]] if T.shape[0] == 2 else np.zeros(mean.shape[1], dtype=int)
    return InducingPosterior.of(b, kernel, Z, JITTER, mean, T, which, noise, offset)


def textbook(p, at, T=None):
    """Mean and variance at certain inputs through the unwhitened u, with dense solves."""
    Z, mean, factors = numbers(*p.mean.shape, p.Z.shape[1], p.factor.shape[0])
    theta = p.kernel.theta()
    K = p.kernel.gram(theta, Z) + JITTER * np.eye(len(Z))
    L = np.linalg.cholesky(K)
    Ks = p.kernel.gram(theta, at, Z)
    m = Ks @ np.linalg.solve(K, L @ mean)
    own = p.kernel.diag(theta, at)
    which = GROUPS[: mean.shape[1]] if len(factors) == 2 else np.zeros(mean.shape[1], dtype=int)
    var = np.empty_like(m)
    for d, k in enumerate(which):
        S = L @ factors[k] @ factors[k].T @ L.T
        W = np.linalg.solve(K, Ks.T)
        var[:, d] = own - np.sum(Ks.T * W, axis=0) + np.sum(W * (S @ W), axis=0)
    return m, var


def latents(n=6, q=2, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, q)), np.exp(0.7 * rng.standard_normal((n, q)) - 1.5)


def rows(n=6, D=5, seed=2, missing=True):
    Y = np.random.default_rng(seed).standard_normal((n, D))
    if missing:
        Y[0, 0] = Y[1, 2:] = np.nan
        Y[2] = np.nan
    return Y


def everything(b, n):
    return b.xp.arange(n, dtype=b.xp.int64, device=b.device)


def tensor_rule(q, order):
    x, w = roots_hermitenorm(order)
    w = w / w.sum()
    grid = np.stack(np.meshgrid(*[x] * q, indexing="ij"), axis=-1).reshape(-1, q)
    return grid, np.prod(np.stack(np.meshgrid(*[w] * q, indexing="ij"), -1).reshape(-1, q), axis=1)


# -- moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_moments_at_certain_inputs(case, name):
    p = posterior(case.backend, KERNELS[name], offset=np.arange(5.0))
    at = latents()[0]
    mean, var = (case.to_numpy(a) for a in p.moments(case.asarray(at)))
    want_mean, want_var = textbook(p, at)
    tight = case.tolerance(1e-9, 2e-2)
    np.testing.assert_allclose(mean, want_mean + np.arange(5.0), rtol=tight, atol=tight)
    np.testing.assert_allclose(var, want_var, rtol=tight, atol=tight)


def test_the_best_q_with_every_row_inducing_is_the_exact_process():
    """Z = X and the optimal q(u) of noisy data: the textbook's conditional Gaussian process."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((12, 2)), rng.standard_normal((12, 3))
    kernel, at = KERNELS["rbf"], latents()[0]
    theta, jitter = kernel.theta(), 1e-9
    K = kernel.gram(theta, X) + jitter * np.eye(12)
    L = np.linalg.cholesky(K)
    inside = np.linalg.inv(np.eye(12) + L.T @ L / NOISE)
    T, mean = np.linalg.cholesky(inside), inside @ L.T @ Y / NOISE
    p = InducingPosterior.of(
        backend.get("numpy"), kernel, X, jitter, mean, T[None], np.zeros(3, dtype=int), NOISE
    )
    Ks, C = kernel.gram(theta, at, X), K + NOISE * np.eye(12)
    want = Ks @ np.linalg.solve(C, Y)
    spread = kernel.diag(theta, at) - np.sum(Ks * np.linalg.solve(C, Ks.T).T, axis=1)
    got, var = p.moments(at)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(var, np.repeat(spread[:, None], 3, axis=1), rtol=1e-6, atol=1e-7)
    # Nearly certain inputs say the same.
    near, near_var = p.moments(at, np.full_like(at, 1e-12))
    np.testing.assert_allclose(near, got, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(near_var, var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_moments_at_uncertain_inputs_against_integration(case, name):
    """By the laws of total mean and variance, over a tensor rule of certain inputs."""
    p = posterior(case.backend, KERNELS[name], offset=np.arange(5.0))
    mu, S = latents()
    mean, var = (case.to_numpy(a) for a in p.moments(case.asarray(mu), case.asarray(S)))
    grid, w = tensor_rule(2, 60)
    at = mu[:, None, :] + np.sqrt(S)[:, None, :] * grid
    m, v = (a.reshape(6, -1, 5) for a in textbook(p, at.reshape(-1, 2)))
    m = m + np.arange(5.0)
    want = np.einsum("j,njd->nd", w, m)
    spread = np.einsum("j,njd->nd", w, v + (m - want[:, None, :]) ** 2)
    tight = case.tolerance(1e-9, 5e-2)
    np.testing.assert_allclose(mean, want, rtol=tight, atol=tight)
    np.testing.assert_allclose(var, spread, rtol=tight, atol=tight)


def test_chunks_change_nothing(monkeypatch):
    p = posterior(backend.get("numpy"))
    mu, S = latents(50)
    whole = p.moments(mu, S)
    problem = NewLatents.of(p, rows(50))
    bound = problem.bounds(mu, S, np.arange(50))
    monkeypatch.setattr(base, "CHUNK_BYTES", 8 * 7 * 7 * 3)
    assert len(p.chunks(50, 49)) == 17
    for got, want in zip(p.moments(mu, S), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)
    for got, want in zip(problem.bounds(mu, S, np.arange(50)), bound, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(base, "BATCH_BYTES", 4 * 8 * 100 * 7)
    assert [s.stop for s in p.batches(20, 100)] == [7, 14, 20]


def test_gradient_of_the_moments(case):
    p = posterior(case.backend, KERNELS["sum"])
    b, xp = case.backend, case.backend.xp
    rng = np.random.default_rng(4)
    gm, gv = (case.asarray(a) for a in rng.standard_normal((2, 6, 5)))

    def total(x):
        mean, var, pull = p.moments_pullback(xp.reshape(x, (6, 2)))
        return xp.sum(gm * mean) + xp.sum(gv * var), xp.reshape(pull(gm, gv), (-1,))

    loose = {"rtol": 3e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(total, b.asarray(latents()[0].ravel()), **loose)


def test_no_factor_is_an_error_with_advice():
    Z, mean, T = numbers()
    with pytest.raises(NotPositiveDefiniteError, match=r"no Cholesky factor.*larger jitter"):
        InducingPosterior.of(
            backend.get("numpy"), KERNELS["rbf"], 0.0 * Z, 0.0, mean, T, GROUPS, NOISE
        )
    with pytest.raises(ValueError, match="positive"):
        InducingPosterior.of(backend.get("numpy"), KERNELS["rbf"], Z, 1e-6, mean, T, GROUPS, -1.0)


def test_data_have_the_noise_too():
    p = posterior(backend.get("numpy"))
    mean, var = p.moments(latents()[0])
    got_mean, got_var = p.observed(mean, var)
    assert np.array_equal(got_mean, mean)
    np.testing.assert_allclose(got_var, var + NOISE, rtol=1e-15)
    Y = rows(missing=False)
    want = stats.norm(mean, np.sqrt(var + NOISE)).logpdf(Y)
    np.testing.assert_allclose(p.log_density(Y, mean, var), want, rtol=1e-12)


# -- the bound of a row ----------------------------------------------------------------------------


def kl(mu, S):
    return 0.5 * np.sum(mu**2 + S - np.log(S) - 1.0, axis=1)


@pytest.mark.parametrize("kind", ["complete", "patterns", "scattered"])
@pytest.mark.parametrize("name", KERNELS)
def test_bound_against_integration(case, name, kind):
    """E[ln N(y; f, σ²)] over f and x by a tensor rule; three ways that rows may have gaps."""
    p = posterior(case.backend, KERNELS[name], offset=0.3 * np.arange(5.0))
    n = 12
    mu, S = latents(n)
    Y = rows(n, missing=kind == "patterns")
    if kind == "scattered":
        Y[np.random.default_rng(3).random(Y.shape) < 0.4] = np.nan
        assert len(np.unique(np.isnan(Y), axis=0)) > 5
    problem = NewLatents.of(p, Y)
    F = case.to_numpy(
        problem.bounds(case.asarray(mu), case.asarray(S), everything(case.backend, n))[0]
    )
    grid, w = tensor_rule(2, 60)
    at = mu[:, None, :] + np.sqrt(S)[:, None, :] * grid
    m, v = (a.reshape(n, -1, 5) for a in textbook(p, at.reshape(-1, 2)))
    m = m + 0.3 * np.arange(5.0)
    terms = -0.5 * (np.log(2 * np.pi * NOISE) + ((Y[:, None, :] - m) ** 2 + v) / NOISE)
    want = np.nansum(np.einsum("j,njd->nd", w, terms), axis=1) - kl(mu, S)
    np.testing.assert_allclose(F, want, rtol=case.tolerance(1e-9, 3e-2))


@pytest.mark.parametrize("likelihood", [Poisson(), BernoulliLogit(nodes=40)], ids=lambda v: v.name)
def test_bound_of_other_likelihoods_against_integration(likelihood):
    p = posterior(backend.get("numpy"), RBF(1.2, 0.9), likelihood, D=3, q=1, r=1)
    mu, S = latents(4, 1)
    Y = np.array([[1, 0, 1], [0, np.nan, 1], [1, 1, 0], [np.nan, np.nan, np.nan]])
    F = NewLatents.of(p, Y).bounds(mu, S, np.arange(4))[0]
    grid, w = tensor_rule(1, 80)
    x, wf = roots_hermitenorm(80)
    wf = wf / wf.sum()
    want = -kl(mu, S)
    for i in range(4):
        m, v = p.moments(mu[i] + np.sqrt(S[i]) * grid)
        f = m[..., None] + np.sqrt(v)[..., None] * x
        for d in np.flatnonzero(~np.isnan(Y[i])):
            logp = Y[i, d] * f[:, d] - gammaln(Y[i, d] + 1) - np.exp(f[:, d])
            if likelihood.name != "poisson":
                logp = -np.logaddexp(0.0, -(2 * Y[i, d] - 1) * f[:, d])
            want[i] += w @ logp @ wf
    np.testing.assert_allclose(F, want, rtol=1e-5)  # what 32 nodes give


def test_exposures_multiply_the_mean_counts():
    """With exposure n the mean is n times as large: as an offset of ln n on every output."""
    b, ln = backend.get("numpy"), np.log(3.0)
    Y = np.random.default_rng(0).poisson(2.0, (5, 3)).astype(float)
    mu, S = latents(5, 2)
    plain = posterior(b, noise=Poisson(), D=3, r=1, offset=np.full(3, ln))
    other = posterior(b, noise=Poisson(), D=3, r=1)
    want = NewLatents.of(plain, Y).bounds(mu, S, np.arange(5))
    got = NewLatents.of(other, Y, np.full((5, 1), 3.0)).bounds(mu, S, np.arange(5))
    for a, c in zip(got, want, strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", [NOISE, Poisson()], ids=["gaussian", "poisson"])
def test_gradient_of_the_bounds(case, noise):
    """In the units of the search; the sum's gradient is every row's own."""
    if case.single and noise is not NOISE:
        pytest.skip("the bound of counts in float32 is tested by its value only")
    p = posterior(case.backend, noise=noise)
    Y = rows() if noise is NOISE else np.where(np.isnan(rows()), np.nan, np.abs(rows()).round())
    b, xp = case.backend, case.backend.xp
    problem, unit = NewLatents.of(p, Y), np.tile([0.7, 0.4], (6, 1))
    mu, S = latents()

    def total(x):
        f, g = problem.value_and_grad(xp.reshape(x, (6, 4)), everything(b, 6), case.asarray(unit))
        return xp.sum(f), xp.reshape(g, (-1,))

    x = np.concatenate([mu / unit, np.log(S)], axis=1)
    loose = {"rtol": 3e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(total, case.asarray(x.ravel()), **loose)


def test_gradient_one_row_at_a_time():
    p = posterior(backend.get("numpy"))
    mu, S = latents()
    problem = NewLatents.of(p, rows())
    together = problem.bounds(mu, S, np.arange(6))
    for i in (5, 0, 2):
        one = problem.bounds(mu[i : i + 1], S[i : i + 1], np.array([i]))
        for a, c in zip(one, together, strict=True):
            np.testing.assert_allclose(a[0], c[i], rtol=1e-11, atol=1e-12)


def test_gradient_of_the_bounds_against_autograd():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    p = posterior(backend.get("numpy"))
    Y, (mu, S) = rows(), latents()
    _, gmu, gS = NewLatents.of(p, Y).bounds(mu, S, np.arange(6))
    Z, mean, T = (torch.tensor(a) for a in numbers())
    m, s = torch.tensor(mu, requires_grad=True), torch.tensor(S, requires_grad=True)
    a, ell = 1.2, torch.tensor([0.9, 1.3], dtype=torch.float64)

    def gram(A, B):
        return a * torch.exp(-0.5 * (((A[:, None] - B[None]) / ell) ** 2).sum(-1))

    L = torch.linalg.cholesky(gram(Z, Z) + JITTER * torch.eye(7, dtype=Z.dtype))
    e1 = s[:, None] / ell**2 + 1
    d1 = (m[:, None] - Z) / ell
    psi1 = a * (e1**-0.5 * torch.exp(-0.5 * d1**2 / e1)).prod(-1)
    e2 = 2 * s[:, None, None] / ell**2 + 1
    gap, mid = (Z[:, None] - Z) / ell, (m[:, None, None] - 0.5 * (Z[:, None] + Z)) / ell
    psi2 = a**2 * (e2**-0.5 * torch.exp(-0.25 * gap**2 - mid**2 / e2)).prod(-1)
    inverse = torch.linalg.inv(L)
    C, first = inverse @ psi2 @ inverse.mT, psi1 @ inverse.mT @ mean
    total = -0.5 * (m**2 + s - torch.log(s) - 1).sum()
    for d, k in enumerate(GROUPS):
        seen = torch.tensor(~np.isnan(Y[:, d]))
        y = torch.tensor(np.nan_to_num(Y[:, d]))
        extra = a - torch.einsum("nii->n", C) + torch.einsum("nij,ij->n", C, T[k] @ T[k].mT)
        square = torch.einsum("i,nij,j->n", mean[:, d], C, mean[:, d])
        bracket = y**2 - 2 * y * first[:, d] + square + extra
        total = total - (seen * (0.5 * bracket / NOISE)).sum()
    total.backward()
    np.testing.assert_allclose(gmu, m.grad.numpy(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(gS, s.grad.numpy(), rtol=1e-8, atol=1e-8)


# -- the search ------------------------------------------------------------------------------------


def learned(n=60, D=12, q=2, seed=0, noise=1e-2, M=25):
    """Rows of smooth functions, and the best q(u) of the first n at their true latents."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, (n + 20, q))
    kernel = RBF(1.0, np.ones(q))
    theta = kernel.theta()
    K = kernel.gram(theta, X) + 1e-10 * np.eye(n + 20)
    Y = np.linalg.cholesky(K) @ rng.standard_normal((n + 20, D))
    Y = Y + math.sqrt(noise) * rng.standard_normal(Y.shape)
    Z = X[:M]
    L = np.linalg.cholesky(kernel.gram(theta, Z) + JITTER * np.eye(M))
    A = np.linalg.solve(L, kernel.gram(theta, Z, X[:n]))
    inside = np.linalg.inv(np.eye(M) + A @ A.T / noise)
    mean, T = inside @ A @ Y[:n] / noise, np.linalg.cholesky(inside)
    return (kernel, Z, JITTER, mean, T[None], np.zeros(D, dtype=int), noise), X, Y


# float32 can't see deviations this small; "strictest" asks all that the other strict cases ask.
@pytest.mark.only_backend("numpy-f64", "numpy-readonly", "strictest", "torch-cpu", "emulated")
def test_held_out_rows_are_recovered(case):
    b = case.backend
    numbers_, X, Y = learned()
    p = InducingPosterior.of(b, *numbers_)
    new = Y[60:70].copy()
    new[3, 4:] = np.nan
    new[5] = np.nan
    anchors, begin = case.asarray(X[:60]), case.asarray([0.01, 0.01])
    problem = NewLatents.of(p, new)
    found = problem.solve(anchors, begin)
    assert np.all(case.to_numpy(b.xp.astype(found.settled, b.dtype)) == 1.0)
    mean, var, value = (case.to_numpy(a) for a in found[:3])
    some = np.arange(10) != 5
    assert np.all(np.abs(mean - X[60:70])[some] < 5.0 * np.sqrt(var[some]) + 0.05)
    # Nothing observed: the prior, whatever the search did.
    assert np.all(mean[5] == 0.0)
    assert np.all(var[5] == 1.0)
    assert value[5] == 0.0
    at_truth = problem.bounds(
        case.asarray(X[60:70]), b.xp.zeros_like(found.mean) + 1e-3, everything(b, 10)
    )
    assert np.all(value >= case.to_numpy(at_truth[0]) - 1e-9)
    gradients = problem.bounds(found.mean, found.variance, everything(b, 10))[1:]
    sd = np.sqrt(var[some])
    assert np.max(np.abs(case.to_numpy(gradients[0])[some]) * sd) < 2e-3
    assert np.max(np.abs(case.to_numpy(gradients[1])[some]) * var[some]) < 2e-3


def test_many_rows_at_once_are_as_one_after_the_other():
    numbers_, X, Y = learned()
    p = InducingPosterior.of(backend.get("numpy"), *numbers_)
    rng = np.random.default_rng(1)
    new = Y[rng.integers(0, 80, 400)] + 0.05 * rng.standard_normal((400, 12))
    new[rng.random(new.shape) < 0.1] = np.nan
    begin = np.full(2, 0.01)
    found = NewLatents.of(p, new).solve(X[:60], begin)
    assert np.mean(found.settled) > 0.99
    for i in range(0, 400, 97):
        one = NewLatents.of(p, new[i : i + 1]).solve(X[:60], begin)
        np.testing.assert_allclose(one.value[0], found.value[i], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(one.mean[0], found.mean[i], atol=1e-3)


def test_float32_rows_are_placed_as_in_float64():
    numbers_, X, Y = learned()
    numbers_ = (*numbers_[:2], 1e-3, *numbers_[3:])
    found = []
    for dtype in ("float64", "float32"):
        b = backend.get("numpy", dtype=dtype)
        p = InducingPosterior.of(b, *numbers_)
        found.append(NewLatents.of(p, Y[60:]).solve(b.asarray(X[:60]), b.asarray([0.01, 0.01])))
    assert found[1].mean.dtype == np.float32
    error = np.abs(found[1].mean - found[0].mean) / np.sqrt(found[0].variance)
    assert np.median(error) < 0.05


@pytest.mark.parametrize("q", [1, 2])
def test_densities_against_integration(q):
    """ln ∫ p(y | x, q(u)) p(x) dx on a grid: the bound is below, the average close."""
    numbers_, X, Y = learned(q=q, noise=0.05)
    p = InducingPosterior.of(backend.get("numpy"), *numbers_)
    new = Y[60:68, :].copy()
    new[0, 3:] = np.nan
    problem = NewLatents.of(p, new)
    found = problem.solve(X[:60], np.full(q, 0.01))
    axis = np.linspace(-5.0, 5.0, 4001 if q == 1 else 201)
    grid = np.stack(np.meshgrid(*[axis] * q, indexing="ij"), axis=-1).reshape(-1, q)
    m, v = p.moments(grid)
    logs = stats.norm(0.0, 1.0).logpdf(grid).sum(axis=1)
    terms = stats.norm(m, np.sqrt(v + 0.05)).logpdf(new[:, None, :])
    logs = np.nansum(terms, axis=2) + logs
    want = np.log(np.exp(logs - logs.max(axis=1, keepdims=True)).sum(axis=1))
    want = want + logs.max(axis=1) + q * np.log(axis[1] - axis[0])
    assert np.all(found.value <= want)
    got = problem.log_density(found.mean, found.variance)
    assert np.all(got >= found.value)
    # Row 0 has three entries of twelve and so a broad posterior, or several modes.
    np.testing.assert_allclose(got[1:], want[1:], atol=0.05)
    assert found.value[0] <= got[0] <= want[0] + 0.05


def test_counts_are_placed_where_they_came_from():
    numbers_, X, _ = learned(q=1, D=30)
    rng = np.random.default_rng(5)
    numbers_ = (*numbers_[:-1], Poisson(), np.full(30, 2.0))
    p = InducingPosterior.of(backend.get("numpy"), *numbers_)
    at = rng.uniform(-1.2, 1.2, (40, 1))
    Y = rng.poisson(np.exp(p.moments(at)[0])).astype(float)
    Y[rng.random(Y.shape) < 0.2] = np.nan
    Y[0] = np.nan
    problem = NewLatents.of(p, Y)
    found = problem.solve(X[:60], np.array([0.01]))
    assert np.all(found.settled)
    z = (found.mean - at)[1:] / np.sqrt(found.variance[1:])
    assert np.sqrt(np.mean(z**2)) < 2.0
    assert np.all(problem.log_density(found.mean, found.variance) >= found.value - 1e-6)


# -- points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_point_objective_and_gradient(case, name):
    p = posterior(case.backend, KERNELS[name])
    b, xp = case.backend, case.backend.xp
    Y, at = rows(), latents()[0]
    problem = NewPoints.of(p, Gaussian(0.1, 1.2), Y)
    f, _ = problem.value_and_grad(case.asarray(at), everything(b, 6))
    m, v = textbook(p, at)
    want = -np.nansum(stats.norm(m, np.sqrt(v + NOISE)).logpdf(Y), axis=1)
    want = want - stats.norm(0.1, 1.2).logpdf(at).sum(axis=1)
    np.testing.assert_allclose(case.to_numpy(f), want, rtol=case.tolerance(1e-9, 2e-2))

    def total(x):
        f, g = problem.value_and_grad(xp.reshape(x, (6, 2)), everything(b, 6))
        return xp.sum(f), xp.reshape(g, (-1,))

    loose = {"rtol": 3e-2, "step": 1e-1} if case.single else {"rtol": 1e-7, "step": 4e-3}
    check_gradient(total, case.asarray(at.ravel()), **loose)


def test_point_rows_are_recovered_and_their_density_is_right():
    numbers_, X, Y = learned(q=1, noise=1e-3)
    p = InducingPosterior.of(backend.get("numpy"), *numbers_)
    new = Y[60:66].copy()
    new[5] = np.nan
    problem = NewPoints.of(p, Gaussian(0.2, 1.5), new)
    found = problem.solve(X[:60])
    assert found.variance is None
    assert np.all(found.settled)
    np.testing.assert_allclose(found.mean[:5], X[60:65], atol=0.05)
    np.testing.assert_allclose(found.mean[5], 0.2, atol=1e-5)
    C = problem.laplace(found.mean)[0]
    np.testing.assert_allclose(C[5], 1.5**2, rtol=1e-5)
    axis = np.linspace(-3.0, 3.0, 60001)
    for i in range(5):
        f = problem.value_and_grad(axis[:, None], np.full(axis.size, i))[0]
        want = np.log(np.sum(np.exp(f.min() - f)) * (axis[1] - axis[0])) - f.min()
        np.testing.assert_allclose(problem.log_density(found.mean)[i], want, atol=0.02)
    np.testing.assert_allclose(problem.log_density(found.mean)[5], 0.0, atol=1e-6)


def test_points_need_gaussian_noise():
    with pytest.raises(ValueError, match=r"Gaussian noise.*Poisson.*uncertain latents"):
        NewPoints.of(posterior(backend.get("numpy"), noise=Poisson()), None, rows())


# -- nodes and libraries ---------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2, 3, 10])
def test_nodes_have_the_moments_of_the_normal(q):
    places, weights = nodes(q, 32)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(weights @ places, 0.0, atol=1e-12)
    np.testing.assert_allclose(places.T @ (weights[:, None] * places), np.eye(q), atol=1e-12)
    a = np.linspace(0.1, 0.4, q)
    got = weights @ np.exp(places @ a)
    np.testing.assert_allclose(got, np.exp(0.5 * a @ a), rtol=0.05)


def test_emulated_gpu_gives_the_same_latents():
    if why_not("emulated"):
        pytest.skip(why_not("emulated"))
    found = []
    numbers_, X, Y = learned()
    for name in ("numpy-f64", "emulated"):
        with open_case(name) as case:
            p = InducingPosterior.of(case.backend, *numbers_)
            end = NewLatents.of(p, Y[60:64]).solve(case.asarray(X[:60]), case.asarray([0.01, 0.01]))
            found.append([case.to_numpy(a) for a in end[:3]])
    np.testing.assert_allclose(found[1][2], found[0][2], atol=1e-5)
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-3)


# -- what estimators make of it --------------------------------------------------------------------


class Given(FittedInducing):
    """A fitted state that nobody fitted."""

    def __init__(self, backend=None, dtype="float64", latent_prior="gaussian"):
        self.backend, self.dtype, self.latent_prior = backend, dtype, latent_prior

    def fit(self, X, y=None):
        return self


def given(*, points=False, likelihood=None, **shape):
    numbers_, X, Y = learned(**shape)
    kernel, Z, jitter, mean, T, which, noise = numbers_
    m = Given()
    m.mean_, m.scale_ = np.arange(12.0), np.linspace(1.0, 3.0, 12)
    if likelihood is not None:
        m.mean_, m.scale_ = np.full(12, 1.0), np.ones(12)
        Y = np.random.default_rng(0).poisson(np.exp(Y + 1.0)).astype(float)
    else:
        Y = Y * m.scale_ + m.mean_
    m.kernel_, m.jitter_, m.noise_variance_, m.likelihood_ = kernel, jitter, noise, likelihood
    m.inducing_inputs_, m.inducing_mean_, m.inducing_factor_ = Z, mean, T
    m.inducing_groups_ = which
    m.training_data_, m.n_features_in_ = Y[:60].copy(), 12
    m._host_embedding = m.embedding_ = X[:60].copy()
    m._host_variance = None if points else np.full((60, X.shape[1]), 0.01)
    return m, X, Y


@pytest.mark.parametrize("points", [False, True], ids=["uncertain", "points"])
def test_estimator_places_predicts_and_fills(points):
    m, X, Y = given(points=points)
    Z, var = m.transform(Y[55:70], return_var=True)
    assert np.array_equal(Z[:5], X[55:60])
    assert np.all(np.abs(Z - X[55:70])[5:] < 5.0 * np.sqrt(var[5:]) + 0.05)
    assert np.all(var > 0.0)
    assert points or np.all(var[:5] == 0.01)
    new = Y[60:80].copy()
    gone = np.random.default_rng(0).random(new.shape) < 0.3
    new[gone] = np.nan
    filled, spread = m.impute(new, return_var=True)
    assert np.array_equal(filled[~gone], new[~gone])
    assert np.all(spread[~gone] == 0.0)
    error = (filled - Y[60:80])[gone]
    assert np.sqrt(np.mean(error**2)) < 0.25 * np.std((Y - m.mean_)[60:80][gone])
    assert 0.7 < np.sqrt(np.mean(error**2 / spread[gone])) < 1.6
    assert np.array_equal(m.impute(new), filled)
    # Reconstruction of rows is what their own latents say; given latents are certain.
    mean, variance = m.predict(new, return_var=True)
    assert np.array_equal(mean[gone], filled[gone])
    at, at_var = m.predict(X[60:80], return_var=True, noise=False)
    assert np.all(at_var < m.predict(X[60:80], return_var=True)[1])
    assert np.array_equal(m.inverse_transform(X[60:80]), at)
    assert np.all(
        variance[gone] >= m.noise_variance_ * np.broadcast_to(m.scale_**2, gone.shape)[gone]
    )
    places, spread_ = m.transform(new, return_var=True)
    want, want_var = m._post().moments(places, spread_)
    np.testing.assert_allclose(mean, want * m.scale_ + m.mean_)
    np.testing.assert_allclose(variance, (want_var + m.noise_variance_) * m.scale_**2)


@pytest.mark.parametrize("points", [False, True], ids=["uncertain", "points"])
def test_scores_are_densities_in_the_datas_own_units(points):
    """By a grid over the latent, and by the change of units."""
    m, _, Y = given(points=points, q=1)
    new = Y[60:66].copy()
    new[1, :6] = np.nan
    got = m.score_samples(new)
    axis = np.linspace(-4.0, 4.0, 4001)[:, None]
    mean, var = m.predict(axis, return_var=True)
    logs = stats.norm(mean, np.sqrt(var)).logpdf(new[:, None, :])
    logs = np.nansum(logs, axis=2) + stats.norm(0.0, 1.0).logpdf(axis[:, 0])
    want = np.log(np.exp(logs - logs.max(axis=1, keepdims=True)).sum(axis=1) * 0.002)
    np.testing.assert_allclose(got, want + logs.max(axis=1), atol=0.1)
    assert m.score(new) == pytest.approx(np.mean(got))


def test_draws_look_like_the_model():
    m, _, _ = given()
    rows_, Z = m.sample(4000, random_state=0)
    assert rows_.shape == (4000, 12)
    np.testing.assert_allclose(Z.std(axis=0), 1.0, atol=0.05)
    mean, var = m.predict(Z, return_var=True)
    np.testing.assert_allclose(((rows_ - mean) / np.sqrt(var)).std(), 1.0, atol=0.02)
    assert m.relevance().shape == (2,)


def test_counts_by_an_estimator():
    m, X, Y = given(likelihood=Poisson(), q=1)
    new = Y[60:80].copy()
    new[:, 3] = np.nan
    filled, var = m.impute(new, return_var=True)
    assert np.all(filled[:, 3] > 0.0)
    assert np.all(var[:, 3] >= filled[:, 3])
    assert np.corrcoef(filled[:, 3], m.predict(X[60:80])[:, 3])[0, 1] > 0.8
    assert np.all(np.isfinite(m.score_samples(new)))
    log_rate = m.predict(X[60:80], noise=False)
    assert np.all(np.exp(log_rate) <= m.predict(X[60:80]))
    with pytest.raises(ValueError, match=r"counts|whole"):
        m.transform(np.where(np.isnan(new), 0.5, new))
    with pytest.raises(ValueError, match=r"Poisson.*can't be drawn.*use predict"):
        m.sample(3)


def test_a_row_not_settled_is_said_once(monkeypatch):
    m, _, Y = given()
    solve = NewLatents.solve
    monkeypatch.setattr(NewLatents, "solve", lambda self, a, s: solve(self, a, s, max_steps=1))
    with pytest.warns(ConvergenceWarning, match="of 20 rows have not settled") as caught:
        m.transform(Y[60:80])
    assert caught[0].filename == __file__


def test_a_copy_has_no_factor_and_says_the_same():
    m, _, Y = given()
    Z = m.transform(Y[60:65])
    copy = pickle.loads(pickle.dumps(m))
    assert "_posterior" not in vars(copy)
    assert np.array_equal(copy.transform(Y[60:65]), Z)
