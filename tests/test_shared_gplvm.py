"""The estimator of several views: what it finds, what it answers, and how it refuses."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict

import gplvm_xp
from gplvm_xp import GPLVM, SharedGPLVM, backend
from gplvm_xp.errors import ModelFileError, NotEnoughMemoryError, PrecisionWarning
from gplvm_xp.kernels import RBF, ActiveDims, Linear, Matern52
from gplvm_xp.metrics import root_mean_squared_error as rmse
from gplvm_xp.objectives import groups_of
from gplvm_xp.objectives.shared import SharedObjective, UnitWidth, View
from gplvm_xp.priors import Gaussian, LogNormal

TRAIN, TEST = slice(0, 120), slice(120, 180)


def waves(inputs, D, rng, lengthscale=1.5, count=300):
    """D functions that are nearly draws of a Gaussian process with an RBF kernel."""
    W = rng.standard_normal((inputs.shape[1], count)) / lengthscale
    phase = rng.uniform(0.0, 2.0 * np.pi, count)
    return np.cos(inputs @ W + phase) @ rng.standard_normal((count, D)) * np.sqrt(2.0 / count)


def two_views(n=180, D=(10, 8), seed=5, noise=0.1):
    """Two tables of one shared latent and a private one each; in units of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 1))
    private = [rng.standard_normal((n, 1)) for _ in D]
    views = [
        waves(np.hstack([shared, own]), d, rng) + noise * rng.standard_normal((n, d))
        for own, d in zip(private, D, strict=True)
    ]
    return {"left": views[0], "right": 50.0 * views[1] + 7.0}, shared, private


def recovered(X, T):
    """Share of the variance of T (n, 1) that a smooth function of X predicts, out of sample."""
    model = KernelRidge(kernel="rbf", gamma=0.5, alpha=0.1)
    found = cross_val_predict(model, X / X.std(axis=0), T, cv=5)
    return 1.0 - np.mean((found - T) ** 2) / T.var()


def part(views, rows):
    return {name: Y[rows].copy() for name, Y in views.items()}


def short(views, **options):
    """A fit of few steps, for what does not depend on a good one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return SharedGPLVM(**{"max_iter": 8, "n_shared": 1} | options).fit(views)


@pytest.fixture(scope="module")
def views():
    return two_views()[0]


@pytest.fixture(scope="module")
def fitted(views):
    return SharedGPLVM(1, 1, tol=1e-2).fit(part(views, TRAIN))


@pytest.fixture(scope="module")
def brief(views):
    return short(part(views, slice(0, 30)), n_private=1)


# -- what is learned -------------------------------------------------------------------------------


def test_shared_and_private_signals_are_told_apart(fitted):
    _, shared, private = two_views()
    Z = fitted.embedding_
    assert fitted.status_ == "converged"
    assert recovered(Z[:, :1], shared[TRAIN]) > 0.95
    for v in range(2):
        own, other = Z[:, [1 + v]], Z[:, [2 - v]]
        assert recovered(own, private[v][TRAIN]) > 0.9
        assert recovered(other, private[v][TRAIN]) < 0.1
        assert recovered(Z[:, :1], private[v][TRAIN]) < 0.1
        assert recovered(own, shared[TRAIN]) < 0.5


def test_attributes(fitted, views):
    assert fitted.embedding_.shape == (120, 3)
    assert fitted.view_names_ == ("left", "right")
    assert fitted.n_features_in_ == 18
    assert [m.shape for m in fitted.means_] == [(10,), (8,)]
    assert [s.shape for s in fitted.scales_] == [(10,), (8,)]
    for mean, Y in zip(fitted.means_, views.values(), strict=True):
        np.testing.assert_allclose(mean, Y[TRAIN].mean(axis=0))
    np.testing.assert_array_equal(fitted.shared_dims_, [0])
    np.testing.assert_array_equal(fitted.private_dims_, [[1], [2]])
    assert fitted.noise_variances_.shape == fitted.jitters_.shape == (2,)
    # The second view is in units of 50 and so are its noise (0.1) and jitter.
    assert 0.05 < fitted.noise_variances_[0] ** 0.5 < 0.15
    assert 2.5 < fitted.noise_variances_[1] ** 0.5 < 7.5
    np.testing.assert_allclose(fitted.embedding_.std(axis=0), 1.0)
    curve = fitted.loss_curve_
    assert curve.shape == (fitted.n_iter_ + 1,)
    assert np.all(np.diff(curve) <= 1e-9 * np.abs(curve[1:]))
    relevance = fitted.relevance()
    assert relevance[0, 2] == relevance[1, 1] == 0.0
    assert np.all(relevance.max(axis=1) == 1.0)
    assert np.all(relevance[:, 0] > 0.3)


@pytest.mark.parametrize("scale", [False, True], ids=["raw", "scaled"])
def test_log_likelihood_in_the_units_of_the_data(views, scale):
    model = short(part(views, slice(0, 40)), n_private=1, scale=scale)
    Z, want = model.embedding_, 0.0
    parts = zip(
        views.values(), model.kernels_, model.noise_variances_ + model.jitters_, model.means_,
        model.scales_, strict=True,
    )  # fmt: skip
    for Y, kernel, noise, mean, unit in parts:
        K = kernel.gram(kernel.theta(), Z) + noise * np.eye(40)
        for y, m, s in zip(Y[:40].T, mean, unit, strict=True):
            want += stats.multivariate_normal(np.full(40, m), s**2 * K).logpdf(y)
    np.testing.assert_allclose(model.log_likelihood_, want, rtol=1e-9)
    prior = stats.norm.logpdf(Z).sum()
    scaled = want + 40 * np.log(model.scale_).sum()
    np.testing.assert_allclose(model.loss_curve_[-1], -(scaled + prior), rtol=1e-9)


def test_the_objective_is_that_of_the_library(views):
    some = part(views, slice(0, 25))
    start = np.random.default_rng(0).standard_normal((25, 2))
    kernels = [RBF(1.0, (1.0, 2.0)), Matern52(2000.0, 1.5)]
    with pytest.warns(ConvergenceWarning, match="max_iter=0"):
        model = SharedGPLVM(
            2, kernel=kernels, init=start, noise_variance=[0.2, None], max_iter=0,
            priors={"right.noise": LogNormal(3.0, 2.0)},
        ).fit(some)  # fmt: skip
    centred = [Y - Y.mean(axis=0) for Y in some.values()]
    noises = (0.2, 0.5 * np.mean(centred[1] ** 2))
    b = backend.get("numpy")
    tables = tuple(
        View(name, kernel, groups_of(b, Y), noise, 1e-8 * np.mean(Y**2))
        for name, kernel, Y, noise in zip(some, kernels, centred, noises, strict=True)
    )
    # One common lengthscale in the second view: both latents have one width together.
    fun = SharedObjective(
        tables, UnitWidth(start, ((0, 1),)), Gaussian(), {"right.noise": LogNormal(3.0, 2.0)}
    )
    want = fun.value_and_grad(fun.start())[0]
    np.testing.assert_allclose(model.loss_curve_, [want], rtol=1e-12)
    np.testing.assert_allclose(model.embedding_, fun.values(fun.start())[1])
    np.testing.assert_allclose(model.noise_variances_, noises)


def test_every_view_through_lengthscales_of_its_own(views):
    """``n_private=None``: what is shared and what is not is read off the lengthscales."""
    _, shared, _ = two_views()
    model = SharedGPLVM(3, None, tol=1e-2).fit(part(views, TRAIN))
    assert len(model.shared_dims_) == 1
    assert sorted(len(dims) for dims in model.private_dims_) == [1, 1]
    assert recovered(model.embedding_[:, model.shared_dims_], shared[TRAIN]) > 0.8
    relevance = model.relevance()
    np.testing.assert_array_equal(model.uses_, relevance >= 0.05)
    assert isinstance(model.kernels_[0], RBF)
    for v, own in enumerate(model.private_dims_):
        ells = np.asarray(model.kernels_[v].lengthscale)
        assert ells[model.private_dims_[1 - v]].min() > 5.0 * ells[own].max()


def test_gauge_and_kernels(views):
    some = part(views, slice(0, 30))
    given = [None, ActiveDims(Linear(1.0), (1,)) + RBF(2500.0, 0.9)]
    free = short(some, n_private=1, kernel=given, gauge="free")
    assert np.abs(free.embedding_.std(axis=0) - 1.0).max() > 1e-3
    fixed = short(some, n_private=1, kernel=given)
    own = fixed.kernels_[1]
    assert isinstance(own, ActiveDims)
    assert own.dims == (0, 2)
    assert [type(k) for k in own.kernel.parts] == [ActiveDims, RBF]
    same = short(some, kernel=Matern52(1.0, 1.0))
    assert [type(k) for k in same.kernels_] == [Matern52, Matern52]
    assert same.kernels_[0].lengthscale != same.kernels_[1].lengthscale


def test_restarts_keep_the_best_and_are_reproducible(views):
    some = part(views, slice(0, 25))
    options = {"random_state": 3, "max_iter": 300, "tol": 1.0, "n_shared": 1, "n_private": 1}
    one = SharedGPLVM(**options).fit(some)
    many = [SharedGPLVM(n_restarts=2, **options).fit(some) for _ in range(2)]
    assert many[0].loss_curve_[-1] <= one.loss_curve_[-1]
    np.testing.assert_array_equal(many[0].embedding_, many[1].embedding_)


@pytest.mark.parametrize("init", ["auto", "pca", "cca", "random"])
def test_every_start(views, init):
    model = short(part(views, slice(0, 40)), n_private=(2, 0), init=init, random_state=0)
    assert model.embedding_.shape == (40, 3)
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_order_and_units_of_the_views_do_not_matter(views):
    some = part(views, slice(0, 40))
    one = short(some, n_private=1, max_iter=40)
    two = short({"right": some["right"] / 50.0, "left": some["left"]}, n_private=1, max_iter=40)
    swapped = two.embedding_[:, [0, 2, 1]]
    np.testing.assert_allclose(np.abs(swapped), np.abs(one.embedding_), atol=1e-3)


# -- one view from others --------------------------------------------------------------------------


def test_cross_view_prediction_beats_linear_baselines(fitted, views):
    """The right view from the left: the mean, ridge, CCA, and what the true latent would allow."""
    left, right = views["left"], views["right"]
    mean, var = fitted.predict_view({"left": left[TEST]}, "right", return_var=True)
    error = rmse(right[TEST], mean)
    ridge = RidgeCV(np.logspace(-3, 3, 13)).fit(left[TRAIN], right[TRAIN]).predict(left[TEST])
    cca = CCA(2).fit(left[TRAIN], right[TRAIN]).predict(left[TEST])
    _, shared, _ = two_views()
    oracle = KernelRidge(kernel="rbf", gamma=0.3, alpha=0.1)
    oracle.fit(shared[TRAIN], right[TRAIN] - right[TRAIN].mean(axis=0))
    best = oracle.predict(shared[TEST]) + right[TRAIN].mean(axis=0)
    nothing = np.broadcast_to(right[TRAIN].mean(axis=0), right[TEST].shape)
    assert error < 0.9 * rmse(right[TEST], nothing)
    assert error < rmse(right[TEST], ridge)
    assert error < rmse(right[TEST], cca)
    assert error < 1.05 * rmse(right[TEST], best)
    # Honest intervals: squared errors are as large as their variances say.
    assert 0.5 < np.mean((right[TEST] - mean) ** 2 / var) < 2.0
    # The average over the private latent is better than its most probable value.
    point = fitted.predict(fitted.transform({"left": left[TEST]}))[1]
    assert error < rmse(right[TEST], point)


def test_prediction_by_name_and_by_place(brief, views):
    new = views["left"][60:64]
    one = brief.predict_view({"left": new}, "right")
    np.testing.assert_array_equal(brief.predict_view([new, None], 1), one)
    np.testing.assert_array_equal(brief.predict_view((new, None), -1), one)
    np.testing.assert_array_equal(brief.predict_view({"right": None, "left": new}, "right"), one)


def test_averaging_over_uncertain_latents_against_draws(brief, views):
    """Importance sampling from the smoothed density of the training latents."""
    new = views["left"][60:63]
    mean, var = brief.predict_view({"left": new}, "right", return_var=True)
    Z, rng = brief.embedding_, np.random.default_rng(0)
    width = Z.std(axis=0) * (4.0 / (30 * 5)) ** (1.0 / 7.0)  # Silverman's, for n = 30 and q = 3
    draws = Z[rng.integers(0, 30, 40_000)] + width * rng.standard_normal((40_000, 3))
    (left, right), (left_var, right_var) = brief.predict(draws, return_var=True)
    for i in range(3):
        weight = stats.norm(left, np.sqrt(left_var)).logpdf(new[i]).sum(axis=1)
        weight = np.exp(weight - weight.max())
        weight /= weight.sum()
        assert 1.0 / np.sum(weight**2) > 200  # enough of them count
        want = weight @ right
        want_var = weight @ (right_var + right**2) - want**2
        np.testing.assert_allclose(mean[i], want, atol=0.1 * np.sqrt(want_var).max())
        np.testing.assert_allclose(np.sqrt(var[i]), np.sqrt(want_var), rtol=0.1)


def test_noise_is_in_the_variance_or_not(brief, views):
    new = {"left": views["left"][60:62]}
    noisy, quiet = (brief.predict_view(new, 1, return_var=True, noise=n)[1] for n in (True, False))
    own = brief.noise_variances_[1] + brief.jitters_[1]
    np.testing.assert_allclose(noisy - quiet, own, rtol=1e-6)


def test_two_places_that_explain_a_row_both_count():
    """The left view is the same on both branches of a fold, and the right one tells them apart."""
    t = np.linspace(-1.0, 1.0, 41)[:, None]
    left = np.hstack([np.cos(2.0 * t), t**2, t**4])
    right = np.hstack([np.sin(2.0 * t), t, 0.5 * t])
    rng = np.random.default_rng(0)
    left, right = (Y + 0.01 * rng.standard_normal(Y.shape) for Y in (left, right))
    model = SharedGPLVM(1, init=t, tol=1e-2).fit([left, right])
    at = {"view0": left[[5, 20]]}
    mean, var = model.predict_view(at, 1, return_var=True)
    # Far out either branch is possible: their mean, and a deviation as wide as they are apart.
    np.testing.assert_allclose(mean[0], 0.0, atol=0.1)
    np.testing.assert_allclose(np.sqrt(var[0]), np.abs(right[5]), rtol=0.1)
    assert np.all(np.sqrt(var[1]) < 0.2)


def test_observed_entries_of_the_target_count(fitted, views):
    new = part(views, TEST)
    half = new["right"].copy()
    half[:, 4:] = np.nan
    alone = fitted.predict_view({"left": new["left"]}, "right")
    helped = fitted.predict_view({"left": new["left"], "right": half}, "right")
    truth = new["right"][:, 4:]
    assert rmse(truth, helped[:, 4:]) < 0.7 * rmse(truth, alone[:, 4:])


# -- new rows --------------------------------------------------------------------------------------


def test_transform_of_training_rows_gives_the_embedding(fitted, views):
    np.testing.assert_array_equal(fitted.transform(part(views, TRAIN)), fitted.embedding_)
    # With one view only it is a new row, and its own private latent is found too.
    Z = fitted.transform([views["left"][TRAIN], None])
    assert not np.array_equal(Z, fitted.embedding_)
    close = np.abs(Z[:, :2] - fitted.embedding_[:, :2])
    assert np.median(close) < 0.1


def test_more_views_place_a_row_better(fitted, views):
    _, shared, _ = two_views()
    new = part(views, TEST)
    _, one = fitted.transform({"right": new["right"]}, return_cov=True)
    Z, two = fitted.transform(new, return_cov=True)
    assert Z.shape == (60, 3)
    assert np.median(two[:, 0, 0] / one[:, 0, 0]) < 0.8
    assert recovered(Z[:, :1], shared[TEST]) > 0.85


def test_transform_is_a_mode(brief, views):
    new = part(views, slice(60, 66))
    new["right"][0] = np.nan
    new["left"][1, 3] = np.nan
    Z = brief.transform(new)

    def log_joint(Z):
        total = stats.norm.logpdf(Z).sum(axis=1)
        for Y, m, v in zip(new.values(), *brief.predict(Z, return_var=True), strict=True):
            total += np.nansum(stats.norm(m, np.sqrt(v)).logpdf(Y), axis=1)
        return total

    best = log_joint(Z)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert np.all(log_joint(Z + 0.02 * rng.standard_normal(Z.shape)) < best)


def test_score(fitted, views):
    new = part(views, TEST)
    both, left = fitted.score(new), fitted.score([new["left"], None])
    each = fitted.score_samples(new)
    assert each.shape == (60,)
    np.testing.assert_allclose(each.mean(), both)
    # Rows whose halves don't belong together are unlikely, though each half is as before.
    wrong = fitted.score({"left": new["left"], "right": np.roll(new["right"], 1, axis=0)})
    assert wrong < both - 5.0
    unlike = fitted.score([np.roll(new["left"], 1, axis=1), None])
    assert unlike < left - 5.0


def test_score_against_quadrature():
    """One smooth latent behind both views: its posterior has one mode, where Laplace is right."""
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(-1.5, 1.5, (45, 1)), axis=0)
    views = {name: waves(t, 4, rng) + 0.1 * rng.standard_normal((45, 4)) for name in "ab"}
    model = SharedGPLVM(1, tol=1e-2).fit(part(views, slice(0, 45, 2)))
    new = part(views, slice(1, 45, 8))
    grid = np.linspace(-5.0, 5.0, 4001)[:, None]
    density = np.tile(stats.norm.logpdf(grid), (1, len(new["a"])))
    for Y, m, v in zip(new.values(), *model.predict(grid, return_var=True), strict=True):
        law = stats.norm(m[:, None, :], np.sqrt(v)[:, None, :])
        density += law.logpdf(Y[None, :, :]).sum(axis=2)
    top = density.max(axis=0)
    want = top + np.log(np.trapezoid(np.exp(density - top), grid[:, 0], axis=0))
    np.testing.assert_allclose(model.score_samples(new), want, atol=0.1)


def test_without_a_latent_prior(views):
    model = short(part(views, slice(0, 30)), latent_prior=None)
    new = {"left": views["left"][60:63]}
    at, v = model.predict(model.transform(new), return_var=True)
    assert np.all(np.isfinite(model.predict_view(new, "right")))
    left = stats.norm(at[0], np.sqrt(v[0])).logpdf(new["left"]).sum(axis=1)
    np.testing.assert_allclose(model.score_samples(new), left, rtol=1e-9)
    with pytest.raises(ValueError, match=r"latent_prior=None can't be drawn from"):
        model.sample(2)


def test_predict_against_the_textbook(brief, views):
    at = np.random.default_rng(0).standard_normal((5, 3))
    means, variances = brief.predict(at, return_var=True)
    for v, Y in enumerate(part(views, slice(0, 30)).values()):
        k = brief.kernels_[v]
        noise = brief.noise_variances_[v] + brief.jitters_[v]
        K = k.gram(k.theta(), brief.embedding_) + noise * np.eye(30)
        Ks = k.gram(k.theta(), at, brief.embedding_)
        want = Y.mean(axis=0) + Ks @ np.linalg.solve(K, Y - Y.mean(axis=0))
        np.testing.assert_allclose(means[v], want, rtol=1e-7, atol=1e-7)
        var = k.diag(k.theta(), at) - np.sum(Ks * np.linalg.solve(K, Ks.T).T, axis=1) + noise
        np.testing.assert_allclose(variances[v], np.tile(var[:, None], Y.shape[1]), rtol=1e-7)


def test_samples_have_the_moments_of_the_model(brief):
    rows, latents = brief.sample(4, random_state=0)
    assert [Y.shape for Y in rows] == [(4, 10), (4, 8)]
    assert latents.shape == (4, 3)
    again, same = brief.sample(4, random_state=0)
    np.testing.assert_array_equal(latents, same)
    np.testing.assert_array_equal(rows[1], again[1])
    many, Z = brief.sample(3000, random_state=1)
    for Y, m, v in zip(many, *brief.predict(Z, return_var=True), strict=True):
        z = (Y - m) / np.sqrt(v)
        np.testing.assert_allclose(z.mean(), 0.0, atol=0.05)
        np.testing.assert_allclose(z.std(), 1.0, rtol=0.05)


# -- gaps ------------------------------------------------------------------------------------------


def test_rows_that_a_view_lacks(views):
    """A fifth of the rows without the right view: placed by the left one, and filled from it."""
    truth = part(views, TRAIN)
    gaps = {name: Y.copy() for name, Y in truth.items()}
    gone = np.arange(120) % 5 == 0
    gaps["right"][gone] = np.nan
    gaps["left"][1::10, 2] = np.nan
    model = SharedGPLVM(1, 1, tol=1e-2).fit(gaps)
    _, shared, _ = two_views()
    assert recovered(model.embedding_[:, :1], shared[TRAIN]) > 0.9
    assert np.all(np.isfinite(model.embedding_))
    filled = model.predict_view(gaps, "right")[gone]
    mean = np.broadcast_to(np.nanmean(gaps["right"], axis=0), filled.shape)
    assert rmse(truth["right"][gone], filled) < 0.9 * rmse(truth["right"][gone], mean)
    np.testing.assert_array_equal(model.transform(gaps), model.embedding_)


def test_new_rows_without_anything_get_the_prior(brief, views):
    nothing = {"left": np.full((2, 10), np.nan)}
    Z, C = brief.transform(nothing, return_cov=True)
    np.testing.assert_allclose(Z, 0.0, atol=1e-6)
    np.testing.assert_allclose(C, np.tile(np.eye(3), (2, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(brief.score_samples(nothing), 0.0, atol=1e-6)
    mean, var = brief.predict_view(nothing, "right", return_var=True)
    # Nothing is known: about the mean of the table, and nearly its variance.
    width = views["right"][:30].std(axis=0)
    assert np.all(np.abs(mean - brief.means_[1]) < 0.6 * width)
    assert np.all(np.sqrt(var) > 0.5 * width)


# -- how a fit ends --------------------------------------------------------------------------------


def test_callback_sees_every_step_and_stops(views):
    seen = []

    def stop(progress):
        seen.append(progress.step)
        return progress.step == 12

    model = SharedGPLVM(1, callback=stop, warm_up=8, n_restarts=3).fit(part(views, slice(0, 30)))
    assert model.status_ == "stopped"
    assert model.n_iter_ == 12
    assert seen == [*range(9), *range(8, 13)]
    assert len(model.loss_curve_) == 13


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
@pytest.mark.parametrize("step", [3, 12], ids=["warm-up", "later"])
def test_ctrl_c_keeps_the_best_state(views, optimizer, step):
    def interrupt(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model = SharedGPLVM(
            1, callback=interrupt, optimizer=optimizer, n_restarts=2, warm_up=8
        ).fit(part(views, slice(0, 30)))
    assert model.status_ == "interrupted"
    assert np.isfinite(model.score(part(views, slice(30, 33))))


def test_time_limit_and_max_iter_say_so(views):
    some = part(views, slice(0, 30))
    with pytest.warns(ConvergenceWarning, match="time_limit") as caught:
        model = SharedGPLVM(1, time_limit=0.0, n_restarts=5).fit(some)
    assert model.status_ == "time_limit"
    assert caught[0].filename == __file__
    for most in (0, 4):
        with pytest.warns(ConvergenceWarning, match=f"max_iter={most}"):
            model = SharedGPLVM(1, max_iter=most).fit(some)
        assert model.n_iter_ == most


def test_progress_bar(views, capsys):
    short(part(views, slice(0, 30)), progress=True)
    shown = capsys.readouterr().err
    assert "SharedGPLVM" in shown
    assert "objective" in shown


def test_memory_is_asked_for_first(views, monkeypatch):
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 10_000)
    with pytest.raises(NotEnoughMemoryError, match=r"posterior of 2 views of 30 rows with 2 "):
        short(part(views, slice(0, 30)))


# -- manners ---------------------------------------------------------------------------------------


def test_clone_parameters_and_pickle(brief, views):
    model = SharedGPLVM(2, (1, 0), kernel=[RBF(), None], noise_variance=[0.1, None])
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(n_shared=3, gauge="free").get_params()["n_shared"] == 3
    raw = pickle.dumps(brief)
    assert len(raw) < 20_000  # no 30 × 30 factors
    back = pickle.loads(raw)
    new = part(views, slice(60, 63))
    np.testing.assert_array_equal(back.transform(new), brief.transform(new))


@pytest.mark.parametrize("private", [1, None], ids=["private", "all"])
def test_save_and_load(views, private, tmp_path):
    gaps = part(views, slice(0, 30))
    gaps["right"] = gaps["right"].copy()
    gaps["right"][3] = np.nan
    model = short(gaps, n_shared=2, n_private=private, kernel=[Matern52(1.0, 1.0), None])
    model.save(tmp_path / "m.npz")
    back = gplvm_xp.load(tmp_path / "m.npz")
    assert back.get_params() == model.get_params()
    assert back.view_names_ == model.view_names_
    assert back.kernels_ == model.kernels_
    np.testing.assert_array_equal(back.uses_, model.uses_)
    new = {"left": views["left"][60:66]}
    for one, two in zip(
        back.predict_view(new, "right", return_var=True),
        model.predict_view(new, "right", return_var=True),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    back.save(tmp_path / "n.npz")
    assert (tmp_path / "m.npz").read_bytes() == (tmp_path / "n.npz").read_bytes()


def test_files_whose_parts_do_not_fit_are_refused(brief, tmp_path):
    for name, value, text in (
        ("kernels_", brief.kernels_[:1], "kernels_ is .* expected 2, one for each view"),
        ("view_names_", ("left", 1), "view_names_ is .* expected 2"),
        ("n_columns_", np.array([10, 9]), r"n_columns_ is \[10 +9\]; expected 18 columns"),
        ("kernels_", (brief.kernels_[0], ActiveDims(RBF(), (7,))), "kernel of 'right' does not"),
    ):
        model = pickle.loads(pickle.dumps(brief))
        setattr(model, name, value)
        model.save(tmp_path / "m.npz")
        with pytest.raises(ModelFileError, match=text):
            gplvm_xp.load(tmp_path / "m.npz")


def test_frames(views):
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    some = part(views, slice(0, 30))
    frames = {
        name: pd.DataFrame(Y, columns=[f"{name}{j}" for j in range(Y.shape[1])])
        for name, Y in some.items()
    }
    model = short(frames)
    np.testing.assert_array_equal(model.embedding_, short(some).embedding_)
    assert list(model.feature_names_in_[:2]) == ["left0", "left1"]
    np.testing.assert_array_equal(model.transform(frames), model.embedding_)
    swapped = {"left": frames["left"][reversed(frames["left"].columns)]}
    with pytest.raises(ValueError, match="the view 'left': The feature names should match"):
        model.transform(swapped)
    with pytest.warns(ConvergenceWarning):
        model.fit(some)
    assert not hasattr(model, "feature_names_in_")


def test_torch_in_torch_out(views):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    some = part(views, slice(0, 30))
    model = short({name: torch.tensor(Y) for name, Y in some.items()}, n_private=1)
    plain = short(some, n_private=1)
    np.testing.assert_allclose(model.embedding_.numpy(), plain.embedding_, atol=1e-4)
    new = {"left": torch.tensor(views["left"][60:63])}
    mean, var = model.predict_view(new, "right", return_var=True)
    assert torch.is_tensor(mean)
    assert torch.is_tensor(var)
    assert torch.is_tensor(model.transform(new))
    assert all(torch.is_tensor(Y) for Y in model.predict(model.embedding_[:2]))
    want = plain.predict_view({"left": views["left"][60:63]}, "right")
    np.testing.assert_allclose(mean.numpy(), want, rtol=1e-2)


def test_strict_arrays_in_and_out(views):
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    device = xp.Device("device1")
    some = part(views, slice(0, 20))
    some["right"][2] = np.nan
    with xp.ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False):
        model = short({k: xp.asarray(Y, device=device) for k, Y in some.items()}, n_private=1)
        new = {"left": xp.asarray(views["left"][60:63], device=device)}
        found = (model.embedding_, model.transform(new), model.predict_view(new, 1))
        assert all(a.device == device for a in found)
        assert model.score(new) < 0.0
    plain = short(some, n_private=1)
    np.testing.assert_allclose(model._host_embedding, plain.embedding_, atol=1e-6)


def test_float32(views):
    some = part(views, slice(0, 40))
    wide = SharedGPLVM(1, 1, tol=1e-1).fit(some)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        narrow = SharedGPLVM(1, 1, tol=1e-1, dtype="float32").fit(some)
    assert narrow.log_likelihood_ > wide.log_likelihood_ - 0.05 * abs(wide.log_likelihood_)
    exact = {name: np.round(Y) for name, Y in some.items()}
    with pytest.warns(PrecisionWarning, match="condition number"):
        short(exact, dtype="float32", noise_variance=1e-6, warm_up=0, max_iter=1)


def test_fit_does_not_touch_its_input(views):
    some = {name: Y.copy() for name, Y in part(views, slice(0, 30)).items()}
    for Y in some.values():
        Y.flags.writeable = False
    model = short(some, n_private=1)
    model.predict_view(some, "left")
    assert all(np.array_equal(some[name], views[name][:30]) for name in some)


def test_one_of_a_list_is_named_by_its_place(views):
    some = part(views, slice(0, 30))
    model = short(list(some.values()), n_private=1)
    assert model.view_names_ == ("view0", "view1")
    np.testing.assert_array_equal(model.embedding_, short(some, n_private=1).embedding_)
    same = SharedGPLVM(1, 1, max_iter=8)
    with pytest.warns(ConvergenceWarning):
        np.testing.assert_array_equal(same.fit_transform(tuple(some.values())), model.embedding_)


def test_three_views_and_a_single_column(views):
    some = part(views, slice(0, 40))
    three = {"a": some["left"][:, :6], "b": some["left"][:, 6:9], "y": some["left"][:, 9:]}
    model = short(three, n_shared=2, n_private=(1, 1, 0))
    assert [dims.tolist() for dims in model.private_dims_] == [[2], [3], []]
    assert model.predict_view({"a": three["a"], "b": three["b"]}, "y").shape == (40, 1)


# -- what is refused -------------------------------------------------------------------------------


def bad_views():
    Y = np.random.default_rng(0).standard_normal((12, 4))
    hole = Y.copy()
    hole[3] = np.nan
    column = Y.copy()
    column[:, 2] = np.nan
    infinite = Y.copy()
    infinite[1, 2] = np.inf
    yield [], "views is empty; expected a list of tables"
    yield {}, "views is empty"
    yield [Y], r"views has one table; .* use GPLVM\(n_components\)\.fit\(table\)"
    yield {"a": Y, "b": Y[:10]}, "different numbers of rows: 'a' has 12, 'b' has 10; expected the"
    yield {"a": Y, "b": None}, "the view 'b' is None; fit needs every table"
    yield {"a": Y, "b": np.ones((12, 3))}, "the view 'b': every column of X is constant"
    yield {"a": hole, "b": hole}, "row 3 has no observed entry in any view"
    yield {"a": Y, "b": column}, "the view 'b': column 2 of X has no observed entry"
    yield {"a": Y, "b": infinite}, "the view 'b': X contains infinity in row 1, column 2"
    yield {"a": Y, "b": Y > 0, "c": np.full((12, 2), "x")}, "the view 'c': X holds text"
    yield [Y, Y[:, 0]], "the view 'view1': Expected 2D array"
    yield [Y[:1], Y[:1]], "X has 1 sample"


@pytest.mark.parametrize(("views", "text"), list(bad_views()))
def test_views_that_are_refused(views, text):
    with pytest.raises(ValueError, match=text):
        SharedGPLVM(1).fit(views)


def test_views_of_another_form():
    Y = np.random.default_rng(0).standard_normal((12, 4))
    with pytest.raises(TypeError, match=r"views is a ndarray; .* for one table use GPLVM"):
        SharedGPLVM(1).fit(Y)
    with pytest.raises(TypeError, match="views is a int"):
        SharedGPLVM(1).fit(3)
    with pytest.raises(TypeError, match="a view is named 1; expected text"):
        SharedGPLVM(1).fit({1: Y, 2: Y})


PARAMETERS = [
    ({"n_private": (1, 1, 1)}, ValueError, "n_private has 3 entries and there are 2 views"),
    ({"n_private": -1}, ValueError, "n_private=-1 was given; expected an integer of 0 or more"),
    ({"n_private": 1.5}, ValueError, r"n_private=1.5 was given"),
    ({"n_private": (3, 4)}, ValueError, "the view 'right' has 4 column.* would have 4 private"),
    ({"n_shared": 0}, ValueError, "n_shared=0 was given; expected an integer of 1 or more"),
    ({"n_shared": 8}, ValueError, "n_shared=8 and the views have 8 columns in all"),
    ({"n_shared": 6, "n_private": 3}, ValueError, "12 latent dimensions .6 shared, 6 private. and"),
    ({"kernel": [RBF()]}, ValueError, "kernel has 1 entries and there are 2 views"),
    ({"kernel": [RBF(), "rbf"]}, TypeError, "expected a kernel of gplvm_xp.kernels for all views"),
    ({"kernel": RBF(1.0, (1.0, 1.0))}, ValueError, "2 values of lengthscale"),
    ({"noise_variance": (0.1, 0.1, 0.1)}, ValueError, "noise_variance has 3 entries"),
    ({"noise_variance": [0.1, -1.0]}, ValueError, "expected a positive finite number for all"),
    ({"init": "isomap"}, ValueError, "init='isomap' was given; expected one of 'auto', 'pca'"),
    ({"init": np.zeros((3, 1))}, ValueError, r"shape \(3, 1\); expected \(12, 1\)"),
    ({"init": np.ones((12, 1))}, ValueError, "column 0 of init is constant"),
    ({"gauge": "loose"}, ValueError, "gauge='loose' was given"),
    ({"optimizer": "newton"}, ValueError, "optimizer='newton' was given"),
    ({"warm_up": -1}, ValueError, "warm_up=-1 was given"),
    ({"max_iter": 1.5}, ValueError, "max_iter=1.5 was given"),
    ({"priors": {"noise": LogNormal()}}, ValueError, r"priors names \['noise'\]; .*left.rbf"),
    ({"priors": {"left.noise": 1.0}}, TypeError, "the prior of 'left.noise' is a float"),
    ({"latent_prior": "flat"}, ValueError, "latent_prior='flat' was given"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "text"), PARAMETERS)
def test_parameters_that_are_refused(options, kind, text):
    rng = np.random.default_rng(0)
    views = {"left": rng.standard_normal((12, 4)), "right": rng.standard_normal((12, 4))}
    with pytest.raises(kind, match=text):
        SharedGPLVM(**{"n_shared": 1} | options).fit(views)


def test_new_rows_that_are_refused(brief, views):
    left, right = views["left"][:3], views["right"][:3]
    for given, text in (
        ({"middle": left}, "views names 'middle'; the fitted ones are 'left', 'right'"),
        ([left], "1 views were given and 2 were fitted .left, right.; expected one for each, None"),
        ([None, None], "no view was given; expected at least one of left, right"),
        ({}, "no view was given"),
        ([left[:, :4], None], "the view 'left': X has 4 features, but View is expecting 10"),
        ([left, right[:2]], "different numbers of rows: 'left' has 3, 'right' has 2"),
    ):
        with pytest.raises(ValueError, match=text):
            brief.transform(given)
    for target in ("middle", 2, -3, True, 1.0, None):
        with pytest.raises(ValueError, match=r"target=.* was given; the views are 'left', 'right'"):
            brief.predict_view([left, None], target)
    for latents in (np.zeros((2, 2)), np.zeros(3)):
        with pytest.raises(ValueError, match=r"latents have shape .*; expected \(N, 3\)"):
            brief.predict(latents)
    with pytest.raises(ValueError, match="latents contain NaN"):
        brief.predict(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="n_samples=0 was given"):
        brief.sample(0)


def test_one_table_belongs_to_the_model_of_one(views):
    """What the error says to do works."""
    with pytest.warns(ConvergenceWarning):
        GPLVM(n_components=1, max_iter=2).fit(views["left"][:20])
