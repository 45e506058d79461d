"""Radial kernels k = σ² κ(u), u = Σ_a (x_a − z_a)²/ℓ_a²: a profile each, everything else once.

Gradients (docs/derivations/radial.md), with W = G ∘ σ² κ′(u), A = X/ℓ and B = Z/ℓ:

* gA = 2 (A ∘ (W 1) − W B), gB = 2 (B ∘ (Wᵀ 1) − Wᵀ A), gX = gA/ℓ, gZ = gB/ℓ;
* gℓ_a = −(Σ_i A_ia gA_ia + Σ_j B_ja gB_ja)/ℓ_a, because u depends on X and ℓ through A and B only;
* gσ² = Σ G ∘ κ.

κ′ is finite at u = 0, so coincident points need no special case.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.backend.base import Tile
from gplvm_xp.backend.cuda.pairs import CudaPair, radial_profile
from gplvm_xp.kernels._fields import (
    check_dimensions,
    flat_numbers,
    leaf_blocks,
    over_points,
    per_dimension,
)
from gplvm_xp.kernels.base import BlockPull, DiagPullback, Finish, Gradients, Kernel, Pullback
from gplvm_xp.params import Block


class Bend(NamedTuple):
    """A profile κ(u; e) and its derivatives up to the second, each in the shape of u.

    Attributes
    ----------
    k, slope, bend : array
        κ, κ′ and κ″, derivatives in u. Where κ″ grows without bound towards u = 0, it is to be 0 at
        u = 0: it only ever multiplies a change of u, which vanishes there faster.
    extra, extra_slope : tuple of arrays
        ∂κ/∂e and ∂κ′/∂e for each extra parameter.
    extra_bend : tuple of tuples of arrays
        ∂²κ/∂e∂e′.
    """

    k: Array
    slope: Array
    bend: Array
    extra: tuple[Array, ...] = ()
    extra_slope: tuple[Array, ...] = ()
    extra_bend: tuple[tuple[Array, ...], ...] = ()


@dataclass(frozen=True)
class Radial(Kernel):
    """A kernel of the scaled distance; subclasses give the profile.

    Parameters
    ----------
    variance : float
        σ², in squared units of Y.
    lengthscale : float or sequence of q floats
        ℓ, in units of X: one for all dimensions, or one per dimension (ARD).
    fixed : tuple of str
        Parameters that a fit leaves alone, for example ``("lengthscale",)``.
    """

    variance: float = 1.0
    lengthscale: float | tuple[float, ...] = 1.0
    fixed: tuple[str, ...] = ()

    # What u is multiplied by before ``profile`` sees it: a pass over the block saved.
    factor: ClassVar[float] = 1.0
    extras: ClassVar[tuple[str, ...]] = ()
    snippet: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", per_dimension(self.lengthscale))
        self.blocks()

    # -- what a subclass gives -------------------------------------------------------------------

    @abstractmethod
    def profile(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Array:
        """κ for unit variance from ``factor`` u, which may be overwritten; e are the extras."""

    @abstractmethod
    def profile_slope(
        self, b: Backend, u: Array, e: tuple[Array, ...]
    ) -> tuple[Array, Array, float]:
        """κ, and w and c with κ′ = dκ/du = c w, from the same input; w may be κ itself."""

    def extra_slopes(self, b: Backend, u: Array, e: tuple[Array, ...]) -> tuple[Array, ...]:
        """∂κ/∂e for each extra parameter."""
        return ()

    def profile_bend(self, b: Backend, u: Array, e: tuple[Array, ...]) -> Bend:
        """The profile and its derivatives up to the second, from the same input.

        Only Hessian-vector products need it: a profile of your own may leave it out.
        """
        raise NotImplementedError(f"{type(self).__name__} has no profile_bend()")

    # -- the contract ----------------------------------------------------------------------------

    def blocks(self) -> tuple[Block, ...]:
        return leaf_blocks(self, "variance", *self.extras, "lengthscale", many="lengthscale")

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        values = flat_numbers(theta)
        split = 1 + len(self.extras)
        ell: float | tuple[float, ...] = values[split:]
        if not isinstance(self.lengthscale, tuple):
            ell = values[split]
        extras: dict[str, Any] = dict(zip(self.extras, values[1:split], strict=True))
        return replace(self, variance=values[0], lengthscale=ell, **extras)

    def takes_blocks(self) -> bool:
        return True

    def check(self, q: int) -> None:
        check_dimensions(type(self).__name__, "lengthscale", self.lengthscale, q)

    def scale_blocks(self, q: int) -> tuple[tuple[int, frozenset[int]], ...]:
        return ((1 + len(self.extras), frozenset(range(q))),)

    def cuda(self, q: int) -> CudaPair | None:
        if not self.snippet:
            return None
        scales = len(self.lengthscale) if isinstance(self.lengthscale, tuple) else 1
        name, extras = type(self).__name__.lower(), len(self.extras)
        profile = radial_profile(name, self.snippet, extras)
        return CudaPair(f"Radial<profile_{name}, {scales}>", (profile,), 1 + extras + scales)

    def _split(self, theta: Array) -> tuple[Array, tuple[Array, ...], Array]:
        extras = tuple(theta[1 + i] for i in range(len(self.extras)))
        return theta[0], extras, theta[1 + len(self.extras) :]

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        b = backend.of(X)
        variance, e, ell = self._split(theta)
        A, B = scaled(X, Z, ell)
        K = self.profile(b, b.squared_distances(A, B, self.factor), e)
        K *= variance
        return K

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        A, B = scaled(X, Z, self._split(theta)[2])
        k, w, c, slopes = self._profiles(theta, A, B)

        def pullback(G: Array) -> Gradients:
            return self._contract(theta, G * w, c, self._sums(G, k, w, slopes), A, B)

        return theta[0] * k, pullback

    def _block_gram(self, theta: Array, X: Array) -> Callable[[Tile], Array]:
        b = backend.of(X)
        variance, e, ell = self._split(theta)
        A, _ = scaled(X, None, ell)

        def block(tile: Tile) -> Array:
            i0, i1, j0, j1 = tile
            B = None if i0 == j0 else A[j0:j1, :]
            K = self.profile(b, b.squared_distances(A[i0:i1, :], B, self.factor), e)
            K *= variance
            return K

        return block

    def _block_pull(self, theta: Array, X: Array) -> tuple[BlockPull, Finish]:
        b = backend.of(X)
        xp = b.xp
        variance, _, ell = self._split(theta)
        A, _ = scaled(X, None, ell)
        with_ones = xp.concat([A, xp.ones_like(A[:, :1])], axis=1)

        def block(tile: Tile, G: Array) -> Gradients:
            i0, i1, j0, j1 = tile
            k, w, c, slopes = self._profiles(theta, A[i0:i1, :], None if i0 == j0 else A[j0:j1, :])
            value, *extra = self._sums(G, k, w, slopes)
            # Nothing needs w again: its memory becomes W, and a block lives in one temporary.
            w *= G
            right, left = b.thin_products(w, with_ones[i0:i1, :], with_ones[j0:j1, :])
            value = xp.sum(right[:, -1]) if value is None else value
            once = xp.stack([value, *extra])
            return (once, c * (right + left), None) if i0 == j0 else (once, c * right, c * left)

        def finish(once: Array, points: Array) -> tuple[Array, Array]:
            # Over all points, the sums of W B and W 1 give the Laplacian form at once.
            gA = (2.0 * variance) * (A * points[:, -1:] - points[:, :-1])
            per_scale = -xp.sum(A * gA, axis=0)
            if ell.shape[0] == 1:
                per_scale = xp.sum(per_scale, keepdims=True)
            gtheta = xp.concat([once[:1], variance * once[1:], per_scale / ell])
            return gtheta, gA / ell

        return block, finish

    def _sums(
        self, G: Array, k: Array, w: Array, slopes: tuple[Array, ...]
    ) -> tuple[Array | None, ...]:
        """Σ G ∘ κ (None where w is κ: it is then the sum of W), and Σ G ∘ ∂κ/∂e."""
        xp = backend.of(G).xp
        return None if w is k else xp.sum(G * k), *(xp.sum(G * s) for s in slopes)

    def _contract(
        self,
        theta: Array,
        W: Array,
        c: float,
        sums: tuple[Array | None, ...],
        A: Array,
        B: Array | None,
    ) -> Gradients:
        """All gradients from W = G ∘ w and the sums of :meth:`_sums`."""
        xp = backend.of(A).xp
        variance, _, ell = self._split(theta)
        gA, gB, total = pull_distances(W, A, B)
        gA, gB = (c * variance) * gA, None if gB is None else (c * variance) * gB
        per_scale = -over_points(A * gA)
        if gB is not None and B is not None:
            per_scale = per_scale - over_points(B * gB)
        if ell.shape[0] == 1:
            per_scale = xp.sum(per_scale, keepdims=True)
        head = [total if sums[0] is None else sums[0], *(variance * s for s in sums[1:])]
        gtheta = xp.concat([xp.stack(head), per_scale / ell])
        return gtheta, gA / ell, None if gB is None else gB / ell

    def _profiles(
        self, theta: Array, A: Array, B: Array | None
    ) -> tuple[Array, Array, float, tuple[Array, ...]]:
        """κ, w and c with κ′ = c w, and the slopes in the extra parameters."""
        b = backend.of(A)
        _, e, _ = self._split(theta)
        u = b.squared_distances(A, B, self.factor)
        slopes = self.extra_slopes(b, u, e)
        return *self.profile_slope(b, u, e), slopes

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        variance, _, ell = self._split(theta)
        dvariance, de, dell = self._split(dtheta)
        A, B = scaled(X, Z, ell)
        dA = dX / ell - A * (dell / ell)
        dB = None if B is None or dZ is None else dZ / ell - B * (dell / ell)
        du = distances_jvp(A, B, dA, dB)
        k, w, c, slopes = self._profiles(theta, A, B)
        dK = dvariance * k + (c * variance) * (w * du)
        for slope, d in zip(slopes, de, strict=True):
            dK = dK + variance * d * slope
        return dK

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        variance, _, ell = self._split(theta)
        A, B = scaled(X, Z, ell)
        _, w, c, _ = self._profiles(theta, A, B)
        difference = A[:, None, :] - (A if B is None else B)[None, :, :]
        return (2.0 * c * variance * w)[:, :, None] * difference / ell

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        xp = backend.of(X).xp
        variance, _, ell = self._split(theta)
        A, B = scaled(X, Z, ell)
        k, w, c, slopes = self._profiles(theta, A, B)
        parts = [k, *(variance * s for s in slopes)]
        difference = A[:, None, :] - (A if B is None else B)[None, :, :]
        du = -2.0 * difference * difference / ell
        if ell.shape[0] == 1:
            du = xp.sum(du, axis=2, keepdims=True)
        parts += [(c * variance) * w * du[:, :, a] for a in range(ell.shape[0])]
        return xp.stack(parts)

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp

        def pullback(g: Array) -> tuple[Array, Array]:
            gtheta = xp.concat([xp.reshape(xp.sum(g), (1,)), xp.zeros_like(theta[1:])])
            return gtheta, xp.zeros_like(X)

        return theta[0] * xp.ones_like(X[:, 0]), pullback


def scaled(X: Array, Z: Array | None, ell: Array) -> tuple[Array, Array | None]:
    """X/ℓ and Z/ℓ about the mean of Z, or of X where there is no Z, for each leading index.

    Distances by a product of large inputs would cancel. Z is the fixed set where there is one: a
    stray row of X must not cost the other rows their digits.
    """
    xp = backend.of(X).xp
    centre = xp.mean(X if Z is None else Z, axis=-2, keepdims=True)
    return (X - centre) / ell, None if Z is None else (Z - centre) / ell


def pull_distances(W: Array, A: Array, B: Array | None) -> tuple[Array, Array | None, Array]:
    """Gradients in A and B of Σ_ij W_ij |a_i − b_j|², over leading axes too, and Σ W over all.

    Where B is None, the first holds both occurrences of A.
    """
    b = backend.of(A)
    xp = b.xp
    other = A if B is None else B
    # The column of ones makes the sums of W part of the products: two passes over it less.
    with_ones = _with_ones(A)
    others = with_ones if B is None else _with_ones(B)
    right, left = b.thin_products(W, with_ones, others)
    gA = 2.0 * (A * right[..., -1:] - right[..., :-1])
    gB = 2.0 * (other * left[..., -1:] - left[..., :-1])
    total = xp.sum(right[..., -1])
    return (gA + gB, None, total) if B is None else (gA, gB, total)


def _with_ones(A: Array) -> Array:
    """A column of ones beside A (..., n, r)."""
    xp = backend.of(A).xp
    ones = xp.ones_like(A[..., :1])
    if A.ndim == 2:
        return xp.concat([A, ones], axis=1)
    # Points are side by side in memory, where blocks are small and have few columns.
    return xp.matrix_transpose(
        xp.concat([xp.matrix_transpose(A), xp.matrix_transpose(ones)], axis=-2)
    )


def distances_jvp(A: Array, B: Array | None, dA: Array, dB: Array | None) -> Array:
    """d|a_i − b_j|² along (dA, dB), (..., n, m)."""
    xp = backend.of(A).xp
    other, dother = (A, dA) if B is None or dB is None else (B, dB)
    # One product, as for the distances themselves, and one pass over the matrix.
    rows = 2.0 * xp.sum(A * dA, axis=-1, keepdims=True)
    columns = 2.0 * xp.sum(other * dother, axis=-1, keepdims=True)
    left = xp.concat([-2.0 * A, -2.0 * dA, rows, xp.ones_like(rows)], axis=-1)
    right = xp.concat([dother, other, xp.ones_like(columns), columns], axis=-1)
    return left @ xp.matrix_transpose(right)


__all__ = ["Bend", "Radial", "distances_jvp", "pull_distances"]
