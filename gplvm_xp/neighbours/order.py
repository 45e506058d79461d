"""Max-min order: every next row is as far from all before it as a row can be."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from gplvm_xp._typing import Array
from gplvm_xp.neighbours._shared import host_positions, workers

# Up to so many rows the order is exact: O(n² q).
EXACT = 5000
# Beyond, a row is at least this share as far from those before it as the farthest row was.
SHARE = 0.5
# Pairs of candidates that may be looked at together.
_PAIRS = 2**24


def maxmin(X: Array) -> np.ndarray:
    """An order of rows in which each is far from all before it (Guinness 2018; Katzfuss 2021).

    It begins with the row nearest to the mean of all. Up to 5000 rows every next row is the one
    whose distance to its nearest predecessor is largest, of several the lowest row. Beyond, rows
    are taken in groups: a row is at least half as far from all before it, those of its own group
    included, as the farthest row was when the group was begun. Equal positions come last.

    Parameters
    ----------
    X : array (n, q)
        Positions; a device's are copied to the host.

    Returns
    -------
    ndarray of int64 (n,)
        Rows in their order.

    Raises
    ------
    ValueError
        If positions are not finite.

    Notes
    -----
    Beyond 5000 rows the cost is that of trees: about O(n log n) for two or three dimensions. With
    ten, trees no longer tell near from far, and it is as slow as O(n² q).

    References
    ----------
    J. Guinness, Permutation and grouping methods for sharpening Gaussian process approximations,
    Technometrics 60 (2018) 415–429. M. Katzfuss, J. Guinness, A general framework for Vecchia
    approximations of Gaussian processes, Statistical Science 36 (2021) 124–141.
    """
    host = host_positions(X)
    middle = np.sum((host - host.mean(axis=0)) ** 2, axis=1).argmin()
    return _exact(host, middle) if host.shape[0] <= EXACT else _grouped(host, middle)


def _exact(X: np.ndarray, begin: np.intp) -> np.ndarray:
    n = X.shape[0]
    columns = np.ascontiguousarray(X.T)
    order, far = np.empty(n, dtype=np.int64), np.full(n, np.inf)
    k = begin
    for i in range(n):
        order[i] = k
        # Once taken a row is below zero, and so below its copies.
        np.minimum(far, np.sum((columns - columns[:, k, None]) ** 2, axis=0), out=far)
        far[k] = -1.0
        k = far.argmax()
    return order


def _grouped(X: np.ndarray, begin: np.intp) -> np.ndarray:
    """Groups of rows whose distances to each other and to all before are at least ``near``."""
    n = X.shape[0]
    far = np.sqrt(np.sum((X - X[begin]) ** 2, axis=1))
    order, taken = [np.array([begin])], np.zeros(n, dtype=bool)
    taken[begin] = True
    rest = np.flatnonzero(~taken)
    while rest.size:
        near = SHARE * far[rest].max()
        if near == 0.0:
            order.append(rest)
            break
        group, could = [], rest[far[rest] >= near]
        while could.size:
            fresh = _apart(X, far, could, near)
            group.append(fresh)
            taken[fresh] = True
            could = could[~taken[could]]
            if could.size:
                _come_nearer(X, far, could, fresh, near)
                could = could[far[could] >= near]
        order += group
        rest = rest[~taken[rest]]
        if rest.size:
            _come_nearer(X, far, rest, np.concatenate(group), 2.0 * near / SHARE)
    return np.concatenate(order)


def _come_nearer(
    X: np.ndarray, far: np.ndarray, rows: np.ndarray, fresh: np.ndarray, reach: float
) -> None:
    """Distances of ``rows`` to their nearest predecessor, with ``fresh`` ones up to ``reach``."""
    tree = cKDTree(X[fresh])
    distance, _ = tree.query(X[rows], distance_upper_bound=reach, workers=workers(rows.size))
    far[rows] = np.minimum(far[rows], distance)


def _apart(X: np.ndarray, far: np.ndarray, could: np.ndarray, near: float) -> np.ndarray:
    """Some of the rows ``could``, farthest first, no two of them nearer than ``near``."""
    could = could[np.lexsort((could, -far[could]))]
    could = could[_one_a_cell(X[could], near)]
    tree = cKDTree(X[could])
    while tree.count_neighbors(tree, near) > _PAIRS:
        could = could[: could.size // 2]
        tree = cKDTree(X[could])
    pairs = tree.query_pairs(near, output_type="ndarray")
    better, worse = pairs.min(axis=1, initial=could.size), pairs.max(axis=1, initial=-1)
    chosen, open_ = np.zeros(could.size, dtype=bool), np.ones(could.size, dtype=bool)
    while open_.any():
        # An open one is chosen where none that is better is open beside it; then those beside it
        # are closed.
        beaten = np.zeros(could.size, dtype=bool)
        beaten[worse[open_[better]]] = True
        now = open_ & ~beaten
        chosen |= now
        open_ &= ~now
        open_[worse[now[better]]] = False
        live = open_[better] & open_[worse]
        better, worse = better[live], worse[live]
    return could[chosen]


def _one_a_cell(X: np.ndarray, near: float) -> np.ndarray:
    """The first row in each cell of a grid whose diagonal is ``near``, in their order."""
    cells = np.floor((X - X.min(axis=0)) * (np.sqrt(X.shape[1]) / near))
    order = np.lexsort(cells.T)
    fresh = np.ones(order.size, dtype=bool)
    fresh[1:] = np.any(cells[order[1:]] != cells[order[:-1]], axis=1)
    # Of equal cells lexsort keeps the order, so that the first is the farthest.
    return np.sort(order[fresh])


__all__ = ["EXACT", "SHARE", "maxmin"]
