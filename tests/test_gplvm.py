"""The estimator: what it learns, what it answers, and how a fit ends."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gplvm_xp
from gplvm_xp import GPLVM, backend
from gplvm_xp.errors import NotPositiveDefiniteError, PrecisionWarning
from gplvm_xp.init import dual_ppca
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52, White
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import Gamma, Gaussian, LogNormal

LATENTS = RBF(1.0, 1.0)


def data(n=30, D=6, q=2, noise=0.1, seed=0):
    """Rows of D smooth functions of q latents, in units of a few."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, (n, q))
    K = LATENTS.gram(LATENTS.theta(), X) + 1e-9 * np.eye(n)
    F = np.linalg.cholesky(K) @ rng.standard_normal((n, D))
    return 3.0 * (F + noise * rng.standard_normal((n, D))) + np.arange(D)


@pytest.fixture(scope="module")
def fitted():
    return GPLVM(2, random_state=0).fit(data())


@pytest.fixture(scope="module")
def patchy():
    # More noise than in the complete table: few outputs would else be interpolated.
    Y = data(D=8, noise=0.4)
    Y[3:6, 2] = Y[3:6, 4] = Y[20, 0] = np.nan
    return GPLVM(2, tol=1e-4, max_iter=2000).fit(Y)


def covariance(model):
    n = len(model.embedding_)
    K = model.kernel_.gram(model.kernel_.theta(), model.embedding_)
    return K + (model.noise_variance_ + model.jitter_) * np.eye(n)


# -- what is learned -------------------------------------------------------------------------------


def test_attributes(fitted):
    assert fitted.status_ == "converged"
    assert fitted.embedding_.shape == (30, 2)
    assert fitted.n_features_in_ == 6
    assert fitted.loss_curve_.shape == (fitted.n_iter_ + 1,)
    assert np.all(np.diff(fitted.loss_curve_) <= 1e-9 * np.abs(fitted.loss_curve_[1:]))
    np.testing.assert_allclose(fitted.mean_, data().mean(0))
    assert np.all(fitted.scale_ == 1.0)
    assert isinstance(fitted.noise_variance_, float)
    assert list(fitted.get_feature_names_out()) == ["gplvm0", "gplvm1"]


@pytest.mark.parametrize("scale", [False, True], ids=["raw", "scaled"])
def test_log_likelihood_in_the_units_of_the_data(scale):
    Y = data(D=4, noise=0.5) * np.array([1.0, 10.0, 0.1, 3.0])
    model = GPLVM(1, scale=scale, max_iter=1000).fit(Y)
    K = covariance(model)
    want = sum(
        stats.multivariate_normal(np.full(30, m), s**2 * K).logpdf(y)
        for y, m, s in zip(Y.T, model.mean_, model.scale_, strict=True)
    )
    np.testing.assert_allclose(model.log_likelihood_, want, rtol=1e-9)
    prior = stats.norm.logpdf(model.embedding_).sum()
    in_scaled_units = model.log_likelihood_ + 30 * np.log(model.scale_).sum()
    np.testing.assert_allclose(model.loss_curve_[-1], -(in_scaled_units + prior), rtol=1e-9)


def test_latents_are_better_than_those_of_pca():
    """Two smooth latents behind six outputs: neighbours are kept, which a plane can't do."""
    rng = np.random.default_rng(2)
    t = rng.uniform(0, 2 * np.pi, 60)
    Y = np.c_[np.cos(t), np.sin(t), np.cos(2 * t), np.sin(2 * t), np.cos(3 * t), np.sin(3 * t)]
    Y += 0.05 * rng.standard_normal(Y.shape)
    model = GPLVM(2, max_iter=1000).fit(Y)
    residual = Y - model.predict(model.embedding_)
    centred = Y - Y.mean(0)
    U, s, Vt = np.linalg.svd(centred, full_matrices=False)
    plane = (U[:, :2] * s[:2]) @ Vt[:2]
    assert np.mean(residual**2) < 0.1 * np.mean((centred - plane) ** 2)
    assert 0.02**2 < model.noise_variance_ < 0.1**2


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
def test_every_optimizer_reaches_the_optimum_known_in_closed_form(optimizer):
    """A linear kernel without a prior is probabilistic PCA, which has one maximum."""
    Y = data(n=15, D=8, noise=0.5)
    X, noise = dual_ppca(Y - Y.mean(0), 2)
    K = X @ X.T + noise * np.eye(15)
    want = stats.multivariate_normal(cov=K).logpdf((Y - Y.mean(0)).T).sum()
    options = {"optimizer": optimizer, "tol": 1e-5, "max_iter": 4000, "jitter": 0.0}
    model = GPLVM(
        2, kernel=Linear(), latent_prior=None, init="random", random_state=0, **options
    ).fit(Y)
    assert model.status_ == "converged"
    np.testing.assert_allclose(model.log_likelihood_, want, rtol=1e-7)
    np.testing.assert_allclose(model.noise_variance_, noise, rtol=1e-3)
    Z = model.embedding_
    np.testing.assert_allclose(Z @ Z.T, X @ X.T, atol=2e-3 * np.abs(X @ X.T).max())


def test_restarts_keep_the_best_and_are_reproducible():
    Y = data(n=20, D=5)
    one = GPLVM(1, random_state=3, max_iter=300, tol=1e-4).fit(Y)
    many = [GPLVM(1, random_state=3, max_iter=300, tol=1e-4, n_restarts=3).fit(Y) for _ in range(2)]
    assert many[0].loss_curve_[-1] <= one.loss_curve_[-1]
    np.testing.assert_array_equal(many[0].embedding_, many[1].embedding_)


@pytest.mark.parametrize("init", ["pca", "ppca", "random", "isomap", "spectral", "kernel_pca"])
def test_every_start(init):
    Y = data(n=25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [GPLVM(2, init=init, random_state=0, max_iter=3).fit(Y) for _ in range(2)]
    assert np.all(np.isfinite(models[0].embedding_))
    assert models[0].loss_curve_[-1] < models[0].loss_curve_[0]
    np.testing.assert_array_equal(models[0].embedding_, models[1].embedding_)


def test_a_start_given_as_an_array_is_used_as_it_is():
    Y = data(n=20)
    start = np.random.default_rng(0).standard_normal((20, 2))
    kernel = RBF(1.0, 0.9)
    with pytest.warns(ConvergenceWarning, match="max_iter=0"):
        model = GPLVM(2, init=start, kernel=kernel, noise_variance=0.2, max_iter=0).fit(Y)
    np.testing.assert_array_equal(model.embedding_, start)
    np.testing.assert_allclose(model.kernel_.theta(), kernel.theta(), rtol=1e-15)
    np.testing.assert_allclose(model.noise_variance_, 0.2, rtol=1e-15)


def test_priors_pull_towards_their_modes():
    Y = data(n=20)
    priors = {"noise": LogNormal(math.log(0.5), 1e-3), "rbf.variance": Gamma(1e6, 1e6 / 7.0)}
    model = GPLVM(2, priors=priors, max_iter=2000).fit(Y)
    np.testing.assert_allclose(model.noise_variance_, 0.5, rtol=2e-3)
    np.testing.assert_allclose(model.kernel_.variance, 7.0, rtol=5e-3)
    tight = GPLVM(2, latent_prior=Gaussian(0.0, 0.1), max_iter=2000).fit(Y)
    loose = GPLVM(2, latent_prior=Gaussian(0.0, 1.0), max_iter=2000).fit(Y)
    assert tight.embedding_.std() < loose.embedding_.std()


# -- gauge -----------------------------------------------------------------------------------------


def test_gauge_is_held_or_learned():
    Y = data(n=20)
    start = RBF(8.0, (0.6, 0.9)) + Linear(0.1) + Constant(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fixed = GPLVM(2, kernel=start, max_iter=20).fit(Y)
        free = GPLVM(2, kernel=start, max_iter=20, gauge="free").fit(Y)
    rbf, linear, constant = fixed.kernel_.parts
    assert rbf.lengthscale == (0.6, 0.9)
    assert rbf.variance != 8.0
    assert linear.variance != 0.1
    assert constant.variance != 0.2
    assert free.kernel_.parts[0].lengthscale != (0.6, 0.9)


def test_the_likelihood_does_not_see_the_gauge():
    Y = data(n=15)
    X = np.random.default_rng(0).standard_normal((15, 2))
    for c in (0.1, 3.0):
        values = []
        for factor, ell in ((1.0, (0.6, 0.9)), (c, (0.6 * c, 0.9 * c))):
            p = Posterior.of(backend.get("numpy"), Matern52(2.0, ell), 0.3, factor * X, Y)
            values.append(float(p.log_likelihood()))
        np.testing.assert_allclose(values[1], values[0], rtol=1e-12)


def test_relevance_finds_the_one_dimension_that_matters():
    Y = data(n=40, q=1, noise=0.02)
    model = GPLVM(2, max_iter=2000, init="ppca").fit(Y)
    relevance = model.relevance()
    assert relevance.max() == 1.0
    assert relevance.shape == (2,)
    assert relevance.min() < 0.5


# -- prediction ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [False, True], ids=["raw", "scaled"])
def test_predict_against_the_textbook(scale):
    Y = data(n=25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = GPLVM(2, scale=scale, max_iter=30, jitter=0.05).fit(Y)
    at = np.random.default_rng(0).standard_normal((7, 2))
    k, theta = model.kernel_, model.kernel_.theta()
    Ks = k.gram(theta, at, model.embedding_)
    K = covariance(model)
    mean = Ks @ np.linalg.solve(K, (Y - model.mean_) / model.scale_) * model.scale_ + model.mean_
    v = k.diag(theta, at) - np.sum(Ks * np.linalg.solve(K, Ks.T).T, axis=1)
    got_mean, got_var = model.predict(at, return_var=True)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-9)
    var = (v + model.noise_variance_ + model.jitter_)[:, None] * model.scale_**2
    np.testing.assert_allclose(got_var, var, rtol=1e-8)
    quiet = model.predict(at, return_var=True, noise=False)[1]
    np.testing.assert_allclose(quiet, v[:, None] * model.scale_**2, rtol=1e-6)
    np.testing.assert_array_equal(model.inverse_transform(at), got_mean)
    np.testing.assert_array_equal(model.inverse_transform(at, return_var=True)[1], got_var)


def test_predicting_data_rows_fills_their_gaps(fitted):
    Y = data()
    rows = Y[:5] + 1e-3
    rows[:, 2] = np.nan
    filled = fitted.predict(rows)
    assert filled.shape == rows.shape
    width = Y[:, 2].std()
    assert np.abs(filled[:, 2] - Y[:5, 2]).max() < 0.5 * width


def test_transform_of_the_training_rows_gives_the_embedding(fitted):
    np.testing.assert_array_equal(fitted.transform(data()), fitted.embedding_)
    np.testing.assert_array_equal(fitted.transform(data()[::-1]), fitted.embedding_[::-1])


def test_transform_of_nearly_equal_rows_lands_nearby(fitted):
    near = fitted.transform(data() + 1e-3)
    np.testing.assert_allclose(near, fitted.embedding_, atol=0.15)


def test_transform_is_a_mode(fitted):
    """No step in any direction makes p(y | z) p(z) larger."""
    rows = data(seed=5)[:6]
    Z = fitted.transform(rows)

    def log_joint(Z):
        mean, var = fitted.predict(Z, return_var=True)
        return stats.norm(mean, np.sqrt(var)).logpdf(rows).sum(1) + stats.norm.logpdf(Z).sum(1)

    best = log_joint(Z)
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        for r in (1e-3, 1e-2):
            step = r * np.array([np.cos(angle), np.sin(angle)])
            assert np.all(log_joint(Z + step) <= best + 1e-6)


def test_transform_with_gaps_and_uncertainty(fitted):
    rows = data()[:6] + 1e-3
    few = rows.copy()
    few[:, 1:5] = np.nan
    few[5] = np.nan
    Z, C = fitted.transform(rows, return_cov=True)
    Zf, Cf = fitted.transform(few, return_cov=True)
    assert Z.shape == (6, 2)
    assert C.shape == (6, 2, 2)
    # Less is known from fewer entries, and nothing but the prior from none.
    assert np.median(np.linalg.det(Cf[:5]) / np.linalg.det(C[:5])) > 2.0
    np.testing.assert_allclose(Zf[5], 0.0, atol=1e-6)
    np.testing.assert_allclose(Cf[5], np.eye(2), atol=1e-6)
    assert np.all(np.linalg.eigvalsh(Cf) > 0.0)


def test_a_batch_gives_what_the_rows_give_one_by_one(fitted):
    rows = np.tile(data(), (70, 1))[:2000]
    rows = rows + 0.1 * np.random.default_rng(0).standard_normal(rows.shape)
    Z = fitted.transform(rows)
    for i in range(0, 2000, 211):
        np.testing.assert_allclose(fitted.transform(rows[i : i + 1])[0], Z[i], atol=1e-5)


# -- scores ----------------------------------------------------------------------------------------


def test_score_against_quadrature():
    """q = 1: the latent is integrated out on a grid."""
    Y = data(n=40, D=12, q=1, noise=0.1, seed=3)
    model = GPLVM(1, max_iter=2000).fit(Y[:30])
    rows = Y[30:]
    z = np.linspace(-6, 6, 6001)[:, None]
    mean, var = model.predict(z, return_var=True)
    want = []
    for row in rows:
        log = stats.norm(mean, np.sqrt(var)).logpdf(row).sum(1) + stats.norm.logpdf(z[:, 0])
        want.append(np.log(np.trapezoid(np.exp(log - log.max()), z[:, 0])) + log.max())
    got = model.score_samples(rows)
    # Laplace's method leaves a little; a missing constant would be at least ½ ln 2π = 0.9.
    np.testing.assert_allclose(got, want, atol=0.15)
    np.testing.assert_allclose(model.score(rows), np.mean(got), rtol=1e-14)


def test_score_without_a_latent_prior_and_with_scaled_columns():
    Y = data(n=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # A jitter that matters: scores and predictions must agree about it.
        model = GPLVM(1, latent_prior=None, scale=True, max_iter=40, jitter=0.05).fit(Y[:25])
        rows = Y[25:]
        density = model.score_samples(rows)
        mean, var = model.predict(model.transform(rows), return_var=True)
    want = stats.norm(mean, np.sqrt(var)).logpdf(rows).sum(1)
    np.testing.assert_allclose(density, want, rtol=1e-6)


def test_score_of_gaps_is_that_of_the_rest(fitted):
    rows = data()[:4] + 0.01
    rows[:, 3] = np.nan
    empty = np.full((1, 6), np.nan)
    assert np.all(np.isfinite(fitted.score_samples(rows)))
    np.testing.assert_allclose(fitted.score_samples(empty), 0.0, atol=1e-6)


def test_leave_one_out_against_taking_rows_out(patchy):
    """At the fitted latents and parameters, every row is predicted from the others."""
    got = patchy.leave_one_out()
    Y = patchy.training_data_ - patchy.mean_
    b = backend.get("numpy")
    noise = patchy.noise_variance_ + patchy.jitter_
    for i in range(0, 30, 3):
        rest = np.arange(30) != i
        p = Posterior.of(b, patchy.kernel_, noise, patchy.embedding_[rest], Y[rest])
        mean, var = (a[0] for a in p.moments(patchy.embedding_[i : i + 1]))
        want = stats.norm(mean, np.sqrt(var + noise)).logpdf(Y[i])
        np.testing.assert_allclose(got[i], want, rtol=1e-7)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(patchy.training_data_))


def test_samples_have_the_moments_of_the_model(fitted):
    rows, latents = fitted.sample(3000, random_state=1)
    assert rows.shape == (3000, 6)
    assert np.all(np.abs(latents.mean(0)) < 4 / math.sqrt(3000))
    np.testing.assert_allclose(np.cov(latents.T), np.eye(2), atol=0.12)
    mean, var = fitted.predict(latents, return_var=True)
    z = (rows - mean) / np.sqrt(var)
    assert np.all(np.abs(z.mean(0)) < 4 / math.sqrt(3000))
    np.testing.assert_allclose(np.corrcoef(z.T), np.eye(6), atol=0.1)
    np.testing.assert_allclose(z.std(0), 1.0, atol=0.06)
    again, _ = fitted.sample(3000, random_state=1)
    np.testing.assert_array_equal(rows, again)


# -- missing data ----------------------------------------------------------------------------------


def test_fit_with_gaps(patchy):
    assert patchy.status_ == "converged"
    assert np.all(np.isfinite(patchy.embedding_))
    assert np.isfinite(patchy.log_likelihood_)
    K = covariance(patchy)
    want = 0.0
    for y, m in zip(patchy.training_data_.T, patchy.mean_, strict=True):
        rows = np.flatnonzero(~np.isnan(y))
        want += stats.multivariate_normal(np.full(rows.size, m), K[np.ix_(rows, rows)]).logpdf(
            y[rows]
        )
    np.testing.assert_allclose(patchy.log_likelihood_, want, rtol=1e-9)


def test_gaps_are_filled_better_than_by_the_mean():
    Y = data(n=40, D=12)
    gaps = Y.copy()
    gaps[::3, 1] = gaps[1::4, 5] = np.nan
    gone = np.isnan(gaps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = GPLVM(2, max_iter=150).fit(gaps)
    filled = model.predict(model.embedding_)
    error = np.sqrt(np.mean((filled - Y)[gone] ** 2))
    by_mean = np.sqrt(np.mean((np.broadcast_to(np.nanmean(gaps, 0), Y.shape) - Y)[gone] ** 2))
    assert error < 0.6 * by_mean


# -- how a fit ends --------------------------------------------------------------------------------


def test_callback_sees_every_step_and_stops():
    seen = []

    def stop(progress):
        seen.append(progress)
        return progress.step >= 4

    model = GPLVM(2, callback=stop).fit(data())
    assert model.status_ == "stopped"
    assert [p.step for p in seen] == list(range(5))
    np.testing.assert_array_equal(model.loss_curve_, [p.value for p in seen])


def test_time_limit_keeps_the_best_state():
    with pytest.warns(ConvergenceWarning, match="time_limit"):
        model = GPLVM(2, time_limit=0.0, n_restarts=5).fit(data())
    assert model.status_ == "time_limit"
    assert np.all(np.isfinite(model.embedding_))
    assert np.isfinite(model.score(data()[:3] + 0.01))


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
def test_ctrl_c_keeps_the_best_state(optimizer):
    def interrupt(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model = GPLVM(2, callback=interrupt, optimizer=optimizer, n_restarts=2).fit(data())
    assert model.status_ == "interrupted"
    assert model.n_iter_ == 6
    prior = stats.norm.logpdf(model.embedding_).sum()
    np.testing.assert_allclose(-(model.log_likelihood_ + prior), model.loss_curve_.min(), rtol=1e-9)


def test_max_iter_says_so():
    with pytest.warns(ConvergenceWarning, match=r"max_iter=2 .*raise max_iter"):
        model = GPLVM(2, max_iter=2).fit(data())
    assert model.status_ == "max_steps"
    assert model.n_iter_ == 2


def test_progress_bar_shows_objective_and_gradient(capsys):
    with pytest.warns(ConvergenceWarning):
        GPLVM(2, max_iter=3, progress=True).fit(data())
    shown = capsys.readouterr().err
    assert "objective" in shown
    assert "|g|" in shown


# -- numerical trouble -----------------------------------------------------------------------------


def test_jitter_is_raised_where_the_start_is_singular():
    Y = np.repeat(data(n=12), 2, axis=0)
    options = {"noise_variance": 1e-300, "jitter": 0.0, "latent_prior": None, "max_iter": 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPLVM(2, kernel=RBF(5.0, 4.0, fixed=("variance",)), **options).fit(Y)
    assert model.jitter_ > 0.0
    assert np.all(np.isfinite(model.embedding_))
    # The jitter is part of the model that was learned.
    assert np.isfinite(model.log_likelihood_)


def test_jitter_is_documented_and_relative_to_the_variance():
    Y = data(n=20)
    with pytest.warns(ConvergenceWarning):
        model = GPLVM(2, max_iter=1, jitter=1e-6).fit(Y)
    variance = np.mean((Y - Y.mean(0)) ** 2)
    np.testing.assert_allclose(model.jitter_, 1e-6 * variance, rtol=1e-12)


def test_a_start_without_a_factor_is_an_error_with_advice():
    """A kernel of enormous variance drowns every jitter of the schedule."""
    Y = np.repeat(data(n=12), 2, axis=0)
    kernel = Constant(1e40)
    with pytest.raises(NotPositiveDefiniteError, match=r"jitter of up to .*noise_variance"):
        GPLVM(2, kernel=kernel, noise_variance=1e-12).fit(Y)


def test_float32_warns_where_its_precision_is_gone():
    Y = data(n=30, noise=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.warns(PrecisionWarning, match=r"float64"):
            model = GPLVM(2, dtype="float32", noise_variance=1e-4, max_iter=5).fit(Y)
        assert np.all(np.isfinite(model.embedding_))
        warnings.simplefilter("error", PrecisionWarning)
        GPLVM(2, max_iter=5).fit(Y)


def test_float32_reaches_nearly_the_same_optimum():
    Y = data(n=20, D=5, noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        double = GPLVM(1, max_iter=300).fit(Y)
        single = GPLVM(1, max_iter=300, dtype="float32").fit(Y)
    np.testing.assert_allclose(single.loss_curve_[-1], double.loss_curve_[-1], rtol=1e-3)


# -- in company ------------------------------------------------------------------------------------


def test_pickle_and_clone(fitted):
    rows = data(seed=3)[:4]
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(rows), fitted.transform(rows))
    np.testing.assert_array_equal(again.predict(rows), fitted.predict(rows))
    # No n × n matrix travels.
    assert "_posterior" not in fitted.__getstate__()
    fresh = clone(GPLVM(3, kernel=RBF() + White(), scale=True))
    assert fresh.get_params()["kernel"] == RBF() + White()
    assert not hasattr(fresh, "embedding_")


@pytest.mark.parametrize("model", ["fitted", "patchy"])
def test_save_and_load(model, request, tmp_path):
    model = request.getfixturevalue(model)
    path = tmp_path / "model.npz"
    model.save(path)
    again = gplvm_xp.load(path)
    rows = data(D=model.n_features_in_, seed=3)[:4]
    assert type(again) is GPLVM
    np.testing.assert_array_equal(again.embedding_, model.embedding_)
    np.testing.assert_array_equal(again.transform(rows), model.transform(rows))
    for a, b in zip(
        again.predict(rows, return_var=True), model.predict(rows, return_var=True), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.leave_one_out(), model.leave_one_out())
    assert again.kernel_ == model.kernel_


def test_pipeline_and_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(data(), columns=list("abcdef"), index=range(100, 130))
    pipe = make_pipeline(StandardScaler(), GPLVM(2, tol=1e-3)).set_output(transform="pandas")
    out = pipe.fit_transform(frame)
    assert list(out.columns) == ["gplvm0", "gplvm1"]
    assert list(out.index) == list(range(100, 130))
    model = GPLVM(2, tol=1e-3).fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("fedcba")])
    back = pipe[:-1].transform(frame)
    np.testing.assert_allclose(pipe.transform(frame), out.to_numpy())
    assert back.shape == (30, 6)


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    Y = data(n=15, D=4)
    X = torch.tensor(Y)
    options = {"max_iter": 30, "tol": 1e-3, "kernel": RBF(9.0, 0.5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        there, here = GPLVM(2, **options).fit(X), GPLVM(2, **options).fit(Y)
        moved = GPLVM(2, backend="torch", **options).fit(Y)
    rows = torch.tensor(Y[:3] + 0.01)
    for result in (
        there.embedding_, there.transform(rows), there.predict(rows), there.score_samples(rows),
        there.transform(rows, return_cov=True)[1],
    ):  # fmt: skip
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float64
    np.testing.assert_allclose(there.loss_curve_[:5], here.loss_curve_[:5], rtol=1e-9)
    np.testing.assert_allclose(there.predict(rows).numpy(), there.predict(Y[:3] + 0.01))
    assert isinstance(there.score(rows), float)
    assert isinstance(moved.embedding_, np.ndarray)


def test_strict_arrays_in_and_out():
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    X = xp.asarray(data(n=12), device=xp.Device("device1"))
    with pytest.warns(ConvergenceWarning):
        model = GPLVM(2, max_iter=3).fit(X)
    assert type(model.embedding_) is type(X)
    assert model.embedding_.device == X.device
    assert type(model.transform(X)) is type(X)


def test_fit_does_not_touch_its_input():
    Y = data()
    before = Y.copy()
    Y.flags.writeable = False
    with pytest.warns(ConvergenceWarning):
        GPLVM(2, max_iter=2).fit(Y).transform(Y + 0.0)
    np.testing.assert_array_equal(Y, before)


def test_the_objective_of_the_estimator_is_that_of_the_library():
    """Nothing between the door and the objective changes the problem."""
    Y = data(n=20)
    start = np.random.default_rng(0).standard_normal((20, 2))
    kernel = RBF(4.0, 0.9) + White(0.1)
    with pytest.warns(ConvergenceWarning):
        model = GPLVM(2, init=start, kernel=kernel, noise_variance=0.3, max_iter=0).fit(Y)
    centred = Y - Y.mean(0)
    fun = ExactObjective(
        kernel, groups_of(backend.get("numpy"), centred), start, 0.3, Gaussian(),
        jitter=1e-8 * np.mean(centred**2),
    )  # fmt: skip
    f, _ = fun.value_and_grad(fun.start())
    np.testing.assert_allclose(model.loss_curve_[0], f, rtol=1e-12)


def test_orders_of_rows_do_not_matter_to_the_optimum():
    Y = data(n=15, D=4, noise=0.3)
    a = GPLVM(1, tol=1e-6, max_iter=2000).fit(Y)
    b = GPLVM(1, tol=1e-6, max_iter=2000).fit(Y[::-1, ::-1])
    np.testing.assert_allclose(a.loss_curve_[-1], b.loss_curve_[-1], rtol=1e-6)
    assert list(itertools.chain(a.embedding_.shape)) == [15, 1]
