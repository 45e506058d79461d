"""What the curvature of a kernel is: how its pullback changes along a direction.

The gradient of ⟨G, K(θ, X, Z)⟩ is what a kernel's pullback gives. A Hessian-vector product (HVP)
needs the directional derivative of that gradient, as θ, X and Z move along (θ̇, Ẋ, Ż) and G along
Ġ. One function carries everything, :meth:`Curvature.tangent`; trees compose it, because a factor
of a product is pulled back with a cotangent that moves too (docs/derivations/second_order.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Tile
from gplvm_xp.kernels.base import Gradients, Kernel


class Tangent(NamedTuple):
    """A kernel at (θ, X, Z) and along one direction.

    Attributes
    ----------
    values : callable
        () → K and dK, (..., n, m) each; a product asks for them, nothing else does.
    pullback : callable
        (G, Ġ) → the derivatives along the direction of gtheta (p,), gX (..., n, q) and gZ
        (..., m, q), None where Z is None. G is any (..., n, m); Ġ is None where G stands still.
    """

    values: Callable[[], tuple[Array, Array]]
    pullback: Callable[[Array, Array | None], Gradients]


class Curvature(ABC):
    """Second derivatives of one kernel: structure only, values arrive as arguments.

    Shapes: theta and dtheta (p,), X and dX (..., n, q), Z and dZ (..., m, q) or both None for "the
    same points as X", G and dG (..., n, m).
    """

    @abstractmethod
    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        """The kernel along a direction; all parts of it are given. O(n m q), no (n, m, q)."""

    def pullback_jvp(
        self,
        theta: Array,
        X: Array,
        Z: Array | None,
        G: Array,
        dtheta: Array | None = None,
        dX: Array | None = None,
        dZ: Array | None = None,
    ) -> Gradients:
        """The derivative of ``gram_pullback(theta, X, Z)[1](G)`` along a direction, G held.

        Parameters
        ----------
        G : array (..., n, m)
            Symmetric or not.
        dtheta, dX, dZ : arrays, optional
            The direction; None is no motion. Where Z is None, dX moves both arguments.

        Returns
        -------
        gtheta : array (p,)
            Summed over leading axes.
        gX : array (..., n, q)
        gZ : array (..., m, q) or None

        Raises
        ------
        ValueError
            If dZ was given without Z.
        """
        if Z is None and dZ is not None:
            raise ValueError("dZ was given without Z; where Z is None, dX moves both arguments")
        xp = backend.of(X).xp
        dtheta = xp.zeros_like(theta) if dtheta is None else dtheta
        dX = xp.zeros_like(X) if dX is None else dX
        dZ = xp.zeros_like(Z) if dZ is None and Z is not None else dZ
        return self.tangent(theta, X, Z, dtheta, dX, dZ).pullback(G, None)

    def mixed(
        self, theta: Array, X: Array, Z: Array, G: Array, a: int
    ) -> tuple[list[Array], list[Array]]:
        """Second derivatives of k(x_i, z_j), one of them in x_ia, times G; for Hessian matrices.

        Parameters
        ----------
        X : array (n, q)
        Z : array (m, q)
        G : array (n, m)
        a : int

        Returns
        -------
        across : list of arrays (n, m)
            G_ij ∂²k/∂x_ia∂z_jc for c = 0, …, a.
        own : list of arrays (n,)
            Σ_j G_ij ∂²k/∂x_ia∂x_ic.

        Notes
        -----
        Every x_i is a block of its own here. O(n m q) work and memory.
        """
        b = backend.of(X)
        xp = b.xp
        (n, q), m = X.shape, Z.shape[0]
        step = b.asarray(np.broadcast_to(np.eye(q)[a], (n, 1, q)).copy())
        others = xp.broadcast_to(Z[None, :, :], (n, m, q))
        _, own, across = self.pullback_jvp(theta, X[:, None, :], others, G[:, None, :], dX=step)
        assert across is not None
        return [across[:, :, c] for c in range(a + 1)], [own[:, 0, c] for c in range(a + 1)]

    def symmetric(
        self,
        theta: Array,
        X: Array,
        G: Array,
        dG: Array,
        dtheta: Array,
        dX: Array,
        tiles: Sequence[Tile] | None = None,
    ) -> tuple[Array, Array]:
        """The derivative of :meth:`Kernel.symmetric_pullback` as theta, X and G move.

        G and dG (n, n) are symmetric and given by their lower triangles. Each pair of points is
        visited once, and blocks of O(n) rows times columns are the only temporaries.

        Returns
        -------
        gtheta : array (p,)
        gX : array (n, q)
        """
        b = backend.of(X)
        xp = b.xp
        tiles = b.lower_tiles(X.shape[0]) if tiles is None else tiles
        side = max(i1 - i0 for i0, i1, _, _ in tiles)
        below = xp.tril(xp.ones((side, side), dtype=xp.bool, device=b.device))
        half = 1.0 - 0.5 * b.eye(side)

        def block(tile: Tile) -> tuple[Tile, Gradients]:
            i0, i1, j0, j1 = tile
            g, dg = G[i0:i1, j0:j1], dG[i0:i1, j0:j1]
            Z, dZ = X[j0:j1, :], dX[j0:j1, :]
            if i0 == j0:
                # With its diagonal halved, the lower triangle too is one of two mirror images.
                k = i1 - i0
                g, dg = (xp.where(below[:k, :k], half[:k, :k] * a, 0.0) for a in (g, dg))
                Z = dZ = None
            tangent = self.tangent(theta, X[i0:i1, :], Z, dtheta, dX[i0:i1, :], dZ)
            return tile, tangent.pullback(g, dg)

        gtheta, gX = xp.zeros_like(theta), xp.zeros_like(X)
        for (i0, i1, j0, j1), (once, rows, columns) in b.map_tiles(block, tiles):
            gtheta += once
            gX[i0:i1, :] += rows
            if columns is not None:
                gX[j0:j1, :] += columns
        return 2.0 * gtheta, 2.0 * gX


def fill_jvp(kernel: Kernel, theta: Array, X: Array, dtheta: Array, dX: Array, out: Array) -> Array:
    """Write dK (n, n) of K(X, X) along (dtheta, dX) into ``out``; its lower triangle is promised.

    Blocks of O(n) rows times columns are the only temporaries. Returns ``out``.
    """
    b = backend.of(X)

    def block(tile: Tile) -> None:
        i0, i1, j0, j1 = tile
        Z, dZ = (None, None) if i0 == j0 else (X[j0:j1, :], dX[j0:j1, :])
        out[i0:i1, j0:j1] = kernel.gram_jvp(
            theta, X[i0:i1, :], Z, dtheta=dtheta, dX=dX[i0:i1, :], dZ=dZ
        )

    for _ in b.map_tiles(block, b.lower_tiles(X.shape[0])):
        pass
    return out


__all__ = ["Curvature", "Tangent", "fill_jvp"]
