"""What a kernel is: structure and starting values; values in use arrive as ``theta``.

A kernel is a frozen dataclass. ``theta`` is a 1-d array of its parameters in natural space, on X's
device, in the order of :meth:`Kernel.blocks`. Every forward function that takes part in a gradient
has a pullback, right for any cotangent, symmetric or not. A new kernel implements the methods
marked *contract*; the public ones below them choose between those and compiled device code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.base import Tile
from gplvm_xp.backend.cuda.pairs import CudaPair
from gplvm_xp.params import Block

if TYPE_CHECKING:
    from gplvm_xp.kernels.curvature.base import Curvature
    from gplvm_xp.kernels.psi.base import Psi

Gradients = tuple[Array, Array, Array | None]
Pullback = Callable[[Array], Gradients]
DiagPullback = Callable[[Array], tuple[Array, Array]]
BlockPull = Callable[[Tile, Array], Gradients]
Finish = Callable[[Array, Array], tuple[Array, Array]]


class Kernel(ABC):
    """A covariance function k(x, x′) with hand-derived derivatives.

    Shapes throughout: X is (n, q), Z is (m, q) or None for "the same points as X", theta is (p,),
    K and its cotangent G are (n, m). ``T[i, j, a]`` is the derivative in the *first* argument,
    ∂k(x, z_j)/∂x_a at x = x_i, also where Z is None and j = i. Where :meth:`takes_blocks` is true,
    ``_gram``, its pullback and its directional derivative also take X (..., n, q) and Z (..., m, q)
    with one theta, and give (..., n, m); gtheta is then summed over all of it.
    """

    # -- contract: a new kernel implements these -------------------------------------------------

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The parameters in the order of theta, with starting values in natural space."""

    @abstractmethod
    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        """The same structure, starting from the values of ``theta`` (host numbers, natural)."""

    @abstractmethod
    def check(self, q: int) -> None:
        """Raise ``ValueError`` if the kernel can't take q input dimensions."""

    @abstractmethod
    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        """Blocks that trade against the scale of the inputs: (place in blocks(), input dims)."""

    @abstractmethod
    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array: ...

    @abstractmethod
    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]: ...

    @abstractmethod
    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array: ...

    @abstractmethod
    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array: ...

    @abstractmethod
    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array: ...

    @abstractmethod
    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        """k(x_i, x_i), (n,), and the map g (n,) → (gtheta (p,), gX (n, q)). O(n q)."""

    def takes_blocks(self) -> bool:
        """Whether the three methods above take leading axes; else blocks go one by one."""
        return False

    def cuda(self, q: int) -> CudaPair | None:
        """The tree's CUDA type for q inputs, or None: then a GPU runs the array-API form."""
        return None

    def _block_gram(self, theta: Array, X: Array) -> Callable[[Tile], Array]:
        """K(X, X) block by block; overridden where work on X can be done once for all blocks."""

        def block(tile: Tile) -> Array:
            i0, i1, j0, j1 = tile
            return self._gram(theta, X[i0:i1, :], None if i0 == j0 else X[j0:j1, :])

        return block

    def _block_pull(self, theta: Array, X: Array) -> tuple[BlockPull, Finish]:
        """The pullback of K(X, X) block by block, and what the sums over blocks mean.

        The first takes a tile and its part of G, and returns a vector to be summed over blocks, and
        what the block adds to the points of its rows (rows, r) and of its columns (columns, r),
        None on the diagonal, where the rows hold both. The second makes gtheta and gX of the sums,
        a vector and (n, r). Overridden where a part of the work is linear in these sums.
        """

        def block(tile: Tile, G: Array) -> Gradients:
            i0, i1, j0, j1 = tile
            Z = None if i0 == j0 else X[j0:j1, :]
            return self._gram_pullback(theta, X[i0:i1, :], Z)[1](G)

        return block, lambda gtheta, gX: (gtheta, gX)

    # -- what follows from it --------------------------------------------------------------------

    @property
    def size(self) -> int:
        """p, the length of theta."""
        return sum(block.size for block in self.blocks())

    def theta(self) -> np.ndarray:
        """The starting values in natural space, (p,), on the host."""
        return np.concatenate([block.value.ravel() for block in self.blocks()])

    def gram(self, theta: Array, X: Array, Z: Array | None = None) -> Array:
        """K (n, m) = k(x_i, z_j). O(n m q) work, O(n m) memory."""
        b = self._enter(theta, X, Z)
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        return self._gram(theta, X, Z) if fused is None else fused.gram(theta, X, Z)

    def gram_pullback(
        self, theta: Array, X: Array, Z: Array | None = None
    ) -> tuple[Array, Pullback]:
        """K and its pullback.

        Returns
        -------
        K : array (n, m)
        pullback : callable
            Takes any G (n, m), symmetric or not, and returns the gradients of ⟨G, K⟩: gtheta (p,),
            gX (n, q), gZ (m, q). Where Z is None, gX holds both occurrences of X and gZ is None.
            O(n m q) work; nothing of shape (n, m, q) is ever made.
        """
        b = self._enter(theta, X, Z)
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is None:
            return self._gram_pullback(theta, X, Z)
        return fused.gram(theta, X, Z), lambda G: fused.pullback(theta, X, Z, G)

    def gram_jvp(
        self,
        theta: Array,
        X: Array,
        Z: Array | None = None,
        *,
        dtheta: Array | None = None,
        dX: Array | None = None,
        dZ: Array | None = None,
    ) -> Array:
        """The directional derivative dK (n, m) of K along (dtheta, dX, dZ); None is no motion.

        Where Z is None, dX moves both arguments and dZ must be None. O(n m q), no (n, m, q).
        """
        b = self._enter(theta, X, Z)
        if Z is None and dZ is not None:
            raise ValueError("dZ was given without Z; where Z is None, dX moves both arguments")
        xp = b.xp
        dtheta = xp.zeros_like(theta) if dtheta is None else dtheta
        dX = xp.zeros_like(X) if dX is None else dX
        dZ = xp.zeros_like(Z) if dZ is None and Z is not None else dZ
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is None:
            return self._gram_jvp(theta, X, Z, dtheta, dX, dZ)
        return fused.jvp(theta, X, Z, dtheta, dX, dZ)

    def diag(self, theta: Array, X: Array) -> Array:
        """k(x_i, x_i), (n,)."""
        self._enter(theta, X, None)
        return self.diag_pullback(theta, X)[0]

    def input_jacobian(self, theta: Array, X: Array, Z: Array | None = None) -> Array:
        """T (n, m, q): ∂k(x, z_j)/∂x_a at x = x_i, first argument only.

        For inspection and tests: O(n m q) memory. Gradients use :meth:`gram_pullback`, which never
        makes this tensor.
        """
        b = self._enter(theta, X, Z)
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is None:
            return self._input_jacobian(theta, X, Z)
        return fused.input_jacobian(theta, X, Z)

    def theta_jacobian(self, theta: Array, X: Array, Z: Array | None = None) -> Array:
        """∂K/∂theta (p, n, m), natural space. For inspection and tests: O(p n m) memory."""
        b = self._enter(theta, X, Z)
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is None:
            return self._theta_jacobian(theta, X, Z)
        return fused.theta_jacobian(theta, X, Z)

    def psi(self) -> Psi:
        """Expectations of this kernel under Gaussian latents: analytic or by quadrature.

        A kernel of your own with closed forms overrides this; the default is a quadrature.
        """
        from gplvm_xp.kernels.psi import psi_of

        return psi_of(self)

    def curvature(self) -> Curvature:
        """Second derivatives of this kernel, for Hessian-vector products.

        A kernel of your own overrides this; a radial one gives :meth:`Radial.profile_bend`.

        Raises
        ------
        NotImplementedError
            If the kernel, or a part of it, has none.
        """
        from gplvm_xp.kernels.curvature import curvature_of

        return curvature_of(self)

    # -- the hot path: a symmetric matrix by its lower triangle, block by block --------------------

    def fill_lower(self, theta: Array, X: Array, out: Array) -> Array:
        """Write K(X, X) into ``out`` (n, n); only the lower triangle is promised.

        Blocks of O(n) rows times columns are the only temporaries. Returns ``out``.
        """
        b = self._enter(theta, X, None)
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is not None:
            return fused.gram(theta, X, None, out=out)

        gram = self._block_gram(theta, X)

        def block(tile: Tile) -> None:
            i0, i1, j0, j1 = tile
            out[i0:i1, j0:j1] = gram(tile)

        for _ in b.map_tiles(block, b.lower_tiles(X.shape[0])):
            pass
        return out

    def symmetric_pullback(
        self, theta: Array, X: Array, G: Array, tiles: Sequence[Tile] | None = None
    ) -> tuple[Array, Array]:
        """Gradients of ⟨G, K(X, X)⟩ for a symmetric G given by its lower triangle.

        Each pair of points is visited once: a block left of the diagonal stands for its mirror
        image too, so its gradients count double. ``G`` may be overwritten.

        Parameters
        ----------
        tiles : sequence of (i0, i1, j0, j1), optional
            How to cut the lower triangle; the default is the backend's choice.

        Returns
        -------
        gtheta : array (p,)
        gX : array (n, q)
        """
        b = self._enter(theta, X, None)
        xp = b.xp
        fused = b.fused(self.cuda(X.shape[1]), X.shape[1])
        if fused is not None:
            gtheta, gX, _ = fused.pullback(theta, X, None, b.complete(G), symmetric=True)
            return gtheta, gX
        tiles = b.lower_tiles(X.shape[0]) if tiles is None else tiles
        side = max(i1 - i0 for i0, i1, _, _ in tiles)
        below = xp.tril(xp.ones((side, side), dtype=xp.bool, device=b.device))
        half = 1.0 - 0.5 * b.eye(side)
        pull, finish = self._block_pull(theta, X)

        def block(tile: Tile) -> tuple[Tile, Gradients]:
            i0, i1, j0, j1 = tile
            g = G[i0:i1, j0:j1]
            if i0 == j0:
                # With its diagonal halved, the lower triangle too is one of two mirror images.
                k = i1 - i0
                g = xp.where(below[:k, :k], half[:k, :k] * g, 0.0)
            return tile, pull(tile, g)

        total: Array = None
        points: Array = None
        for (i0, i1, j0, j1), (once, rows, columns) in b.map_tiles(block, tiles):
            if points is None:
                total, points = xp.zeros_like(once), b.zeros((X.shape[0], rows.shape[1]))
            total += once
            points[i0:i1, :] += rows
            if columns is not None:
                points[j0:j1, :] += columns
        return finish(2.0 * total, 2.0 * points)

    # -- many small matrices at once ---------------------------------------------------------------

    def local_gram(self, theta: Array, X: Array) -> Array:
        """K(X_b, X_b) of every block, (B, R, R) for X (B, R, q); no block sees another."""
        b = self._enter_blocks(theta, X)
        if self.takes_blocks():
            return self._gram(theta, X, None)
        return b.xp.stack([self._gram(theta, X[i, ...], None) for i in range(X.shape[0])])

    def local_gram_pullback(
        self, theta: Array, X: Array
    ) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
        """The blocks of :meth:`local_gram` and their pullback.

        Returns
        -------
        K : array (B, R, R)
        pullback : callable
            Takes any G (B, R, R) and returns the gradients of Σ_b ⟨G_b, K_b⟩: gtheta (p,), summed
            over the blocks, and gX (B, R, q). O(B R² q) work.
        """
        b = self._enter_blocks(theta, X)
        if self.takes_blocks():
            K, pull = self._gram_pullback(theta, X, None)
            return K, lambda G: pull(G)[:2]
        done = [self._gram_pullback(theta, X[i, ...], None) for i in range(X.shape[0])]

        def pullback(G: Array) -> tuple[Array, Array]:
            parts = [pull(G[i, ...]) for i, (_, pull) in enumerate(done)]
            return b.xp.sum(b.xp.stack([p[0] for p in parts]), axis=0), b.xp.stack(
                [p[1] for p in parts]
            )

        return b.xp.stack([K for K, _ in done]), pullback

    # -- algebra ---------------------------------------------------------------------------------

    def __add__(self, other: Kernel) -> Kernel:
        from gplvm_xp.kernels.compose import Sum

        return Sum.of(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: Kernel | float) -> Kernel:
        from gplvm_xp.kernels.compose import Product, Scale

        if isinstance(other, Kernel):
            return Product.of(self, other)
        return Scale(self, float(other)) if isinstance(other, int | float) else NotImplemented

    def __rmul__(self, other: float) -> Kernel:
        return self * other

    def _enter(self, theta: Array, X: Array, Z: Array | None) -> Any:
        b = backend.of(X, theta) if Z is None else backend.of(X, theta, Z)
        if X.ndim != 2:
            raise ValueError(
                f"X has shape {X.shape}; expected two axes, (points, latent dimensions)"
            )
        if Z is not None and (Z.ndim != 2 or Z.shape[1] != X.shape[1]):
            raise ValueError(f"Z has shape {Z.shape}; expected (m, {X.shape[1]}) to go with X")
        self._check_theta(theta, X.shape[1])
        return b

    def _enter_blocks(self, theta: Array, X: Array) -> Any:
        b = backend.of(X, theta)
        if X.ndim != 3 or not X.shape[0]:
            raise ValueError(
                f"X has shape {X.shape}; expected three axes, (blocks, points, latent dimensions), "
                "and at least one block"
            )
        self._check_theta(theta, X.shape[2])
        return b

    def _check_theta(self, theta: Array, q: int) -> None:
        self.check(q)
        if theta.shape != (self.size,):
            raise ValueError(
                f"theta has shape {theta.shape}; {type(self).__name__} takes ({self.size},): "
                + ", ".join(f"{block.name}[{block.size}]" for block in self.blocks())
            )


__all__ = ["BlockPull", "DiagPullback", "Finish", "Gradients", "Kernel", "Pullback"]
