"""The nearest earlier rows of an order: what a Vecchia likelihood conditions on."""

from __future__ import annotations

import math

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

# A tree holds the rows up to so many times those before the first that asks it; and of the
# candidates that it gives so many are asked for beyond those that should be enough.
_GROWTH, _MORE = 1.5, 6


def predecessors(X: Array, order: np.ndarray, k: int) -> np.ndarray:
    """For each row its k nearest rows among those before it in an order.

    Parameters
    ----------
    X : array (n, q)
        Positions; NumPy's are searched by kd-trees on the host, any others by comparison where
        they are.
    order : ndarray of int (n,)
        Every row once; the first has no predecessor.
    k : int
        How many, from 1 to n.

    Returns
    -------
    ndarray of int64 (n, k)
        By row of X, not by place in the order: rows of X by increasing distance, of equal distances
        the earlier one first; −1 at the end where there are fewer.

    Raises
    ------
    ValueError
        If k is below 1 or above n, positions are not finite, or the order is none of the rows.

    Notes
    -----
    A tree of the first m rows of the order answers the rows from m/1.5 to m: of its candidates at
    least about two thirds are earlier ones. Where that is not enough, twice as many are asked for.
    O(n k log n) for an order that does not follow the positions, such as
    :func:`~gplvm_xp.neighbours.maxmin`; O(n² q) on a device.
    """
    host = host_positions(X)
    n = host.shape[0]
    k = check_count(k, n)
    order = np.asarray(order)
    if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order has shape {order.shape}; expected each of the {n} rows once")
    if backend.of(X).name == "numpy":
        places = _by_trees(host[order], k)
    else:
        places = _by_comparison(backend.of(X).rows(X, order), k)
    out = np.empty((n, k), dtype=np.int64)
    # A place of −1 stays −1.
    out[order] = np.append(order, -1)[places]
    return out


def _by_trees(X: np.ndarray, k: int) -> np.ndarray:
    """Places of predecessors for positions in the order itself."""
    n = X.shape[0]
    rank, first = ranks(X)
    # Of very many copies of one position only the first k can be among anybody's predecessors.
    kept = np.flatnonzero(rank < k)
    out = np.full((n, k), -1, dtype=np.int64)
    begin = 0
    while begin < kept.size:
        end = min(max(math.ceil(_GROWTH * begin), 4 * k), kept.size)
        tree = cKDTree(X[kept[:end]])
        for part in query_parts(end - begin):
            places = np.arange(begin, end)[part]
            out[kept[places]] = _of_tree(tree, X, kept, places, k)
        begin = end
    late = np.flatnonzero(rank >= k)
    if late.size:
        # The k first copies, which are those of the least places.
        copies = np.lexsort((kept, first[kept]))
        start = np.searchsorted(first[kept][copies], first[late])
        out[late] = kept[copies[start[:, None] + np.arange(k)]]
    return out


def _of_tree(
    tree: cKDTree, X: np.ndarray, kept: np.ndarray, places: np.ndarray, k: int
) -> np.ndarray:
    """Predecessors of ``kept[places]`` among the tree's points, which are the first of ``kept``."""
    out = np.full((places.size, k), -1, dtype=np.int64)
    rest, size = np.arange(places.size), min(math.ceil(_GROWTH * k) + _MORE, tree.n)
    while rest.size:
        own = places[rest]
        distance, index = tree.query(X[kept[own]], k=size, workers=workers(rest.size))
        distance, index = (np.reshape(a, (rest.size, size)) for a in (distance, index))
        distance, index = by_distance(distance, index)
        earlier = index < own[:, None]
        # The first k earlier ones, in their order.
        chosen = earlier & (np.cumsum(earlier, axis=1) <= k)
        count = chosen.sum(axis=1)
        reach = np.max(np.where(chosen, distance, -1.0), axis=1)
        # Where the last candidate is as near as the k-th, others may be as well.
        done = ((count == k) & (distance[:, -1] > reach)) | (size == tree.n)
        line, column = np.nonzero(chosen & done[:, None])
        slot = (np.cumsum(chosen, axis=1) - 1)[line, column]
        out[rest[line], slot] = kept[index[line, column]]
        rest, size = rest[~done], min(2 * size, tree.n)
    return out


def _by_comparison(X: Array, k: int) -> np.ndarray:
    """As :func:`_by_trees`, on a device."""
    b = backend.of(X)
    xp = b.xp
    n = X.shape[0]
    columns = xp.arange(n, dtype=xp.int64, device=b.device)
    step = table_rows(b, n)
    out = np.full((n, k), -1, dtype=np.int64)
    for i in range(0, n, step):
        j = min(i + step, n)
        few = min(k, j)
        far = table(b, X[i:j, :], X[:j, :])
        far = xp.where(columns[i:j][:, None] > columns[:j][None, :], far, xp.inf)
        distance, where = least(b, far, few)
        out[i:j, :few] = b.to_host(xp.where(xp.isfinite(distance), where, -1))
    return out


__all__ = ["predecessors"]
