"""What must hold for any numbers: divergences, maps, fixed points on strange data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gplvm_xp import kl, likelihoods
from gplvm_xp import posteriors as post
from gplvm_xp.operators import Dense, DensePrecision, DiagonalPrecision, Hartley, Identity
from gplvm_xp.variational import FreeEnergy, Information, Observations, fixed_point

FEW = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def spd(rng, n, condition=1e4):
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (Q * condition ** rng.uniform(-0.5, 0.5, n)) @ Q.T


@FEW
@given(seeds, st.integers(1, 6))
def test_a_divergence_is_not_negative_and_zero_only_at_the_prior(seed, L):
    rng = np.random.default_rng(seed)
    Lam, mu = spd(rng, L), rng.standard_normal(L)
    prior = DensePrecision(Lam)
    Sigma = np.linalg.inv(Lam)
    at_prior = kl.gaussian(mu, Sigma, mu, Lam)
    assert abs(at_prior) < 1e-8
    other = spd(rng, L)
    value = kl.gaussian(mu + rng.standard_normal(L), other, mu, Lam)
    assert value >= -1e-9
    state = post.Cholesky().at(np.linalg.cholesky(other), prior)
    np.testing.assert_allclose(state.kl(), kl.gaussian(mu, other, mu, Lam), rtol=1e-8, atol=1e-9)
    same = post.Cholesky().at(np.linalg.cholesky(Sigma), prior)
    assert np.abs(same.gradient()).max() <= 1e-7 * np.abs(np.linalg.cholesky(Lam)).max()


@FEW
@given(seeds, st.integers(1, 5), st.integers(1, 8), st.floats(-3.0, 1.0))
def test_sites_are_a_covariance_or_say_no(seed, L, N, lowest):
    """Any p: either Σ is what its definition says, or `ok` is false and the value infinite."""
    rng = np.random.default_rng(seed)
    Lam, B = spd(rng, L, 100.0), rng.standard_normal((N, L))
    p = rng.uniform(lowest, 2.0, N)
    P = Lam + B.T @ (p[:, None] * B)
    state = post.InverseDiagonal(Dense(B)).at(p, DensePrecision(Lam))
    smallest = np.linalg.eigvalsh(P)[0]
    if smallest > 1e-6:
        assert state.ok
        np.testing.assert_allclose(state.dense() @ P, np.eye(L), atol=1e-7)
    elif smallest < -1e-6:
        assert not state.ok
        assert state.kl() == np.inf


@FEW
@given(
    seeds,
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.floats(0.0, 1.0),
)
def test_a_hartley_map_is_its_matrix(seed, shape, part):
    rng = np.random.default_rng(seed)
    cells = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)
    chosen = cells[rng.permutation(len(cells))[: max(1, int(part * len(cells)))]]
    basis = Hartley(tuple(shape), chosen)
    F = basis.basis()
    R, N = F.shape
    p, z, C = rng.standard_normal(N), rng.standard_normal(R), rng.standard_normal((R, R))
    np.testing.assert_allclose(F @ F.T, np.eye(R), atol=1e-12)
    np.testing.assert_allclose(basis.apply(z), F.T @ z, atol=1e-12)
    np.testing.assert_allclose(basis.adjoint(p), F @ p, atol=1e-12)
    np.testing.assert_allclose(basis.gram(p), (F * p) @ F.T, atol=1e-12)
    np.testing.assert_allclose(basis.quad(C), np.sum(F * (C @ F), axis=0), atol=1e-12)


LIKELIHOODS = (
    likelihoods.Poisson(),
    likelihoods.NegativeBinomial(0.7),
    likelihoods.BernoulliLogit(nodes=32),
    likelihoods.StudentT(3.0, 0.3),
    likelihoods.Gaussian(1e-4),
)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda k: k.name)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seeds, st.floats(-4.0, 4.0), st.sampled_from([0.0, 1.0, 30.0, 3000.0]))
def test_a_fixed_point_ends_in_a_posterior(likelihood, seed, log_variance, size):
    """Wide or narrow priors, empty or huge counts, masks: no NaN, no rise, no error."""
    rng = np.random.default_rng(seed)
    N = 6
    A = rng.standard_normal((N, N))
    K = np.exp(log_variance) * (A @ A.T / N + 0.1 * np.eye(N))
    if isinstance(likelihood, likelihoods.BernoulliLogit):
        y, exposure = rng.integers(0, 2, N).astype(float), None
    elif likelihood.name in ("poisson", "negative_binomial"):
        y, exposure = (
            rng.poisson(size, N).astype(float),
            np.where(rng.uniform(size=N) > 0.2, 0.5, 0),
        )
    else:
        y, exposure = size * rng.standard_normal(N), None
    seen = np.ones(N) if exposure is None else (exposure > 0.0).astype(float)
    y = np.where(seen > 0.0, y, 0.0)
    data = Observations(likelihood, y, seen, exposure)
    B = np.linalg.cholesky(K)
    found = fixed_point(Information(DiagonalPrecision(np.ones(N)), Dense(B), y), data, max_steps=60)
    assert np.isfinite(found.free_energy)
    for a in (found.mu, found.m, found.v, found.p, found.y):
        assert np.isfinite(a).all()
    assert np.all(found.v >= 0.0)
    rises = np.diff(found.free_energies)
    assert np.all(rises[np.isfinite(rises)] <= 1e-8 * (1.0 + np.abs(found.free_energy)))


@FEW
@given(seeds)
def test_the_order_of_observations_says_nothing(seed):
    rng = np.random.default_rng(seed)
    B, y = rng.standard_normal((7, 3)), rng.poisson(2.0, 7).astype(float)
    order = rng.permutation(7)
    prior = DensePrecision(spd(rng, 3, 10.0))

    def run(rows):
        return fixed_point(
            Information(prior, Dense(B[rows]), y), Observations(likelihoods.Poisson(), y[rows])
        )

    one, other = run(np.arange(7)), run(order)
    np.testing.assert_allclose(one.free_energy, other.free_energy, rtol=1e-10)
    np.testing.assert_allclose(one.mu, other.mu, atol=1e-7)


@FEW
@given(seeds, st.floats(0.1, 10.0))
def test_weights_count_repetitions(seed, scale):
    rng = np.random.default_rng(seed)
    y = rng.poisson(scale, 4).astype(float)
    prior = DensePrecision(spd(rng, 4, 10.0))
    twice = np.tile(np.eye(4), (2, 1))
    weighted = fixed_point(
        Information(prior, Identity(4), y), Observations(likelihoods.Poisson(), y, np.full(4, 2.0))
    )
    repeated = fixed_point(
        Information(prior, Dense(twice), y), Observations(likelihoods.Poisson(), np.tile(y, 2))
    )
    np.testing.assert_allclose(weighted.free_energy, repeated.free_energy, rtol=1e-10)


def test_nan_is_never_a_free_energy():
    """A NaN in the data or the point gives +inf, which every solver refuses."""
    prior, y = DiagonalPrecision(np.ones(2)), np.array([1.0, np.nan])
    free = FreeEnergy(prior, Identity(2), post.Cholesky(), Observations(likelihoods.Poisson(), y))
    assert free.at(free.start(np.zeros(2), np.eye(2))).value == np.inf
    found = fixed_point(Information(prior, Identity(2), y), Observations(likelihoods.Poisson(), y))
    assert found.status == "failed"
    assert found.free_energy == np.inf
