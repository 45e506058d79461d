"""Log-Gaussian Cox processes: against dense inference, known rates and real events; bad input."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from gplvm_xp import LogGaussianCoxProcess, backend, datasets, load
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.estimators._cells import cells
from gplvm_xp.estimators._contrast import starting_kernel
from gplvm_xp.estimators._grid import Grid
from gplvm_xp.estimators._padding import observations, padded_shape
from gplvm_xp.kernels import RBF, Hexagonal, Linear, Matern32, Matern52, White
from gplvm_xp.likelihoods import Gaussian, NegativeBinomial, Poisson
from gplvm_xp.operators.circulant import lags
from gplvm_xp.testing import check_gradient
from gplvm_xp.variational import Covariance, GridEvidence, Observations, fixed_point

FIXED = {"optimize": False, "fit_mean": False}


def smooth_map(
    shape: tuple[int, ...], ell: float, variance: float, seed: int, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A log-rate drawn from a periodic RBF prior, exposure with holes, and counts."""
    rng = np.random.default_rng(seed)
    where = lags(shape)
    row = np.exp(-0.5 * np.sum(where**2, axis=1) / ell**2).reshape(shape)
    s = np.maximum(np.real(np.fft.fftn(row)), 0.0) * variance
    noise = np.fft.fftn(rng.standard_normal(shape))
    f = np.log(level) + np.real(np.fft.ifftn(np.sqrt(s) * noise))
    exposure = rng.gamma(1.0, 1.0, shape) * (rng.uniform(size=shape) > 0.1)
    return np.exp(f), exposure, rng.poisson(exposure * np.exp(f)).astype(float)


def correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.corrcoef(a[where], b[where])[0, 1])


@pytest.fixture(scope="module")
def one() -> LogGaussianCoxProcess:
    """A fitted process on a line."""
    events = datasets.make_cox_1d(0, scale=4.0).Y
    return LogGaussianCoxProcess(60, extent=(0.0, 50.0)).fit(events)


# -- the model against dense inference -------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Poisson(), NegativeBinomial(3.0)], ids=lambda k: k.name)
@pytest.mark.parametrize("periodic", [(True, True), (False, True)])
def test_posterior_and_free_energy_equal_dense_inference(
    likelihood: Any, periodic: tuple[bool, bool]
) -> None:
    """Everything but the basis: padding, holes, masks, exposure, units of the cells."""
    shape, spacing = (7, 8), (0.5, 2.0)
    _, exposure, counts = smooth_map(shape, 1.5, 1.0, 0, 3.0)
    counts[2, 3] = np.nan
    kernel = Matern32(1.3, (0.6, 2.5))
    model = LogGaussianCoxProcess(
        shape, extent=((1.0, 4.5), (-8.0, 8.0)), periodic=periodic, kernel=kernel,
        likelihood=likelihood, threshold=0.0, **FIXED,
    ).fit_counts(counts, exposure)  # fmt: skip
    wide = tuple(model.padded_shape_.tolist())
    assert (wide[0] > 7) == (not periodic[0])
    assert wide[1] == 8
    assert model.n_frequencies_ == np.prod(wide)
    # The covariance of cells i and j is the kernel at their lag, the short way round.
    i = np.stack([a.ravel() for a in np.indices(shape)], axis=1)
    steps = i[:, None, :] - i[None, :, :]
    steps = (steps + np.array(wide) // 2) % np.array(wide) - np.array(wide) // 2
    flat = (steps * np.array(spacing)).reshape(-1, 2)
    K = kernel.gram(kernel.theta(), np.zeros((1, 2)), flat).reshape(56, 56)
    used = (exposure > 0) & ~np.isnan(counts)
    data = Observations(
        likelihood, np.where(used, counts, 0.0).ravel(), used.astype(float).ravel(),
        exposure.ravel(),
    )  # fmt: skip
    mean = np.log(counts[used].sum() / exposure[used].sum())
    np.testing.assert_allclose(model.mean_, mean, rtol=1e-14)
    want = fixed_point(Covariance(0.5 * (K + K.T), np.asarray(mean)), data, tol=1e-11)
    assert want.converged
    np.testing.assert_allclose(model.free_energy_, want.free_energy, rtol=1e-9)
    np.testing.assert_allclose(model.log_rate_mean_.ravel(), want.m, atol=1e-7)
    np.testing.assert_allclose(model.log_rate_var_.ravel(), want.v, atol=1e-7)
    np.testing.assert_allclose(model.rate_.ravel(), np.exp(want.m + 0.5 * want.v), rtol=1e-6)
    assert model.elbo_ == -model.free_energy_


EVIDENCE = {
    "rbf": (RBF(0.8, (2.0, 3.1)), Poisson()),
    "one lengthscale": (Matern52(0.8, 2.3), Poisson()),
    "hexagonal": (Hexagonal(1.1, 5.3, 0.3, 4.0), Poisson()),
    "negative binomial": (RBF(0.8, 2.5), NegativeBinomial(2.0)),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_gradient_of_the_evidence_against_differences(name: str) -> None:
    kernel, likelihood = EVIDENCE[name]
    grid = Grid((9, 12), np.array([(0.0, 9.0), (0.0, 12.0)]))
    maps = [smooth_map((9, 12), 2.0, 1.0, seed, 2.0) for seed in (1, 2)]
    data = cells(grid, np.stack([m[2] for m in maps]), np.stack([m[1] for m in maps]))
    wide = padded_shape(kernel, grid, (False, True))
    evidence = GridEvidence(
        kernel, wide, (1.0, 1.0), observations(backend.get("numpy"), data, likelihood, wide),
        mean=np.array([0.5, 0.7]), tol=1e-12,
    )  # fmt: skip
    check_gradient(evidence.value_and_grad, evidence.start(), rtol=3e-7)


def test_gradient_where_the_period_cuts_the_kernel_off() -> None:
    """Eigenvalues that would be negative are held at a floor, which does not move."""
    grid = Grid((16,), np.array([(0.0, 16.0)]))
    _, exposure, counts = smooth_map((16,), 2.0, 1.0, 5, 3.0)
    data = observations(backend.get("numpy"), cells(grid, counts, exposure), Poisson(), (16,))
    evidence = GridEvidence(RBF(0.7, 3.0), (16,), (1.0,), data, mean=0.5, tol=1e-12)
    kept = evidence.basis.cols
    x = evidence.start() + np.array([0.0, np.log(4.0), 0.0])
    s = np.real(np.fft.fft(np.exp(-0.5 * (lags((16,))[:, 0] / 12.0) ** 2)))
    assert np.sum(s[evidence.basis.places] < 0.0) > 0, "nothing is held"
    assert kept < 16
    check_gradient(evidence.value_and_grad, x, rtol=3e-6, step=1e-2)


# -- known rates -----------------------------------------------------------------------------------


def test_a_known_rate_on_a_line(one: LogGaussianCoxProcess) -> None:
    truth = datasets.make_cox_1d(0, scale=4.0).extra
    inside = (truth["x"] > 0.4) & (truth["x"] < 49.6)
    x, rate = truth["x"][inside], truth["rate"][inside]
    lower, upper = one.interval(0.9)
    there = np.interp(one.centers_[0], x, rate)
    assert np.mean((lower < there) & (there < upper)) > 0.8
    assert np.corrcoef(one.predict(x), rate)[0, 1] > 0.95
    # The mean of a Poisson count is matched where a constant is learned.
    np.testing.assert_allclose(np.sum(one.rate_ * one.exposure_), np.sum(one.counts_), rtol=1e-4)
    assert one.status_ == "converged"
    assert one.loss_curve_[-1] < one.loss_curve_[0]
    np.testing.assert_allclose(one.loss_curve_[-1], one.free_energy_, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:the search has not converged")
def test_a_known_map_beats_every_kernel_smoother() -> None:
    from scipy.ndimage import gaussian_filter

    rate, exposure, counts = smooth_map((36, 40), 3.0, 1.5, 3, 1.0)
    model = LogGaussianCoxProcess(
        (36, 40), periodic=True, threshold=0.05, tol=1e-2
    ).fit_counts(counts, exposure)  # fmt: skip
    seen = exposure > 0

    def smoothed(width: float) -> np.ndarray:
        over = gaussian_filter(counts, width, mode="wrap")
        return over / gaussian_filter(exposure, width, mode="wrap")

    best = max(correlation(smoothed(w), rate, seen) for w in np.arange(0.6, 4.0, 0.1))
    assert correlation(model.rate_, rate, seen) > best + 0.01
    # The lengthscale and the variance that the map was drawn with.
    np.testing.assert_allclose(model.kernel_.lengthscale, 3.0, rtol=0.2)
    np.testing.assert_allclose(model.kernel_.variance, 1.5, rtol=0.4)
    lower, upper = model.interval(0.9)
    assert 0.8 < np.mean((lower < rate) & (rate < upper)) < 0.97


def test_period_and_orientation_of_a_grid_cell_by_gradient() -> None:
    cell = datasets.make_grid_cells(1, (64, 64), seed=0).extra
    counts, visits = cell["counts"][0], cell["visits"][0]
    kernel = Hexagonal(1.0, 12.0, 0.5, 18.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogGaussianCoxProcess((64, 64), kernel=kernel, max_iter=25).fit_counts(
            counts, visits
        )
    assert abs(model.kernel_.period / cell["period"][0] - 1.0) < 0.04
    # Its angles are from the x-axis, which is the second of the maps.
    turn = np.pi / 2 - cell["orientation"][0] - model.kernel_.orientation
    assert abs((turn + np.pi / 6) % (np.pi / 3) - np.pi / 6) < np.deg2rad(4.0)
    assert correlation(model.rate_, cell["rate"][0], visits > 0) > 0.97


def test_the_simulated_map_of_the_literature() -> None:
    try:
        maps = datasets.load_grid_simulated(download=False).extra
    except (OSError, ImportError) as error:
        pytest.skip(f"the simulated map is not here: {str(error)[:80]}")
    from scipy.ndimage import gaussian_filter

    counts, visits, rate = (maps[key] for key in ("counts", "visits", "rate"))
    kernel = Hexagonal(0.3, 14.5, 0.5, 50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogGaussianCoxProcess((128, 128), kernel=kernel, max_iter=12).fit_counts(
            counts, visits
        )
    seen = visits > 0
    smoothed = (
        gaussian_filter(counts, w) / np.maximum(gaussian_filter(visits, w), 1e-9)
        for w in np.arange(0.5, 4.0, 0.25)
    )
    best = max(correlation(s, rate, seen) for s in smoothed)
    assert correlation(model.rate_, rate, seen) > best + 0.1
    # The distance of fields is 2/√3 of the distance of their rows.
    assert abs(model.kernel_.period - 2.0 / np.sqrt(3.0) * maps["period"]) < 0.3


def test_coal_mining_disasters() -> None:
    try:
        dates = datasets.load_coal_mining(download=False).Y
    except (OSError, ImportError) as error:
        pytest.skip(f"the disasters are not here: {str(error)[:80]}")
    model = LogGaussianCoxProcess(112, extent=(1851.0, 1963.0)).fit(dates)
    assert model.status_ == "converged"
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    np.testing.assert_allclose(np.sum(model.rate_ * model.exposure_), 191.0, rtol=1e-4)
    # No constant rate is inside the interval everywhere, and it falls after 1890.
    lower, upper = model.interval(0.95)
    assert lower.max() > upper.min()
    early, late = model.predict([1865.0, 1925.0])
    assert early > 3.0 * late
    constant = LogGaussianCoxProcess(
        112, extent=(1851.0, 1963.0), kernel=RBF(1e-6, 20.0), **FIXED
    ).fit(dates)
    assert model.elbo_ > constant.elbo_ + 10.0


# -- grids, batches, places ------------------------------------------------------------------------


def test_three_axes_one_of_them_an_angle() -> None:
    rng = np.random.default_rng(0)
    box = rng.uniform((0, 0, 0), (4, 3, 2 * np.pi), (4000, 3))
    kept = rng.uniform(size=4000) < np.exp(np.cos(box[:, 2]) - 0.3 * box[:, 0] - 1.0)
    model = LogGaussianCoxProcess(
        (6, 5, 12), extent=((0, 4), (0, 3), (0, 2 * np.pi)), periodic=(False, False, True),
        kernel=RBF(0.5, (2.0, 2.0, 1.0)), tol=1e-2,
    ).fit(box[kept])  # fmt: skip
    assert model.rate_.shape == (6, 5, 12)
    assert model.padded_shape_.tolist()[2] == 12
    density = 4000 / (12 * 2 * np.pi) * np.exp(-1.0)
    for angle, factor in ((0.0, np.e), (np.pi, 1 / np.e)):
        here = np.array([[2.0, 1.5, angle]])
        expected = density * factor * np.exp(-0.6)
        assert abs(np.log(model.predict(here)[0] / expected)) < 0.35
        # Once round it is the same place.
        turned = here + np.array([[0.0, 0.0, 2 * np.pi]])
        np.testing.assert_allclose(model.predict(turned), model.predict(here), rtol=1e-9)


def test_a_batch_equals_its_fields_one_by_one() -> None:
    maps = [smooth_map((12, 10), 2.0, 1.0, seed, 2.0) for seed in range(6)]
    exposure = np.stack([m[1] for m in maps]).reshape(2, 3, 12, 10)
    counts = np.stack([m[2] for m in maps]).reshape(2, 3, 12, 10)
    settings = {"kernel": RBF(0.8, 2.0), **FIXED}
    batch = LogGaussianCoxProcess((12, 10), **settings).fit_counts(counts, exposure)
    assert batch.rate_.shape == (2, 3, 12, 10)
    assert batch.mean_.shape == batch.free_energy_.shape == (2, 3)
    X = np.random.default_rng(0).uniform(0.0, 10.0, (4, 2))
    at = batch.predict(X)
    for i in np.ndindex(2, 3):
        alone = LogGaussianCoxProcess((12, 10), **settings).fit_counts(counts[i], exposure[i])
        np.testing.assert_allclose(batch.rate_[i], alone.rate_, rtol=1e-9)
        np.testing.assert_allclose(batch.free_energy_[i], alone.free_energy_, rtol=1e-11)
        np.testing.assert_allclose(batch.mean_[i], alone.mean_, rtol=1e-14)
        np.testing.assert_allclose(at[i], alone.predict(X), rtol=1e-9)
    assert batch.elbo_ == pytest.approx(-batch.free_energy_.sum())


def test_a_batch_learns_one_kernel_and_a_mean_for_each_field() -> None:
    maps = [smooth_map((40,), 4.0, 1.0, seed, 1.0 + 3.0 * seed) for seed in range(4)]
    model = LogGaussianCoxProcess((40,)).fit_counts(
        np.stack([m[2] for m in maps]), np.stack([m[1] for m in maps])
    )
    assert model.status_ == "converged"
    assert model.mean_[3] > model.mean_[0] + 0.5
    expected = np.sum(model.rate_ * model.exposure_, axis=-1)
    np.testing.assert_allclose(expected, model.counts_.sum(axis=-1), rtol=1e-3)


def test_256_maps_at_once() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.5, (256, 12, 12))
    model = LogGaussianCoxProcess((12, 12), kernel=RBF(0.3, 5.0), optimize=False).fit_counts(counts)
    assert model.rate_.shape == (256, 12, 12)
    for k in (0, 100, 255):
        alone = LogGaussianCoxProcess((12, 12), kernel=RBF(0.3, 5.0), optimize=False)
        alone.fit_counts(counts[k])
        np.testing.assert_allclose(model.rate_[k], alone.rate_, rtol=1e-7)
        np.testing.assert_allclose(model.free_energy_[k], alone.free_energy_, rtol=1e-11)


def test_places_between_the_cells() -> None:
    _, exposure, counts = smooth_map((14, 9), 2.0, 1.0, 4, 2.0)
    model = LogGaussianCoxProcess(
        (14, 9), extent=((-1.0, 6.0), (0.0, 18.0)), kernel=RBF(1.0, (1.2, 5.0)), **FIXED
    ).fit_counts(counts, exposure)  # fmt: skip
    centres = np.stack(np.meshgrid(*model.centers_, indexing="ij"), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(model.predict(centres), model.rate_.ravel(), rtol=1e-10)
    mean, variance = model.latent(centres)
    np.testing.assert_allclose(mean, model.log_rate_mean_.ravel(), atol=1e-10)
    np.testing.assert_allclose(variance, model.log_rate_var_.ravel(), atol=1e-10)
    # Half way it is between, to the curvature; and smooth.
    middle = 0.5 * (centres[0] + centres[1])
    between = model.latent(np.stack([centres[0], middle, centres[1]]))[0]
    assert abs(between[1] - between[[0, 2]].mean()) < 0.1
    rate, std = model.predict(centres, return_std=True)
    lower, upper = model.interval(0.6827)
    np.testing.assert_allclose(rate, np.exp(mean + variance / 2))
    np.testing.assert_allclose(std**2, rate**2 * (np.exp(variance) - 1.0), rtol=1e-9)
    np.testing.assert_allclose(np.log(upper / lower).ravel(), 2.0 * np.sqrt(variance), rtol=1e-4)
    assert model.predict(np.zeros((0, 2))).shape == (0,)


def test_opposite_edges_see_each_other_only_on_a_periodic_domain() -> None:
    events = np.random.default_rng(0).uniform(0.0, 4.0, 300)
    fits = {
        periodic: LogGaussianCoxProcess(
            60, extent=(0.0, 60.0), periodic=periodic, kernel=RBF(1.0, 3.0), **FIXED
        ).fit(events)
        for periodic in (False, True)
    }  # fmt: skip
    assert fits[True].padded_shape_ == 60
    assert 60 + 9 <= fits[False].padded_shape_ <= 60 + 15
    assert fits[True].rate_[-1] > 10.0 * fits[True].rate_[40]
    assert fits[False].rate_[-1] < 3.0 * fits[False].rate_[40]
    # Far from the ends it makes no difference.
    np.testing.assert_allclose(fits[True].rate_[25:40], fits[False].rate_[25:40], rtol=0.03)


def test_cells_take_their_lower_ends_and_the_last_its_upper() -> None:
    model = LogGaussianCoxProcess((4, 2), extent=((0, 4), (0, 1)), kernel=RBF(1.0, 1.0), **FIXED)
    events = [(0.0, 0.0), (1.0, 0.5), (3.999, 0.49), (4.0, 1.0)]
    model.fit(events)
    np.testing.assert_array_equal(model.counts_, [[1, 0], [0, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(model.bin(events), model.counts_)
    np.testing.assert_array_equal(model.exposure_, np.full((4, 2), 0.5))
    np.testing.assert_array_equal(model.edges_[1], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(model.centers_[0], [0.5, 1.5, 2.5, 3.5])


def test_positions_become_seconds_in_each_cell() -> None:
    track = np.array([[0.1, 0.1], [0.2, 0.2], [np.nan, 0.3], [0.9, 0.9], [0.9, 0.1], [0.1, 0.9]])
    model = LogGaussianCoxProcess(
        2, extent=((0, 1), (0, 1)), kernel=RBF(1.0, 0.5), **FIXED
    ).fit([[0.3, 0.3]], positions=track, time_step=0.02)  # fmt: skip
    np.testing.assert_allclose(model.exposure_, [[0.04, 0.02], [0.02, 0.02]])
    np.testing.assert_allclose(model.mean_, np.log(1 / 0.1))
    # The same from the occupancy itself.
    other = clone(model).fit([[0.3, 0.3]], exposure=model.exposure_)
    np.testing.assert_array_equal(other.rate_, model.rate_)


def test_a_masked_cell_is_an_unobserved_one() -> None:
    _, exposure, counts = smooth_map((30,), 3.0, 1.0, 6, 3.0)
    settings = {"kernel": RBF(1.0, 3.0), **FIXED}
    masked = counts.copy()
    masked[4:9] = np.nan
    a = LogGaussianCoxProcess(30, **settings).fit_counts(masked, exposure)
    hidden = exposure.copy()
    hidden[4:9] = 0.0
    b = LogGaussianCoxProcess(30, **settings).fit_counts(np.where(hidden > 0, counts, 0), hidden)
    np.testing.assert_array_equal(a.rate_, b.rate_)
    assert a.log_rate_var_[6] > a.log_rate_var_[20]


def test_rates_scale_with_the_unit_of_exposure() -> None:
    _, exposure, counts = smooth_map((30,), 3.0, 1.0, 6, 3.0)
    seconds = LogGaussianCoxProcess(30).fit_counts(counts, exposure)
    minutes = LogGaussianCoxProcess(30).fit_counts(counts, exposure / 60.0)
    np.testing.assert_allclose(minutes.rate_, 60.0 * seconds.rate_, rtol=1e-5)
    np.testing.assert_allclose(minutes.elbo_, seconds.elbo_, rtol=1e-9)


# -- hyperparameters -------------------------------------------------------------------------------


def test_the_start_is_found_from_how_events_cluster() -> None:
    grid = Grid((128, 96), np.array([(0.0, 128.0), (0.0, 96.0)]))
    _, exposure, counts = smooth_map((128, 96), 5.0, 1.0, 7, 2.0)
    start = starting_kernel(cells(grid, counts, exposure))
    assert isinstance(start, RBF)
    part = np.array(start.lengthscale) / (128.0, 96.0)
    np.testing.assert_allclose(part[0], part[1])
    assert 5.0 / 112.0 / 1.7 < part[0] < 5.0 / 112.0 * 1.7
    assert 0.5 < start.variance < 2.0
    # Fewer pairs than of independent events: nothing to start from.
    even = starting_kernel(cells(grid, np.ones((128, 96)), None))
    np.testing.assert_allclose(np.array(even.lengthscale) / (128.0, 96.0), 0.1)


@pytest.mark.parametrize("ell", [0.8, 25.0])
def test_frequencies_follow_the_lengthscale(ell: float) -> None:
    """From far too short or too long, the end is that from near."""
    _, exposure, counts = smooth_map((100,), 4.0, 1.5, 8, 4.0)
    settings = {"extent": (0.0, 100.0), "tol": 1e-3}
    near = LogGaussianCoxProcess(100, kernel=RBF(1.0, 4.0), **settings).fit_counts(counts, exposure)
    far = LogGaussianCoxProcess(100, kernel=RBF(1.0, ell), **settings).fit_counts(counts, exposure)
    assert near.status_ == far.status_ == "converged"
    assert abs(near.elbo_ - far.elbo_) < 1.5
    np.testing.assert_allclose(far.kernel_.lengthscale, near.kernel_.lengthscale, rtol=0.15)
    assert far.n_frequencies_ < 2 * near.n_frequencies_ + 4


def test_too_many_frequencies_are_refused_at_the_start_and_avoided_later() -> None:
    _, exposure, counts = smooth_map((100,), 2.0, 1.5, 8, 4.0)
    with pytest.raises(ValueError, match="max_frequencies is 9: take a coarser grid"):
        LogGaussianCoxProcess(100, kernel=RBF(1.0, 2.0), max_frequencies=9).fit_counts(
            counts, exposure
        )
    with pytest.warns(ConvergenceWarning, match="max_frequencies=20 leaves no room"):
        model = LogGaussianCoxProcess(
            100, kernel=RBF(1.0, 15.0), max_frequencies=20
        ).fit_counts(counts, exposure)  # fmt: skip
    assert model.n_frequencies_ <= 20
    assert model.status_ == "failed"


def test_overdispersed_counts() -> None:
    rng = np.random.default_rng(0)
    rate = np.exp(1.5 + np.sin(2 * np.pi * np.arange(150) / 150))
    counts = rng.poisson(rate * rng.gamma(2.0, 0.5, 150))
    settings = {"extent": (0.0, 150.0), "periodic": True, "kernel": RBF(1.0, 25.0)}
    plain = LogGaussianCoxProcess(150, **settings).fit_counts(counts)
    model = LogGaussianCoxProcess(150, likelihood="negative_binomial", **settings).fit_counts(
        counts
    )
    assert 1.2 < model.likelihood_.size < 4.0
    assert model.elbo_ > plain.elbo_ + 20.0
    assert np.mean(np.log(model.rate_ / rate) ** 2) < np.mean(np.log(plain.rate_ / rate) ** 2)
    assert model.score(counts) > plain.score(counts)


def test_fixed_parameters_stay() -> None:
    _, exposure, counts = smooth_map((40,), 3.0, 1.0, 6, 3.0)
    kernel = RBF(0.7, 3.0, fixed=("lengthscale",))
    model = LogGaussianCoxProcess(40, kernel=kernel, fit_mean=False).fit_counts(counts, exposure)
    assert model.kernel_.lengthscale == 3.0
    assert model.kernel_.variance != 0.7
    assert model.mean_ == np.log(counts.sum() / exposure.sum())
    still = LogGaussianCoxProcess(
        40, kernel=RBF(0.7, 3.0, fixed=("variance", "lengthscale")), fit_mean=False
    ).fit_counts(counts, exposure)  # fmt: skip
    assert (still.n_iter_, still.status_, still.loss_curve_.size) == (0, "converged", 0)


def test_no_events_at_all() -> None:
    model = LogGaussianCoxProcess(20, extent=(0.0, 10.0)).fit([])
    np.testing.assert_allclose(model.mean_, np.log(0.5 / 10.0))
    assert model.status_ == "converged"
    assert np.all(model.rate_ < 0.2)
    flat = LogGaussianCoxProcess(4, extent=((0, 1), (0, 1))).fit(np.zeros((0, 2)))
    assert flat.rate_.shape == (4, 4)


def test_a_field_without_events_keeps_its_mean_beside_others() -> None:
    _, exposure, counts = smooth_map((30,), 3.0, 1.0, 6, 3.0)
    both = np.stack([counts, np.zeros(30)])
    model = LogGaussianCoxProcess((30,)).fit_counts(both, exposure)
    np.testing.assert_allclose(model.mean_[1], np.log(0.5 / exposure.sum()))
    assert model.rate_[1].max() < model.rate_[0].min()


# -- results ---------------------------------------------------------------------------------------


def test_draws_have_the_moments_of_the_posterior(one: LogGaussianCoxProcess) -> None:
    draws = one.sample(4000, random_state=0, log=True)
    assert draws.shape == (4000, 60)
    spread = np.sqrt(one.log_rate_var_)
    np.testing.assert_allclose((draws.mean(axis=0) - one.log_rate_mean_) / spread, 0.0, atol=0.08)
    np.testing.assert_allclose(draws.std(axis=0) / spread, 1.0, atol=0.06)
    np.testing.assert_array_equal(
        one.sample(2, random_state=1), np.exp(one.sample(2, random_state=1, log=True))
    )
    # Neighbours move together: the draws are of whole maps.
    assert np.corrcoef(draws[:, 20], draws[:, 21])[0, 1] > 0.9


def test_score_is_the_mean_log_predictive_probability(one: LogGaussianCoxProcess) -> None:
    from scipy.stats import poisson

    new = datasets.make_cox_1d(1, scale=4.0).Y
    counts = one.bin(new)
    draws = one.sample(20000, random_state=0)
    p = poisson.pmf(counts, draws * one.exposure_).mean(axis=0)
    np.testing.assert_allclose(one.score(counts), np.log(p).mean(), atol=3e-3)
    # Masked and unobserved cells are left out.
    masked, hidden = counts.copy(), one.exposure_.copy()
    masked[:30] = np.nan
    hidden[:30] = 0.0
    np.testing.assert_allclose(one.score(masked), np.log(p[30:]).mean(), atol=3e-3)
    assert one.score(np.where(hidden > 0, counts, 0.0), hidden) == pytest.approx(one.score(masked))
    flat = LogGaussianCoxProcess(60, extent=(0.0, 50.0), kernel=RBF(1e-6, 5.0), **FIXED)
    flat.fit(datasets.make_cox_1d(0, scale=4.0).Y)
    assert one.score(counts) > flat.score(counts)


def test_round_trip_through_a_file(tmp_path: Any) -> None:
    maps = [smooth_map((10, 8), 2.0, 1.0, seed, 2.0) for seed in range(3)]
    counts, exposure = np.stack([m[2] for m in maps]), np.stack([m[1] for m in maps])
    counts[0, 2, 3] = np.nan
    model = LogGaussianCoxProcess(
        (10, 8), extent=((0, 5), (0, 8)), periodic=(True, False), tol=0.1,
        likelihood=NegativeBinomial(5.0), kernel=RBF(0.5, 2.0), threshold=0.2, **FIXED,
    ).fit_counts(counts, exposure)  # fmt: skip
    model.save(tmp_path / "map.npz")
    again = load(tmp_path / "map.npz")
    for name in ("rate_", "log_rate_var_", "counts_", "sites_", "coefficients_", "frequencies_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    assert again.kernel_ == model.kernel_
    assert again.likelihood_ == model.likelihood_
    assert again.n_frequencies_ == model.n_frequencies_
    for a, b in zip(again.edges_ + again.centers_, model.edges_ + model.centers_, strict=True):
        np.testing.assert_array_equal(a, b)
    X = np.random.default_rng(0).uniform(0.0, 5.0, (7, 2))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.sample(2, 0), model.sample(2, 0))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    assert again.score(counts, exposure) == model.score(counts, exposure)


def test_parts_of_a_file_must_fit_each_other(tmp_path: Any, one: LogGaussianCoxProcess) -> None:
    from gplvm_xp.errors import ModelFileError

    path = tmp_path / "map.npz"
    for name, value in {
        "rate_": one.rate_[:-1],
        "sites_": one.sites_[:1],
        "padded_shape_": one.padded_shape_ // 3,
        "extent": one.extent_[:, ::-1],
    }.items():
        broken = pickle.loads(pickle.dumps(one))
        setattr(broken, name.rstrip("_") + "_", value)
        broken.save(path)
        with pytest.raises(ModelFileError, match=name):
            load(path)


def test_estimator_manners() -> None:
    model = LogGaussianCoxProcess(8, extent=(0.0, 1.0), tol=0.5)
    assert clone(model).get_params() == model.get_params()
    from sklearn.exceptions import NotFittedError

    for use in (model.interval, model.sample, lambda: model.predict([0.5])):
        with pytest.raises(NotFittedError):
            use()
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [0.1, 0.4, 0.9], "y": [0.2, 0.2, 0.8]})
    fitted = LogGaussianCoxProcess(4, kernel=RBF(1.0, 0.3), **FIXED).fit(frame)
    assert fitted.feature_names_in_.tolist() == ["x", "y"]
    np.testing.assert_allclose(fitted.extent_, [(0.1, 0.9), (0.2, 0.8)])
    assert not hasattr(fitted.fit(frame.to_numpy()), "feature_names_in_")


# -- array libraries -------------------------------------------------------------------------------


def test_every_array_library_gives_the_same_map(case: Any) -> None:
    _, exposure, counts = smooth_map((10, 9), 2.0, 1.0, 4, 2.0)
    settings = {"kernel": RBF(0.8, 2.0), "periodic": (False, True)}
    want = LogGaussianCoxProcess((10, 9), **settings, **FIXED).fit_counts(counts, exposure)
    dtype = "float32" if case.single else "float64"
    model = LogGaussianCoxProcess((10, 9), dtype=dtype, **settings, **FIXED).fit_counts(
        case.asarray(counts), exposure
    )
    assert type(model.rate_) is type(case.asarray(np.zeros(1)))
    rtol = case.tolerance(1e-9, 1e-4)
    np.testing.assert_allclose(case.to_numpy(model.rate_), want.rate_, rtol=rtol)
    np.testing.assert_allclose(model.free_energy_, want.free_energy_, rtol=rtol)
    X = np.random.default_rng(0).uniform(0.0, 9.0, (5, 2))
    np.testing.assert_allclose(model.predict(X), want.predict(X), rtol=rtol)
    np.testing.assert_allclose(
        model.score(counts, exposure), want.score(counts, exposure), rtol=rtol
    )
    lower, upper = model.interval()
    np.testing.assert_allclose(case.to_numpy(upper), want.interval()[1], rtol=rtol)
    assert np.all(case.to_numpy(lower) > 0)
    draws, wanted = model.sample(2, random_state=0), want.sample(2, random_state=0)
    np.testing.assert_allclose(case.to_numpy(draws), wanted, rtol=100 * rtol)


def test_hyperparameters_where_the_data_is(case: Any) -> None:
    _, exposure, counts = smooth_map((24,), 3.0, 1.0, 4, 3.0)
    settings = {"kernel": RBF(0.8, 3.0), "max_iter": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        want = LogGaussianCoxProcess(24, **settings).fit_counts(counts, exposure)
        dtype = "float32" if case.single else "float64"
        model = LogGaussianCoxProcess(24, dtype=dtype, **settings).fit_counts(
            case.asarray(counts), exposure
        )
    tolerance = case.tolerance(1e-6, 5e-3)
    np.testing.assert_allclose(model.kernel_.theta(), want.kernel_.theta(), rtol=tolerance)


def test_another_library_by_name() -> None:
    pytest.importorskip("torch")
    _, exposure, counts = smooth_map((24,), 3.0, 1.0, 4, 3.0)
    want = LogGaussianCoxProcess(24).fit_counts(counts, exposure)
    model = LogGaussianCoxProcess(24, backend="torch").fit_counts(counts, exposure)
    assert isinstance(model.rate_, np.ndarray)
    np.testing.assert_allclose(model.rate_, want.rate_, rtol=1e-6)
    np.testing.assert_allclose(model.predict([3.3]), want.predict([3.3]), rtol=1e-6)


# -- ends of a search ------------------------------------------------------------------------------


def interrupted(call: int) -> Any:
    def callback(progress: Any) -> None:
        if progress.step >= call:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(
    ("settings", "status", "steps"),
    [
        ({"callback": lambda p: p.step >= 2}, "stopped", 2),
        ({"callback": interrupted(2)}, "interrupted", 2),
        ({"time_limit": 0.0}, "time_limit", 0),
        ({"max_iter": 1}, "max_steps", 1),
    ],
)
def test_a_search_that_ends_early_keeps_its_best_state(
    settings: dict[str, Any], status: str, steps: int
) -> None:
    _, exposure, counts = smooth_map((40,), 3.0, 1.0, 6, 3.0)
    model = LogGaussianCoxProcess(40, kernel=RBF(0.3, 4.0), **settings)
    if status == "stopped":
        model.fit_counts(counts, exposure)
    else:
        with pytest.warns(ConvergenceWarning):
            model.fit_counts(counts, exposure)
    assert (model.status_, model.n_iter_) == (status, steps)
    assert np.all(np.isfinite(model.rate_))
    if steps:
        assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_ctrl_c_in_the_inner_search_reaches_the_outer_one(monkeypatch: Any) -> None:
    from gplvm_xp.variational import sites

    calls = 0
    state = sites._Search._state

    def stop(self: Any, p: Any, y: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return state(self, p, y)

    monkeypatch.setattr(sites._Search, "_state", stop)
    _, exposure, counts = smooth_map((40,), 3.0, 1.0, 6, 3.0)
    with pytest.warns(ConvergenceWarning, match="interrupted by the keyboard"):
        model = LogGaussianCoxProcess(40, kernel=RBF(0.3, 4.0)).fit_counts(counts, exposure)
    assert model.status_ == "interrupted"
    assert model.n_iter_ < 20
    assert model.free_energy_ < model.loss_curve_[0]


def test_the_callback_and_the_bar_see_every_step(capsys: Any) -> None:
    seen = []
    _, exposure, counts = smooth_map((40,), 3.0, 1.0, 6, 3.0)
    model = LogGaussianCoxProcess(
        40, kernel=RBF(0.3, 12.0), progress=True, callback=lambda p: seen.append(p.step)
    ).fit_counts(counts, exposure)  # fmt: skip
    assert sorted(set(seen)) == list(range(model.n_iter_ + 1))
    assert len(seen) == model.loss_curve_.size
    assert "LogGaussianCoxProcess" in capsys.readouterr().err


def test_memory_is_asked_for_before_it_is_taken(monkeypatch: Any) -> None:
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 10_000)
    with pytest.raises(NotEnoughMemoryError, match=r"posterior\(s\) of \d+ frequencies"):
        LogGaussianCoxProcess((20, 20), kernel=RBF(1.0, 2.0)).fit_counts(np.ones((20, 20)))


# -- bad input -------------------------------------------------------------------------------------

FINE = np.array([[0.2, 0.3], [0.4, 0.4], [0.8, 0.7]])
BOX = {"extent": ((0, 1), (0, 1))}
BAD_EVENTS: dict[str, tuple[dict[str, Any], Any, dict[str, Any], str]] = {
    "outside": (BOX, [[0.1, 0.2], [0.5, 1.5], [2.0, 0.1]], {},
                r"row 1 of X, \[0\.5 1\.5\], is outside the extent, .* \(2 such rows\)"),
    "NaN": ({}, [[0.1, 0.2], [np.nan, 0.5]], {}, r"row 1 of X .*NaN.*leave such events out"),
    "infinite": ({}, [[0.1, np.inf], [0.3, 0.5]], {}, "row 0 of X"),
    "text": ({}, [["a", "b"]], {}, "no table of numbers"),
    "four columns": ({}, np.zeros((3, 4)), {}, r"shape \(3, 4\); expected \(n, d\)"),
    "three axes": ({}, np.zeros((3, 2, 2)), {}, r"shape \(3, 2, 2\)"),
    "columns against extent": (BOX, np.zeros((3, 1)), {}, "d = 2"),
    "columns against shape": ({"shape": (4, 4, 4)}, FINE, {}, "has 3 axes and the data have 2"),
    "one place": ({}, np.ones((5, 2)), {}, "same coordinate 0, 1, so that the data give no extent"),
    "no events, no extent": ({}, np.zeros((0, 2)), {}, "no events and no positions"),
    "shape zero": ({"shape": 0}, FINE, {}, "shape=0 was given; expected a number of cells"),
    "shape one": ({"shape": (4, 1)}, FINE, {}, "2 or more"),
    "shape float": ({"shape": 4.5}, FINE, {}, "shape=4.5"),
    "extent reversed": ({"extent": ((1, 0), (0, 1))}, FINE, {}, "finite increasing numbers"),
    "extent text": ({"extent": "all"}, FINE, {}, "extent='all' was given"),
    "extent too long": ({"extent": ((0, 1),) * 4}, FINE, {}, "one to 3 pairs"),
    "periodic": ({"periodic": (True,) * 3}, FINE, {}, "for each of the 2 axes"),
    "periodic number": ({"periodic": 1}, FINE, {}, "periodic=1 was given"),
    "exposure and positions": ({}, FINE, {"exposure": 1, "positions": FINE, "time_step": 1.0},
                               "both given"),
    "positions alone": ({}, FINE, {"positions": FINE}, "belong together"),
    "time step alone": ({}, FINE, {"time_step": 0.1}, "belong together"),
    "time step": ({}, FINE, {"positions": FINE, "time_step": -1.0}, "time_step=-1.0"),
    "positions lost": ({}, FINE, {"positions": FINE * np.nan, "time_step": 1.0},
                       "no position is known"),
    "positions outside": (BOX, FINE, {"positions": 3 * FINE, "time_step": 1.0},
                          "row 1 of the positions .* is outside"),
    "positions infinite": (BOX, FINE, {"positions": [[np.inf, 0.0]], "time_step": 1.0},
                           "row 0 of the positions"),
    "positions columns": ({}, FINE, {"positions": FINE[:, :1], "time_step": 1.0}, "d = 1"),
    "never there": (BOX, FINE, {"positions": FINE[:2], "time_step": 1.0},
                    r"row 2 of X, \[0\.8 0\.7\], is in a cell of exposure 0 \(1 of 3 events are\)"),
    "unobserved cell": ({"shape": 2, **BOX}, FINE, {"exposure": [[1, 1], [1, 0]]}, "row 2 of X"),
    "exposure shape": ({"shape": 2}, FINE, {"exposure": np.ones((3, 2))},
                       r"exposure have shape \(3, 2\); expected \(\.\.\., 2, 2\)"),
    "exposure negative": ({"shape": 2}, FINE, {"exposure": [[1, -1], [1, 1]]},
                          r"exposure\[0, 1\] is -1 .*0 is unobserved"),
    "exposure NaN": ({"shape": 2}, FINE, {"exposure": [[1, np.nan], [1, 1]]}, r"exposure\[0, 1\]"),
    "exposure zero": ({"shape": 2}, FINE, {"exposure": np.zeros((2, 2))}, "is 0 in every cell"),
    "kernel axes": ({"kernel": RBF(1.0, (1.0, 1.0, 1.0))}, FINE, {}, "3"),
    "kernel not stationary": ({"kernel": Linear()}, FINE, {}, "Linear is not stationary"),
    "kernel with noise": ({"kernel": RBF() + White()}, FINE, {}, "white noise"),
    "likelihood": ({"likelihood": Gaussian()}, FINE, {}, "expected 'poisson'"),
    "likelihood name": ({"likelihood": "binom"}, FINE, {}, "binom"),
    "threshold": ({"threshold": 1.5}, FINE, {}, "threshold=1.5 was given; expected a number of 0"),
    "max_iter": ({"max_iter": -1}, FINE, {}, "max_iter=-1"),
    "max_frequencies": ({"max_frequencies": 2.5}, FINE, {}, "max_frequencies=2.5"),
    "tol": ({"tol": np.nan}, FINE, {}, "tol=nan"),
    "time_limit": ({"time_limit": -2}, FINE, {}, "time_limit=-2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_bad_events_and_settings(name: str) -> None:
    settings, X, given, text = BAD_EVENTS[name]
    with pytest.raises(ValueError, match=text):
        LogGaussianCoxProcess(**{"shape": 4, **settings}).fit(X, **given)


def test_a_kernel_must_be_one() -> None:
    with pytest.raises(TypeError, match="kernel is a str; expected one of"):
        LogGaussianCoxProcess(4, kernel="rbf").fit(FINE)  # type: ignore[arg-type]


BAD_COUNTS: dict[str, tuple[Any, Any, str]] = {
    "negative": ([[1, -2], [0, 0]], None, r"counts\[0, 1\] is -2 \(1 such cells\)"),
    "not whole": ([[1, 0.5], [0, 0]], None, r"counts\[0, 1\] is 0\.5 .*integer=False"),
    "infinite": ([[1, np.inf], [0, 0]], None, r"counts\[0, 1\] is inf"),
    "text": ([["a", "b"], ["c", "d"]], None, "counts are no numbers"),
    "shape": (np.zeros((2, 3)), None, r"shape \(2, 3\); expected \(\.\.\., 2, 2\)"),
    "too few axes": (np.zeros(4), None, "expected the 2 axes of the grid"),
    "all masked": (np.full((2, 2), np.nan), None, "is 0 in every cell whose count is not NaN"),
    "no fields": (np.zeros((0, 2, 2)), None, "expected some cells"),
    "one field without": (
        np.zeros((3, 2, 2)), np.array([1.0, 0.0, 1.0])[:, None, None] * np.ones((2, 2)),
        r"exposure of field \[1\] is 0",
    ),
    "count without exposure": ([[1, 2], [0, 0]], [[1, 0], [1, 1]],
                               r"counts\[0, 1\] is 2 .*0 where the exposure is 0"),
    "fields": (np.zeros((3, 2, 2)), np.ones((2, 2, 2)), "one exposure for all fields"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_bad_counts(name: str) -> None:
    counts, exposure, text = BAD_COUNTS[name]
    with pytest.raises(ValueError, match=text):
        LogGaussianCoxProcess((2, 2)).fit_counts(counts, exposure)


def test_counts_that_are_not_whole_are_taken_where_asked() -> None:
    _, exposure, counts = smooth_map((30,), 3.0, 1.0, 6, 3.0)
    settings = {"kernel": RBF(1.0, 3.0), **FIXED}
    whole = LogGaussianCoxProcess(30, **settings).fit_counts(counts, exposure)
    nearly = counts + 1e-7 * (exposure > 0)
    model = LogGaussianCoxProcess(30, **settings).fit_counts(nearly, exposure, integer=False)
    np.testing.assert_allclose(model.rate_, whole.rate_, rtol=1e-5)
    assert np.isfinite(model.score(nearly, integer=False))


def test_the_grid_of_counts() -> None:
    settings = {"kernel": RBF(0.5, 2.0), **FIXED}
    square = LogGaussianCoxProcess(6, **settings).fit_counts(np.ones((6, 6)))
    np.testing.assert_array_equal(square.extent_, [(0.0, 6.0), (0.0, 6.0)])
    lines = LogGaussianCoxProcess(6, extent=(0, 3), **settings).fit_counts(np.ones((5, 6)))
    assert lines.mean_.shape == (5,)
    np.testing.assert_allclose(lines.exposure_, 0.5)
    with pytest.raises(ValueError, match=r"shape \(5, 6\); expected \(\.\.\., 6, 6\)"):
        LogGaussianCoxProcess(6, **settings).fit_counts(np.ones((5, 6)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.predict([[1.0, 2.0]]), "d = 1"),
        (lambda m: m.predict([51.0]), r"row 0 of X, \[51\.\], is outside the extent, 0 to 50"),
        (lambda m: m.predict([np.nan]), "row 0 of X"),
        (lambda m: m.latent([-0.1, 3.0]), r"1 such rows"),
        (lambda m: m.interval(1.0), "level=1.0 was given"),
        (lambda m: m.interval("wide"), "level='wide'"),
        (lambda m: m.sample(0), "n_samples=0"),
        (lambda m: m.sample(2.5), "n_samples=2.5"),
        (lambda m: m.score(np.ones(3)), r"shape \(3,\)"),
        (lambda m: m.score(np.full(60, 0.5)), "whole numbers"),
        (lambda m: m.score(np.ones((2, 60))), r"expected \(60,\)"),
        (lambda m: m.bin([60.0]), "outside"),
    ],
)
def test_bad_use_of_a_fitted_model(one: LogGaussianCoxProcess, call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(one)
