"""Symmetric M × M matrices as vectors of their P = M (M + 1)/2 pairs, and back."""

from __future__ import annotations

import functools

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend


@functools.lru_cache(maxsize=32)
def _plan(b: Backend, M: int) -> tuple[Array, Array, Array, Array]:
    """Both members of every pair, where (i, j) is found, and ½ for a pair (m, m), else 1."""
    first, second = np.tril_indices(M)
    place = np.zeros((M, M), dtype=np.int64)
    place[first, second] = place[second, first] = np.arange(first.size)

    def put(a: np.ndarray) -> Array:
        return b.xp.asarray(a, dtype=b.xp.int64, device=b.device)

    once = b.asarray(np.where(first == second, 0.5, 1.0))
    return put(first), put(second), put(place.ravel()), once


def members(Z: Array) -> tuple[Array, Array]:
    """z_m and z_m′ of every pair, each (P, q)."""
    b = backend.of(Z)
    first, second, _, _ = _plan(b, Z.shape[0])
    return b.xp.take(Z, first, axis=0), b.xp.take(Z, second, axis=0)


def folded(G: Array) -> Array:
    """⟨G, Ψ⟩ for symmetric Ψ as a product with its pairs: (r, M, M) → (r, P), for any G."""
    b = backend.of(G)
    xp = b.xp
    M = G.shape[-1]
    first, second, _, once = _plan(b, M)
    both = xp.reshape(G + xp.matrix_transpose(G), (G.shape[0], M * M))
    return once * xp.take(both, first * M + second, axis=1)


def unfolded(pairs: Array, M: int) -> Array:
    """Both triangles, (r, M, M), from the pairs (r, P)."""
    b = backend.of(pairs)
    place = _plan(b, M)[2]
    return b.xp.reshape(b.xp.take(pairs, place, axis=1), (pairs.shape[0], M, M))


def sums_by_member(pairs: Array, M: int) -> Array:
    """Σ over the pairs with m of a (P, c) table, a pair (m, m) counted twice: (M, c)."""
    b = backend.of(pairs)
    xp = b.xp
    full = xp.reshape(xp.take(pairs, _plan(b, M)[2], axis=0), (M, M, pairs.shape[1]))
    m = np.arange(M)
    on = b.rows(xp.reshape(full, (M * M, pairs.shape[1])), m * (M + 1))
    return xp.sum(full, axis=1) + on


def row_blocks(b: Backend, n: int, width: int) -> list[slice]:
    """Ranges of rows whose blocks of this width are about two of the backend's tiles."""
    rows, cols = b.tile_shape(4096)
    step = max(1, 2 * rows * cols // width)
    # Of one size, so that the last is no crumb.
    step = -(-n // -(-n // step)) if n else 1
    return [slice(i, min(i + step, n)) for i in range(0, n, step)] or [slice(0, 0)]


__all__ = ["folded", "members", "row_blocks", "sums_by_member", "unfolded"]
