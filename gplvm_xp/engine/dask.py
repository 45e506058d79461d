"""Workers as Dask actors, in processes of one machine or of many.

Each shard is an actor, placed where its block of Y is if Y is a Dask array, else in turn; the block
goes from worker to worker and never through this process. An actor lives and dies with its worker:
its loss is a :class:`~gplvm_xp.errors.WorkerLostError`. Needs the extra ``gplvm-xp[distributed]``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, KilledWorker, LocalCluster, wait

from gplvm_xp.engine.base import Build, Carrier, Engine, Hosted, Session, Shard, to_host
from gplvm_xp.errors import WorkerLostError

# Seconds of silence after which the scheduler is asked whether a worker is still there.
_LOOK = 2.0


class _Actor:
    """A worker as an actor. What a method raises is a result: anything else is a loss."""

    def __init__(self, build: Build, index: int, count: int, shard: Shard) -> None:
        self._hosted = Hosted(build, index, count, shard)

    def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        # What Dask unpacks is read-only.
        given = tuple(np.array(a) if isinstance(a, np.ndarray) else a for a in arguments)
        try:
            return to_host(self._hosted.call(method, given)), None
        except Exception as error:
            return None, error


@dataclass
class _Actors(Carrier):
    client: Client
    cluster: LocalCluster | None
    futures: list[Any]
    actors: list[Any]

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        answers = [
            self._ask(index, method, to_host(given)) for index, given in enumerate(arguments)
        ]
        for index, answer in enumerate(answers):
            result, error = self._answer(index, answer)
            if error is not None:
                error.add_note(f"in {method!r} of shard {index}, in a Dask worker")
                raise error
            yield result

    def _ask(self, index: int, method: str, given: tuple[Any, ...]) -> Any:
        try:
            return self.actors[index].call(method, given)
        except RuntimeError as error:
            raise WorkerLostError(index, str(error)) from error

    def _answer(self, index: int, answer: Any) -> tuple[Any, Exception | None]:
        while True:
            try:
                out: tuple[Any, Exception | None] = answer.result(timeout=_LOOK)
                return out
            except TimeoutError:
                # Still at work, unless the scheduler knows better.
                if self.futures[index].status != "finished":
                    raise WorkerLostError(index, "its Dask worker left the cluster") from None
            except Exception as error:
                raise WorkerLostError(index, f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        self.actors, futures, self.futures = [], self.futures, []
        for future in futures:
            future.release()
        if self.cluster is not None:
            self.client.close()
            self.cluster.close()
            self.cluster = None


@dataclass(frozen=True)
class DaskEngine(Engine):
    """Workers on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client or None
        None makes a ``LocalCluster`` for each session and closes it after.
    n_workers : int or None
        Processes of that LocalCluster, of one thread each; None is Dask's choice.
    """

    client: Client | None = None
    n_workers: int | None = None

    def open(self, build: Build, shards: Sequence[Shard]) -> Session:
        client, cluster = self.client, None
        if client is None:
            workers = self.n_workers or min(self.default_shards(), len(shards))
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                # Any free port: the usual one may be another cluster's.
                dashboard_address="127.0.0.1:0",
            )
            client = Client(cluster)
        carrier = _Actors(client, cluster, [], [])
        try:
            places = _places(client, shards)
            carrier.futures = [
                client.submit(
                    _Actor, build, index, len(shards), shard, actor=True, pure=False,
                    workers=[place], allow_other_workers=False,
                )
                for index, (shard, place) in enumerate(zip(shards, places, strict=True))
            ]  # fmt: skip
            carrier.actors = [
                _built(client, index, future, place)
                for index, (future, place) in enumerate(zip(carrier.futures, places, strict=True))
            ]
        except BaseException:
            carrier.close()
            raise
        return Session(carrier, len(shards))

    def split(self, Y: Any, n_shards: int | None) -> tuple[list[Any], list[int]]:
        """Cut a table along its rows; a Dask array is cut at its chunks.

        Raises
        ------
        ValueError
            If the chunks of a Dask array are unknown, or their number is not ``n_shards``.
        """
        if not type(Y).__module__.startswith("dask."):
            return super().split(Y, n_shards)
        if any(math.isnan(size) for sizes in Y.chunks for size in sizes):
            raise ValueError(
                f"Y is a Dask array with unknown chunk sizes (shape {Y.shape}); expected known "
                "ones: call Y.compute_chunk_sizes() first"
            )
        if self.client is None:
            raise ValueError(
                "Y is a Dask array and no Dask client was given; expected engine=client, with the "
                "client of the cluster where its blocks are"
            )
        if Y.ndim == 2 and len(Y.chunks[1]) > 1:
            # A shard has all columns of its rows.
            Y = Y.rechunk({1: -1})
        rows = [size for size in Y.chunks[0] if size]
        if n_shards is not None and n_shards != len(rows):
            raise ValueError(
                f"n_shards={n_shards} was given with a Dask array of {len(rows)} chunks along its "
                "rows; expected None: chunks are shards (rechunk Y for others)"
            )
        blocks = [
            block
            for block, size in zip(Y.to_delayed().ravel(), Y.chunks[0], strict=True)
            if size
        ]  # fmt: skip
        return self.client.compute(blocks), rows

    def default_shards(self) -> int:
        if self.client is not None:
            return max(1, len(_workers(self.client)))
        return self.n_workers or _cores()


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(client: Client) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def _built(client: Client, index: int, future: Any, place: str) -> Any:
    """The actor, once it is there; what its construction raises is raised."""
    while True:
        try:
            return future.result(timeout=_LOOK)
        except KilledWorker as error:
            raise WorkerLostError(index, str(error)) from error
        except TimeoutError:
            if future.status == "error":
                raise
            # It may run on this worker only, so that nobody else would ever build it.
            if place not in _workers(client):
                reason = f"its Dask worker {place} died while the shard was built"
                raise WorkerLostError(index, reason) from None


def _places(client: Client, shards: Sequence[Shard]) -> list[str]:
    """A worker for each shard: where its blocks are, else in turn."""
    futures = [[item for item in shard if hasattr(item, "key")] for shard in shards]
    flat = [future for row in futures for future in row]
    wait(flat)
    holders = client.who_has(flat) if flat else {}
    known = _workers(client)
    return [
        next(
            (sorted(holders[f.key])[0] for f in row if holders.get(f.key)),
            known[index * len(known) // len(shards)],
        )
        for index, row in enumerate(futures)
    ]


__all__ = ["DaskEngine"]
