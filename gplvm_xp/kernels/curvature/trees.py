"""Curvature of trees: each part is pulled back with a cotangent that moves.

A factor of a product sees G ∘ O, O the product of the others, which changes by G ∘ Ȯ + Ġ ∘ O.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.base import Gradients
from gplvm_xp.kernels.compose import ActiveDims, Product, Scale, Sum, _add_gradients
from gplvm_xp.kernels.curvature.base import Curvature, Tangent


@dataclass(frozen=True)
class SumCurvature(Curvature):
    """Of a sum: the same G for every part."""

    kernel: Sum
    parts: tuple[Curvature, ...]

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        done = _tangents(self.kernel, self.parts, theta, X, Z, dtheta, dX, dZ)

        def values() -> tuple[Array, Array]:
            pairs = [t.values() for t in done]
            K, dK = (functools.reduce(operator.add, a) for a in zip(*pairs, strict=True))
            return K, dK

        return Tangent(values, lambda G, dG: _add_gradients([t.pullback(G, dG) for t in done]))


@dataclass(frozen=True)
class ProductCurvature(Curvature):
    """Of a product."""

    kernel: Product
    parts: tuple[Curvature, ...]

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        done = _tangents(self.kernel, self.parts, theta, X, Z, dtheta, dX, dZ)
        pairs = [t.values() for t in done]

        def pullback(G: Array, dG: Array | None) -> Gradients:
            out = []
            for c, t in enumerate(done):
                others, dothers = _product([pair for k, pair in enumerate(pairs) if k != c])
                moved = G * dothers if dG is None else G * dothers + dG * others
                out.append(t.pullback(G * others, moved))
            return _add_gradients(out)

        return Tangent(lambda: _product(pairs), pullback)


@dataclass(frozen=True)
class ScaleCurvature(Curvature):
    """Of a scaled kernel: a product with a constant."""

    kernel: Scale
    inner: Curvature

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        xp = backend.of(X).xp
        s, ds = theta[0], dtheta[0]
        inner = self.inner.tangent(theta[1:], X, Z, dtheta[1:], dX, dZ)
        K, dK = inner.values()

        def pullback(G: Array, dG: Array | None) -> Gradients:
            own = xp.sum(G * dK)
            moved = ds * G
            if dG is not None:
                own, moved = own + xp.sum(dG * K), moved + s * dG
            gtheta, gX, gZ = inner.pullback(s * G, moved)
            return xp.concat([xp.reshape(own, (1,)), gtheta]), gX, gZ

        return Tangent(lambda: (s * K, ds * K + s * dK), pullback)


@dataclass(frozen=True)
class ActiveDimsCurvature(Curvature):
    """Of a kernel that sees some of the dimensions."""

    kernel: ActiveDims
    inner: Curvature

    def tangent(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Tangent:
        take, put, q = self.kernel._take, self.kernel._put, X.shape[-1]
        inner = self.inner.tangent(theta, take(X), take(Z), dtheta, take(dX), take(dZ))

        def pullback(G: Array, dG: Array | None) -> Gradients:
            gtheta, gX, gZ = inner.pullback(G, dG)
            return gtheta, put(gX, q), None if gZ is None else put(gZ, q)

        return Tangent(inner.values, pullback)


def _tangents(
    kernel: Sum | Product, parts: tuple[Curvature, ...], theta: Array, X: Array, Z: Array | None,
    dtheta: Array, dX: Array, dZ: Array | None,
) -> list[Tangent]:  # fmt: skip
    thetas = [t for _, t in kernel._children(theta)]
    dthetas = [t for _, t in kernel._children(dtheta)]
    return [
        part.tangent(t, X, Z, dt, dX, dZ)
        for part, t, dt in zip(parts, thetas, dthetas, strict=True)
    ]


def _product(pairs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """The product of all factors and its change, without a division: zeros are harmless."""
    K, dK = pairs[0]
    for factor, dfactor in pairs[1:]:
        K, dK = K * factor, dK * factor + K * dfactor
    return K, dK


__all__ = ["ActiveDimsCurvature", "ProductCurvature", "ScaleCurvature", "SumCurvature"]
