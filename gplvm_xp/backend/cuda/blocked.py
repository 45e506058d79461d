"""Cholesky factor and inverse of one matrix in its own buffer, by recursion on pointers.

CuPy binds neither potri nor any routine with 64-bit sizes, and its own ``cholesky`` copies. Here
the n × n buffer is split into views (pointer, stride, rows, columns); each view is worked on by
gemm, trsm and geam, and only blocks of at most ``leaf`` rows meet a LAPACK routine. Pointers are
Python integers, so they cannot overflow; the library's 32-bit arguments are sizes and strides,
never their products.

Everything is in row order, and "lower" is the mathematical lower triangle. Sizes, flops and the
derivation are in the docstrings of :func:`factor` and :func:`inverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

FACTOR_LEAF = 2048
INVERSE_LEAF = 512
STRIP = 1024


@dataclass(frozen=True)
class View:
    """A row-ordered block: element (i, j) lies at ``pointer + (i * stride + j) * itemsize``.

    Attributes
    ----------
    pointer : int
        Address of the first element, in bytes.
    stride : int
        Elements from one row to the next.
    rows, columns : int
        Shape of the block.
    itemsize : {4, 8}
        Bytes of one element.
    """

    pointer: int
    stride: int
    rows: int
    columns: int
    itemsize: int

    def block(self, i0: int, i1: int, j0: int, j1: int) -> View:
        """Rows i0 to i1 and columns j0 to j1 of this view."""
        offset = (i0 * self.stride + j0) * self.itemsize
        return View(self.pointer + offset, self.stride, i1 - i0, j1 - j0, self.itemsize)


@dataclass(frozen=True)
class Stack:
    """Many row-ordered matrices of one shape, wherever they are.

    Attributes
    ----------
    pointers : int
        Device address of an array of ``count`` addresses, of 64 bits each.
    count, rows, columns : int
        Number of matrices, and their shape; rows follow each other without gaps.
    itemsize : {4, 8}
        Bytes of one element.
    """

    pointers: int
    count: int
    rows: int
    columns: int
    itemsize: int


class Blas(Protocol):
    """What the backend asks of a library; no method waits for the device."""

    def gemm(
        self, alpha: float, a: View, trans_a: bool, b: View, trans_b: bool, beta: float, c: View
    ) -> None:
        """C ← α op(A) op(B) + β C; C is not read where β is 0."""

    def solve_left(self, lower: View, trans: bool, b: View) -> None:
        """B ← op(L)⁻¹ B."""

    def solve_right(self, lower: View, trans: bool, b: View) -> None:
        """B ← B op(L)⁻¹."""

    def transpose(self, a: View, b: View) -> None:
        """B ← Aᵀ; the two do not overlap."""

    def factor(self, a: View, info: int) -> None:
        """Factor a leaf; writes 0, or the failing pivot, to the int32 at address ``info``."""

    def factor_many(self, a: Stack, info: int) -> None:
        """Factor each matrix; writes ``count`` int32 of status from address ``info`` on."""

    def solve_left_many(self, lower: Stack, trans: bool, b: Stack) -> None:
        """B ← op(L)⁻¹ B for each pair; an L may be met several times."""


def slots(n: int, leaf: int) -> int:
    """How many int32 of status :func:`factor` needs."""
    return -(-n // leaf)


def _split(n: int, leaf: int) -> int:
    """Rows of the first half: whole leaves, and never fewer than the second half has."""
    return -(-slots(n, leaf) // 2) * leaf


def _strips(n: int, width: int) -> Iterator[tuple[int, int]]:
    return ((i0, min(i0 + width, n)) for i0 in range(0, n, width))


def update_lower(
    blas: Blas, alpha: float, a: View, trans_a: bool, b: View, trans_b: bool, beta: float, c: View,
    strip: int = STRIP,
) -> None:  # fmt: skip
    """C ← α op(A) op(B) + β C on the lower triangle of a square C, by strips of rows.

    The blocks of ``strip`` rows on the diagonal are written whole, the rest of the upper triangle
    is left alone. Cost n² k (1 + strip / n) flops for an inner dimension k.
    """
    n = c.rows
    inner = a.rows if trans_a else a.columns
    for i0, i1 in _strips(n, strip):
        left = a.block(0, inner, i0, i1) if trans_a else a.block(i0, i1, 0, inner)
        right = b.block(0, i1, 0, inner) if trans_b else b.block(0, inner, 0, i1)
        blas.gemm(alpha, left, trans_a, right, trans_b, beta, c.block(i0, i1, 0, i1))


def mirror(blas: Blas, a: View, strip: int = STRIP) -> None:
    """Copy the lower triangle to the upper, except inside the diagonal blocks of ``strip`` rows."""
    for i0, i1 in _strips(a.rows, strip):
        if i0:
            blas.transpose(a.block(i0, i1, 0, i0), a.block(0, i0, i0, i1))


def factor(blas: Blas, a: View, info: int, leaf: int = FACTOR_LEAF) -> None:
    """Overwrite the lower triangle of A with its Cholesky factor.

    With A = [[A11, ·], [A21, A22]]: factor A11; A21 ← A21 L11⁻ᵀ; A22 ← A22 - A21 A21ᵀ; factor A22.

    Parameters
    ----------
    blas : Blas
        The library.
    a : View
        Square, its lower triangle filled. The upper triangle ends arbitrary.
    info : int
        Address of ``slots(n, leaf)`` int32; leaf k writes the k-th. Nothing is raised: after a
        failed leaf the rest is arithmetic on arbitrary numbers.
    leaf : int
        Largest block given to the library's own potrf.

    Notes
    -----
    n³ / 3 flops and a term of the order n² leaf; no memory beyond what the library's potrf wants
    for one leaf.
    """
    n = a.rows
    if n <= leaf:
        if n:
            blas.factor(a, info)
        return
    h = _split(n, leaf)
    first, below, second = a.block(0, h, 0, h), a.block(h, n, 0, h), a.block(h, n, h, n)
    factor(blas, first, info, leaf)
    blas.solve_right(first, True, below)
    update_lower(blas, -1.0, below, False, below, True, 1.0, second, min(leaf, STRIP))
    factor(blas, second, info + 4 * (h // leaf), leaf)


def inverse(
    blas: Blas,
    a: View,
    identity: Callable[[int], View],
    leaf: int = INVERSE_LEAF,
    full: bool = True,
) -> None:
    """Overwrite a lower Cholesky factor L with S = (L Lᵀ)⁻¹.

    With L = [[L11, 0], [L21, L22]] and X = L21 L11⁻¹, the blocks are S22 = (L22 L22ᵀ)⁻¹,
    S12 = -Xᵀ S22 and S11 = (L11 L11ᵀ)⁻¹ - S12 X. X replaces L21; the unused upper block holds S12
    from the start, so that no block needs scratch; S21 = S12ᵀ replaces X at the end.

    Parameters
    ----------
    blas : Blas
        The library.
    a : View
        Square; the factor is in its lower triangle, the rest is not read.
    identity : callable
        Gives the one scratch block, at least ``rows`` × ``rows``, as a view of shape
        (rows, rows) holding the identity; each call reuses the memory.
    leaf : int
        Largest block inverted at once.
    full : bool
        Both triangles are promised; else only the lower one.

    Notes
    -----
    2 n³ / 3 flops, as LAPACK's potri, and a term of the order n² leaf (at most 3 n leaf² of it in
    the leaves). The two triangles agree bitwise off the diagonal blocks of ``leaf`` rows and to
    rounding inside them.
    """
    n = a.rows
    if n <= leaf:
        if n:
            half = identity(n)
            blas.solve_left(a, False, half)
            blas.gemm(1.0, half, True, half, False, 0.0, a)
        return
    h = _split(n, leaf)
    first, right = a.block(0, h, 0, h), a.block(0, h, h, n)
    below, second = a.block(h, n, 0, h), a.block(h, n, h, n)
    blas.solve_right(first, False, below)
    inverse(blas, second, identity, leaf, full=True)
    blas.gemm(-1.0, below, True, second, False, 0.0, right)
    inverse(blas, first, identity, leaf, full=False)
    # Strips of a leaf: inside wider ones the upper triangle of `first` would not be valid.
    update_lower(blas, -1.0, right, False, below, False, 1.0, first, leaf)
    blas.transpose(right, below)
    if full:
        mirror(blas, first, leaf)


__all__ = [
    "FACTOR_LEAF",
    "INVERSE_LEAF",
    "STRIP",
    "Blas",
    "View",
    "factor",
    "inverse",
    "mirror",
    "slots",
    "update_lower",
]
