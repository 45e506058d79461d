"""The Gaussian KL divergence: constants, derivatives in the mean, and the sum of its parts."""

from __future__ import annotations

import numpy as np
import pytest

from gplvm_xp import kl
from gplvm_xp.operators import DensePrecision, DiagonalPrecision
from gplvm_xp.posteriors import Cholesky, Full, LowRank
from gplvm_xp.testing import check_gradient, check_hvp

L = 4


def definite(rng, *lead):
    A = rng.standard_normal((*lead, L, L + 2))
    return A @ np.swapaxes(A, -1, -2) / L + 0.3 * np.eye(L)


def problem(seed=0, lead=()):
    rng = np.random.default_rng(seed)
    mu, mu0 = rng.standard_normal((2, *lead, L))
    return mu, definite(rng, *lead), mu0, definite(rng, *lead)


def test_against_the_integral_in_one_dimension():
    quad = pytest.importorskip("scipy.integrate").quad
    mu, variance, mu0, precision = 0.7, 0.4, -0.2, 1.9

    def log_density(x, mean, var):
        return -0.5 * (np.log(2 * np.pi * var) + (x - mean) ** 2 / var)

    def term(x):
        q = log_density(x, mu, variance)
        return np.exp(q) * (q - log_density(x, mu0, 1.0 / precision))

    want = quad(term, mu - 12 * np.sqrt(variance), mu + 12 * np.sqrt(variance), epsabs=1e-13)[0]
    one = np.array
    got = kl.gaussian(one([mu]), one([[variance]]), one([mu0]), one([[precision]]))
    assert abs(got - want) < 1e-12


def test_against_torch():
    torch = pytest.importorskip("torch")
    mu, Sigma, mu0, Lambda = problem(1, (3,))
    put = torch.as_tensor
    normal = torch.distributions.MultivariateNormal
    q = normal(put(mu), covariance_matrix=put(Sigma))
    p = normal(put(mu0), precision_matrix=put(Lambda))
    want = torch.distributions.kl_divergence(q, p).numpy()
    np.testing.assert_allclose(kl.gaussian(mu, Sigma, mu0, Lambda), want, rtol=1e-13)


def test_zero_only_where_the_two_agree():
    mu, _, mu0, Lambda = problem(2)
    inverse = np.linalg.inv(Lambda)
    assert abs(kl.gaussian(mu, inverse, mu, Lambda)) < 1e-14
    for seed in range(20):
        _, Sigma, _, _ = problem(seed)
        assert kl.gaussian(mu, Sigma, mu, Lambda) > 1e-3
    moved = kl.gaussian(mu, inverse, mu0, Lambda)
    assert abs(moved - 0.5 * (mu - mu0) @ Lambda @ (mu - mu0)) < 1e-12


def test_the_constant_is_minus_half_the_dimension():
    """Equation 1 prints "+ constant"."""
    mu, Sigma, mu0, Lambda = problem(3)
    logs = np.linalg.slogdet(Sigma)[1] + np.linalg.slogdet(Lambda)[1]
    without = 0.5 * ((mu - mu0) @ Lambda @ (mu - mu0) + np.trace(Lambda @ Sigma) - logs)
    assert abs(kl.gaussian(mu, Sigma, mu0, Lambda) - without + 0.5 * L) < 1e-12


def test_every_library(case):
    mu, Sigma, mu0, Lambda = problem(4, (2,))
    put = case.asarray
    b = case.backend
    got = kl.gaussian(put(mu), put(Sigma), put(mu0), put(Lambda))
    assert got.shape == (2,)
    assert got.dtype == b.dtype
    away = mu - mu0
    square = np.einsum("bi,bij,bj->b", away, Lambda, away)
    logs = np.linalg.slogdet(Sigma)[1] + np.linalg.slogdet(Lambda)[1]
    want = 0.5 * (square + np.einsum("bij,bji->b", Lambda, Sigma) - logs - L)
    np.testing.assert_allclose(case.to_numpy(got), want, rtol=case.tolerance(1e-12, 1e-4))
    value, gradient = kl.mean_part(put(mu), put(mu0), DensePrecision(put(Lambda)))
    tolerance = case.tolerance(1e-12, 1e-4)
    np.testing.assert_allclose(case.to_numpy(value), 0.5 * square, rtol=tolerance)
    want = np.einsum("bij,bj->bi", Lambda, away)
    np.testing.assert_allclose(case.to_numpy(gradient), want, rtol=tolerance, atol=tolerance)


def test_not_a_number_where_a_matrix_is_indefinite():
    mu, Sigma, mu0, Lambda = problem(5, (3,))
    Sigma[1] -= 100 * np.eye(L)
    Lambda[2] -= 100 * np.eye(L)
    assert list(np.isnan(kl.gaussian(mu, Sigma, mu0, Lambda))) == [False, True, True]


def test_derivatives_in_the_mean():
    mu, _, mu0, Lambda = problem(6)
    prior = DensePrecision(Lambda)
    check_gradient(lambda x: kl.mean_part(x, mu0, prior), mu, rtol=1e-9)
    check_hvp(
        lambda x: kl.mean_part(x, mu0, prior)[1], lambda _, u: kl.mean_hvp(u, prior), mu, rtol=1e-9
    )


@pytest.mark.parametrize(
    "covariance", [Full(), Cholesky(), LowRank(L)], ids=lambda c: type(c).__name__
)
def test_the_whole_divergence(covariance):
    mu, Sigma, mu0, Lambda = problem(7, (2,))
    prior = DensePrecision(Lambda)
    theta = Sigma if isinstance(covariance, Full) else np.linalg.cholesky(Sigma)
    found = kl.divergence(mu, theta, covariance, mu0, prior)
    np.testing.assert_allclose(found.value, kl.gaussian(mu, Sigma, mu0, Lambda), rtol=1e-12)
    rng = np.random.default_rng(0)
    delta, M = rng.standard_normal(mu.shape), np.tril(rng.standard_normal(theta.shape))
    M = M + np.swapaxes(M, -1, -2) if isinstance(covariance, Full) else M

    def at(h):
        return kl.divergence(mu + h * delta, theta + h * M, covariance, mu0, prior)

    h = 1e-4
    slope = (at(h).value - at(-h).value) / (2 * h)
    want = np.sum(found.gmu * delta, -1) + np.sum(found.gtheta * M, (-2, -1))
    np.testing.assert_allclose(slope, want, rtol=1e-6)
    H_mu, H_theta = found.hvp(delta, M)
    np.testing.assert_allclose((at(h).gmu - at(-h).gmu) / (2 * h), H_mu, rtol=1e-7, atol=1e-7)
    change = (at(h).gtheta - at(-h).gtheta) / (2 * h)
    assert np.linalg.norm(change - H_theta) < 1e-6 * np.linalg.norm(H_theta)


def test_a_diagonal_prior_and_one_that_is_dense_agree():
    mu, Sigma, mu0, _ = problem(8)
    lam = np.array([0.2, 1.0, 3.0, 9.0])
    one = kl.divergence(mu, Sigma, Full(), mu0, DiagonalPrecision(lam))
    assert abs(one.value - kl.gaussian(mu, Sigma, mu0, np.diag(lam))) < 1e-12
