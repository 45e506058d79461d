"""What the searches share: checks, copies of one position, the shortest of many distances."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend

# What the table of distances of one chunk may take on a device, and the rows asked of a tree at a
# time: what the answers take on the host.
_CHUNK_BYTES, QUERY_ROWS = 2**27, 2**17
# Columns of such a table whose least entry is found first.
_SEGMENT = 128
# Fewer questions than this are answered before a second thread has begun.
_FEW = 10_000


def host_positions(X: Array, name: str = "X") -> np.ndarray:
    """Positions (n, q) on the host in float64.

    Raises
    ------
    ValueError
        If they are no table with a row and a column, or not finite.
    """
    host = np.asarray(backend.of(X).to_host(X), dtype=np.float64)
    if host.ndim != 2 or 0 in host.shape:
        raise ValueError(
            f"{name} has shape {host.shape}; expected positions (rows, dimensions), at least one "
            "of each"
        )
    if not np.all(np.isfinite(host)):
        row = np.flatnonzero(~np.isfinite(host).all(axis=1))[0]
        raise ValueError(f"{name} is not finite in row {row}; expected positions to measure from")
    return np.ascontiguousarray(host)


def check_count(k: Any, n: int) -> int:
    """The number of neighbours, as a Python integer.

    Raises
    ------
    ValueError
        Unless it is an integer from 1 to n.
    """
    wrong = f"{k!r} neighbours were asked for; expected an integer of 1 or more"
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise ValueError(wrong)
    count: int = operator.index(k)
    if count < 1:
        raise ValueError(wrong)
    if count > n:
        raise ValueError(
            f"{k} neighbours were asked for and there are n = {n} rows; expected at most {n}"
        )
    return count


def workers(m: int) -> int:
    """Threads for m questions to a tree."""
    if m < _FEW:
        return 1
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def ranks(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's place among the rows of equal position, (n,), and the first of them, (n,)."""
    n = X.shape[0]
    order = np.lexsort(X.T)
    fresh = np.ones(n, dtype=bool)
    fresh[1:] = np.any(X[order[1:]] != X[order[:-1]], axis=1)
    start = np.maximum.accumulate(np.where(fresh, np.arange(n), 0))
    rank, first = np.empty((2, n), dtype=np.int64)
    rank[order], first[order] = np.arange(n) - start, order[start]
    return rank, first


def by_distance(distance: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of candidates, sorted by distance already, with ties in the order of their index."""
    tied = np.flatnonzero(np.any(distance[:, 1:] == distance[:, :-1], axis=1))
    if tied.size:
        order = np.lexsort((index[tied], distance[tied]), axis=-1)
        index[tied] = np.take_along_axis(index[tied], order, axis=1)
        distance[tied] = np.take_along_axis(distance[tied], order, axis=1)
    return distance, index


def query_parts(m: int) -> Iterator[slice]:
    """Ranges of m questions."""
    return (slice(i, min(i + QUERY_ROWS, m)) for i in range(0, m, QUERY_ROWS))


def table_rows(b: Backend, n: int) -> int:
    """Rows of a chunk of a table with n columns."""
    return max(1, _CHUNK_BYTES // (b.itemsize * n))


def table(b: Backend, A: Array, X: Array) -> Array:
    """Squared distances (r, n) of rows A (r, q) to X (n, q), by differences.

    A product of matrices would be faster and would lose the near ones to cancellation.
    """
    total = b.zeros((A.shape[0], X.shape[0]))
    for a in range(X.shape[1]):
        total = total + (A[:, a][:, None] - X[:, a][None, :]) ** 2
    return total


def least(b: Backend, far: Array, k: int) -> tuple[Array, Array]:
    """The k least entries of every row of a table, without sorting it.

    Parameters
    ----------
    b : Backend
    far : array (r, n)
    k : int
        At most n.

    Returns
    -------
    values : array (r, k)
        By increasing entry, of equal ones the lower column first.
    columns : array of int64 (r, k)

    Notes
    -----
    The k segments of 128 columns with the least minima hold them all, ties included, as stable
    sorts keep the order of columns. So a row costs n comparisons, and sorts of n/128 and of 128 k
    entries.
    """
    xp = b.xp
    r, n = far.shape
    count = -(-n // _SEGMENT)
    places = xp.arange(count * _SEGMENT, dtype=xp.int64, device=b.device)
    if count * _SEGMENT > n:
        gap = xp.full((r, count * _SEGMENT - n), xp.inf, dtype=far.dtype, device=b.device)
        far = xp.concat([far, gap], axis=1)
    if count > k:
        cut = xp.reshape(far, (r, count, _SEGMENT))
        segments = xp.argsort(xp.min(cut, axis=2), axis=1, stable=True)[:, :k]
        segments = xp.astype(xp.sort(segments, axis=1), xp.int64)
        inside = xp.arange(_SEGMENT, dtype=xp.int64, device=b.device)
        where = xp.reshape(segments[:, :, None] * _SEGMENT + inside, (r, k * _SEGMENT))
        far = xp.take_along_axis(far, where, axis=1)
    else:
        where = xp.broadcast_to(places, far.shape)
    best = xp.astype(xp.argsort(far, axis=1, stable=True)[:, :k], xp.int64)
    return xp.take_along_axis(far, best, axis=1), xp.take_along_axis(where, best, axis=1)


__all__ = [
    "QUERY_ROWS", "by_distance", "check_count", "host_positions", "least", "query_parts", "ranks",
    "table", "table_rows", "workers",
]  # fmt: skip
