"""What a local posterior says: as its neighbours do, and with all rows as the exact one does."""

from __future__ import annotations

import numpy as np
import pytest

from gplvm_xp import backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.estimators._local import LocalPosterior, NewLocalRows, nearest_rows, place
from gplvm_xp.kernels import RBF, Linear, White
from gplvm_xp.neighbours import nearest
from gplvm_xp.predict import NewRows, Posterior
from gplvm_xp.priors import Gaussian
from gplvm_xp.testing import check_gradient

KERNEL = RBF(1.3, 0.7) + Linear(0.2) + White(0.05)


class CASE:
    """NumPy in float64, where a test needs no other library."""

    asarray = staticmethod(np.asarray)


def posteriors(case, size, missing=False):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((25, 2)), rng.standard_normal((25, 5))
    if missing:
        Y[:4, 1] = Y[7, 3] = Y[[2, 8], 4] = np.nan
    b = backend.of(case.asarray(np.zeros(1)))
    exact = Posterior.of(b, KERNEL, 0.2, X, Y)
    return exact, LocalPosterior.of(b, KERNEL, 0.2, X, Y, size), X, Y


def rows_of(case, missing):
    Y = np.random.default_rng(1).standard_normal((6, 5))
    if missing:
        Y[0, :3] = Y[1, 4] = np.nan
        Y[2] = np.nan
    return Y


@pytest.mark.parametrize("missing", [False, True])
def test_moments_are_exact_with_all_rows(case, missing):
    exact, near, _, _ = posteriors(case, 25, missing)
    Z = case.asarray(np.random.default_rng(2).standard_normal((7, 2)))
    for one, other in zip(near.moments(Z), exact.moments(Z), strict=True):
        np.testing.assert_allclose(
            case.to_numpy(one), case.to_numpy(other), atol=case.tolerance(1e-11, 2e-5)
        )


@pytest.mark.parametrize("missing", [False, True])
def test_moments_are_those_of_the_neighbours(case, missing):
    _, near, X, Y = posteriors(case, 6, missing)
    Z = np.random.default_rng(2).standard_normal((7, 2))
    mean, variance = (case.to_numpy(a) for a in near.moments(case.asarray(Z)))
    for i, index in enumerate(nearest(X, 6, Z)):
        one = Posterior.of(backend.of(X), KERNEL, 0.2, X[index], Y[index])
        for found, wanted in zip((mean, variance), one.moments(Z[i : i + 1]), strict=True):
            np.testing.assert_allclose(found[i], wanted[0], atol=case.tolerance(1e-11, 2e-5))


@pytest.mark.parametrize("missing", [False, True])
def test_the_density_of_a_new_row(case, missing):
    exact, near, _, _ = posteriors(case, 25, missing)
    Y, prior = rows_of(case, missing), Gaussian(0.1, 1.1)
    seen = ~np.isnan(Y)
    whole = NewRows(
        exact, prior, case.asarray(np.where(seen, Y, 0.0)), case.asarray(seen.astype(float))
    )
    Z = case.asarray(np.random.default_rng(3).standard_normal((6, 2)))
    rows = NewLocalRows.of(near, prior, Y, Z)
    every = rows.owner
    for one, other in zip(
        rows.value_and_grad(Z, every), whole.value_and_grad(Z, every), strict=True
    ):
        one, other = case.to_numpy(one), case.to_numpy(other)
        np.testing.assert_allclose(one, other, rtol=case.tolerance(1e-9, 2e-3), atol=1e-4 if
                                   case.single else 1e-9)  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
def test_the_slope_of_the_density(missing):
    _, near, X, _ = posteriors(CASE, 6, missing)
    Y = rows_of(CASE, missing)
    rows = NewLocalRows.of(near, Gaussian(), Y, X[:6] + 0.1)

    def fun(z):
        f, g = rows.value_and_grad(z.reshape(6, 2), rows.owner)
        return f.sum(), g.ravel()

    check_gradient(fun, np.random.default_rng(4).standard_normal(12), rtol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_new_rows_are_at_the_modes_of_the_exact_model(missing):
    exact, near, _, _ = posteriors(CASE, 25, missing)
    Y = exact.moments(np.random.default_rng(5).standard_normal((6, 2)))[0] + 0.05
    if missing:
        Y[0, :2] = Y[1, 4] = np.nan
    seen = ~np.isnan(Y)
    whole = NewRows(exact, Gaussian(), np.where(seen, Y, 0.0), seen.astype(float))
    found, (_, f, settled) = place(near, Gaussian(), Y), whole.solve()
    assert np.all(settled)
    assert np.all(found.settled)
    np.testing.assert_allclose(found.value, f, atol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_rows_near_in_the_data(case, missing):
    _, near, _, table = posteriors(case, 6, missing)
    Y = rows_of(case, missing)
    far = np.nanmean((Y[:, None, :] - table[None]) ** 2, axis=2) if not missing else None
    if missing:
        shared = ~np.isnan(Y)[:, None, :] & ~np.isnan(table)[None]
        gap = np.where(shared, Y[:, None, :] - table[None], 0.0)
        count = shared.sum(axis=2)
        far = np.where(count > 0, np.sum(gap**2, axis=2) / np.maximum(count, 1), np.inf)
    found = nearest_rows(near, Y, 3)
    np.testing.assert_array_equal(found, np.argsort(far, axis=1, kind="stable")[:, :3])


def test_a_row_with_nothing_observed_is_at_the_mode_of_the_prior():
    _, near, _, _ = posteriors(CASE, 6)
    found = place(near, Gaussian(0.3, 1.0), np.full((1, 5), np.nan))
    np.testing.assert_allclose(found.x, 0.3, atol=1e-6)
    np.testing.assert_allclose(found.value, np.log(2.0 * np.pi), rtol=1e-9)


def test_neighbours_without_a_factor():
    X = np.zeros((8, 2))
    near = LocalPosterior.of(backend.of(X), RBF(1.0, 1.0), 0.0, X, np.ones((8, 3)), 4)
    with pytest.raises(NotPositiveDefiniteError, match="4 neighbours with a noise variance of 0"):
        near.moments(np.zeros((2, 2)))
