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
    ∂k(x, z_j)/∂x_a at x = x_i, also where Z is None and j = i.
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
        self.check(X.shape[1])
        if theta.shape != (self.size,):
            raise ValueError(
                f"theta has shape {theta.shape}; {type(self).__name__} takes ({self.size},): "
                + ", ".join(f"{block.name}[{block.size}]" for block in self.blocks())
            )
        return b


def flat_numbers(values: Any) -> tuple[float, ...]:
    """Host numbers as a tuple of Python floats."""
    return tuple(float(v) for v in np.asarray(values, dtype=np.float64).ravel())


def per_dimension(value: float | Sequence[float] | np.ndarray) -> float | tuple[float, ...]:
    """One number stays one number (isotropic); a sequence becomes a tuple (one per dimension)."""
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else flat_numbers(array)


def leaf_blocks(kernel: Any, *fields: str, many: str = "", real: str = "") -> tuple[Block, ...]:
    """The blocks of a leaf: ``kernel.field`` as ``name.field``, held where ``fixed`` has it.

    All are positive but the field named ``real``, which may be any finite number.

    Raises
    ------
    ValueError
        If ``fixed`` has another name, or a field other than ``many`` is not one number.
    """
    name, fixed = type(kernel).__name__, kernel.fixed
    if isinstance(fixed, str):
        raise ValueError(f"fixed={fixed!r} was given; expected a tuple of names: ({fixed!r},)")
    unknown = sorted(set(fixed) - set(fields))
    if unknown:
        raise ValueError(f"fixed names {unknown}; {name} has {list(fields)}")
    blocks = tuple(
        Block(
            f"{name.lower()}.{f}",
            getattr(kernel, f),
            "identity" if f == real else "log",
            fixed=f in fixed,
        )
        for f in fields
    )
    for field, block in zip(fields, blocks, strict=True):
        if field != many and block.value.ndim:
            raise ValueError(
                f"{name} got {field}={getattr(kernel, field)!r}; expected one number for all "
                "dimensions"
            )
    return blocks


def require_kernel(node: Kernel, child: object) -> None:
    """Raise ``TypeError`` unless the child of a node is a kernel."""
    if not isinstance(child, Kernel):
        raise TypeError(
            f"{type(node).__name__} takes a kernel, got {child!r}; give an instance, such as RBF()"
        )


def check_dimensions(kernel: str, name: str, value: float | tuple[float, ...], q: int) -> None:
    """Raise ``ValueError`` unless ``value`` is one number or has q of them."""
    if isinstance(value, tuple) and len(value) != q:
        raise ValueError(
            f"{kernel} has {len(value)} values of {name} and its inputs have {q} dimensions; give "
            f"one number or {q} of them, or wrap it in ActiveDims to use fewer dimensions"
        )


__all__ = [
    "BlockPull",
    "DiagPullback",
    "Finish",
    "Gradients",
    "Kernel",
    "Pullback",
    "check_dimensions",
    "flat_numbers",
    "leaf_blocks",
    "per_dimension",
    "require_kernel",
]
