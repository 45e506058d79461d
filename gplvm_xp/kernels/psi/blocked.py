"""Ψ2 of the RBF kernel as products of matrices: E (rows, P) over the folded pairs, block by block.

ln E is linear in 2q + 2 numbers of the row and of the pair: (1, 2cμ, −c, constant) times
(−¼ δ², z̄, z̄², 1), in units of the lengthscales, c = 1/(2S + 1). One product and one exponential
make E, and its sums over pairs and rows with the same numbers are all gradients. What belongs to
the pairs is made once for all blocks.
"""

from __future__ import annotations

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.psi.pairs import members, row_blocks


def pair_sums(variance: Array, mu: Array, S: Array, Z: Array, W: Array | None) -> Array:
    """Σ_n W_nk E_np, (r, P); μ, S and Z in units of the lengthscales, W (n, r) or None."""
    b = backend.of(mu)
    xp = b.xp
    left, right = _rows(variance, mu, S), xp.matrix_transpose(_columns(Z))
    total: Array = None
    for where in row_blocks(b, mu.shape[0], right.shape[1]):
        E = b.exp(left[where, :] @ right)
        if W is None:
            part = xp.sum(E, axis=0, keepdims=True)
        else:
            part = xp.matrix_transpose(W[where, :]) @ E
        total = part if total is None else total + part
    return total


def pair_gradients(
    variance: Array, mu: Array, S: Array, Z: Array, W: Array | None, g: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Sums and gradients for the cotangents g (r, P) of the pairs.

    Returns
    -------
    value : array (n, 1)
        T_n = Σ_p (W_n·g_p) E_np.
    gmu, gS : arrays (n, q)
    weights : array (P, 1)
        Σ_n (W_n·g_p) E_np.
    gmiddle : array (P, q)
        Half of the gradient in z̄.
    """
    b = backend.of(mu)
    xp, (n, q) = b.xp, mu.shape
    left, right = _rows(variance, mu, S), _columns(Z)
    rows, columns = left[:, : 2 * q + 1], right[:, 1:]
    once = g.shape[0] == 1
    if once:
        # With one weight a row, the cotangent of a pair factors out of all sums.
        g = xp.matrix_transpose(g)
        columns = g * columns
        rows = rows if W is None else W * rows
    exponents = xp.matrix_transpose(right)
    of_rows: list[Array] = []
    of_pairs: Array = None
    for where in row_blocks(b, n, right.shape[0]):
        E = b.exp(left[where, :] @ exponents)
        if not once and W is not None:
            E *= W[where, :] @ g
        row, column = b.thin_products(E, rows[where, :], columns)
        of_rows.append(row)
        of_pairs = column if of_pairs is None else of_pairs + column
    row = xp.concat(of_rows)
    row = W * row if once and W is not None else row
    of_pairs = g * of_pairs if once else of_pairs
    Pz, Pzz, P = row[:, :q], row[:, q : 2 * q], row[:, 2 * q :]
    c = 1.0 / (2.0 * S + 1.0)
    gmu = 2.0 * c * (Pz - mu * P)
    gS = c * (2.0 * c * (mu * (mu * P - 2.0 * Pz) + Pzz) - P)
    gmiddle = 0.5 * of_pairs[:, 1 : q + 1] + right[:, 1 : q + 1] * of_pairs[:, q + 1 :]
    return P, gmu, gS, of_pairs[:, :1], gmiddle


def _rows(variance: Array, mu: Array, S: Array) -> Array:
    """(1, 2cμ, −c, constant), (n, 2q + 2)."""
    xp = backend.of(mu).xp
    c = 1.0 / (2.0 * S + 1.0)
    constant = xp.sum(0.5 * xp.log(2.0 * S + 1.0) + c * mu * mu, axis=1, keepdims=True)
    constant = 2.0 * xp.log(variance) - constant
    return xp.concat([xp.ones_like(constant), 2.0 * c * mu, -c, constant], axis=1)


def _columns(Z: Array) -> Array:
    """(−¼ δ², z̄, z̄², 1), (P, 2q + 2)."""
    xp = backend.of(Z).xp
    first, second = members(Z)
    middle, gap = 0.5 * (first + second), first - second
    quarter = -0.25 * xp.sum(gap * gap, axis=1, keepdims=True)
    return xp.concat([quarter, middle, middle * middle, xp.ones_like(quarter)], axis=1)


__all__ = ["pair_gradients", "pair_sums"]
