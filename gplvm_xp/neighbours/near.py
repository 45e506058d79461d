"""The nearest rows of each row, or of other points."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.neighbours._shared import (
    by_distance,
    check_count,
    host_positions,
    least,
    query_parts,
    ranks,
    table,
    table_rows,
    workers,
)

# Candidates beyond the k asked for, so that a tie at the end shows.
_MORE = 4


def nearest(
    X: Array, k: int, queries: Array | None = None, *, rows: np.ndarray | None = None
) -> np.ndarray:
    """The k nearest rows of X, by Euclidean distance.

    Parameters
    ----------
    X : array (n, q)
        Positions; NumPy's are searched by a kd-tree on the host, any others by comparison with all
        of them where they are.
    k : int
        How many, from 1 to n.
    queries : array (m, q), optional
        Points to look from, in X's library; default rows of X themselves.
    rows : ndarray of int (m,), optional
        Which rows of X to look from, where they are not all; not together with ``queries``.

    Returns
    -------
    ndarray of int64 (m, k)
        Rows of X by increasing distance, of equal distances the lower row first. Without
        ``queries`` every row comes first in its own list, whatever its copies.

    Raises
    ------
    ValueError
        If k is below 1 or above n, positions are not finite or have not the same columns, or there
        are both queries and rows.

    Notes
    -----
    On the host O((n + m k) log n) for a few dimensions. On a device O(n m q).
    """
    host, b = host_positions(X), backend.of(X)
    k = check_count(k, host.shape[0])
    tree = b.name == "numpy"
    if queries is None:
        own = np.arange(host.shape[0]) if rows is None else np.asarray(rows, dtype=np.int64)
        return _by_tree(host, k, host[own], own) if tree else _by_comparison(X, k, None, own)
    ask = host_positions(queries, "queries")
    if rows is not None:
        raise ValueError("queries and rows were given; expected one of them, or none")
    if ask.shape[1] != host.shape[1]:
        raise ValueError(
            f"queries has {ask.shape[1]} columns and X has {host.shape[1]}; expected the same"
        )
    return _by_tree(host, k, ask, None) if tree else _by_comparison(X, k, queries, None)


def _by_tree(X: np.ndarray, k: int, ask: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    """From points, which are the rows ``own`` if there are such."""
    # Of very many copies of one position only k can be among anybody's nearest, and a tree that
    # held them all would have to be asked for all.
    kept = np.flatnonzero(ranks(X)[0] < k)
    tree = cKDTree(X[kept])
    out = np.empty((ask.shape[0], k), dtype=np.int64)
    for part in query_parts(ask.shape[0]):
        out[part] = _of_tree(tree, kept, ask[part], k)
    if own is None:
        return out
    # A row comes first: in the place of the last, where copies left it no place.
    hit = out == own[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), k - 1)
    for at in np.unique(place[place > 0]):
        late = np.flatnonzero(place == at)
        out[late, 1 : at + 1] = out[late, :at]
    out[:, 0] = own
    return out


def _of_tree(tree: cKDTree, kept: np.ndarray, ask: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of the tree's points, as rows of X, by (distance, row)."""
    out = np.empty((ask.shape[0], k), dtype=np.int64)
    rest, size = np.arange(ask.shape[0]), min(k + _MORE, tree.n)
    while rest.size:
        distance, index = tree.query(ask[rest], k=size, workers=workers(rest.size))
        distance, index = (np.reshape(a, (rest.size, size)) for a in (distance, index))
        distance, index = by_distance(distance, kept[index])
        # Where the last candidate is as near as the k-th, others may be as well.
        done = (distance[:, -1] > distance[:, k - 1]) | (size == tree.n)
        out[rest[done]] = index[done, :k]
        rest, size = rest[~done], min(2 * size, tree.n)
    return out


def _by_comparison(X: Array, k: int, ask: Array | None, own: np.ndarray | None) -> np.ndarray:
    """As :func:`_by_tree`, where the positions are."""
    b = backend.of(X)
    xp = b.xp
    n = X.shape[0]
    columns = xp.arange(n, dtype=xp.int64, device=b.device)
    index = None if own is None else xp.asarray(own, device=b.device)
    ask = X if ask is None else ask
    m, step = ask.shape[0] if own is None else own.size, table_rows(b, n)
    out = np.empty((m, k), dtype=np.int64)
    for i in range(0, m, step):
        j = min(i + step, m)
        if index is None:
            far = table(b, ask[i:j, :], X)
        else:
            far = table(b, xp.take(X, index[i:j], axis=0), X)
            far = xp.where(index[i:j][:, None] == columns[None, :], -1.0, far)
        out[i:j] = b.to_host(least(b, far, k)[1])
    return out


__all__ = ["nearest"]
