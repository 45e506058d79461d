"""What the rows of a model with inducing inputs contribute: sums over rows, chunk by chunk.

Latents are q(x_n) = N(μ_n, diag S_n), or points where S is None; the sums are those of the psi
statistics, which for points are products of K = k(X, Z). Everything adds over chunks and over
shards of the rows: ψ0_k = Σ_n W_nk ψ0_n, C = Ψ1ᵀ Y, Ψ2_k = Σ_n W_nk Ψ2⁽ⁿ⁾ (Gal, van der Wilk &
Rasmussen 2014; derivations/psi.md). A chunk's temporaries are O(chunk · M²); chunks run in
threads where cores are free and are added in order: the bits depend on the data only.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.backend.parts import chunks
from gplvm_xp.kernels import Kernel
from gplvm_xp.kernels.psi import Contracted, Psi, Statistics

# What the largest temporary of a chunk may take; and Ψ1 of one where the statistics cut the rows
# into blocks of their own, or a device streams them, so that launches are few.
CHUNK_BYTES, ROWS_BYTES, DEVICE_BYTES = 2**24, 2**20, 2**28


@dataclass(frozen=True)
class Rows:
    """Rows of a table with their latents.

    Attributes
    ----------
    mu : array (n, q)
        Latent means, or points.
    S : array (n, q) or None
        Latent variances, > 0; None for points.
    Y : array (n, D)
        Centred, 0 where missing.
    W : array (n, r) or None
        1 where the outputs of group k are observed in row n, else 0; None: complete.
    """

    mu: Array
    S: Array | None
    Y: Array
    W: Array | None = None

    def part(self, where: slice) -> Rows:
        """Some of the rows."""
        S = None if self.S is None else self.S[where, :]
        W = None if self.W is None else self.W[where, :]
        return Rows(self.mu[where, :], S, self.Y[where, :], W)


class Sums(NamedTuple):
    """Sums over rows, or their cotangents.

    Attributes
    ----------
    psi0 : array (r,)
    cross : array (M, D)
        Ψ1ᵀ Y.
    psi2 : array (r, M, M)
    """

    psi0: Array
    cross: Array
    psi2: Array


class RowGradients(NamedTuple):
    """Gradients in the shared parameters, summed, and in the rows' own."""

    theta: Array
    Z: Array
    mu: Array
    S: Array | None


@dataclass(frozen=True)
class PointPsi(Psi):
    """Statistics of points, S = 0: ψ0 = k(x, x), Ψ1 = K, Ψ2_k = Kᵀ diag(W_k) K; S is not looked at.

    Gradients in K: G1 + Σ_k diag(W_k) K (G2_k + G2_kᵀ), pulled back by the kernel.
    """

    kernel: Kernel

    def forward(
        self, theta: Array, mu: Array, S: Array, Z: Array, W: Array | None = None
    ) -> Statistics:
        xp = backend.of(mu).xp
        K = self.kernel.gram(theta, mu, Z)
        Kt = xp.matrix_transpose(K)
        groups = [Kt @ K] if W is None else [Kt @ (W[:, k][:, None] * K) for k in _columns(W)]
        return Statistics(self.kernel.diag(theta, mu), K, xp.stack(groups))

    def contract(
        self,
        theta: Array,
        mu: Array,
        S: Array,
        Z: Array,
        g0: Array,
        G1: Array,
        G2: Array,
        W: Array | None = None,
    ) -> Contracted:
        xp = backend.of(mu).xp
        K, pull = self.kernel.gram_pullback(theta, mu, Z)
        diagonal, diag_pull = self.kernel.diag_pullback(theta, mu)
        both = G2 + xp.matrix_transpose(G2)
        if W is None:
            K2 = K @ both[0, ...]
        else:
            terms = (W[:, k][:, None] * (K @ both[k, ...]) for k in _columns(W))
            K2 = functools.reduce(operator.add, terms)
        value = g0 * diagonal + xp.sum((G1 + 0.5 * K2) * K, axis=1)
        gtheta, gmu, gZ = pull(G1 + K2)
        gtheta_diag, gmu_diag = diag_pull(g0)
        return Contracted(value, gtheta + gtheta_diag, gmu + gmu_diag, xp.zeros_like(mu), gZ)


def _columns(W: Array) -> range:
    return range(W.shape[1])


def _psi(kernel: Kernel, rows: Rows) -> Psi:
    return PointPsi(kernel) if rows.S is None else kernel.psi()


def _parts(b: Backend, rows: Rows, M: int) -> list[slice]:
    n, q = rows.mu.shape
    streams = rows.S is not None and rows.W is None and b.fused_psi(q) is not None
    return chunks(n, (DEVICE_BYTES if streams else ROWS_BYTES) // (b.itemsize * M))


def forward(kernel: Kernel, theta: Array, Z: Array, rows: Rows) -> Sums:
    """The sums of the rows.

    Parameters
    ----------
    kernel : Kernel
    theta : array (p,)
    Z : array (M, q)
    rows : Rows
        At least one.

    Returns
    -------
    Sums

    Notes
    -----
    Cost about 2 n M² (q + 1) operations and n M²/2 exponentials for an RBF; memory O(r M² + M D)
    and a few chunks.
    """
    b = backend.of(theta)
    xp, psi = b.xp, _psi(kernel, rows)

    def one(where: slice) -> tuple[Array, ...]:
        part = rows.part(where)
        s = psi.forward(theta, part.mu, _variances(part), Z, part.W)
        psi0 = xp.sum(s.psi0, keepdims=True) if part.W is None else s.psi0 @ part.W
        return psi0, xp.matrix_transpose(s.psi1) @ part.Y, s.psi2

    return Sums(*added(b, one, _parts(b, rows, Z.shape[0])))


def backward(kernel: Kernel, theta: Array, Z: Array, rows: Rows, g: Sums) -> RowGradients:
    """Gradients of ⟨g, sums⟩; the statistics are computed again, chunk by chunk.

    Parameters
    ----------
    kernel, theta, Z, rows
        As in :func:`forward`.
    g : Sums
        Cotangents of its results.

    Returns
    -------
    RowGradients
    """
    b = backend.of(theta)
    xp, psi = b.xp, _psi(kernel, rows)
    back = xp.matrix_transpose(g.cross)
    gmu = b.empty(rows.mu.shape)
    gS = None if rows.S is None else b.empty(rows.mu.shape)

    def one(where: slice) -> tuple[Array, ...]:
        part = rows.part(where)
        n = part.mu.shape[0]
        g0 = xp.broadcast_to(g.psi0, (n,)) if part.W is None else part.W @ g.psi0
        c = psi.contract(theta, part.mu, _variances(part), Z, g0, part.Y @ back, g.psi2, part.W)
        gmu[where, :] = c.mu
        if gS is not None:
            gS[where, :] = c.S
        return c.theta, c.Z

    gtheta, gZ = added(b, one, _parts(b, rows, Z.shape[0]))
    return RowGradients(gtheta, gZ, gmu, gS)


def _variances(part: Rows) -> Array:
    return part.mu if part.S is None else part.S


def added(
    b: Backend, one: Callable[[slice], tuple[Array, ...]], parts: list[slice]
) -> tuple[Array, ...]:
    """Sums over the parts of what ``one`` returns, in their order, whoever computed them."""

    def calm(where: slice) -> tuple[Array, ...]:
        # A single chunk must have the bits that it has beside others.
        with b.calm(1):
            return one(where)

    results = b.map_parts(one if len(parts) > 1 else calm, parts)
    return functools.reduce(lambda a, c: tuple(map(operator.add, a, c)), results)


__all__ = [
    "CHUNK_BYTES",
    "PointPsi",
    "RowGradients",
    "Rows",
    "Sums",
    "added",
    "backward",
    "chunks",
    "forward",
]
