"""The collapsed bound of a model with inducing inputs: M × M algebra on the sums over rows.

For each group k of D_k outputs that are observed in the same N_k rows, with β = 1/σ² and
L_u L_uᵀ = K_uu (Titsias & Lawrence 2010, eq. 14, in the stable form of derivations/bayesian.md):

* C = β L_u⁻¹ Ψ2 L_u⁻ᵀ, L_A L_Aᵀ = I + C, c = L_A⁻¹ L_u⁻¹ Ψ1ᵀ Y;
* F = −½ N D ln 2π + ½ N D ln β − D Σ ln (L_A)_ii − ½ β ‖Y‖² + ½ β² ‖c‖² − ½ β D ψ0 + ½ D tr C.

Its last two terms are the trace term of the variational bound (VFE); without them it is the DTC
likelihood. Cotangents, with ê = L_A⁻ᵀ c, E = L_u⁻ᵀ ê, T = (I + C)⁻¹ C, back(A) = L_u⁻ᵀ A L_u⁻¹:

* ∂ψ0 = −½ β D, ∂(Ψ1ᵀY) = β² E, ∂Ψ2 = ½ β back(D T − β² ê êᵀ), ∂K_uu = ½ back(D (T − C) − β² ê êᵀ);
* ∂β = N D/2β − (D/2β) tr T − ½ ‖Y‖² + β ‖c‖² − ½ β tr(êᵀ C ê) − ½ D ψ0 + (D/2β) tr C.

For DTC the terms of the trace go: ∂ψ0 = 0, T − I stands for T in ∂Ψ2, and T for T − C in ∂K_uu.
The optimal q(u_d) = N(L_u β ê_d, L_u (I + C)⁻¹ L_uᵀ). Cost O(M² D + r M³), all groups at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.objectives.rows import Sums

SLACK = 1e-6


@dataclass(frozen=True)
class Totals:
    """What the algebra must know of the data; adds over shards of the rows.

    Attributes
    ----------
    which : ndarray (D,)
        Group of each output, 0 to r − 1, on the host.
    entries : ndarray (r,)
        N_k D_k, observed entries of each group.
    squares : ndarray (r,)
        ‖Y‖² over them.
    outputs : ndarray (r,)
        D_k, also where Y was reduced to fewer columns with the same Y Yᵀ.
    """

    which: np.ndarray
    entries: np.ndarray
    squares: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, Y: np.ndarray, which: np.ndarray, W: np.ndarray | None) -> Totals:
        """Of a host table (n, D), 0 where missing, with its groups as in ``Rows``."""
        r = 1 if W is None else W.shape[1]
        outputs = np.bincount(which, minlength=r).astype(float)
        rows = np.full(1, float(Y.shape[0])) if W is None else W.sum(axis=0)
        squares = np.bincount(which, weights=np.sum(Y * Y, axis=0), minlength=r)
        return cls(which, rows * outputs, squares, outputs)


class Collapsed(NamedTuple):
    """The bound and its gradients.

    Attributes
    ----------
    value : 0-d array
        Nats, without KL(q(X) || p(X)).
    ok : 0-d bool array
        Whether every factor exists, and the trace term has the right sign.
    sums : Sums
        Cotangents of the sums over rows.
    K : array (M, M)
        Gradient in K_uu, symmetric.
    noise : 0-d array
        Gradient in σ².
    """

    value: Array
    ok: Array
    sums: Sums
    K: Array
    noise: Array


class _Factors(NamedTuple):
    ok: Array
    lower: Array  # L_u (M, M)
    C: Array  # (r, M, M)
    LA: Array  # (r, M, M)
    c: Array  # (r, M, w), zero columns where a group has fewer than w outputs


def collapsed(
    b: Backend, K: Array, noise: Array, sums: Sums, totals: Totals, *, trace: bool = True
) -> Collapsed:
    """The bound and its gradients from the sums over rows.

    Parameters
    ----------
    b : Backend
    K : array (M, M)
        K_uu with its jitter.
    noise : 0-d array
        σ².
    sums : Sums
        Of all rows.
    totals : Totals
    trace : bool
        Whether the trace term is there: VFE, the bound; without it DTC.

    Returns
    -------
    Collapsed
        Arbitrary numbers where ``ok`` is false; nothing is raised and nothing waits.
    """
    xp = b.xp
    f = _factors(b, K, noise, sums, totals)
    beta = 1.0 / noise
    D, N, yy = (b.asarray(a) for a in (totals.outputs, totals.entries, totals.squares))
    hat = b.solve_factor(f.LA, f.c, trans=True)
    half = xp.sum(xp.log(xp.linalg.diagonal(f.LA)), axis=1)
    cc, trC = xp.sum(f.c * f.c, axis=(1, 2)), xp.sum(xp.linalg.diagonal(f.C), axis=1)
    T = b.solve_factor(f.LA, b.solve_factor(f.LA, f.C), trans=True)
    trT, hCh = xp.sum(xp.linalg.diagonal(T), axis=1), xp.sum(hat * (f.C @ hat), axis=(1, 2))
    value = (
        0.5 * N * (xp.log(beta) - math.log(2.0 * math.pi))
        - D * half
        - 0.5 * beta * yy
        + 0.5 * beta**2 * cc
    )
    gbeta = 0.5 * (N - D * trT) / beta - 0.5 * yy + beta * cc - 0.5 * beta * hCh
    hh = beta**2 * (hat @ xp.matrix_transpose(hat))
    D3 = D[:, None, None]
    ok = f.ok
    if trace:
        # The prior explains at least what is left of it: where rounding says no, it rules all.
        ok = ok & xp.all(trC <= (1.0 + SLACK) * beta * sums.psi0)
        value = value - 0.5 * D * (beta * sums.psi0 - trC)
        gbeta = gbeta - 0.5 * D * (sums.psi0 - trC / beta)
        g0, g2, gK = -0.5 * beta * D, D3 * T - hh, D3 * (T - f.C) - hh
    else:
        g0, g2, gK = xp.zeros_like(D), D3 * (T - b.eye(K.shape[0])) - hh, D3 * T - hh
    cotangents = Sums(
        g0,
        beta**2 * b.solve_triangular(f.lower, ungrouped(b, hat, totals), trans=True),
        0.5 * beta * back(b, f.lower, g2),
    )
    gK = 0.5 * back(b, f.lower, xp.sum(gK, axis=0, keepdims=True))[0, ...]
    return Collapsed(xp.sum(value), ok, cotangents, gK, -(beta**2) * xp.sum(gbeta))


def optimum(
    b: Backend, K: Array, noise: Array, sums: Sums, totals: Totals
) -> tuple[Array, Array, Array]:
    """The optimal q(u), whitened: u_d = L_u (mean_d + factor ε), ε ~ N(0, I).

    Returns
    -------
    mean : array (M, D)
    factor : array (r, M, M)
        L_A⁻ᵀ, upper triangular, of each group.
    ok : 0-d bool array
    """
    f = _factors(b, K, noise, sums, totals)
    hat = b.solve_factor(f.LA, f.c, trans=True)
    factor = b.xp.matrix_transpose(b.inverse_factor(f.LA))
    return ungrouped(b, hat, totals) / noise, factor, f.ok


def _factors(b: Backend, K: Array, noise: Array, sums: Sums, totals: Totals) -> _Factors:
    xp = b.xp
    lower, ok = b.factor(K)
    C = both_sides(b, lower, sums.psi2 / noise, trans=False)
    LA, fine = b.factor(C + b.eye(K.shape[0]))
    right = grouped(b, b.solve_triangular(lower, sums.cross), totals)
    c = b.solve_factor(LA, right)
    return _Factors(ok & xp.all(fine), lower, C, LA, c)


def both_sides(b: Backend, lower: Array, A: Array, trans: bool) -> Array:
    """L⁻¹ A L⁻ᵀ of symmetric matrices (r, M, M), or L⁻ᵀ A L⁻¹ with ``trans``; symmetric again."""
    xp = b.xp
    r, M = A.shape[0], A.shape[1]

    def once(A: Array) -> Array:
        wide = xp.reshape(xp.permute_dims(A, (1, 0, 2)), (M, r * M))
        out = xp.reshape(b.solve_triangular(lower, wide, trans=trans), (M, r, M))
        return xp.permute_dims(out, (1, 2, 0))

    out = once(once(A))
    return 0.5 * (out + xp.matrix_transpose(out))


def back(b: Backend, lower: Array, A: Array) -> Array:
    """L⁻ᵀ A L⁻¹ of symmetric matrices (r, M, M)."""
    return both_sides(b, lower, A, trans=True)


def _places(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of each group, padded with D, (r w,); and where each output went, (D,)."""
    D, r = which.size, int(which.max(initial=0)) + 1
    counts = np.bincount(which, minlength=r)
    order = np.argsort(which, kind="stable")
    rank = np.empty(D, dtype=np.int64)
    rank[order] = np.arange(D) - np.repeat(np.cumsum(counts) - counts, counts)
    place = which * counts.max() + rank
    table = np.full(r * counts.max(), D)
    table[place] = np.arange(D)
    return table, place


def grouped(b: Backend, A: Array, totals: Totals) -> Array:
    """Columns (M, D) by groups, (r, M, w), with columns of zeros."""
    xp = b.xp
    if totals.outputs.size == 1:
        return A[None, :, :]
    table, _ = _places(totals.which)
    padded = xp.concat([xp.matrix_transpose(A), b.zeros((1, A.shape[0]))])
    rows = xp.reshape(b.rows(padded, table), (totals.outputs.size, -1, A.shape[0]))
    return xp.matrix_transpose(rows)


def ungrouped(b: Backend, A: Array, totals: Totals) -> Array:
    """Undoes :func:`grouped`."""
    xp = b.xp
    if totals.outputs.size == 1:
        return A[0, ...]
    _, place = _places(totals.which)
    rows = xp.reshape(xp.matrix_transpose(A), (-1, A.shape[1]))
    return xp.matrix_transpose(b.rows(rows, place))


__all__ = [
    "SLACK", "Collapsed", "Totals", "back", "both_sides", "collapsed", "grouped", "optimum",
    "ungrouped",
]  # fmt: skip
