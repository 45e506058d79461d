"""How work is cut: ranges of rows, tiles of a triangle, a sparse matrix by its rows."""

from __future__ import annotations

import numpy as np

# Rows i0 to i1, columns j0 to j1.
Tile = tuple[int, int, int, int]


def chunks(n: int, step: int) -> list[slice]:
    """Ranges of n rows, at most ``step`` each and of one size, so that the last is no crumb."""
    step = -(-n // -(-n // max(step, 1))) if n else 1
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def triangle(n: int, rows: int, columns: int) -> list[Tile]:
    """The lower triangle in tiles of at most so many rows and columns, the diagonal in squares."""
    tiles = []
    for i0 in range(0, n, rows):
        i1 = min(i0 + rows, n)
        tiles += [(i0, i1, j0, min(j0 + columns, i0)) for j0 in range(0, i0, columns)]
        tiles.append((i0, i1, i0, i1))
    return tiles


def sources(
    rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix as a table of what adds up to each row that has any, in a fixed order.

    Parameters
    ----------
    rows, columns : integer ndarrays (P,)
        Where each entry stands.
    weights : ndarray (P,)
        The entries.
    n : int
        Number of rows.

    Returns
    -------
    taken : int64 ndarray (used · most,)
        The columns of each row in use, padded.
    weights : ndarray (used, most)
        Their weights, 0 where padded.
    back : ndarray (n,)
        The place of each row in the table, or ``used`` for a row without entries.
    """
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=n)
    used = np.flatnonzero(counts)
    first = (np.cumsum(counts) - counts)[used, None]
    slot = np.arange(counts.max(initial=0))[None, :]
    at = order[np.minimum(first + slot, max(rows.size - 1, 0))] if rows.size else slot[:, :0]
    inside = slot < counts[used, None]
    back = np.full(n, used.size)
    back[used] = np.arange(used.size)
    taken = np.where(inside, columns[at], 0).ravel().astype(np.int64)
    return taken, np.where(inside, weights[at], 0.0), back


__all__ = ["Tile", "chunks", "sources", "triangle"]
