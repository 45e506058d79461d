"""The local GPLVM as an estimator: with all rows as neighbours it is the exact one."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import gplvm_xp
from gplvm_xp import GPLVM, LocalGPLVM, backend, datasets
from gplvm_xp.cli import DONE, USAGE, main
from gplvm_xp.errors import NotPositiveDefiniteError, PrecisionWarning
from gplvm_xp.estimators import _fit_local
from gplvm_xp.kernels import RBF, Linear
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.neighbours import maxmin, predecessors
from gplvm_xp.predict import Posterior
from gplvm_xp.priors import LogNormal

INFERENCES = ("vecchia", "neighbourhood")
SHAPE = RBF(1.0, 1.0)


def data(n=60, D=8, q=2, noise=0.1, seed=0):
    """Rows of D smooth functions of q latents, in units of a few."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, (n, q))
    K = SHAPE.gram(SHAPE.theta(), X) + 1e-9 * np.eye(n)
    F = np.linalg.cholesky(K) @ rng.standard_normal((n, D))
    return 3.0 * (F + noise * rng.standard_normal((n, D))) + np.arange(D)


def gaps(Y):
    Y = Y.copy()
    Y[3:9, 2] = Y[3:9, 5] = Y[20:24, 0] = np.nan
    return Y


def quiet(model, Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(Y)


def local(inference, **options):
    usual = {"max_iter": 60} if inference == "vecchia" else {"n_epochs": 15}
    return LocalGPLVM(
        inference=inference, **{"n_neighbors": 12, "random_state": 0} | usual | options
    )


@pytest.fixture(scope="module", params=INFERENCES)
def fitted(request):
    return quiet(local(request.param), data())


# -- what is learned -------------------------------------------------------------------------------


def test_attributes(fitted):
    Y = data()
    assert fitted.embedding_.shape == (60, 2)
    assert fitted.n_neighbors_ == 12
    assert isinstance(fitted.noise_variance_, float)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0] - 100.0
    assert fitted.round_starts_[0] == 0
    assert np.all(np.diff(fitted.round_starts_) > 0)
    residual = Y - fitted.predict(fitted.embedding_)
    assert np.mean(residual**2) < 0.05 * np.mean((Y - Y.mean(0)) ** 2)
    assert list(fitted.get_feature_names_out()) == ["localgplvm0", "localgplvm1"]
    assert fitted.relevance().max() == 1.0
    assert np.isfinite(fitted.log_likelihood_)
    np.testing.assert_allclose(fitted.log_likelihood_, fitted.log_likelihood(), rtol=1e-9)


@pytest.mark.parametrize("missing", [False, True])
def test_the_likelihood_is_exact_with_all_rows(missing):
    Y = gaps(data()) if missing else data()
    model = quiet(local("vecchia", scale=True, max_iter=10), Y)
    exact = Posterior.of(
        backend.of(Y),
        model.kernel_,
        model.noise_variance_ + model.jitter_,
        model.embedding_,
        (Y - model.mean_) / model.scale_,
    )
    whole = exact.log_likelihood() - np.sum(~np.isnan(Y) * np.log(model.scale_))
    np.testing.assert_allclose(model.log_likelihood(60), whole, rtol=1e-9)
    assert abs(model.log_likelihood(30) - whole) < abs(model.log_likelihood(2) - whole)
    with pytest.raises(ValueError, match="61 neighbours were asked for and there are n = 60 rows"):
        model.log_likelihood(61)


def test_with_all_rows_as_neighbours_the_fit_is_the_exact_one():
    Y = data(n=30)
    options = {"max_iter": 2000, "tol": 1e-4}
    exact = GPLVM(**options).fit(Y)
    model = LocalGPLVM(n_neighbors=30, **options).fit(Y)
    assert model.status_ == "converged"
    np.testing.assert_allclose(model.log_likelihood_, exact.log_likelihood_, atol=0.05)
    np.testing.assert_allclose(model.loss_curve_[:11], exact.loss_curve_[:11], rtol=1e-6)
    new = data(n=40)[30:]
    np.testing.assert_allclose(
        model.score_samples(new), exact.score_samples(new), rtol=0.02, atol=0.2
    )


def test_rounds_keep_the_best_by_neighbours_found_there():
    """What a round gains by its own neighbours is not believed."""
    model = quiet(local("vecchia", n_neighbors=6, max_iter=150), data())
    by_rounds = model.loss_curve_[model.round_starts_]
    prior = 0.5 * np.sum(model.embedding_**2 + np.log(2 * np.pi))
    end = -model.log_likelihood_ + prior
    assert end <= by_rounds.min() + 1e-6
    # Within a round it falls; at the next one's beginning it has jumped.
    for a, z in zip(model.round_starts_, [*model.round_starts_[1:], None], strict=True):
        assert np.all(np.diff(model.loss_curve_[a:z]) <= 1e-9)
    jumps = by_rounds[1:] - model.loss_curve_[model.round_starts_[1:] - 1]
    assert np.all(np.abs(jumps) > 1e-3)
    assert model.n_iter_ == model.loss_curve_.size - model.round_starts_.size


def test_a_round_ends_before_its_neighbours_are_strangers():
    """Latents move by half the radius of a neighbourhood, and by one more step at most."""
    Y = data(n=150)
    told = []
    model = local(
        "vecchia", n_neighbors=6, max_iter=120, callback=lambda p: told.append(p) and None
    )
    model = quiet(model, Y)
    X = [p.x[-300:].reshape(150, 2) for p in told]
    assert model.round_starts_.size > 4
    before = X[0]
    bounds = zip(model.round_starts_, [*model.round_starts_[1:], len(X)], strict=True)
    for k, (a, z) in enumerate(bounds):
        order = maxmin(before)
        given = predecessors(before, order, 6)
        full = given[:, -1] >= 0
        gap = np.sum((before[full] - before[given[full, -1]]) ** 2, axis=1)
        reach = 0.5 * np.sqrt(np.median(gap))
        moves = [np.sqrt(np.mean(np.sum((x - before) ** 2, axis=1))) for x in X[a:z]]
        assert np.all(np.array(moves[:-1]) <= reach)
        # Or it is as long as all before it.
        assert moves[-1] > reach or z - a - 1 == max(10, a - k) or z == len(X)
        before = X[z - 1]


def test_a_search_that_gains_no_more_has_settled():
    model = LocalGPLVM(n_neighbors=6, tol=0.05).fit(data())
    assert model.status_ == "settled"
    assert model.n_iter_ < 1000


@pytest.mark.parametrize("inference", INFERENCES)
def test_the_same_seed_the_same_bits(inference):
    one, other = (quiet(local(inference), data()) for _ in range(2))
    np.testing.assert_array_equal(one.embedding_, other.embedding_)
    assert one.log_likelihood_ == other.log_likelihood_
    if inference == "neighbourhood":
        third = quiet(local(inference, random_state=1), data())
        assert np.any(third.embedding_ != one.embedding_)


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.only_backend("numpy-f32", "strict-f64", "torch-cpu", "emulated")
def test_other_libraries(case, inference):
    Y = data(n=30)
    if case.id == "emulated":
        Y = Y[:20]
    dtype = "float32" if case.single else "float64"
    options = {"max_iter": 12, "n_epochs": 3, "n_neighbors": 8, "noise_variance": 1.0}
    model = quiet(local(inference, dtype=dtype, **options), case.asarray(Y))
    want = quiet(local(inference, **options), Y)
    assert backend.of(model.embedding_).name == case.backend.name
    found = case.to_numpy(model.embedding_)
    np.testing.assert_allclose(found, want.embedding_, atol=case.tolerance(1e-5, 0.2))
    new = case.asarray(Y[:3] + 0.1)
    if not case.single:
        Z = case.to_numpy(model.transform(new))
        np.testing.assert_allclose(Z, want.transform(Y[:3] + 0.1), atol=1e-4)
        np.testing.assert_allclose(model.score(new), want.score(Y[:3] + 0.1), rtol=1e-4)


@pytest.mark.parametrize("inference", INFERENCES)
def test_missing_entries(inference):
    Y = gaps(data())
    model = quiet(local(inference), Y)
    gone = np.isnan(Y)
    filled = model.predict(model.embedding_)
    assert np.sqrt(np.mean((filled - data())[gone] ** 2)) < 0.5 * data().std()
    holes = data()[30:34]
    holes[:, :4] = np.nan
    assert np.sqrt(np.mean((model.predict(holes) - data()[30:34]) ** 2)) < 0.5 * data().std()
    empty = np.full((1, 8), np.nan)
    np.testing.assert_allclose(model.transform(empty), 0.0, atol=1e-3)


@pytest.mark.parametrize("inference", INFERENCES)
def test_duplicate_rows(inference):
    Y = np.concatenate([data(n=20), np.repeat(data(n=20)[:1], 30, axis=0)])
    model = quiet(local(inference), Y)
    assert np.all(np.isfinite(model.embedding_))
    assert np.isfinite(model.log_likelihood_)
    np.testing.assert_array_equal(model.transform(Y[25:26]), model.embedding_[:1])


@pytest.mark.parametrize("inference", INFERENCES)
def test_priors_gauge_and_restarts(inference):
    model = quiet(
        local(
            inference, gauge="free", latent_prior=None, scale=True, n_restarts=1,
            priors={"noise": LogNormal(-4.0, 0.01)}, kernel=RBF(1.0, 0.8),
        ),
        data(),
    )  # fmt: skip
    assert abs(np.log(model.noise_variance_) + 4.0) < 0.5
    assert model.kernel_.lengthscale != 0.8
    held = quiet(local(inference), data())
    assert held.kernel_.lengthscale == 0.5
    with pytest.raises(ValueError, match=r"priors names \['rbf.lengthscale'\]"):
        local(inference, priors={"rbf.lengthscale": LogNormal()}).fit(data())


def test_momentum_of_the_paper():
    Y = data()
    model = local("neighbourhood", adaptive=False, learning_rate=3e-4, kernel_learning_rate=1e-4)
    model.fit(Y)
    assert model.status_ == "finished"
    assert model.loss_curve_[-1] < model.loss_curve_[0] - 100.0


def test_new_rows_in_batches(fitted, monkeypatch):
    Y = data()[::7] + 0.1
    whole = fitted.transform(Y), fitted.score_samples(Y), fitted.predict(Y)
    monkeypatch.setattr("gplvm_xp.estimators._local._BATCH_BYTES", 40_000)
    assert len(fitted._post().batches(9)) > 2
    parts = fitted.transform(Y), fitted.score_samples(Y), fitted.predict(Y)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


# -- how a fit ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.parametrize("how", ["stopped", "interrupted", "time_limit"])
def test_early_ends(inference, how):
    told = []

    def callback(progress):
        told.append(progress)
        if how != "time_limit" and len(told) == 14:
            if how == "interrupted":
                raise KeyboardInterrupt
            return True
        return None

    limit = 0.0 if how == "time_limit" else None
    model = local(inference, callback=callback, time_limit=limit, max_iter=500, n_epochs=40)
    if how == "stopped":
        model.fit(data())
    else:
        with pytest.warns(ConvergenceWarning, match="the fit ended early"):
            model.fit(data())
    assert model.status_ == how
    assert np.all(np.isfinite(model.transform(data()[:2] + 0.1)))
    if how != "time_limit":
        assert told[-1].value < told[0].value
        assert [p.step for p in told] == sorted(p.step for p in told)
    if inference == "neighbourhood" or how == "interrupted":
        assert np.isnan(model.log_likelihood_)


def test_an_interrupt_between_rounds(monkeypatch):
    calls = []
    plain = _fit_local.predecessors

    def broken(*args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(_fit_local, "predecessors", broken)
    with pytest.warns(ConvergenceWarning, match="interrupted by the keyboard"):
        model = local("vecchia").fit(data())
    assert model.status_ == "interrupted"
    assert model.round_starts_.size == 2
    assert model.n_iter_ == model.loss_curve_.size - 2 > 0


def test_too_few_steps_say_so():
    with pytest.warns(ConvergenceWarning, match="max_iter=5 steps were taken"):
        model = local("vecchia", max_iter=5).fit(data())
    assert (model.status_, model.n_iter_) == ("max_steps", 5)
    with pytest.warns(ConvergenceWarning, match="max_iter=0 steps"):
        local("vecchia", max_iter=0).fit(data())


@pytest.mark.parametrize("inference", INFERENCES)
def test_covariances_without_factors(inference):
    Y = np.concatenate([data(n=10), data(n=10)])
    options = {"kernel": Linear(1e-30), "noise_variance": 1e-300, "jitter": 0.0}
    model = quiet(local(inference, n_neighbors=8, **options), Y)
    assert model.jitter_ > 0.0
    with pytest.raises(NotPositiveDefiniteError, match="has no Cholesky factor"):
        local(inference, n_neighbors=8, **(options | {"kernel": Linear(1e300)})).fit(Y)


def test_a_precision_that_is_too_small():
    with pytest.warns(PrecisionWarning, match="gradients are inaccurate"):
        quiet(local("neighbourhood", dtype="float32", noise_variance=1e-4, n_epochs=1), data())


@pytest.mark.parametrize("inference", INFERENCES)
def test_a_progress_bar(inference, capsys):
    quiet(local(inference, progress=True), data())
    assert "LocalGPLVM" in capsys.readouterr().err


# -- rows that keep coming -------------------------------------------------------------------------


def test_new_rows_begin_at_their_nearest_and_only_they_are_drawn():
    Y, rng = data(n=200), np.random.default_rng(3)
    model = local("neighbourhood").fit(Y[:180])
    before, mean = model.embedding_.copy(), model.mean_.copy()
    start = model.loss_curve_.size
    new = Y[180:183] + 0.01 * rng.standard_normal((3, 8))
    # So slow that rows stay where they begin.
    model.set_params(learning_rate=1e-12, kernel_learning_rate=1e-12).partial_fit(new)
    assert model.embedding_.shape == (183, 2)
    far = np.sum((new[:, None] - Y[None, :180]) ** 2, axis=2)
    np.testing.assert_allclose(model.embedding_[180:], before[far.argmin(axis=1)], atol=1e-9)
    model.set_params(learning_rate=0.05, kernel_learning_rate=0.02)
    second = model.embedding_.copy()
    model.partial_fit(Y[190:192])
    moved = np.any(model.embedding_[:183] != second, axis=1)
    # Rows of their blocks, and no others; the neighbourhoods shift a little on the way.
    assert 2 <= moved.sum() <= 60
    assert np.abs(model.embedding_[:183] - second).max() < 0.5
    np.testing.assert_array_equal(model.mean_, mean)
    np.testing.assert_array_equal(model.training_data_[183:], Y[190:192])
    assert model.status_ == "finished"
    assert np.isnan(model.log_likelihood_)
    assert np.isfinite(model.log_likelihood())
    assert start == model.loss_curve_.size == 15


@pytest.mark.parametrize("inference", INFERENCES)
def test_a_stream_of_rows_is_learned(inference):
    Y = data(n=150)
    model = quiet(local(inference), Y[:90])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(90, 150, 20):
            model.partial_fit(Y[k : k + 20])
    assert model.embedding_.shape == (150, 2)
    residual = model.predict(model.embedding_) - Y
    assert np.mean(residual**2) < 0.05 * np.mean((Y - Y.mean(0)) ** 2)


@pytest.mark.parametrize("inference", INFERENCES)
def test_known_rows_go_on(inference):
    Y = data()
    model = quiet(local(inference, max_iter=20, n_epochs=3), Y)
    value = model.log_likelihood_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(Y)
    assert model.embedding_.shape == (60, 2)
    assert model.log_likelihood() > value


def test_partial_fit_of_an_unfitted_model_fits():
    model = local("neighbourhood").partial_fit(data())
    np.testing.assert_array_equal(model.embedding_, local("neighbourhood").fit(data()).embedding_)


def test_partial_fit_refuses():
    model = local("neighbourhood").fit(data())
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.partial_fit(np.empty((0, 8)))
    with pytest.raises(ValueError, match="row 0 of X has no observed entry"):
        model.partial_fit(np.full((1, 8), np.nan))
    with pytest.raises(ValueError, match="X has 3 features"):
        model.partial_fit(np.ones((2, 3)))
    with pytest.raises(ValueError, match="n_components=3 was given, and the model was fitted with"):
        model.set_params(n_components=3).partial_fit(data()[:2])
    model.set_params(n_components=2, n_neighbors=63)
    with pytest.raises(ValueError, match="n_neighbors=63 was given; expected at most 62"):
        model.partial_fit(data()[:2] + 0.1)
    # Nothing of that has changed it.
    assert model.embedding_.shape == (60, 2)
    assert model.n_neighbors_ == 12


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_neighbors": 61}, "n_neighbors=61 was given; expected at most 60, the number of rows"),
        ({"n_neighbors": 0}, "n_neighbors=0 was given; expected an integer of 1 or more"),
        ({"n_neighbors": 2.0}, "n_neighbors=2.0 was given"),
        ({"inference": "exact"}, "expected one of 'vecchia', 'neighbourhood'"),
        ({"n_epochs": 0}, "n_epochs=0 was given; expected an integer of 1 or more"),
        ({"batch_size": 0}, "batch_size=0 was given; expected an integer of 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 was given; expected a positive number"),
        ({"learning_rate": np.inf}, "learning_rate=inf was given; expected a positive number"),
        ({"kernel_learning_rate": "fast"}, "kernel_learning_rate='fast' was given"),
        ({"momentum": 1.0}, "momentum=1.0 was given; expected a number from 0 to below 1"),
        ({"adaptive": "yes"}, "adaptive='yes' was given; expected True or False"),
        ({"max_iter": -1}, "max_iter=-1 was given"),
        ({"latent_prior": "flat"}, "latent_prior='flat' was given"),
    ],
)
def test_parameters_that_do_not_fit(options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        LocalGPLVM(**options).fit(data())


def test_by_default_few_rows_are_all_neighbours():
    model = quiet(LocalGPLVM(max_iter=3), data(n=20))
    assert model.n_neighbors_ == 20
    assert quiet(LocalGPLVM(max_iter=3), data(n=40)).n_neighbors_ == 32


# -- files, copies, the command --------------------------------------------------------------------


def test_files_and_copies(fitted, tmp_path):
    fitted.save(tmp_path / "model.npz")
    new = data()[:4] + 0.1
    want = fitted.transform(new)
    for other in (gplvm_xp.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.transform(new), want)
        np.testing.assert_array_equal(other.round_starts_, fitted.round_starts_)
        assert other.n_neighbors_ == fitted.n_neighbors_
        assert other.log_likelihood_ == fitted.log_likelihood_
    again = gplvm_xp.load(tmp_path / "model.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again.partial_fit(new)
    assert again.embedding_.shape == (64, 2)
    fresh = clone(fitted)
    assert not hasattr(fresh, "embedding_")
    assert fresh.get_params()["n_neighbors"] == 12


def test_a_file_whose_parts_do_not_fit(fitted, tmp_path):
    model = pickle.loads(pickle.dumps(fitted))
    model.n_neighbors_ = 61
    model.save(tmp_path / "model.npz")
    with pytest.raises(
        gplvm_xp.errors.ModelFileError, match="n_neighbors_ is 61; expected 1 to 60"
    ):
        gplvm_xp.load(tmp_path / "model.npz")


@pytest.mark.parametrize("inference", INFERENCES)
def test_the_command(inference, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("y.csv", data(), delimiter=",")
    options = "--max-iter 12" if inference == "vecchia" else "--epochs 3 --batch-size 10"
    command = f"embed y.csv --no-header --model local --inference {inference} {options}"
    command += " --neighbours 9 --no-plot --out o"
    assert main(command.split()) == DONE
    out = capsys.readouterr().out
    assert "log-likelihood" in out
    model = gplvm_xp.load("o.npz")
    assert (model.n_neighbors, model.inference) == (9, inference)
    np.savetxt("new.csv", data()[:3] + 0.1, delimiter=",")
    assert main(["transform", "o.npz", "new.csv", "--no-header", "--out", "t"]) == DONE
    table = np.loadtxt("t.csv", delimiter=",", skiprows=1)
    Z, C = model.transform(data()[:3] + 0.1, return_cov=True)
    sd = np.sqrt(np.diagonal(C, axis1=1, axis2=2))
    np.testing.assert_allclose(table[:, 1:], np.hstack([Z, sd]), rtol=1e-12)


def test_the_command_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("y.csv", data(), delimiter=",")
    assert main(["embed", "y.csv", "--no-header", "--neighbours", "5"]) == USAGE
    assert "--neighbours was given with --model exact; it belongs to --model local" in (
        capsys.readouterr().err
    )


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", INFERENCES)
def test_oil_flow(inference):
    """Of 1000 rows principal components leave 162 beside a row of another class."""
    try:
        oil = datasets.fetch_oil_flow()
    except OSError as error:
        pytest.skip(f"the oil flow data are not here: {error}")
    options = {"n_epochs": 10} if inference == "neighbourhood" else {"max_iter": 70}
    model = quiet(LocalGPLVM(inference=inference, random_state=0, **options), oil.Y)
    assert nearest_neighbour_errors(model.embedding_, oil.labels) <= 10
