"""The cross term of two Gaussian kernels: E[k_i(x, z_m) k_j(x, z_m′)] summed over rows.

With a, a′ the inverse squared lengthscales (0 in a dimension that a kernel does not see), s = a +
a′, w = a z_m + a′ z_m′ and e = 1 + sS, a product of two Gaussians in x has the expectation

ln C_nmm′ = ln c c′ + Σ [ −½ ln e + (−½ s μ² + w μ + ½ S w²)/e − ½ (a z_m² + a′ z_m′²) ],

linear in (μ/e, S/2e, 1) of the row and (w, w², …) of the pair, as in :mod:`.blocked`; nothing is
divided by s, which may be 0. For a = a′ it is the Ψ2 of one kernel. See derivations/psi.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.psi.pairs import row_blocks
from gplvm_xp.kernels.psi.terms import columns, placed


@dataclass(frozen=True)
class CrossedGaussians:
    """Two Gaussian terms by the dimensions that they see; values are (c, ℓ) of each."""

    first: tuple[int, ...]
    second: tuple[int, ...]

    def forward(self, t: Array, u: Array, mu: Array, S: Array, Z: Array, W: Array) -> Array:
        """C_k (r, M, M) = Σ_n W_nk E[k_i(x_n, z_m) k_j(x_n, z_m′)]; rows m, columns m′."""
        b = backend.of(mu)
        p = self._parts(t, u, mu, S, Z)
        total = b.zeros((W.shape[1], p.right.shape[0]))
        for where in row_blocks(b, mu.shape[0], p.right.shape[0]):
            E = p.expectations(where)
            total = total + b.xp.matrix_transpose(W[where, :]) @ E
        return b.xp.reshape(total, (W.shape[1], Z.shape[0], Z.shape[0]))

    def contract(
        self, t: Array, u: Array, mu: Array, S: Array, Z: Array, G: Array, W: Array
    ) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Σ_k W_nk ⟨G_k, C_n⟩ for each row, and gradients of their sum.

        Returns
        -------
        value : array (n,)
        gt, gu : arrays
            In (c, ℓ) of each kernel.
        gmu, gS : arrays (n, q)
        gZ : array (M, q)
        """
        b = backend.of(mu)
        xp = b.xp
        M, q = Z.shape
        p = self._parts(t, u, mu, S, Z)
        g = xp.reshape(G, (G.shape[0], M * M))
        # Per pair: sums over the rows of the weighted expectations times (1, μ/e, S/2e).
        pairs = b.zeros((M * M, 1 + 2 * p.width))
        rows = []
        right = xp.concat([xp.ones_like(p.w[:, :1]), p.w, p.w * p.w], axis=1)
        left = xp.concat([xp.ones_like(p.mu[:, :1]), p.mu / p.e, 0.5 * p.S / p.e], axis=1)
        for where in row_blocks(b, mu.shape[0], M * M):
            E = p.expectations(where)
            E *= W[where, :] @ g
            row, column = b.thin_products(E, left[where, :], right)
            rows.append(row)
            pairs = pairs + column
        row = xp.concat(rows)
        d = p.width
        p0, p1, p2 = row[:, :1], row[:, 1 : 1 + d], row[:, 1 + d :]
        c0, c1, c2 = pairs[:, :1], pairs[:, 1 : 1 + d], pairs[:, 1 + d :]
        e, m, v, s = p.e, p.mu, p.S, p.a + p.a2
        ge = ((0.5 * s * m * (p0 * m) - p1 * m - 0.5 * p2 * v) / e - 0.5 * p0) / e
        gmu = (p1 - p0 * s * m) / e
        gS = s * ge + 0.5 * p2 / e
        gs = xp.sum(v * ge - 0.5 * p0 * m * m / e, axis=0)
        gw = xp.reshape(c1 + 2.0 * p.w * c2, (M, M, d))
        total = xp.reshape(c0, (M, M, 1))
        gw_first, gw_second = xp.sum(gw, axis=1), xp.sum(gw, axis=0)
        n_first, n_second = xp.sum(total, axis=1), xp.sum(total, axis=0)
        gZ = p.a * (gw_first - p.Z * n_first) + p.a2 * (gw_second - p.Z * n_second)
        ga = gs + xp.sum(p.Z * (gw_first - 0.5 * p.Z * n_first), axis=0)
        ga2 = gs + xp.sum(p.Z * (gw_second - 0.5 * p.Z * n_second), axis=0)
        value, whole = p0[:, 0], xp.sum(p0)
        gt = p.pull(t, whole, ga, self.first)
        gu = p.pull(u, whole, ga2, self.second)
        gmu, gS, gZ = (placed(x, p.dims, q) for x in (gmu, gS, gZ))
        return value, gt, gu, gmu, gS, gZ

    def _parts(self, t: Array, u: Array, mu: Array, S: Array, Z: Array) -> _Parts:
        dims = tuple(sorted({*self.first, *self.second}))
        return _Parts(self, dims, t, u, *(columns(x, dims) for x in (mu, S, Z)))


class _Parts:
    """Features of rows and pairs over the dimensions that either kernel sees."""

    def __init__(
        self,
        crossed: CrossedGaussians,
        dims: tuple[int, ...],
        t: Array,
        u: Array,
        mu: Array,
        S: Array,
        Z: Array,
    ) -> None:
        xp = backend.of(mu).xp
        self.dims, self.width = dims, len(dims)
        centre = xp.mean(Z, axis=0, keepdims=True)
        self.mu, self.S, self.Z = mu - centre, S, Z - centre
        self.a = self._inverse(t, crossed.first)
        self.a2 = self._inverse(u, crossed.second)
        M = Z.shape[0]
        s = self.a + self.a2
        self.e = 1.0 + s * S
        first, second = (self.a * self.Z)[:, None, :], (self.a2 * self.Z)[None, :, :]
        self.w = xp.reshape(first + second, (M * M, self.width))
        square = self.Z * self.Z
        gap = (square @ self.a[0, :])[:, None] + (square @ self.a2[0, :])[None, :]
        constant = xp.log(t[0]) + xp.log(u[0])
        constant = constant - 0.5 * xp.sum(xp.log(self.e) + s * self.mu * self.mu / self.e, axis=1)
        one = xp.ones_like(self.mu[:, :1])
        self.left = xp.concat([self.mu / self.e, 0.5 * S / self.e, constant[:, None], one], axis=1)
        self.right = xp.concat(
            [
                self.w,
                self.w * self.w,
                xp.ones_like(self.w[:, :1]),
                xp.reshape(-0.5 * gap, (M * M, 1)),
            ],
            axis=1,
        )

    def expectations(self, where: slice) -> Array:
        """C_nmm′ for a block of rows, (rows, M²)."""
        b = backend.of(self.left)
        return b.exp(self.left[where, :] @ b.xp.matrix_transpose(self.right))

    def pull(self, own: Array, whole: Array, ga: Array, seen: tuple[int, ...]) -> Array:
        """Gradient in (c, ℓ) from Σ of the values and the gradient in a."""
        b = backend.of(own)
        ell = own[1:]
        at = tuple(self.dims.index(d) for d in seen)
        gell = -2.0 * columns(ga[None, :], at)[0, :] / (ell * ell * ell)
        return b.xp.concat([b.xp.reshape(whole / own[0], (1,)), gell])

    def _inverse(self, own: Array, seen: tuple[int, ...]) -> Array:
        """ℓ⁻² of one kernel over ``dims``, (1, d)."""
        at = tuple(self.dims.index(d) for d in seen)
        return placed(1.0 / (own[1:] * own[1:])[None, :], at, self.width)


__all__ = ["CrossedGaussians"]
