"""Dask: the same bits as in one process, blocks that stay away, workers that die."""

from __future__ import annotations

import itertools
import os
import signal
import time

import numpy as np
import pytest
from sharded import KERNEL, D, N, Q, fit, same_bits, start, table

from gplvm_xp import engine
from gplvm_xp.engine import Checkpoint
from gplvm_xp.errors import WorkerLostError
from gplvm_xp.objectives.shard import Worker

distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

from gplvm_xp.engine.dask import DaskEngine  # noqa: E402  (after the skip)

# The scheduler finds the killed worker's connections closed, and tornado warns of some of them.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def workers(client):
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


@pytest.mark.parametrize("missing", [False, True])
def test_the_same_bits_as_in_one_process(client, missing):
    Y, mu = table(missing=missing)
    here = fit(Y, mu, steps=10)
    there = fit(Y, mu, steps=10, engine=client)
    assert same_bits(here, there)
    assert there.traffic == here.traffic


def test_a_dask_array_never_passes_through_this_process(client):
    """Its blocks become shards: the same bits again, from chunks that also cut the columns."""
    Y, mu = table()
    sizes, here = (20, 13, 30), os.getpid()

    def block(block_info=None):
        assert os.getpid() != here
        (rows, columns) = block_info[None]["array-location"]
        return Y[slice(*rows), slice(*columns)]

    lazy = da.map_blocks(block, chunks=(sizes, (2, 3)), dtype=float)
    assert lazy.shape == (N, D)
    found = fit(lazy, mu, n_shards=None, steps=5, engine=client)
    assert found.table.rows == sizes

    class Cut(engine.SerialEngine):
        def split(self, Y, n_shards):
            # The same shards in this process.
            ends = np.cumsum([0, *sizes])
            return [Y[i:j] for i, j in itertools.pairwise(ends)], list(sizes)

    assert same_bits(fit(Y, mu, n_shards=None, steps=5, engine=Cut()), found)


def test_starts_from_the_blocks(client):
    """Nothing but a Dask array: principal components by the workers."""
    Y, _ = table(120)
    found = fit(
        da.from_array(Y, chunks=(50, D)), Q, n_shards=None, steps=5, engine=client,
        first=lambda sample, variance: start(sample),
    )  # fmt: skip
    assert found.mu.shape == (120, Q)
    assert found.result.value < found.curve[0]


def test_blocks_stay_where_they_are(client):
    """A block's worker is the shard's worker."""
    places = workers(client)
    Y, _ = table()
    blocks = [
        client.scatter(part, workers=[place], hash=False)
        for part, place in zip(np.split(Y, [30]), reversed(places), strict=True)
    ]
    with DaskEngine(client).open(Worker(KERNEL), [(block,) for block in blocks]) as session:
        holders = [client.who_has([f])[f.key] for f in session._carrier.futures]
    assert [holder[0] for holder in holders] == list(reversed(places))


def test_bad_dask_arrays(client):
    Y, mu = table()
    lazy = da.from_array(Y, chunks=(20, D))
    unknown = lazy[lazy[:, 0] > 3.0]
    with pytest.raises(ValueError, match=r"call Y.compute_chunk_sizes\(\) first"):
        fit(unknown, mu, engine=client)
    with pytest.raises(ValueError, match="Dask array of 4 chunks along its rows"):
        fit(lazy, mu, n_shards=3, engine=client)
    with pytest.raises(ValueError, match="no Dask client was given"):
        fit(lazy, mu, engine="dask")
    with pytest.raises(ValueError, match="expected engine='dask' or a Dask client"):
        fit(lazy, mu)


def test_an_error_in_a_worker_is_that_error(client):
    Y, mu = table()
    wrong = mu[:, :1]
    with pytest.raises(ValueError, match=r"dimension|shape|broadcast") as caught:
        fit(Y, wrong, engine=client, first=start(mu))
    assert any("in a Dask worker" in note for note in caught.value.__notes__)


def test_get_takes_a_client(client):
    chosen = engine.get(client)
    assert isinstance(chosen, DaskEngine)
    assert chosen.client is client
    assert chosen.default_shards() == 2
    assert isinstance(engine.get("dask"), DaskEngine)


def test_a_killed_worker_is_named_and_the_fit_resumes_with_nothing_lost(client, tmp_path):
    Y, mu = table()
    whole = fit(Y, mu)
    pids = client.run(os.getpid)
    victim = workers(client)[1]
    file = Checkpoint(tmp_path / "fit.npz", every=4)

    def kill(progress):
        if progress.step == 10:
            os.kill(pids[victim], signal.SIGKILL)

    begun = time.perf_counter()
    with pytest.raises(WorkerLostError, match=r"fit\.npz': resume from it") as caught:
        fit(Y, mu, engine=client, callback=kill, checkpoint=file)
    assert time.perf_counter() - begun < 20.0
    # The second of two workers held the second half of the shards.
    assert caught.value.shard in (2, 3)
    assert file.read()["values"].size == 1 + 8
    client.wait_for_workers(2, timeout=20)
    again = fit(Y, mu, engine=client, checkpoint=file, resume=True)
    assert again.result.steps == whole.result.steps
    assert same_bits(whole, again)


def test_a_worker_that_dies_while_it_is_built(client):
    here = os.getpid()

    def build(index, count):
        if index == 1 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerLostError, match="shard 1 was lost") as caught:
        DaskEngine(client).open(build, [(), ()])
    assert caught.value.shard == 1
    client.wait_for_workers(2, timeout=20)


def test_a_cluster_of_its_own():
    """engine="dask": made, used, closed."""
    Y, mu = table()
    found = fit(Y, mu, steps=3, engine=DaskEngine(n_workers=2))
    assert same_bits(fit(Y, mu, steps=3), found)
