"""NumPy: many small triangles at once, each step of an algorithm taken for all of them.

A call of LAPACK for each costs more than the arithmetic, and holds the interpreter's lock.
"""

from __future__ import annotations

import numpy as np

from gplvm_xp._typing import Array

# Triangles of this order are inverted number by number, larger ones by halves.
_LEAF = 8


def many(L: Array) -> bool:
    """Whether so many small triangles (..., n, n) are together that this beats a call for each."""
    return bool(L.ndim > 2 and L.shape[-1] <= 128 and L.size > 2 * L.shape[-1] ** 3)


def substitute(L: Array, B: Array, trans: bool) -> Array:
    """L z = b, or Lᵀ z = b, for triangles (N, n, n) and one right side each, B (..., n, 1)."""
    n = L.shape[-1]
    z = B.reshape(-1, n).copy()
    pivots = np.ascontiguousarray(np.diagonal(L, axis1=1, axis2=2))
    # Both ways read L by rows, where its numbers are side by side.
    if trans:
        for j in range(n - 1, -1, -1):
            z[:, j] /= pivots[:, j]
            z[:, :j] -= L[:, j, :j] * z[:, j : j + 1]
    else:
        for j in range(n):
            z[:, j] -= np.einsum("ij,ij->i", L[:, j, :j], z[:, :j])
            z[:, j] /= pivots[:, j]
    return z.reshape(B.shape)


def inverses(L: Array) -> Array:
    """Inverses of lower triangles (N, n, n): leaves first, then pairs, pairs of pairs, ...

    (A 0; B C)⁻¹ = (A⁻¹ 0; −C⁻¹ B A⁻¹ C⁻¹). An order that is no leaf times a power of two is filled
    up with an identity.
    """
    N, n = L.shape[:2]
    size, count = n, 1
    while size > _LEAF:
        size, count = -(-size // 2), 2 * count
    if size * count > n:
        whole = np.zeros((N, size * count, size * count), dtype=L.dtype)
        whole[:, :n, :n] = L
        rest = np.arange(n, size * count)
        whole[:, rest, rest] = 1.0
        L = whole

    def squares(below: int) -> Array:
        step = size * (1 + below)
        starts = range(0, L.shape[-1], step)
        rows = (L[:, i + step - size : i + step, i : i + size] for i in starts)
        return np.stack(list(rows), axis=1)

    done = _leaves(squares(0))
    while count > 1:
        first, second = done[:, 0::2], done[:, 1::2]
        count //= 2
        done = np.zeros((N, count, 2 * size, 2 * size), dtype=L.dtype)
        done[..., :size, :size], done[..., size:, size:] = first, second
        corner = done[..., size:, :size]
        np.matmul(second, squares(1) @ first, out=corner)
        corner *= -1.0
        size *= 2
    return done[:, 0, :n, :n]


def _leaves(L: Array) -> Array:
    """The same of smaller ones (..., n, n), with the triangles along the last axis meanwhile."""
    n = L.shape[-1]
    rows = np.ascontiguousarray(np.moveaxis(L, (-2, -1), (0, 1)))
    out = np.zeros_like(rows)
    for j in range(n):
        out[j, j] = 1.0 / rows[j, j]
        for m in range(j):
            out[j, : m + 1] -= rows[j, m] * out[m, : m + 1]
        out[j, :j] *= out[j, j]
    return np.ascontiguousarray(np.moveaxis(out, (0, 1), (-2, -1)))


__all__ = ["inverses", "many", "substitute"]
