"""Errors and densities of predicted entries, beside SciPy's and by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from gplvm_xp.metrics import mean_absolute_error, negative_log_density, root_mean_squared_error

RNG = np.random.default_rng(0)
Y = RNG.normal(size=(6, 4))
MEAN = Y + RNG.normal(size=Y.shape)
VARIANCE = RNG.uniform(0.5, 2.0, Y.shape)
MASK = RNG.uniform(size=Y.shape) < 0.4


@pytest.mark.parametrize("masked", [False, True])
def test_values_are_those_of_the_definition(masked: bool) -> None:
    mask = MASK if masked else None
    at = MASK if masked else np.ones_like(MASK)
    gap = (MEAN - Y)[at]
    assert 0 < at.sum() < Y.size or not masked
    np.testing.assert_allclose(
        root_mean_squared_error(Y, MEAN, mask=mask), np.linalg.norm(gap) / gap.size**0.5
    )
    np.testing.assert_allclose(
        mean_absolute_error(Y, MEAN, mask=mask), np.abs(gap).sum() / gap.size
    )
    want = -stats.norm(MEAN, np.sqrt(VARIANCE)).logpdf(Y)[at].mean()
    np.testing.assert_allclose(negative_log_density(Y, MEAN, VARIANCE, mask=mask), want)


def test_unknown_entries_and_those_outside_the_mask_are_never_read() -> None:
    holes, mean, variance = Y.copy(), MEAN.copy(), VARIANCE.copy()
    holes[0] = np.nan
    known = ~np.isnan(holes)
    mean[0], variance[0] = np.nan, -1.0
    np.testing.assert_allclose(
        root_mean_squared_error(holes, mean), root_mean_squared_error(Y, MEAN, mask=known)
    )
    np.testing.assert_allclose(
        negative_log_density(holes, mean, variance),
        negative_log_density(Y, MEAN, VARIANCE, mask=known),
    )
    mean[~MASK] = np.inf
    np.testing.assert_allclose(
        mean_absolute_error(holes, mean, mask=MASK),
        mean_absolute_error(Y, MEAN, mask=MASK & known),
    )


def test_the_density_is_best_at_the_true_variance() -> None:
    y = np.random.default_rng(1).normal(scale=1.5, size=20000)
    scores = [negative_log_density(y, 0.0 * y, v + 0.0 * y) for v in (1.5, 2.25, 3.4)]
    assert scores[1] == min(scores)
    np.testing.assert_allclose(scores[1], stats.norm(scale=1.5).entropy(), rtol=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: root_mean_squared_error(Y, MEAN[1:]), r"predicted has shape \(5, 4\), expected"),
        (lambda: mean_absolute_error(Y, MEAN, mask=MASK[0]), r"mask is bool of shape \(4,\)"),
        (lambda: mean_absolute_error(Y, MEAN, mask=1.0 * MASK), "mask is float64"),
        (lambda: mean_absolute_error(Y, MEAN, mask=np.zeros_like(MASK)), "no entry is judged"),
        (lambda: root_mean_squared_error(np.nan * Y, MEAN), "no entry is judged"),
        (lambda: root_mean_squared_error(Y, np.nan * Y), "predicted has 24 entries that are NaN"),
        (lambda: root_mean_squared_error(Y / 0.0, Y), "truth has 24 entries that are NaN or inf"),
        (lambda: negative_log_density(Y, MEAN, VARIANCE[0]), r"variance has shape \(4,\)"),
        (lambda: negative_log_density(Y, MEAN, 0.0 * Y), "variance has 24 entries of 0 or less"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_cannot_be_judged_is_refused(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
