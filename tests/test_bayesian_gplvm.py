"""The Bayesian GPLVM: what a fit finds, how it ends, what a fitted model answers, bad input."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gplvm_xp
from gplvm_xp import BayesianGPLVM, SparseGPLVM, backend
from gplvm_xp.errors import NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.estimators import _bayes_batches
from gplvm_xp.estimators._scales import row_totals
from gplvm_xp.kernels import RBF, Linear, Matern52, White
from gplvm_xp.likelihoods import Gaussian, NegativeBinomial, Poisson
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed
from gplvm_xp.priors import LogNormal

# Most tests take fewer steps than a fit needs.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def smooth(n=40, D=6, noise=0.05, seed=0, rough=0.2):
    """Two latents, and columns that are smooth functions of them."""
    rng = np.random.default_rng(seed)
    X, A = rng.standard_normal((n, 2)), rng.standard_normal((2, 30))
    waves = np.sin(rough * X @ A + rng.uniform(0.0, 6.0, 30))
    F = waves @ rng.standard_normal((30, D)) / np.sqrt(15.0)
    return X, F + noise * rng.standard_normal(F.shape)


def data(**options):
    return smooth(**options)[1]


def counts(n=60, D=8, seed=0, depth=None):
    """Counts whose log rates are smooth; ``depth`` multiplies each row's."""
    Y = 0.8 * smooth(n, D, seed=seed, rough=0.6)[1] + 1.0
    rate = np.exp(Y) if depth is None else np.exp(Y) * depth[:, None]
    return np.random.default_rng(seed + 1).poisson(rate).astype(float)


def quick(**options):
    return BayesianGPLVM(
        **{"n_components": 2, "n_inducing": 8, "max_iter": 40, "random_state": 0} | options
    )


def by_minibatch(**options):
    usual = {"inference": "minibatch", "n_epochs": 6, "batch_size": 20, "random_state": 0}
    return quick(**usual | options)


def holes(Y, share=0.1, seed=1):
    Y = Y.copy()
    Y[np.random.default_rng(seed).random(Y.shape) < share] = np.nan
    return Y


@pytest.fixture(scope="module")
def fitted():
    return quick(max_iter=200).fit(data())


@pytest.fixture(scope="module")
def patchy():
    return quick(max_iter=100).fit(holes(data()))


@pytest.fixture(scope="module")
def deep():
    """Counts of rows whose totals differ by a factor of ten."""
    depth = np.random.default_rng(5).uniform(0.3, 3.0, 60)
    Y = counts(depth=depth)
    return Y, quick(likelihood="poisson", exposure="total", n_epochs=30, random_state=0).fit(Y)


# -- what a fit leaves -----------------------------------------------------------------------------


def test_attributes(fitted):
    n, D, q, M = 40, 6, 2, 8
    for name, shape in {
        "embedding_": (n, q), "embedding_variance_": (n, q), "relevance_": (q,),
        "inducing_inputs_": (M, q), "inducing_mean_": (M, D), "inducing_factor_": (1, M, M),
        "inducing_groups_": (D,), "mean_": (D,), "scale_": (D,), "training_data_": (n, D),
    }.items():  # fmt: skip
        assert getattr(fitted, name).shape == shape, name
    assert np.all(fitted.embedding_variance_ > 0.0)
    assert fitted.relevance_.max() == 1.0
    assert fitted.loss_curve_[-1] == fitted.loss_curve_.min()
    assert fitted.loss_curve_.size == fitted.n_iter_ + 1
    assert fitted.likelihood_ is None
    assert fitted.n_features_in_ == D
    assert list(fitted.get_feature_names_out()) == ["bayesiangplvm0", "bayesiangplvm1"]


@pytest.mark.parametrize("scale", [False, True])
def test_the_bound_is_that_of_the_objective_in_the_units_of_the_data(scale):
    """And without the priors of parameters, which the loss curve has."""
    Y = holes(data(n=20)) * np.arange(1.0, 7.0)
    model = quick(scale=scale, max_iter=10, priors={"noise": LogNormal(-2.0, 0.5)}).fit(Y)
    share = model.jitter_ / model.kernel_.variance
    b = backend.get("numpy")
    centred = (Y - model.mean_) / model.scale_
    fun = BayesianObjective(
        model.kernel_, Observed.of(b, centred), model.embedding_, model.embedding_variance_,
        model.inducing_inputs_, model.noise_variance_, jitter=share,
    )  # fmt: skip
    bound = -fun.value_and_grad(fun.start())[0]
    units = np.sum(~np.isnan(Y) * np.log(model.scale_))
    np.testing.assert_allclose(model.lower_bound_, bound - units, rtol=1e-9)
    density = LogNormal(-2.0, 0.5).log_density(np.asarray(model.noise_variance_))[0]
    np.testing.assert_allclose(-model.loss_curve_[-1], bound + density, rtol=1e-9)
    assert np.any(model.scale_ != 1.0) == scale


def test_two_of_six_dimensions_are_found():
    X, Y = smooth(n=60, D=8, seed=0)
    model = BayesianGPLVM(6, n_inducing=15, max_iter=150, random_state=0).fit(Y)
    assert model.n_active_ == 2
    on = model.relevance_ > 0.01
    assert np.all(model.relevance_[~on] < 1e-3)
    # The rest have the prior.
    np.testing.assert_allclose(model.embedding_variance_[:, ~on], 1.0, atol=0.05)
    # The truth is a smooth function of what was found.
    Z = model.embedding_[:, on]
    design = np.column_stack([np.ones(60), Z, Z**2, Z[:, :1] * Z[:, 1:]])
    rest = X - design @ np.linalg.lstsq(design, X, rcond=None)[0]
    assert np.all(rest.var(axis=0) < 0.1 * X.var(axis=0))


def test_noise_alone_switches_all_dimensions_off():
    Y = smooth(50, 20, noise=1.0, rough=0.4)[1]
    model = quick(max_iter=300, n_inducing=15).fit(Y)
    # Not exactly where the search ends: it is of no matter which dimension moves the data most.
    assert np.all(model.embedding_.std(axis=0) < 1e-2)
    assert model.n_active_ == 0
    np.testing.assert_array_equal(model.relevance_, 0.0)
    np.testing.assert_allclose(model.noise_variance_, Y.var(axis=0).mean(), rtol=0.1)


def test_the_warm_up_holds_the_noise():
    Y = data()
    model = quick(max_iter=7, warm_up=7, noise_variance=0.0123).fit(Y)
    np.testing.assert_allclose(model.noise_variance_, 0.0123, rtol=1e-12)
    assert model.n_iter_ == 7
    assert quick(max_iter=7, warm_up=3, noise_variance=0.0123).fit(Y).noise_variance_ != 0.0123
    # Steps are counted through.
    steps = []
    quick(max_iter=9, warm_up=4, callback=lambda p: steps.append(p.step)).fit(Y)
    assert sorted(set(steps)) == list(range(10))


def test_the_noise_does_not_swallow_a_weak_signal():
    """From random latents, without a warm-up, all of the data becomes noise."""
    Y = smooth(50, 20, noise=0.3, rough=0.4)[1]
    Y = Y - Y.mean(axis=0)
    options = {"init": "random", "random_state": 0, "n_inducing": 15, "max_iter": 200}
    cold, warm = (quick(warm_up=w, **options).fit(Y) for w in (0, 50))
    assert cold.noise_variance_ > 0.9 * Y.var()
    assert warm.noise_variance_ < 0.6 * Y.var()
    assert warm.lower_bound_ > cold.lower_bound_ + 50.0


def test_default_sizes():
    model = BayesianGPLVM(max_iter=1).fit(data(n=12, D=4))
    assert model.embedding_.shape == (12, 4)
    assert model.inducing_inputs_.shape == (12, 4)
    model = BayesianGPLVM(max_iter=1).fit(data(n=60, D=14))
    assert model.embedding_.shape == (60, 10)
    assert model.inducing_inputs_.shape == (50, 10)


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
def test_every_optimizer_climbs(optimizer):
    model = quick(optimizer=optimizer, max_iter=25).fit(data())
    assert model.loss_curve_.min() < model.loss_curve_[0] - 10.0
    assert np.isfinite(model.lower_bound_)


@pytest.mark.parametrize("init", ["pca", "ppca", "random", np.ones((40, 2))], ids=str)
def test_every_start(init):
    if isinstance(init, np.ndarray):
        init = np.random.default_rng(0).standard_normal((40, 2))
        model = quick(init=init, max_iter=0).fit(data())
        np.testing.assert_array_equal(model.embedding_, init)
    assert np.isfinite(quick(init=init, max_iter=3, random_state=0).fit(data()).lower_bound_)


@pytest.mark.parametrize("kernel", [RBF(1.0, 1.0) + Linear(0.5) + White(0.1), Matern52()], ids=str)
def test_other_kernels(kernel):
    model = quick(kernel=kernel, max_iter=5).fit(data(n=20))
    assert type(model.kernel_) is type(kernel)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.transform(data(n=20)[:2] + 0.01).shape == (2, 2)


def test_restarts_keep_the_best_and_are_reproducible():
    one = quick(random_state=3, max_iter=15).fit(data())
    more, again = (quick(random_state=3, max_iter=15, n_restarts=2).fit(data()) for _ in range(2))
    assert more.lower_bound_ >= one.lower_bound_
    np.testing.assert_array_equal(more.embedding_, again.embedding_)


def test_priors_pull():
    free = quick(max_iter=80).fit(data())
    tight = quick(max_iter=80, priors={"noise": LogNormal(np.log(0.5), 1e-3)}).fit(data())
    np.testing.assert_allclose(tight.noise_variance_, 0.5, rtol=0.01)
    assert free.noise_variance_ < 0.1
    assert tight.lower_bound_ < free.lower_bound_


def test_more_columns_than_rows():
    """The table is reduced for the search, and not for what comes after it."""
    wide = data(n=15, D=40)
    model = quick(max_iter=30).fit(wide)
    assert model.inducing_mean_.shape == (8, 40)
    np.testing.assert_allclose(model.predict(wide), wide, atol=0.5)
    error = np.mean((model.predict(wide) - wide) ** 2)
    assert error < 0.5 * wide.var()


# -- how a fit ends --------------------------------------------------------------------------------


def test_callback_stops():
    seen = []

    def stop(progress):
        seen.append(progress.value)
        return progress.step >= 4

    model = quick(callback=stop, n_restarts=3).fit(data())
    assert model.status_ == "stopped"
    assert model.n_iter_ == 4
    assert len(seen) == 5
    np.testing.assert_allclose(model.loss_curve_, seen)


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
@pytest.mark.parametrize("when", [2, 20], ids=["in the warm-up", "after it"])
def test_ctrl_c_keeps_the_best_state(optimizer, when):
    def interrupt(progress):
        if progress.step == when:
            raise KeyboardInterrupt

    model = quick(callback=interrupt, optimizer=optimizer, warm_up=10, n_restarts=2)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model.fit(data())
    assert model.status_ == "interrupted"
    assert model.n_iter_ == when
    np.testing.assert_allclose(-model.lower_bound_, model.loss_curve_.min(), rtol=1e-9)
    assert model.transform(data()[:2] + 0.01).shape == (2, 2)


def test_ctrl_c_in_minibatches():
    def interrupt(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model = by_minibatch(callback=interrupt).fit(data())
    assert model.status_ == "interrupted"
    assert np.all(np.isfinite(model.embedding_))


@pytest.mark.parametrize("model", [quick, by_minibatch])
def test_time_limit(model):
    with pytest.warns(ConvergenceWarning, match="time"):
        done = model(time_limit=0.0, n_restarts=5).fit(data())
    assert done.status_ == "time_limit"
    assert np.all(np.isfinite(done.embedding_))


def test_max_iter_says_so():
    with pytest.warns(
        ConvergenceWarning, match=r"max_iter=3 .*raise max_iter, or call partial_fit"
    ):
        model = quick(max_iter=3).fit(data())
    assert model.status_ == "max_steps"
    assert model.n_iter_ == 3


def test_a_fit_that_converged_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quick(max_iter=500, tol=0.05).fit(data(n=20))
    assert model.status_ == "converged"


@pytest.mark.parametrize("model", [quick, by_minibatch])
def test_progress_bar(capsys, model):
    model(max_iter=3, n_epochs=1, progress=True).fit(data())
    shown = capsys.readouterr().err
    assert "BayesianGPLVM" in shown
    assert "nan" not in shown
    # Batches have no norm of the whole gradient.
    assert ("|g|" in shown) == (model is quick)


@pytest.mark.parametrize(
    ("likelihood", "n", "batch_size", "epochs"),
    [(None, 40, 20, 2000), (None, 40, 256, 4000), (None, 500, 1, 20), ("poisson", 40, 10, 375)],
)
def test_default_epochs_make_enough_steps(monkeypatch, likelihood, n, batch_size, epochs):
    asked = []
    search = _bayes_batches.fit_minibatch

    def recorded(*args, **options):
        asked.append(options["epochs"])
        return search(*args, **options)

    monkeypatch.setattr(_bayes_batches, "fit_minibatch", recorded)
    model = by_minibatch(
        likelihood=likelihood, n_epochs=None, batch_size=batch_size, callback=lambda p: True
    )
    model.fit(counts(n=n) if likelihood else data(n=n))
    assert asked == [epochs]


def test_minibatches_come_near_the_collapsed_optimum_by_default():
    Y = data()
    best = quick(max_iter=500).fit(Y)
    few, usual = (by_minibatch(n_epochs=e).fit(Y) for e in (50, None))
    assert usual.n_iter_ == 4000
    assert best.lower_bound_ - 20.0 < usual.lower_bound_ < best.lower_bound_ + 1.0
    assert few.lower_bound_ < best.lower_bound_ - 50.0


def test_the_bound_of_minibatches_is_without_priors():
    Y = data()
    plain, same = (by_minibatch(priors=p).fit(Y) for p in (None, {"noise": LogNormal(0.0, 1e3)}))
    np.testing.assert_allclose(same.lower_bound_, plain.lower_bound_, atol=0.1)
    density = LogNormal(0.0, 1e3).log_density(np.asarray(same.noise_variance_))[0]
    assert abs(density) > 1.0


# -- going on --------------------------------------------------------------------------------------


def test_partial_fit_goes_on():
    Y = data()
    model = quick(max_iter=20).fit(Y)
    before, first, noise = model.lower_bound_, model.loss_curve_[-1], model.noise_variance_
    model.partial_fit(Y)
    # There is no second warm-up.
    assert model.noise_variance_ != noise
    np.testing.assert_allclose(model.loss_curve_[0], first, rtol=1e-9)
    assert model.lower_bound_ > before
    assert model.training_data_.shape == Y.shape
    assert quick(max_iter=2).partial_fit(Y).n_iter_ == 2


@pytest.mark.parametrize("missing", [False, True])
def test_new_rows_join(missing):
    Y = holes(data()) if missing else data()
    model = quick(max_iter=30).fit(Y[:30])
    placed = model.transform(Y[30:])
    old, mean = model.embedding_, model.mean_
    model.max_iter = 0
    model.partial_fit(Y[25:])
    np.testing.assert_array_equal(model.training_data_, Y)
    np.testing.assert_allclose(model.embedding_, np.concatenate([old, placed]), rtol=1e-9)
    np.testing.assert_array_equal(model.mean_, mean)
    model.max_iter = 20
    bound = model.lower_bound_
    assert model.partial_fit(Y).lower_bound_ > bound


def test_partial_fit_of_frames():
    """With column names, and with transforms that come out as frames."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(data(), columns=list("abcdef"))
    model = quick(max_iter=5).set_output(transform="pandas").fit(frame[:30])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(frame)
    assert model.embedding_.shape == (40, 2)
    with pytest.raises(ValueError, match="feature names"):
        model.partial_fit(frame[list("fedcba")])


@pytest.mark.parametrize("likelihood", [None, "poisson"])
def test_minibatches_go_on_also_from_a_file(likelihood, tmp_path):
    Y = counts() if likelihood else data(n=60)
    model = by_minibatch(likelihood=likelihood, n_epochs=15).fit(Y)
    before = model.lower_bound_
    model.save(tmp_path / "model.npz")
    again = gplvm_xp.load(tmp_path / "model.npz")
    for later in (model, again):
        later.n_epochs = 5
        later.partial_fit(Y)
        # Estimates from draws; a search that began anew would be hundreds of nats below.
        assert later.lower_bound_ > before - 25.0
        assert later.loss_curve_[0] < -before + 150.0


@pytest.mark.parametrize("likelihood", [None, "poisson"])
@pytest.mark.parametrize("n_epochs", [1, 30])
def test_minibatches_that_go_on_never_end_lower(likelihood, n_epochs):
    """From an optimum that leaves Adam no averages, or with draws."""
    if likelihood is None:
        Y, model = data(), quick(max_iter=500).fit(data())
        model.set_params(inference="minibatch", batch_size=20)
    else:
        Y = counts()
        model = by_minibatch(likelihood=likelihood, n_epochs=60).fit(Y)
    before = model.lower_bound_
    model.set_params(n_epochs=n_epochs).partial_fit(Y)
    assert model.n_iter_ == n_epochs * (2 if likelihood is None else 3)
    # Draws of the two bounds differ.
    assert model.lower_bound_ > before - (1e-4 if likelihood is None else 5.0)


def test_minibatches_that_go_on_begin_slowly(monkeypatch):
    """Full steps of Adam in every direction would spoil an optimum."""
    model = quick(max_iter=500).fit(data()).set_params(inference="minibatch", n_epochs=2)
    before, file = model.lower_bound_, pickle.dumps(model)
    monkeypatch.setattr(
        _bayes_batches, "_better", lambda o, begin, result, value, *_: (result, value)
    )
    assert model.partial_fit(data()).lower_bound_ > before - 0.1
    monkeypatch.setattr(_bayes_batches, "_GOING_ON", {})
    assert pickle.loads(file).partial_fit(data()).lower_bound_ < before - 50.0


def test_the_state_before_is_kept_where_its_bound_is_higher(monkeypatch):
    Y = data()
    model = by_minibatch(n_epochs=40).fit(Y)
    latents, mean, bound = model.embedding_, model.inducing_mean_, model.lower_bound_
    monkeypatch.setattr(_bayes_batches, "_GOING_ON", {"row_learning_rate": 5.0})
    model.set_params(n_epochs=2)
    for passes in (42, 44):
        model.partial_fit(Y)
        np.testing.assert_array_equal(model.embedding_, latents)
        np.testing.assert_array_equal(model.inducing_mean_, mean)
        np.testing.assert_allclose(model.lower_bound_, bound, rtol=1e-12)
        assert model.loss_curve_.size == model.n_iter_ == 4
        # The next passes are new ones.
        assert model._state["epoch"] == passes


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({}, {"n_components": 3}, "n_components=3.*fitted with 2.*use fit"),
        ({}, {"n_inducing": 9}, "n_inducing=9.*fitted with 8.*use fit"),
        ({}, {"likelihood": "poisson"}, "'poisson'.*Gaussian noise.*use fit"),
        ({}, {"exposure": "total"}, "exposure='total'.*None.*use fit"),
        ({}, {"max_iter": -1}, "max_iter=-1"),
        ({}, {"inference": "magic"}, "magic"),
        ({"likelihood": "poisson"}, {"likelihood": None}, "likelihood=None.*Poisson.*use fit"),
        ({"likelihood": "poisson"}, {"likelihood": "probit"}, "'probit'.*Poisson.*use fit"),
        ({"likelihood": "poisson"}, {"exposure": "total"}, "exposure='total'.*use fit"),
        ({"likelihood": "poisson"}, {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_going_on_is_with_the_same_model(options, change, words):
    Y = counts()
    model = by_minibatch(n_epochs=1, **options).fit(Y)
    # Rows that Poisson counts could not be.
    rows = Y[:3] + 0.5 if change.get("likelihood", 0) is None else Y[:3]
    with pytest.raises(ValueError, match=words):
        model.set_params(**change).partial_fit(rows)


@pytest.mark.parametrize("make", [BayesianGPLVM, SparseGPLVM])
def test_going_on_needs_rows_with_entries_and_the_same_sizes(make):
    Y = data(n=20)
    model = make(2, n_inducing=8, max_iter=2, random_state=0).fit(Y)
    with pytest.raises(ValueError, match="row 1 of X has no observed entry"):
        model.partial_fit(np.stack([Y[0], np.full(6, np.nan)]))
    with pytest.raises(ValueError, match=r"n_inducing=7.*fitted with 8"):
        model.set_params(n_inducing=7).partial_fit(Y)
    with pytest.raises(ValueError, match=r"n_components=1.*fitted with 2"):
        model.set_params(n_inducing=8, n_components=1).partial_fit(Y)


def test_resuming_needs_a_checkpoint():
    with pytest.raises(ValueError, match=r"checkpoint is None.*partial_fit"):
        quick().fit(data(), resume=True)


def test_new_rows_join_minibatches_and_part_groups():
    """A new row's gaps part columns that shared all rows."""
    Y = data(n=50)
    Y[3, 3] = np.nan
    model = by_minibatch(n_epochs=20).fit(Y[:40])
    assert model.inducing_factor_.shape[0] == 2
    before = model.lower_bound_
    gaps = Y[40:].copy()
    gaps[0, :2] = gaps[1, 5] = np.nan
    model.n_epochs = 2
    model.partial_fit(gaps)
    assert model.embedding_.shape == (50, 2)
    assert model.inducing_factor_.shape[0] == 4
    assert model.lower_bound_ > before - 50.0
    model.partial_fit(gaps)
    assert model.embedding_.shape == (50, 2)


# -- what a fitted model answers -------------------------------------------------------------------


def test_transform_of_the_training_rows_gives_the_embedding(fitted):
    Y = data()
    mean, variance = fitted.transform(Y, return_var=True)
    np.testing.assert_array_equal(mean, fitted.embedding_)
    np.testing.assert_array_equal(variance, fitted.embedding_variance_)
    np.testing.assert_array_equal(fitted.fit_transform.__self__.embedding_, mean)


def test_transform_of_thousands_of_new_rows(fitted):
    rng = np.random.default_rng(2)
    rows = data()[rng.integers(0, 40, 3000)] + 1e-3 * rng.standard_normal((3000, 6))
    mean, variance = fitted.transform(rows, return_var=True)
    assert mean.shape == variance.shape == (3000, 2)
    assert np.all(variance > 0.0)
    np.testing.assert_allclose(fitted.predict(mean), rows, atol=0.4)
    some = fitted.transform(rows[:3])
    np.testing.assert_allclose(some, mean[:3], atol=1e-4)


def test_a_row_with_fewer_entries_is_less_certain(fitted):
    row = data()[:1] + 0.01
    gaps = row.copy()
    gaps[0, 1:] = np.nan
    whole, part = (fitted.transform(a, return_var=True)[1] for a in (row, gaps))
    assert part.mean() > whole.mean()
    nothing = fitted.transform(np.full((1, 6), np.nan), return_var=True)
    np.testing.assert_allclose(nothing, [[[0.0, 0.0]], [[1.0, 1.0]]], atol=1e-12)


def test_gaps_are_filled(fitted):
    Y = data(n=60, seed=0)
    model = quick(max_iter=200, n_inducing=15).fit(Y[:50])
    gaps = holes(Y[50:], 0.25)
    gone = np.isnan(gaps)
    filled, variance = model.impute(gaps, return_var=True)
    np.testing.assert_array_equal(filled[~gone], gaps[~gone])
    np.testing.assert_array_equal(variance[~gone], 0.0)
    error = np.sqrt(np.mean((filled - Y[50:])[gone] ** 2))
    assert error < 0.5 * np.sqrt(np.mean((model.mean_ - Y[50:])[gone.any(1)] ** 2))
    # Variances hold noise, functions and latents.
    assert np.all(variance[gone] > model.noise_variance_)
    z = (filled - Y[50:])[gone] / np.sqrt(variance[gone])
    assert 0.3 < np.sqrt(np.mean(z**2)) < 2.0


def test_predict_and_inverse_transform(fitted):
    Z = fitted.embedding_[:5]
    mean, variance = fitted.inverse_transform(Z, return_var=True)
    np.testing.assert_array_equal(fitted.inverse_transform(Z), mean)
    _, quiet = fitted.predict(Z, return_var=True, noise=False)
    np.testing.assert_allclose(variance - quiet, fitted.noise_variance_, rtol=1e-9)
    assert np.all(quiet > 0.0)
    far = fitted.predict(np.full((1, 2), 50.0), return_var=True)
    np.testing.assert_allclose(far[0][0], fitted.mean_, atol=1e-6)
    with pytest.raises(ValueError, match="expected latents"):
        fitted.inverse_transform(data()[:2])


def test_score_prefers_rows_of_the_same_kind(fitted):
    near = data()[:5] + 0.01
    odd = near[:, ::-1].copy()
    assert fitted.score(near) > fitted.score(odd) + 1.0
    assert fitted.score_samples(near).shape == (5,)
    assert isinstance(fitted.score(near), float)


def test_score_is_in_the_units_of_the_data():
    Y, unit = data(n=20), np.arange(1.0, 7.0)
    options = {"scale": True, "max_iter": 20}
    one, other = quick(**options).fit(Y), quick(**options).fit(Y * unit)
    want = one.lower_bound_ - 20 * np.log(unit).sum()
    np.testing.assert_allclose(other.lower_bound_, want, rtol=1e-5)
    rows = Y[:4] + 0.01
    np.testing.assert_allclose(
        other.score_samples(rows * unit), one.score_samples(rows) - np.log(unit).sum(), rtol=1e-4
    )


def test_samples(fitted):
    rows, latents = fitted.sample(2000, random_state=0)
    assert rows.shape == (2000, 6)
    np.testing.assert_allclose(latents.mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(rows.mean(axis=0), fitted.mean_, atol=0.5)
    with pytest.raises(ValueError, match="n_samples"):
        fitted.sample(0)


def test_gaps_in_training_rows(patchy):
    Y = holes(data())
    assert patchy.inducing_factor_.shape[0] > 1
    filled = patchy.impute(Y)
    gone = np.isnan(Y)
    assert np.mean((filled - data())[gone] ** 2) < 0.5 * data().var()
    np.testing.assert_array_equal(filled[~gone], Y[~gone])


# -- counts and binary data ------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial", "probit"])
def test_other_likelihoods(likelihood):
    Y = counts()
    Y = (np.median(Y) < Y).astype(float) if likelihood == "probit" else Y
    Y = holes(Y, 0.05)
    model = quick(likelihood=likelihood, n_epochs=12, batch_size=20, random_state=0).fit(Y)
    assert model.status_ == "finished"
    assert np.isnan(model.noise_variance_)
    assert model.likelihood_ is not None
    assert np.mean(model.loss_curve_[-6:]) < np.mean(model.loss_curve_[:3])
    new = np.where(np.isnan(Y[:4]), Y[:4], 1.0 - Y[:4] if likelihood == "probit" else Y[:4] + 1.0)
    mean, variance = model.transform(new, return_var=True)
    assert np.all(variance > 0.0)
    filled = model.impute(np.vstack([Y[:2], np.full((1, 8), np.nan)]))
    assert np.all(filled >= 0.0)
    assert np.all(np.isfinite(model.score_samples(new)))
    assert mean.shape == (4, 2)
    with pytest.raises(ValueError, match="can't be drawn"):
        model.sample()


def test_likelihood_objects_and_names():
    Y = data(n=15)
    model = quick(likelihood=Gaussian(0.037), max_iter=0).fit(Y)
    np.testing.assert_allclose(model.noise_variance_, 0.037, rtol=1e-12)
    assert quick(likelihood="gaussian", max_iter=0).fit(Y).likelihood_ is None
    found = quick(likelihood=NegativeBinomial(2.0), n_epochs=2).fit(counts(n=30)).likelihood_
    assert isinstance(found, NegativeBinomial)


def test_totals_of_rows_are_taken_out(deep):
    """A row that is another with three times the counts lies where that one lies."""
    Y, model = deep
    one = np.round(4.0 * np.exp(np.log1p(Y[:6])))
    (a, va), (c, vc) = (model.transform(rows, return_var=True) for rows in (one, 3.0 * one))
    spread = model.embedding_.std(axis=0)
    assert np.all(np.abs(a - c) < 0.35 * spread)
    # With more counts, places are more certain.
    assert np.mean(vc) < np.mean(va)
    np.testing.assert_allclose(model.mean_total_, Y.sum(axis=1).mean())
    plain = quick(likelihood="poisson", n_epochs=30, random_state=0).fit(Y)
    apart = np.abs(np.subtract(*(plain.transform(rows) for rows in (one, 3.0 * one))))
    assert np.mean(apart / plain.embedding_.std(axis=0)) > 2.0 * np.mean(np.abs(a - c) / spread)


def test_gaps_of_counts_are_filled_at_the_rows_own_depth(deep):
    Y, model = deep
    gaps = np.repeat(np.round(Y[:4] * 3.0), 2, axis=0)
    gaps[1::2] *= 4.0
    gaps[:, 0] = np.nan
    filled = model.impute(gaps)[:, 0]
    np.testing.assert_allclose(filled[1::2] / filled[::2], 4.0, rtol=0.3)
    back = model.predict(gaps)
    np.testing.assert_allclose(back[1::2].sum(axis=1) / back[::2].sum(axis=1), 4.0, rtol=0.2)
    # At latents there is no total: that of the mean row.
    at = model.predict(model.embedding_).sum(axis=1)
    np.testing.assert_allclose(at.mean(), model.mean_total_, rtol=0.3)


def test_scores_of_counts_know_the_depth(deep):
    """A deep row is likely for what it is, and would be absurd as one of mean depth."""
    Y, model = deep
    deepest = Y[np.argmax(Y.sum(axis=1))][None, :] * 5.0
    blind = clone(model).set_params(exposure=None)
    blind.__dict__.update({k: v for k, v in vars(model).items() if k.endswith("_")})
    blind._host_embedding, blind._host_variance = model._host_embedding, model._host_variance
    assert model.score(deepest) > blind.score(deepest) + 20.0


def test_a_rows_share_does_not_depend_on_other_rows():
    Y = np.array([[1.0, 3.0, 0.0], [np.nan, 4.0, 2.0], [0.0, 0.0, 0.0], [0.0, np.nan, 0.0]])
    share, mean = row_totals(Y)
    np.testing.assert_allclose(mean, (4.0 + 9.0) / 4.0)
    np.testing.assert_allclose(share, np.array([4.0, 9.0, 0.5, 0.5]) / mean)
    for i in range(4):
        np.testing.assert_array_equal(row_totals(Y[i : i + 1], mean)[0], share[i : i + 1])


def test_a_gene_that_no_cell_has_and_a_cell_without_counts():
    Y = counts(n=30)
    Y[:, 2], Y[4] = 0.0, 0.0
    model = quick(likelihood="poisson", exposure="total", n_epochs=5, random_state=0).fit(Y)
    assert np.all(np.isfinite(model.embedding_))
    assert np.all(model.predict(model.embedding_)[:, 2] < 0.5)
    assert np.all(np.isfinite(model.transform(np.zeros((2, 8)))))


# -- numerical trouble -----------------------------------------------------------------------------


def test_duplicate_rows_and_coincident_inducing_inputs():
    Y = np.repeat(data(n=8), 5, axis=0)
    model = quick(n_inducing=30, max_iter=20).fit(Y)
    assert np.isfinite(model.lower_bound_)
    assert len(np.unique(model.inducing_inputs_, axis=0)) == 30
    assert np.all(np.isfinite(model.transform(Y[:3] + 0.01)))


def test_constant_columns():
    Y = data(n=20)
    Y[:, 3] = 7.0
    for scale in (False, True):
        model = quick(scale=scale, max_iter=10).fit(Y)
        np.testing.assert_allclose(model.predict(Y[:4])[:, 3], 7.0, atol=1e-6)
        assert model.scale_[3] == 1.0


@pytest.mark.parametrize("make", [quick, by_minibatch])
def test_jitter_is_raised_where_the_start_is_singular(make):
    Y = data(n=20)
    kernel = RBF(1.0, 1e4)
    model = make(kernel=kernel, jitter=0.0, max_iter=2, init="pca").fit(Y)
    assert model.jitter_ > 0.0
    assert np.isfinite(model.lower_bound_)
    assert model.loss_curve_.size > 0


@pytest.mark.parametrize("make", [quick, by_minibatch])
def test_no_factor_at_all_is_an_error_with_advice(make):
    with pytest.raises(NotPositiveDefiniteError, match=r"8 inducing inputs.*fewer or different"):
        make(kernel=RBF(1e300, 1.0), noise_variance=1e-300, max_iter=2).fit(data(n=20))


def test_float32():
    Y = data()
    single, double = (quick(dtype=d, max_iter=60).fit(Y) for d in ("float32", "float64"))
    assert single.embedding_.dtype == np.float64
    # Its gradients are those of rounded numbers, and the search ends early.
    assert single.lower_bound_ > double.lower_bound_ - 150.0
    share = single.jitter_ / single.kernel_.variance
    np.testing.assert_allclose(share, 1e-2, rtol=1e-4)
    assert single.relevance_.max() == 1.0
    np.testing.assert_allclose(single.predict(Y), Y, atol=0.5)


# -- bad input -------------------------------------------------------------------------------------


def spoilt(value, rows, columns):
    Y = data(n=15)
    Y[rows, columns] = value
    return Y


@pytest.mark.parametrize(
    ("options", "table", "words"),
    [
        ({"n_inducing": 16}, None, r"n_inducing=16.*at most 15.*rows.*lower n_inducing"),
        ({"n_components": 7}, None, r"n_components=7.*at most 6"),
        ({"n_components": 0}, None, "n_components=0.*1 or more"),
        ({"n_inducing": True}, None, "n_inducing=True"),
        ({"inference": "magic"}, None, "inference='magic'.*'collapsed'"),
        ({"optimizer": "sgd"}, None, "optimizer='sgd'.*'lbfgs'"),
        ({"max_iter": -1}, None, "max_iter=-1"),
        ({"warm_up": 1.5}, None, "warm_up=1.5"),
        ({"batch_size": 0}, None, "batch_size=0"),
        ({"n_epochs": 0}, None, "n_epochs=0"),
        ({"jitter": -1e-6}, None, "jitter"),
        ({"tol": np.nan}, None, "tol"),
        ({"noise_variance": 0.0}, None, "noise_variance=0.0.*positive"),
        ({"likelihood": "poison"}, None, "'poison'.*poisson"),
        ({"likelihood": "poisson", "inference": "collapsed"}, None, "collapsed.*Gaussian"),
        ({"exposure": "total"}, None, "exposure='total' is for counts.*Gaussian"),
        ({"exposure": "total", "likelihood": "probit"}, None, "exposure='total' is for counts"),
        ({"exposure": "sum", "likelihood": "poisson"}, None, "exposure='sum'.*'total'"),
        ({"priors": {"sigma": LogNormal()}}, None, "sigma.*rbf.lengthscale.*noise"),
        ({"kernel": RBF(1.0, (1.0, 1.0, 1.0))}, None, "3"),
        ({"init": "tsne"}, None, "tsne"),
        ({"init": np.zeros((3, 2))}, None, r"\(15, 2\)|\(3, 2\)"),
        ({}, spoilt(np.nan, 4, slice(None)), "row 4 of X has no observed entry"),
        ({}, spoilt(np.nan, slice(None), 2), "column 2 of X has no observed entry"),
        ({}, spoilt(np.inf, 3, 1), "infinity in row 3, column 1"),
        ({}, np.ones((9, 4)), "every column of X is constant"),
        ({}, data(n=1), "1 sample"),
        ({"likelihood": "poisson"}, spoilt(0.5, 2, 2), "count"),
        ({"likelihood": "poisson"}, -counts(n=15), "count"),
        ({"likelihood": "probit"}, counts(n=15), "0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(options, table, words):
    with pytest.raises(ValueError, match=words):
        quick(**options).fit(data(n=15) if table is None else table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel": "rbf"}, "kernel is a str"),
        ({"likelihood": 3}, "likelihood is a int"),
        ({"priors": [1]}, "priors is a list"),
        ({"priors": {"noise": 0.1}}, "the prior of 'noise' is a float"),
    ],
)
def test_wrong_types_are_refused(options, words):
    with pytest.raises(TypeError, match=words):
        quick(**options).fit(data(n=15))


def test_new_rows_are_checked(fitted, deep):
    with pytest.raises(ValueError, match="features"):
        fitted.transform(data()[:, :4])
    with pytest.raises(ValueError, match="infinity"):
        fitted.transform(np.full((1, 6), np.inf))
    for method in (deep[1].transform, deep[1].partial_fit, deep[1].score):
        with pytest.raises(ValueError, match="count"):
            method(np.full((2, 8), 0.5))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (quick(), r"40 rows with 8 inducing inputs.*minibatches"),
        (by_minibatch(), r"minibatches of 20 rows with 8 inducing inputs"),
        (by_minibatch(likelihood="poisson"), r"8 group.*batch_size"),
    ],
)
def test_too_little_memory_is_said_before_the_search(monkeypatch, model, words):
    monkeypatch.setattr(type(backend.get("numpy")), "memory_available", lambda self: 2000)
    steps = []
    model = clone(model).set_params(callback=lambda p: steps.append(p))
    Y = counts(n=40) if model.likelihood else data()
    with pytest.raises(NotEnoughMemoryError, match=words):
        model.fit(Y)
    assert steps == []
    monkeypatch.setattr(type(backend.get("numpy")), "memory_available", lambda self: 2**28)
    model.set_params(max_iter=1, n_epochs=1).fit(Y)


# -- in company ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fitted", "patchy", "deep"])
def test_save_and_load_and_pickle(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    model = model[1] if kind == "deep" else model
    rows = counts(seed=3)[:3] if kind == "deep" else data(seed=3)[:3]
    rows[0, 0] = np.nan
    model.save(tmp_path / "model.npz")
    for again in (gplvm_xp.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        assert type(again) is BayesianGPLVM
        np.testing.assert_array_equal(again.embedding_, model.embedding_)
        for method in ("transform", "impute", "predict"):
            ours, theirs = (getattr(m, method)(rows, return_var=True) for m in (model, again))
            np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours), err_msg=method)
        np.testing.assert_array_equal(again.score_samples(rows), model.score_samples(rows))
        assert again.kernel_ == model.kernel_
        assert again.n_active_ == model.n_active_
        for name in ("lower_bound_", "noise_variance_", "mean_total_"):
            np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    assert "_posterior" not in model.__getstate__()


def test_a_loaded_model_goes_on(tmp_path):
    model = quick(max_iter=15).fit(data())
    model.save(tmp_path / "model.npz")
    again = gplvm_xp.load(tmp_path / "model.npz")
    again.partial_fit(data())
    np.testing.assert_allclose(again.loss_curve_[0], model.loss_curve_[-1], rtol=1e-9)
    assert again.lower_bound_ > model.lower_bound_


def test_clone_and_pipeline():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    fresh = clone(quick(kernel=RBF() + White(), likelihood=Poisson()))
    assert fresh.get_params()["kernel"] == RBF() + White()
    assert not hasattr(fresh, "embedding_")
    frame = pandas.DataFrame(data(), columns=list("abcdef"), index=range(100, 140))
    pipe = make_pipeline(StandardScaler(), quick(max_iter=5)).set_output(transform="pandas")
    out = pipe.fit_transform(frame)
    assert list(out.columns) == ["bayesiangplvm0", "bayesiangplvm1"]
    assert list(out.index) == list(range(100, 140))
    np.testing.assert_allclose(pipe.transform(frame), out.to_numpy())
    model = quick(max_iter=2).fit(frame)
    assert list(model.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("fedcba")])


def test_torch_in_torch_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    Y = data(n=15)
    X = torch.tensor(Y)
    there, here = quick(max_iter=8).fit(X), quick(max_iter=8).fit(Y)
    rows = torch.tensor(Y[:3] + 0.01)
    for result in (
        there.embedding_, there.embedding_variance_, *there.transform(rows, return_var=True),
        there.predict(rows), there.score_samples(rows), there.impute(rows),
    ):  # fmt: skip
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float64
    np.testing.assert_allclose(there.loss_curve_[:4], here.loss_curve_[:4], rtol=1e-8)
    there.partial_fit(X)
    assert isinstance(there.embedding_, torch.Tensor)
    assert isinstance(quick(max_iter=1, backend="torch").fit(Y).embedding_, np.ndarray)


def test_fit_does_not_touch_its_input():
    Y = holes(data(n=20))
    before = Y.copy()
    Y.flags.writeable = False
    quick(max_iter=2).fit(Y).partial_fit(Y).transform(Y)
    np.testing.assert_array_equal(Y, before)
