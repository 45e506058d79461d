"""The sparse GPLVM as an estimator: what it learns, what it answers, and how a fit ends."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import gplvm_xp
from gplvm_xp import GPLVM, BayesianGPLVM, SparseGPLVM, backend, datasets
from gplvm_xp.errors import NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.estimators import _bayes
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.objectives.bayesian import Observed
from gplvm_xp.objectives.fitc import FITCObjective
from gplvm_xp.priors import Gaussian, LogNormal

NAMES = ("vfe", "fitc", "dtc")
SHAPE = RBF(1.0, 1.0)


def data(n=60, D=8, q=2, noise=0.1, seed=0):
    """Rows of D smooth functions of q latents, in units of a few."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, (n, q))
    K = SHAPE.gram(SHAPE.theta(), X) + 1e-9 * np.eye(n)
    F = np.linalg.cholesky(K) @ rng.standard_normal((n, D))
    return 3.0 * (F + noise * rng.standard_normal((n, D))) + np.arange(D)


def gaps(Y, seed=3):
    Y = Y.copy()
    Y[3:9, 2] = Y[3:9, 5] = Y[20:24, 0] = np.nan
    return Y


def quiet(model, Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(Y)


@pytest.fixture(scope="module", params=NAMES)
def fitted(request):
    model = SparseGPLVM(2, n_inducing=15, approximation=request.param, max_iter=150)
    return quiet(model.set_params(random_state=0), data())


@pytest.fixture(scope="module")
def patchy():
    return quiet(SparseGPLVM(2, n_inducing=15, max_iter=150, random_state=0), gaps(data()))


# -- what is learned -------------------------------------------------------------------------------


def test_attributes(fitted):
    Y = data()
    assert fitted.embedding_.shape == (60, 2)
    assert fitted.inducing_inputs_.shape == (15, 2)
    assert fitted.inducing_mean_.shape == (15, 8)
    assert fitted.inducing_factor_.shape == (1, 15, 15)
    np.testing.assert_array_equal(fitted.inducing_groups_, np.zeros(8))
    assert fitted.loss_curve_.shape == (fitted.n_iter_ + 1,)
    assert np.all(np.diff(fitted.loss_curve_) <= 1e-9 * np.abs(fitted.loss_curve_[1:]))
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0] - 100.0
    assert fitted.n_active_ == 2
    assert fitted.relevance_.max() == 1.0
    np.testing.assert_allclose(fitted.relevance_, fitted.relevance() ** 2)
    assert isinstance(fitted.noise_variance_, float)
    residual = Y - fitted.predict(fitted.embedding_)
    assert np.mean(residual**2) < 0.05 * np.mean((Y - Y.mean(0)) ** 2)
    assert list(fitted.get_feature_names_out()) == ["sparsegplvm0", "sparsegplvm1"]


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("name", NAMES)
def test_lower_bound_is_the_likelihood_in_the_units_of_the_data(name, missing):
    Y = data(n=30, D=4, noise=0.5) * np.array([1.0, 10.0, 0.1, 3.0])
    Y = np.where(np.arange(30)[:, None] % 7 == np.arange(4), np.nan, Y) if missing else Y
    model = SparseGPLVM(
        1, n_inducing=8, approximation=name, scale=True, max_iter=40, random_state=0
    )
    quiet(model, Y)
    k, X, Z = model.kernel_, model.embedding_, model.inducing_inputs_
    Kuu = k.gram(k.theta(), Z) + model.jitter_ * np.eye(8)
    Q = k.gram(k.theta(), X, Z) @ np.linalg.solve(Kuu, k.gram(k.theta(), Z, X))
    rest, want = k.diag(k.theta(), X) - np.diag(Q), 0.0
    K = Q + np.diag(model.noise_variance_ + (rest if name == "fitc" else 0.0 * rest))
    for y, m, s in zip(Y.T, model.mean_, model.scale_, strict=True):
        i = ~np.isnan(y)
        want += stats.multivariate_normal(np.full(i.sum(), m), s**2 * K[np.ix_(i, i)]).logpdf(y[i])
        want -= 0.5 * rest[i].sum() / model.noise_variance_ if name == "vfe" else 0.0
    np.testing.assert_allclose(model.lower_bound_, want, rtol=1e-8)
    prior = stats.norm.logpdf(X).sum()
    in_scaled_units = model.lower_bound_ + np.sum(~np.isnan(Y) * np.log(model.scale_))
    np.testing.assert_allclose(model.loss_curve_[-1], -(in_scaled_units + prior), rtol=1e-8)


@pytest.mark.parametrize("M", [8, 40])
def test_the_bound_is_below_the_exact_models(M):
    """At the same latents and parameters; with an inducing input for each row nearly equal."""
    Y = data(n=40)
    sparse = quiet(SparseGPLVM(2, n_inducing=M, max_iter=100, random_state=0), Y)
    exact = GPLVM(
        2, kernel=sparse.kernel_, init=sparse.embedding_, noise_variance=sparse.noise_variance_,
        max_iter=0,
    )  # fmt: skip
    gap = quiet(exact, Y).log_likelihood_ - sparse.lower_bound_
    assert gap > 0.0
    assert gap < 3.0 if M == 40 else gap > 10.0


@pytest.mark.parametrize("name", NAMES)
def test_one_dimension_is_enough(name):
    rng = np.random.default_rng(0)
    Y = np.outer(rng.standard_normal(50), np.arange(1.0, 7.0)) + 0.1 * rng.standard_normal((50, 6))
    options = {"n_inducing": 10, "kernel": Linear(), "max_iter": 300, "random_state": 0}
    model = quiet(SparseGPLVM(2, approximation=name, **options), Y)
    assert model.relevance_[1] < 1e-3
    assert model.n_active_ == 1
    assert 0.003 < model.noise_variance_ < 0.02


def test_gauge_and_kernel():
    start = RBF(8.0, (0.6, 0.9)) + Linear(0.1) + Constant(0.2)
    Y = data(n=25)
    fixed = quiet(SparseGPLVM(2, n_inducing=10, kernel=start, max_iter=15), Y)
    free = quiet(SparseGPLVM(2, n_inducing=10, kernel=start, max_iter=15, gauge="free"), Y)
    assert fixed.kernel_.parts[0].lengthscale == (0.6, 0.9)
    assert fixed.kernel_.parts[0].variance != 8.0
    assert free.kernel_.parts[0].lengthscale != (0.6, 0.9)


def test_warm_up_holds_the_noise():
    Y, seen = data(n=30), []
    options = {"n_inducing": 8, "noise_variance": 0.7, "random_state": 0}
    warm = quiet(SparseGPLVM(2, warm_up=6, max_iter=6, **options), Y)
    assert warm.noise_variance_ == pytest.approx(0.7, rel=1e-14)
    assert warm.n_iter_ == 6
    more = SparseGPLVM(2, warm_up=6, max_iter=20, callback=lambda p: seen.append(p.step), **options)
    quiet(more, Y)
    assert more.noise_variance_ != pytest.approx(0.7, rel=1e-3)
    assert more.n_iter_ == 20
    assert more.loss_curve_.shape == (21,)
    np.testing.assert_allclose(more.loss_curve_[:7], warm.loss_curve_, rtol=1e-12)
    assert seen == [*range(7), *range(6, 21)]


def test_the_objective_of_the_estimator_is_that_of_the_library():
    """Nothing between the door and the objective changes the problem; inducing inputs are rows."""
    Y, start = data(n=20), np.random.default_rng(0).standard_normal((20, 2))
    model = SparseGPLVM(
        2, n_inducing=6, approximation="fitc", init=start, kernel=RBF(4.0, 0.9),
        noise_variance=0.3, max_iter=0, priors={"noise": LogNormal(-1.0, 2.0)},
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="max_iter=0"):
        model.fit(Y)
    table = Observed.of(backend.get("numpy"), Y - Y.mean(0))
    fun = FITCObjective(
        RBF(4.0, 0.9), table, start, None, model.inducing_inputs_, 0.3,
        latent_prior=Gaussian(), priors={"noise": LogNormal(-1.0, 2.0)}, jitter=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(model.loss_curve_[0], fun.value_and_grad(fun.start())[0], rtol=1e-12)
    np.testing.assert_array_equal(model.embedding_, start)
    assert {row.tobytes() for row in model.inducing_inputs_} <= {row.tobytes() for row in start}


def test_restarts_keep_the_best_and_are_reproducible():
    Y = data(n=25, D=5)
    options = {"n_inducing": 8, "max_iter": 60, "random_state": 3}
    one = quiet(SparseGPLVM(1, **options), Y)
    many = [quiet(SparseGPLVM(1, n_restarts=2, **options), Y) for _ in range(2)]
    assert many[0].loss_curve_[-1] <= one.loss_curve_[-1]
    np.testing.assert_array_equal(many[0].embedding_, many[1].embedding_)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_every_optimizer_descends(optimizer):
    model = quiet(SparseGPLVM(2, n_inducing=10, optimizer=optimizer, max_iter=30), data(n=30))
    assert model.loss_curve_[-1] < model.loss_curve_[0]


# -- what it answers -------------------------------------------------------------------------------


def test_predictions_against_the_textbook(fitted):
    """The posterior of the approximate model, dense, at other latents (Quiñonero-Candela &
    Rasmussen 2005, table 1)."""
    Y, at = data(), np.random.default_rng(0).standard_normal((7, 2))
    k, X, Z = fitted.kernel_, fitted.embedding_, fitted.inducing_inputs_
    Kuu = k.gram(k.theta(), Z) + fitted.jitter_ * np.eye(15)
    Kxu, Ksu = k.gram(k.theta(), X, Z), k.gram(k.theta(), at, Z)
    Q, Qs = Kxu @ np.linalg.solve(Kuu, Kxu.T), Ksu @ np.linalg.solve(Kuu, Kxu.T)
    rest = k.diag(k.theta(), X) - np.diag(Q)
    level = fitted.noise_variance_ + (rest if fitted.approximation == "fitc" else 0.0 * rest)
    K = Q + np.diag(level)
    mean, var = fitted.predict(at, return_var=True)
    want = Qs @ np.linalg.solve(K, Y - fitted.mean_) + fitted.mean_
    np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    v = k.diag(k.theta(), at) - np.sum(Qs * np.linalg.solve(K, Qs.T).T, axis=1)
    np.testing.assert_allclose(var[:, 0], v + fitted.noise_variance_, rtol=1e-4)


def test_transform(fitted):
    Y = data()
    np.testing.assert_array_equal(fitted.transform(Y), fitted.embedding_)
    near, variance = fitted.transform(Y + 1e-3, return_var=True)
    # A training row's own approximation knows it as less certain than a new row's does (DTC).
    assert np.median(np.abs(near - fitted.embedding_)) < 0.1 * fitted.embedding_.std()
    assert variance.shape == (60, 2)
    assert np.all(variance > 0.0)


def test_imputation(fitted):
    Y = data()
    rows = Y[:12] + 1e-3
    rows[:, 3] = np.nan
    filled, variance = fitted.impute(rows, return_var=True)
    np.testing.assert_array_equal(filled[:, :3], rows[:, :3])
    assert np.sqrt(np.mean((filled[:, 3] - Y[:12, 3]) ** 2)) < 0.5 * Y[:, 3].std()
    assert np.all(variance[:, 3] > 0.0)
    assert np.all(variance[:, :3] == 0.0)


def test_filled_entries_have_the_spread_that_they_are_said_to_have():
    """Held-out rows of a draw from the model: the latent's own uncertainty counts."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((170, 2))
    K = RBF(1.0, 1.2).gram(RBF(1.0, 1.2).theta(), X) + 1e-9 * np.eye(170)
    Y = np.linalg.cholesky(K) @ rng.standard_normal((170, 12))
    Y += 0.2 * rng.standard_normal(Y.shape)
    model = quiet(SparseGPLVM(2, n_inducing=25, random_state=0, max_iter=150), Y[:110])
    rows, gone = Y[110:].copy(), rng.random((60, 12)) < 0.4
    rows[gone] = np.nan
    mean, variance = model.impute(rows, return_var=True)
    error = np.abs(mean - Y[110:])[gone]
    inside = np.mean(error < 1.645 * np.sqrt(variance[gone]))
    at, spread = model.transform(rows, return_var=True)
    certain, certain_var = model.predict(at, return_var=True)
    before = np.mean(np.abs(certain - Y[110:])[gone] < 1.645 * np.sqrt(certain_var[gone]))
    assert before + 0.03 < inside < 0.96
    assert inside > 0.78
    # The moments are over the latent: by many draws of it.
    draws = at[:3] + np.sqrt(spread[:3]) * rng.standard_normal((4000, 3, 2))
    m, v = (a.reshape(4000, 3, 12) for a in model.predict(draws.reshape(-1, 2), return_var=True))
    want_mean, want_var = m.mean(axis=0), v.mean(axis=0) + m.var(axis=0)
    where = gone[:3]
    np.testing.assert_allclose(mean[:3][where], want_mean[where], atol=0.05)
    np.testing.assert_allclose(variance[:3][where], want_var[where], rtol=0.15)


def test_a_row_with_nothing_observed_is_filled_from_the_prior(fitted):
    mean, variance = fitted.impute(np.full((1, 8), np.nan), return_var=True)
    draws = np.random.default_rng(0).standard_normal((20_000, 2))
    m, v = fitted.predict(draws, return_var=True)
    np.testing.assert_allclose(mean[0], m.mean(axis=0), atol=0.05 * data().std())
    np.testing.assert_allclose(variance[0], v.mean(axis=0) + m.var(axis=0), rtol=0.05)


def test_score(fitted):
    """Held-out rows of the same functions are far likelier than shuffled ones."""
    Y = data()
    rows = Y[:10] + 0.05 * np.random.default_rng(1).standard_normal((10, 8))
    wrong = np.random.default_rng(2).permuted(rows, axis=0)
    assert fitted.score_samples(rows).shape == (10,)
    assert fitted.score(rows) > fitted.score(wrong) + 5.0


def test_gaps(patchy):
    Y = data()
    assert patchy.inducing_factor_.shape == (3, 15, 15)
    assert np.all(np.isfinite(patchy.embedding_))
    filled = patchy.impute(gaps(Y))
    gone = np.isnan(gaps(Y))
    assert np.sqrt(np.mean((filled - Y)[gone] ** 2)) < 0.5 * Y.std()
    np.testing.assert_array_equal(filled[~gone], Y[~gone])


# -- going on, files -------------------------------------------------------------------------------


def test_partial_fit_goes_on_where_it_was(tmp_path):
    Y = data(n=40)
    options = {"n_inducing": 10, "random_state": 0, "max_iter": 25}
    first = quiet(SparseGPLVM(2, **options), Y)
    first.save(tmp_path / "m.npz")
    there = gplvm_xp.load(tmp_path / "m.npz")
    before = first.loss_curve_[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first.partial_fit(Y)
        there.partial_fit(Y)
    np.testing.assert_allclose(first.loss_curve_[0], before, rtol=1e-9)
    assert first.loss_curve_[-1] < before
    np.testing.assert_array_equal(first.embedding_, there.embedding_)


def test_partial_fit_takes_new_rows_in():
    Y = data(n=40)
    model = quiet(SparseGPLVM(2, n_inducing=10, random_state=0, max_iter=60), Y[:32])
    mean = model.mean_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(Y[28:])
    assert model.embedding_.shape == (40, 2)
    np.testing.assert_array_equal(model.training_data_, Y)
    np.testing.assert_array_equal(model.mean_, mean)


def test_pickle_clone_save_and_load(fitted, tmp_path):
    rows = data(seed=3)[:4]
    fitted.save(tmp_path / "model.npz")
    for again in (pickle.loads(pickle.dumps(fitted)), gplvm_xp.load(tmp_path / "model.npz")):
        assert type(again) is SparseGPLVM
        assert again.kernel_ == fitted.kernel_
        np.testing.assert_array_equal(again.transform(rows), fitted.transform(rows))
        for a, b in zip(
            again.predict(rows, return_var=True), fitted.predict(rows, return_var=True), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert "_posterior" not in fitted.__getstate__()
    assert not hasattr(clone(fitted), "embedding_")


def test_save_and_load_with_gaps(patchy, tmp_path):
    patchy.save(tmp_path / "model.npz")
    again = gplvm_xp.load(tmp_path / "model.npz")
    rows = gaps(data(seed=3))[:6]
    np.testing.assert_array_equal(again.impute(rows), patchy.impute(rows))


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    Y = data(n=20, D=4)
    options = {"n_inducing": 6, "max_iter": 10, "random_state": 0, "approximation": "fitc"}
    there, here = (
        quiet(SparseGPLVM(2, **options), torch.tensor(Y)),
        quiet(SparseGPLVM(2, **options), Y),
    )
    assert isinstance(there.embedding_, torch.Tensor)
    assert isinstance(there.transform(torch.tensor(Y + 0.01)), torch.Tensor)
    np.testing.assert_allclose(there.loss_curve_[:4], here.loss_curve_[:4], rtol=1e-9)


# -- how a fit ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 6])
def test_ctrl_c_keeps_the_best_state(at):
    def interrupt(progress):
        if progress.step == at:
            raise KeyboardInterrupt

    model = SparseGPLVM(2, n_inducing=8, warm_up=4, callback=interrupt, n_restarts=2)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model.fit(data(n=30))
    assert model.status_ == "interrupted"
    assert model.n_iter_ == at
    assert np.isfinite(model.score(data(n=30)[:3] + 0.01))


def test_time_limit_keeps_the_best_state():
    with pytest.warns(ConvergenceWarning, match="time_limit"):
        model = SparseGPLVM(2, time_limit=0.0, n_restarts=5, n_inducing=8).fit(data(n=30))
    assert model.status_ == "time_limit"
    assert np.all(np.isfinite(model.embedding_))


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"n_inducing": 31}, ValueError, "n_inducing=31 was given; expected at most 30, .*rows"),
        ({"n_inducing": 0}, ValueError, "n_inducing=0 was given; expected an integer of 1"),
        ({"n_inducing": 2.5}, ValueError, "n_inducing=2.5 was given"),
        ({"approximation": "pitc"}, ValueError, "expected one of 'vfe', 'fitc', 'dtc'"),
        ({"warm_up": -1}, ValueError, "warm_up=-1 was given; expected an integer of 0"),
        ({"n_components": 8}, ValueError, "lower n_components below 8"),
        ({"gauge": "loose"}, ValueError, "gauge='loose' was given"),
        ({"noise_variance": 0.0}, ValueError, "noise_variance=0.0 .* positive finite"),
        ({"kernel": "rbf"}, TypeError, "kernel is a str"),
        ({"init": np.zeros((3, 2))}, ValueError, r"init is an array of shape \(3, 2\)"),
        ({"priors": {"rbf.lengthscale": Gaussian()}}, ValueError, "gauge='fixed' holds"),
        ({"priors": {"nose": Gaussian()}}, ValueError, r"priors names \['nose'\]"),
        ({"latent_prior": "flat"}, ValueError, "latent_prior='flat' was given"),
    ],
)
def test_bad_parameters(options, kind, message):
    model = SparseGPLVM(**({"max_iter": 2} | options))
    with pytest.raises(kind, match=message):
        model.fit(data(n=30))


def test_bad_tables():
    Y = data(n=30)
    empty = Y.copy()
    empty[:, 3] = np.nan
    with pytest.raises(ValueError, match="column 3 of X has no observed entry"):
        SparseGPLVM().fit(empty)
    with pytest.raises(ValueError, match="every column of X is constant"):
        SparseGPLVM().fit(np.ones((10, 4)))


def test_fewer_rows_than_the_default_number_of_inducing_inputs():
    model = quiet(SparseGPLVM(2, max_iter=3), data(n=12))
    assert model.inducing_inputs_.shape == (12, 2)


@pytest.mark.parametrize("name", NAMES)
def test_coincident_rows_and_inducing_inputs(name):
    """More inducing inputs than different rows: they are moved apart, or the jitter grows."""
    Y = np.repeat(data(n=6), 5, axis=0)
    model = SparseGPLVM(
        2, n_inducing=20, approximation=name, max_iter=8, random_state=0, jitter=0.0
    )
    quiet(model.set_params(kernel=RBF(9.0, 6.0)), Y)
    assert np.all(np.isfinite(model.embedding_))
    assert np.isfinite(model.lower_bound_)
    assert len(np.unique(model.inducing_inputs_, axis=0)) == 20
    assert model.jitter_ > 0.0


def test_a_start_without_a_factor_is_an_error_with_advice():
    with pytest.raises(NotPositiveDefiniteError, match=r"8 inducing inputs .*jitter of up to"):
        SparseGPLVM(2, n_inducing=8, kernel=Constant(1e300)).fit(data(n=20))


def test_too_little_memory_for_the_groups(monkeypatch):
    numpy = type(backend.get("numpy"))
    monkeypatch.setattr(numpy, "memory_available", lambda self: 2**16)
    with pytest.raises(NotEnoughMemoryError, match=r"60 rows with 40 inducing inputs and 3 group"):
        SparseGPLVM(2, n_inducing=40).fit(gaps(data()))


@pytest.mark.parametrize("model", [SparseGPLVM, BayesianGPLVM])
def test_more_inducing_inputs_than_rows_are_seeded_from(monkeypatch, model):
    """Memory is asked for before they are sought, and all of them are found."""
    monkeypatch.setattr(_bayes, "SEEDED", 10)
    X = np.random.default_rng(0).standard_normal((30, 2))
    assert np.unique(_bayes.inducing_inputs(X, 25, np.random.default_rng(0)), axis=0).shape[0] == 25
    assert _bayes.inducing_inputs(X, 4, np.random.default_rng(0)).shape == (4, 2)
    numpy = type(backend.get("numpy"))
    monkeypatch.setattr(numpy, "memory_available", lambda self: 2**34)
    monkeypatch.setattr(_bayes, "kmeans_plusplus", None)
    Y = np.random.default_rng(0).standard_normal((30_000, 3))
    with pytest.raises(NotEnoughMemoryError, match="30000 rows with 30000 inducing inputs"):
        model(2, n_inducing=30_000).fit(Y)


@pytest.mark.parametrize("model", [SparseGPLVM, BayesianGPLVM])
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e150, "float64"), (1e-150, "float64"), (1e15, "float32")]
)
def test_numbers_out_of_range(model, size, dtype):
    with pytest.raises(ValueError, match=rf"beyond the range of {dtype}; .*rescale the columns"):
        model(2, n_inducing=5, dtype=dtype).fit(size * data(n=20))


# -- real data -------------------------------------------------------------------------------------


def test_digits_beside_the_exact_model():
    digits = datasets.load_digits()
    part = np.flatnonzero(np.isin(digits.labels, (0, 1, 2, 3)))[:240]
    Y, labels = digits.Y[part], digits.labels[part]
    options = {"max_iter": 60, "random_state": 0}
    exact = nearest_neighbour_errors(quiet(GPLVM(2, **options), Y).embedding_, labels)
    for name in NAMES:
        model = quiet(SparseGPLVM(2, n_inducing=30, approximation=name, **options), Y)
        errors = nearest_neighbour_errors(model.embedding_, labels)
        assert errors <= exact + 10, name


def test_oil_flow_beside_the_exact_model():
    try:
        oil = datasets.fetch_oil_flow()
    except OSError as error:
        pytest.skip(f"the oil flow table is not here: {error}")
    Y, labels = oil.Y[:300], oil.labels[:300]
    options = {"max_iter": 150, "random_state": 0}
    pca = gplvm_xp.init.latents("pca", Y - Y.mean(0), 2, np.random.default_rng(0))
    before = nearest_neighbour_errors(pca, labels)
    exact = nearest_neighbour_errors(quiet(GPLVM(2, **options), Y).embedding_, labels)
    for name in NAMES:
        model = quiet(SparseGPLVM(2, n_inducing=50, approximation=name, **options), Y)
        errors = nearest_neighbour_errors(model.embedding_, labels)
        assert errors <= exact + 5 < before, name


def test_a_kernel_without_closed_psi_statistics():
    """Points need none."""
    model = quiet(SparseGPLVM(2, n_inducing=8, kernel=Matern52(9.0, 0.8), max_iter=20), data(n=30))
    assert model.loss_curve_[-1] < model.loss_curve_[0]
