"""Exact log-likelihoods of many small blocks of rows at once, and their gradients.

A block is R rows of the table. Of block b, with K_b = k(X_b, X_b) + σ² I and Y_b (R, D):

* :func:`joint`: ln p(Y_b) = −½ R D ln 2π − ½ D ln|K_b| − ½ tr(Y_bᵀ K_b⁻¹ Y_b), the likelihood of
  the rows on their own (Yao, Gall, Van Gool & Urtasun 2011);
* :func:`conditional`: ln p(y_last | the others), a term of a nearest-neighbour likelihood (Vecchia
  1988).

Either is differentiated by hand (docs/derivations/local.md). :func:`local_likelihoods` gathers the
blocks by row numbers and holds all of them; sums over more blocks than that are in ``local_sums``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel

BlockGradients = tuple[Array, Array, Array]


class Terms(NamedTuple):
    """Log-likelihoods of blocks, and the way back.

    Attributes
    ----------
    values : array (B,)
        In nats; −inf where a covariance is not positive definite.
    ok : bool array (B,)
        Whether it is.
    pullback : callable
        Weights (B,) → gradients of the weighted sum: gtheta (p,) and gnoise (0-d), summed over
        blocks, and gX (B, R, q) of each. Blocks that are not ``ok`` take no part.
    """

    values: Array
    ok: Array
    pullback: Callable[[Array], BlockGradients]


class Term(Protocol):
    """:func:`joint` or :func:`conditional`."""

    def __call__(
        self,
        kernel: Kernel,
        theta: Array,
        noise: Array,
        X: Array,
        Y: Array,
        mask: Array | None = None,
        outputs: int | None = None,
    ) -> Terms: ...


def joint(
    kernel: Kernel,
    theta: Array,
    noise: Array,
    X: Array,
    Y: Array,
    mask: Array | None = None,
    outputs: int | None = None,
) -> Terms:
    """ln p(Y_b) of every block, as if there were no other rows.

    G_b = ∂/∂K_b = ½ (α αᵀ − D K_b⁻¹) with α = K_b⁻¹ Y_b; ∂/∂σ² = tr G_b.

    Parameters
    ----------
    kernel : Kernel
    theta : array (p,)
    noise : array, 0-d
        What is added to the diagonal: σ² and any jitter.
    X : array (B, R, q)
    Y : array (B, R, D)
        Centred.
    mask : array (B, R), optional
        1 for a row of the block and 0 for a filler, whatever stands there.
    outputs : int, optional
        The number of outputs where Y is a smaller matrix with the same Y Yᵀ.

    Returns
    -------
    Terms

    Notes
    -----
    About R³ + 6 R² D operations a block, in B (3 R² + 2 R D) numbers of memory.
    """
    b = backend.of(X)
    xp, t = b.xp, b.xp.matrix_transpose
    D = Y.shape[-1] if outputs is None else outputs
    K, pull = kernel.local_gram_pullback(theta, X)
    L, ok = b.factor(_covariances(b, K, noise, mask))
    inverse = b.inverse_factor(L)
    A = inverse @ _masked(Y, mask)
    count = X.shape[1] if mask is None else xp.sum(mask, axis=1)
    value = -0.5 * xp.sum(A * A, axis=(1, 2)) - D * xp.sum(xp.log(_diagonals(b, L)), axis=1)
    value = value - (0.5 * D * math.log(2.0 * math.pi)) * count

    def pullback(weights: Array) -> BlockGradients:
        alpha = t(inverse) @ A
        G = (0.5 * weights)[:, None, None] * (alpha @ t(alpha) - D * (t(inverse) @ inverse))
        if mask is not None:
            G = G * (mask[:, :, None] * mask[:, None, :])
        G = xp.where(ok[:, None, None], G, 0.0)
        gtheta, gX = pull(G)
        return gtheta, xp.sum(_diagonals(b, G)), gX

    return Terms(xp.where(ok, value, -xp.inf), ok, pullback)


def conditional(
    kernel: Kernel,
    theta: Array,
    noise: Array,
    X: Array,
    Y: Array,
    mask: Array | None = None,
    outputs: int | Array | None = None,
) -> Terms:
    """ln p(y_R | y_1, …, y_{R−1}) of every block: its last row given the others.

    With N the others: c = (−K_NN⁻¹ k_N, 1), v = cᵀKc, e = Yᵀc and w = (K_NN⁻¹ Y_N e, 0),

    * value = −½ D ln 2πv − ½ |e|²/v,
    * ∂/∂K = sym(p cᵀ), p = −½ (D/v − |e|²/v²) c + w/v; ∂/∂σ² = p·c.

    All of it follows from one factor of K with the last row last: no inverse, no second matrix.

    Parameters
    ----------
    kernel, theta, noise, X, Y, mask
        As in :func:`joint`; the last row of a block is never a filler.
    outputs : int or array (B,), optional
        The number of outputs, of all blocks or of each, where it is not the number of columns.

    Returns
    -------
    Terms

    Notes
    -----
    About R³/3 + 3 R² + 4 R D operations a block besides the kernel's.
    """
    b = backend.of(X)
    xp, t = b.xp, b.xp.matrix_transpose
    R = X.shape[1]
    D = Y.shape[-1] if outputs is None else outputs
    K, pull = kernel.local_gram_pullback(theta, X)
    L, ok = b.factor(_covariances(b, K, noise, mask))
    Y = _masked(Y, mask)
    unit = b.asarray(np.eye(1, R, R - 1).T)
    last = L[:, -1, -1]
    c = b.solve_factor(L, last[:, None, None] * unit, trans=True)
    e = t(c) @ Y
    v, square = last * last, xp.sum(e * e, axis=(1, 2))
    value = -0.5 * (D * xp.log(2.0 * math.pi * v) + square / v)

    def pullback(weights: Array) -> BlockGradients:
        # Without its last entry, what is solved for is that of the leading block alone.
        z = b.solve_factor(L, Y @ t(e)) * (1.0 - unit)
        w = b.solve_factor(L, z, trans=True)
        slope = (-0.5 * weights) * (D - square / v) / v
        p = slope[:, None, None] * c + (weights / v)[:, None, None] * w
        p, there = (xp.where(ok[:, None, None], a, 0.0) for a in (p, c))
        gtheta, gX = pull(p * t(there))
        return gtheta, xp.sum(p * there), gX

    return Terms(xp.where(ok, value, -xp.inf), ok, pullback)


def _covariances(b: Backend, K: Array, noise: Array, mask: Array | None) -> Array:
    """K + σ² I; of a filler the row and the column of the identity."""
    eye = b.eye(K.shape[-1])
    if mask is None:
        return K + noise * eye
    there = mask[:, :, None] * mask[:, None, :]
    return K * there + eye * (noise * mask + (1.0 - mask))[:, :, None]


def _masked(Y: Array, mask: Array | None) -> Array:
    return Y if mask is None else Y * mask[:, :, None]


def _diagonals(b: Backend, A: Array) -> Array:
    return b.xp.linalg.diagonal(A)


def local_likelihoods(
    kernel: Kernel,
    theta: Array,
    noise: Array,
    X: Array,
    Y: Array,
    index: np.ndarray,
    term: Term = joint,
) -> Terms:
    """The local log-likelihoods of blocks of rows, all held at once: a minibatch.

    Parameters
    ----------
    kernel, theta, noise
        As in :func:`joint`.
    X : array (n, q)
    Y : array (n, D)
    index : integer ndarray (B, R)
        Rows of each block, on the host; negative for a filler, which may not be last.
    term : callable, optional
        :func:`joint` or :func:`conditional`.

    Returns
    -------
    Terms
        Its gX (B, R, q) is of each block's own rows, 0 for fillers. With ``plan =
        b.scatter_plan(np.maximum(index, 0).ravel(), n)``, ``b.scatter_add`` adds it up by rows of
        the table.

    Raises
    ------
    ValueError
        If there is no block, a row number is not below n, or a block ends with a filler.
    """
    b = backend.of(X)
    check_index(index, X.shape[0])
    rows, mask = split_index(index)
    rows = b.xp.asarray(rows, dtype=b.xp.int64, device=b.device)
    x, y = gathered(X, Y, rows, index.shape[1])
    return term(kernel, theta, noise, x, y, None if mask is None else b.asarray(mask))


def check_index(index: np.ndarray, n: int) -> None:
    """Raise ``ValueError`` unless ``index`` (B, R) has blocks, of rows below n, a row last."""
    if index.ndim != 2 or 0 in index.shape or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"index has shape {index.shape} and dtype {index.dtype}; expected row numbers (blocks, "
            "rows of a block), at least one of each"
        )
    if index.max() >= n:
        raise ValueError(
            f"index names row {index.max()} and the table has {n}; expected 0 to {n - 1}, or −1 "
            "for no row"
        )
    if index[:, -1].min() < 0:
        raise ValueError(
            f"block {index[:, -1].argmin()} ends with a filler; put the −1 of a short block first"
        )


def split_index(index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Row numbers (B R,) and what marks fillers, (B, R), or None where there are none."""
    there = index >= 0
    if there.all():
        return np.ascontiguousarray(index).ravel(), None
    # A filler stands where a row of its block does: distances within keep their digits.
    return np.where(there, index, index[:, -1:]).ravel(), there.astype(np.float64)


def gathered(X: Array, Y: Array, rows: Array, R: int) -> tuple[Array, Array]:
    """Latents (B, R, q) and outputs (B, R, D) of blocks of R rows, from row numbers (B R,)."""
    xp = backend.of(X).xp
    # The points of a block side by side in memory, which short loops over few columns would cost.
    columns = [xp.take(X[:, a], rows, axis=0) for a in range(X.shape[1])]
    x = xp.matrix_transpose(xp.stack([xp.reshape(a, (-1, R)) for a in columns], axis=1))
    return x, xp.reshape(xp.take(Y, rows, axis=0), (-1, R, Y.shape[1]))


__all__ = [
    "Term",
    "Terms",
    "check_index",
    "conditional",
    "gathered",
    "joint",
    "local_likelihoods",
    "split_index",
]
