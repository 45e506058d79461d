"""Priors against SciPy, the flat parameter vector, and the starts of a fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gplvm_xp import init
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Gamma, Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

PRIORS = {
    "gaussian": (Gaussian(0.4, 1.7), stats.norm(0.4, 1.7)),
    "standard": (Gaussian(), stats.norm()),
    "lognormal": (LogNormal(0.3, 0.7), stats.lognorm(0.7, scale=np.exp(0.3))),
    "gamma": (Gamma(2.5, 1.3), stats.gamma(2.5, scale=1 / 1.3)),
    "gamma-flat": (Gamma(1.0, 0.2), stats.expon(scale=5.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_density_with_all_constants(case, name):
    prior, law = PRIORS[name]
    value = np.random.default_rng(0).uniform(0.2, 3.0, (4, 3))
    densities, slope = prior.log_densities(case.asarray(value))
    tight = case.tolerance(1e-13, 1e-5)
    np.testing.assert_allclose(case.to_numpy(densities), law.logpdf(value), rtol=tight, atol=tight)
    total, again = prior.log_density(case.asarray(value))
    assert total.shape == ()
    np.testing.assert_allclose(case.to_numpy(total), law.logpdf(value).sum(), rtol=10 * tight)
    np.testing.assert_array_equal(case.to_numpy(again), case.to_numpy(slope))
    assert slope.dtype == case.asarray(value).dtype


@pytest.mark.parametrize("name", PRIORS)
def test_slope(case, name):
    prior, _ = PRIORS[name]
    value = np.random.default_rng(1).uniform(0.5, 3.0, 6)
    loose = {"rtol": 1e-2, "step": 5e-2} if case.single else {"rtol": 1e-8, "step": 4e-3}
    check_gradient(prior.log_density, case.asarray(value), **loose)


# -- the flat vector -------------------------------------------------------------------------------

LAYOUT = Layout(
    (
        Block("scalar", 2.0),
        Block("vector", (0.5, 1.5, 2.5)),
        Block("matrix", np.arange(6.0).reshape(2, 3) - 2.0, "identity"),
    )
)


def test_layout_round_trip(case):
    assert LAYOUT.size == 10
    assert LAYOUT.slices() == {"scalar": slice(0, 1), "vector": slice(1, 4), "matrix": slice(4, 10)}
    values, _ = LAYOUT.unpack(case.asarray(LAYOUT.start()))
    for block in LAYOUT.blocks:
        got = values[block.name]
        assert got.shape == block.value.shape
        tight = case.tolerance(1e-15, 1e-6)
        np.testing.assert_allclose(case.to_numpy(got), block.value, rtol=tight)


def test_gradients_go_back_through_the_logarithm(case):
    """A function of natural values, differentiated in the unconstrained vector."""
    xp = case.backend.xp

    def fun(x):
        values, to_gradient = LAYOUT.unpack(x)
        a, v, m = values["scalar"], values["vector"], values["matrix"]
        f = a * xp.sum(v * v) + xp.sum(m * m * m) * a
        gradients = {
            "scalar": xp.sum(v * v) + xp.sum(m * m * m),
            "vector": 2.0 * a * v,
            "matrix": 3.0 * a * m * m,
        }
        return f, to_gradient(gradients)

    loose = {"rtol": 1e-2, "step": 5e-2} if case.single else {"rtol": 1e-8, "step": 4e-3}
    check_gradient(fun, case.asarray(LAYOUT.start()), **loose)


def test_a_missing_gradient_is_zero(case):
    _, to_gradient = LAYOUT.unpack(case.asarray(LAYOUT.start()))
    g = case.to_numpy(to_gradient({"scalar": case.asarray(3.0)}))
    np.testing.assert_allclose(g, [6.0] + [0.0] * 9, rtol=1e-6)


def test_an_empty_layout():
    empty = Layout(())
    assert empty.size == 0
    assert empty.start().shape == (0,)
    values, to_gradient = empty.unpack(np.zeros(0))
    assert values == {}
    assert to_gradient({}).shape == (0,)


# -- starts ----------------------------------------------------------------------------------------


def table(n=12, D=5, seed=0):
    Y = np.random.default_rng(seed).standard_normal((n, D)) @ np.diag([3.0, 2.0, 1.0, 0.5, 0.1])
    return Y - Y.mean(0)


def test_pca_is_the_covariance_pca_with_its_signs_fixed():
    from sklearn.decomposition import PCA

    Y = table()
    want = PCA(2).fit_transform(Y)
    X = init.latents("pca", Y, 2, np.random.default_rng(0))
    assert X[:, 0].std() == pytest.approx(1.0)
    # One factor for all columns: relative widths are kept.
    np.testing.assert_allclose(np.abs(X), np.abs(want) / want[:, 0].std(), rtol=1e-9)
    peak = np.argmax(np.abs(X), axis=0)
    assert np.all(X[peak, [0, 1]] > 0)
    # Turning the data round does not turn the latents.
    np.testing.assert_allclose(init.latents("pca", -Y, 2, None), X, rtol=1e-9, atol=1e-12)


def test_dual_ppca_closed_form():
    Y = table()
    X, noise = init.dual_ppca(Y, 2)
    values, vectors = np.linalg.eigh(Y @ Y.T / Y.shape[1])
    order = np.argsort(values)[::-1]
    rest = values[order][2:].mean()
    np.testing.assert_allclose(noise, rest, rtol=1e-10)
    lead = vectors[:, order[:2]]
    want = lead @ np.diag(values[order[:2]] - rest) @ lead.T
    np.testing.assert_allclose(X @ X.T, want, atol=1e-10)


def test_gaps_are_filled_from_the_low_rank_structure():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 8))
    gaps = Y.copy()
    gaps[rng.random(Y.shape) < 0.1] = np.nan
    filled = init.complete(gaps, 2, rounds=500, tol=1e-9)
    np.testing.assert_allclose(filled, Y, atol=1e-4)
    np.testing.assert_array_equal(filled[~np.isnan(gaps)], Y[~np.isnan(gaps)])
    assert init.complete(Y, 2) is Y


@pytest.mark.parametrize("method", init.METHODS)
def test_starts_are_finite_reproducible_and_of_the_right_shape(method):
    Y = table(25)
    Y[3, 2] = np.nan
    a, b = (init.latents(method, Y, 2, np.random.default_rng(3)) for _ in range(2))
    assert a.shape == (25, 2)
    assert np.all(np.isfinite(a))
    np.testing.assert_array_equal(a, b)
    if method != "random":
        np.testing.assert_allclose(a.mean(0), 0.0, atol=1e-10)
        assert a.std(axis=0).max() == pytest.approx(1.0)


def test_a_column_of_zeros_keeps_its_scale():
    assert np.all(init.fix_scale(np.zeros((4, 2))) == 0.0)
    assert np.all(init.fix_signs(np.zeros((4, 2))) == 0.0)
    np.testing.assert_array_equal(init.fix_signs(np.array([[-2.0, 1.0], [2.0, -3.0]]))[1], [-2, 3])
