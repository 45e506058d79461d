"""BayesianGPLVM over shards: engines, checkpoints, Dask arrays."""

from __future__ import annotations

import numpy as np
import pytest

from gplvm_xp import BayesianGPLVM, load
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
    with pytest.raises(ValueError, match="checkpoint"):
        model(checkpoint=path).fit(Y[:50], resume=True)


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
    assert np.allclose(fitted.mean_, Y.mean(axis=0), rtol=1e-12)
    assert fitted.score(Y[:5]) > -100.0
    fitted.set_params(engine=None).save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    assert np.array_equal(again.transform(Y[:3]), fitted.transform(Y[:3]))
