"""Ψ2 of the RBF kernel for complete data, on a device with a kernel that sums E without storing it.

With r = √c, c = 1/(2S + 1), a pair's exponent is −¼ δ² − Σ u², u = r (μ − z̄), in units of the
lengthscales. Gradients of Σ_n w_n Σ_p g_p E_np: −2 w r Σ_p g E u in μ_n,
w c (2 Σ_p g E u² − Σ_p g E) in S_n and 2 g Σ_n w E r u in z̄_p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.psi.pairs import members

if TYPE_CHECKING:
    from gplvm_xp.backend.cuda.psi import FusedPsi


def pair_sums(
    code: FusedPsi, variance: Array, mu: Array, S: Array, Z: Array, W: Array | None
) -> Array:
    """Σ_n w_n E_np, (1, P); μ, S and Z in units of the lengthscales, W (n, 1) or None."""
    rows, columns, _ = _sides(variance, mu, S, Z, W)
    return code.sums(rows, columns)[None, :]


def pair_gradients(
    code: FusedPsi, variance: Array, mu: Array, S: Array, Z: Array, W: Array | None, g: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Sums and gradients for the cotangent g (1, P) of the pairs.

    Returns
    -------
    value : array (n, 1)
        w_n Σ_p g_p E_np.
    gmu, gS : arrays (n, q)
    weights : array (P, 1)
        g_p Σ_n w_n E_np.
    gmiddle : array (P, q)
        Half of the gradient in z̄.
    """
    rows, columns, root = _sides(variance, mu, S, Z, W)
    xp, q, g = backend.of(mu).xp, mu.shape[1], g[0, :]
    row = rows[:, 1:2] * code.row_sums(rows, columns, g)
    total = row[:, :1]
    gmu = -2.0 * root * row[:, 1 : q + 1]
    gS = root * root * (2.0 * row[:, q + 1 :] - total)
    column = xp.expand_dims(g, axis=1) * code.column_sums(rows, columns)
    return total, gmu, gS, column[:, :1], column[:, 1:]


def _sides(
    variance: Array, mu: Array, S: Array, Z: Array, W: Array | None
) -> tuple[Array, Array, Array]:
    """The numbers of each row and of each pair that the kernels read, and r (n, q)."""
    xp = backend.of(mu).xp
    n, q = mu.shape
    spread = 2.0 * S + 1.0
    root = 1.0 / xp.sqrt(spread)
    constant = 2.0 * xp.log(variance) - 0.5 * xp.sum(xp.log(spread), axis=1, keepdims=True)
    w = xp.ones_like(constant) if W is None else W
    both = xp.reshape(xp.stack([root, root * mu], axis=2), (n, 2 * q))
    first, second = members(Z)
    gap = first - second
    quarter = -0.25 * xp.sum(gap * gap, axis=1, keepdims=True)
    columns = xp.concat([quarter, 0.5 * (first + second)], axis=1)
    return xp.concat([constant, w, both], axis=1), columns, root


__all__ = ["pair_gradients", "pair_sums"]
