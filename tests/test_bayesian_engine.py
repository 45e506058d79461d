"""BayesianGPLVM over shards: engines, checkpoints, Dask arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone

from gplvm_xp import GPLVM, BayesianGPLVM, SparseGPLVM, load
from gplvm_xp.engine import SerialEngine
from gplvm_xp.priors import LogNormal

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def Y() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    return np.sin(X @ rng.standard_normal((2, 7))) + 0.1 * rng.standard_normal((60, 7)) + 3.0


def model(**settings) -> BayesianGPLVM:
    common = {"n_inducing": 10, "max_iter": 25, "warm_up": 5, "random_state": 0}
    return BayesianGPLVM(3, **(common | settings))


def test_an_engine_reaches_what_a_plain_fit_reaches(Y):
    plain = model(optimizer="lbfgs", max_iter=400, tol=1e-3).fit(Y)
    shards = model(engine="serial", max_iter=400, tol=1e-3).fit(Y)
    assert abs(shards.lower_bound_ - plain.lower_bound_) < 0.02 * abs(plain.lower_bound_)
    assert np.allclose(shards.mean_, plain.mean_, rtol=1e-12)
    Z, variance = shards.transform(Y[:4] + 0.01, return_var=True)
    assert Z.shape == variance.shape == (4, 3)


def test_the_bound_has_no_priors_and_the_data_units(Y):
    settings = {"scale": True, "max_iter": 8, "priors": {"noise": LogNormal(-2.0, 1.0)}}
    shards = model(engine="serial", **settings).fit(Y)
    plain = model(optimizer="lbfgs", **settings).fit(Y)
    # One shard takes the same steps, whoever does them.
    assert shards.lower_bound_ == pytest.approx(plain.lower_bound_, rel=1e-6)


def test_a_checkpoint_is_gone_on_from_with_nothing_lost(Y, tmp_path):
    whole = model(engine="serial").fit(Y)
    path = tmp_path / "fit.npz"
    stopped = model(checkpoint=path, callback=lambda p: p.step >= 18).fit(Y)
    assert stopped.status_ == "stopped"
    assert path.exists()
    resumed = model(checkpoint=path).fit(Y, resume=True)
    assert np.array_equal(resumed.embedding_, whole.embedding_)
    assert resumed.lower_bound_ == whole.lower_bound_


def test_resuming_without_a_file_begins(Y, tmp_path):
    fresh = model(checkpoint=tmp_path / "none.npz", max_iter=3).fit(Y, resume=True)
    assert fresh.n_iter_ == 3


def test_a_checkpoint_of_other_data_is_refused(Y, tmp_path):
    path = tmp_path / "fit.npz"
    model(checkpoint=path).fit(Y)
    for other in (
        Y[:50],
        Y[::-1],
        Y[:, :-1],
        5.0 * Y,
        np.random.default_rng(1).normal(size=Y.shape),
    ):
        with pytest.raises(ValueError, match=r"checkpoint .* is of "):
            model(checkpoint=path).fit(other, resume=True)
    with pytest.raises(ValueError, match="inducing inputs: 10 there and 12 here"):
        model(checkpoint=path, n_inducing=12).fit(Y, resume=True)


def test_a_checkpoint_that_can_not_be_written_is_found_at_once(Y, tmp_path):
    told = []
    with pytest.raises(OSError, match="can't be written"):
        model(checkpoint=tmp_path / "none" / "fit.npz", callback=told.append).fit(Y)
    assert told == []


def test_latents_in_one_place_raise_the_jitter_as_without_an_engine(Y):
    settings = {"jitter": 0.0, "init": np.zeros((60, 3)), "max_iter": 3}
    for engine in (None, "serial"):
        fitted = model(engine=engine, **settings).fit(Y)
        share = fitted.jitter_ / fitted.kernel_.variance
        assert share in [pytest.approx(10.0**-k) for k in range(9, 3, -1)]
        assert np.isfinite(fitted.lower_bound_)


class Mine(SerialEngine):
    """An engine of the user's, which no file can hold."""


def test_a_live_engine_is_not_written(Y, tmp_path):
    fitted = model(engine=Mine(), checkpoint=tmp_path / "fit.npz", max_iter=3).fit(Y)
    fitted.save(tmp_path / "model.npz")
    for again in (load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(fitted))):
        assert again.engine is None
        assert np.array_equal(again.transform(Y[:3]), fitted.transform(Y[:3]))
    assert load(tmp_path / "model.npz").checkpoint == str(tmp_path / "fit.npz")
    assert isinstance(fitted.engine, Mine)
    assert clone(fitted).engine is fitted.engine
    named = fitted.set_params(engine="serial")
    named.save(tmp_path / "model.npz")
    assert load(tmp_path / "model.npz").engine == "serial"
    assert pickle.loads(pickle.dumps(named)).engine == "serial"


@pytest.mark.parametrize(
    "settings",
    [{"inference": "minibatch"}, {"likelihood": "poisson"}, {"n_restarts": 2}],
    ids=["minibatch", "likelihood", "restarts"],
)
def test_what_shards_can_not_do_is_said(Y, settings):
    with pytest.raises(ValueError, match="leave out"):
        model(engine="serial", **settings).fit(np.round(np.abs(Y)))


def test_an_engine_that_does_not_exist(Y):
    with pytest.raises(ValueError, match="'serial', 'dask', 'mpi'"):
        model(engine="spark").fit(Y)


def test_new_rows_in_a_dask_array_are_computed(Y):
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    rows = Y[:6] + 0.01
    gaps = np.where(np.eye(6, 7) > 0, np.nan, rows)
    for fitted in (model(max_iter=3).fit(Y), GPLVM(max_iter=3).fit(Y)):
        for table in (da.from_array(rows, chunks=(2, 3)), da.from_array(rows)[Y[:6, 0] > -99.0]):
            got = fitted.transform(table)
            assert isinstance(got, np.ndarray)
            np.testing.assert_array_equal(got, fitted.transform(rows))
            assert fitted.score(table) == fitted.score(rows)
        got = fitted.predict(da.from_array(gaps))
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, fitted.predict(gaps))
        latents = da.from_array(np.asarray(fitted.embedding_[:4]))
        np.testing.assert_array_equal(
            fitted.inverse_transform(latents), fitted.inverse_transform(fitted.embedding_[:4])
        )
    fitted = model(max_iter=3).fit(Y)
    np.testing.assert_array_equal(fitted.impute(da.from_array(gaps)), fitted.impute(gaps))
    joined = fitted.partial_fit(da.from_array(rows))
    assert isinstance(joined.embedding_, np.ndarray)
    assert joined.embedding_.shape == (66, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPLVM(),
        lambda: SparseGPLVM(n_inducing=10),
        lambda: model(inference="minibatch"),
        lambda: model(likelihood="poisson"),
    ],
    ids=["exact", "sparse", "minibatch", "likelihood"],
)
def test_fits_that_need_all_rows_here_refuse_a_dask_array(Y, make):
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    table = da.from_array(np.abs(Y).round(), chunks=(30, 7))
    for lazy in (table, table[table[:, 0] > -99.0]):
        with pytest.raises(
            ValueError, match=r"Dask array [\s\S]*all rows in memory.*X\.compute\(\)"
        ):
            make().fit(lazy)


def test_a_dask_array_stays_with_its_workers(Y, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    with cluster, distributed.Client(cluster) as client:
        table = da.from_array(Y, chunks=(30, 7))
        fitted = model(engine=client, scale=True, max_iter=10).fit(table)
        assert isinstance(fitted.embedding_, np.ndarray)
        assert fitted.training_data_.shape == (0, 7)
        unknown = table[table[:, 0] > 0]
        with pytest.raises(ValueError, match="compute_chunk_sizes"):
            model(engine=client).fit(unknown)
        with pytest.raises(ValueError, match="client"):
            model().fit(table)
        with pytest.raises(ValueError, match="expected 'pca'"):
            model(engine=client, init="random").fit(table)
        with pytest.raises(ValueError, match="does not keep its rows"):
            fitted.partial_fit(Y)
        gone = np.where(np.arange(60)[:, None] == 45, np.nan, Y)
        for wrong, text in (
            (gone, "row 45 of X has no observed entry"),
            (np.ones((60, 7)), "every column of X is constant"),
            (np.where(Y[50, 2] == Y, np.inf, Y), "X contains infinity in row 50, column 2 .1 such"),
            (Y.astype(str), "X holds text"),
            (Y.astype(object), "X holds text"),
            (Y + 1j, "Complex data not supported"),
            (Y[:, 0], "expected two axes"),
        ):
            with pytest.raises(ValueError, match=text):
                model(engine=client).fit(da.from_array(wrong, chunks=30))
        copy = clone(fitted)
        assert copy.engine is client
        assert pickle.loads(pickle.dumps(fitted)).engine is None
        fitted.save(tmp_path / "live.npz")
        assert load(tmp_path / "live.npz").engine is None
    assert np.allclose(fitted.mean_, Y.mean(axis=0), rtol=1e-12)
    assert fitted.score(Y[:5]) > -100.0
    fitted.set_params(engine=None).save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    assert np.array_equal(again.transform(Y[:3]), fitted.transform(Y[:3]))
