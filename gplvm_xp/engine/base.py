"""The contract of an engine: stateful workers, one for each shard of rows, and sums over them.

A shard's data goes once to where its worker lives and stays there. A call names a method of the
worker and sends it a few small arrays; it returns a tuple of arrays. :meth:`Session.map_reduce`
adds these tuples along one tree that depends on the number of shards only, and workers compute with
one BLAS thread, so that for a given layout of shards the result is the same to the last bit
whichever engine ran it, on processors of one kind.
"""

from __future__ import annotations

import itertools
import math
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from gplvm_xp import backend
from gplvm_xp._typing import Array

# Called where the worker will live, as build(index, count, *data): the shard's place among all of
# them and its data. It must be picklable where workers are other processes.
Build: TypeAlias = Callable[..., Any]
# The data of one shard: arrays, or callables without arguments that make them where they are used.
Shard: TypeAlias = tuple[Any, ...]


@dataclass
class Traffic:
    """Numbers that travelled, counted once for each worker.

    Attributes
    ----------
    calls : int
        Calls of :meth:`Session.map_reduce`.
    sent, returned : int
        Numbers to and from the workers in these calls.
    apart : int
        Numbers of :meth:`Session.collect` and :meth:`Session.scatter`, both ways.
    """

    calls: int = 0
    sent: int = 0
    returned: int = 0
    apart: int = 0


class Carrier(ABC):
    """How calls reach the workers of one session: all that engines differ in."""

    @abstractmethod
    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
        """Results of a method, one a shard in order; ``arguments`` has a tuple for each.

        Raises
        ------
        WorkerLostError
            If a worker is gone.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the workers go; a second call does nothing."""


class Session:
    """The workers of one computation; a context manager that closes it.

    Attributes
    ----------
    n_shards : int
        Number of workers.
    traffic : Traffic
        What travelled so far.
    """

    def __init__(self, carrier: Carrier, n_shards: int) -> None:
        self.n_shards = n_shards
        self.traffic = Traffic()
        self._carrier = carrier

    def map_reduce(self, method: str, *arrays: Array) -> tuple[Array, ...]:
        """Call a method of every worker with the same arrays and add the results.

        Parameters
        ----------
        method : str
            Of the worker; it takes the arrays and returns a tuple of arrays, of the same shapes for
            every shard.
        *arrays : arrays
            Small ones: they are copied to every worker.

        Returns
        -------
        tuple of arrays
            Sums over the shards, added along a fixed tree.

        Raises
        ------
        WorkerLostError
            If a worker is gone.
        """
        self.traffic.calls += 1
        self.traffic.sent += self.n_shards * _size(arrays)
        return tree_sum(self._counted(method, arrays))

    def collect(self, method: str, *arrays: Array) -> list[tuple[Array, ...]]:
        """The results of every worker, in the order of the shards, not added."""
        return self.scatter(method, [arrays] * self.n_shards)

    def scatter(
        self, method: str, arguments: Sequence[tuple[Array, ...]]
    ) -> list[tuple[Array, ...]]:
        """As :meth:`collect`, with arrays of its own for each worker."""
        if len(arguments) != self.n_shards:
            raise ValueError(
                f"{len(arguments)} tuples of arguments were given for {self.n_shards} shards; "
                "expected one for each"
            )
        results = list(self._carrier.call(method, arguments))
        self.traffic.apart += sum(map(_size, arguments)) + sum(map(_size, results))
        return results

    def close(self) -> None:
        """Let the workers go."""
        self._carrier.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _counted(self, method: str, arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
        for result in self._carrier.call(method, [arrays] * self.n_shards):
            self.traffic.returned += _size(result)
            yield result


class Engine(ABC):
    """Where workers live."""

    @abstractmethod
    def open(self, build: Build, shards: Sequence[Shard]) -> Session:
        """Build a worker for each shard.

        Parameters
        ----------
        build : callable
            ``build(index, count, *data)`` makes a worker, where it will live.
        shards : sequence of tuple
            The data of each. A member that is callable is called there without arguments, so that
            what it loads never passes through this process.
        """

    def split(self, Y: Any, n_shards: int | None) -> tuple[list[Any], list[int]]:
        """Cut a table along its rows.

        Parameters
        ----------
        Y : array (n, D)
        n_shards : int or None
            How many; None is what suits the engine.

        Returns
        -------
        parts : list
            One a shard, in order, as members of :meth:`open`'s tuples.
        rows : list of int
            How many rows each has.

        Raises
        ------
        ValueError
            If there are fewer rows than shards, or the engine can't take such a table.
        """
        if type(Y).__module__.startswith("dask."):
            raise ValueError(
                "Y is a Dask array; expected engine='dask' or a Dask client beside it: its blocks "
                "live with Dask's workers"
            )
        count = n_shards or self.default_shards()
        bounds = shard_bounds(Y.shape[0], count)
        ranges = list(itertools.pairwise(bounds))
        return [Y[i:j, ...] for i, j in ranges], [j - i for i, j in ranges]

    def default_shards(self) -> int:
        """Shards where nobody says how many."""
        return 1


def shard_bounds(n: int, count: int) -> list[int]:
    """Limits of ``count`` runs of rows whose lengths differ by one at most, (count + 1).

    Raises
    ------
    ValueError
        If a shard would have no rows.
    """
    if not 1 <= count <= n:
        raise ValueError(
            f"n_shards={count} was given for {n} rows; expected at least one row a shard"
        )
    return [i * n // count for i in range(count + 1)]


def tree_sum(terms: Iterable[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Add tuples of arrays in pairs, pairs of pairs and so on.

    The tree depends on the number of terms only. No more than log2 of it are held at a time, where
    the terms are made one by one.
    """
    held: list[tuple[int, tuple[Array, ...]]] = []
    for term in terms:
        level, total = 0, tuple(term)
        while held and held[-1][0] == level:
            level, total = level + 1, tuple(map(operator.add, held.pop()[1], total))
        held.append((level, total))
    _, total = held.pop()
    while held:
        total = tuple(map(operator.add, held.pop()[1], total))
    return total


class Hosted:
    """A worker where it lives, built there and called with one BLAS thread."""

    def __init__(self, build: Build, index: int, count: int, shard: Shard) -> None:
        with one_blas_thread():
            data = [item() if callable(item) else item for item in shard]
            self._worker = build(index, count, *data)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of the worker."""
        with one_blas_thread():
            return getattr(self._worker, method)(*arguments)


_TURN = threading.RLock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Held while numbers are computed whose bits must not depend on BLAS threads.

    The limit is the process's, and threadpoolctl lets one thread at a time set it. So workers in
    threads of one process take turns: the first to leave must not give the threads back while
    another computes. Never held while waiting for a worker.
    """
    with _TURN:
        _take_control()
        try:
            with backend.get("numpy").calm(1):
                yield
        finally:
            _take_control()


def _take_control() -> None:
    """Make threadpoolctl forget which thread set limits first: it heeds no other."""
    import threadpoolctl

    openblas = getattr(threadpoolctl, "OpenBLASController", None)
    clear = getattr(openblas, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


def to_host(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays of any library as NumPy arrays, for a journey between processes."""
    return tuple(backend.of(a).to_host(a) if backend.is_array(a) else a for a in values)


def _size(arrays: Iterable[Array]) -> int:
    return sum(math.prod(a.shape) for a in arrays)


__all__ = [
    "Build", "Carrier", "Engine", "Hosted", "Session", "Shard", "Traffic", "one_blas_thread",
    "shard_bounds", "to_host", "tree_sum",
]  # fmt: skip
