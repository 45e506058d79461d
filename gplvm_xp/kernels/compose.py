"""Trees of kernels: sums, products, a scale factor, a choice of input dimensions.

Each node slices theta among its children and passes cotangents down: a sum passes G on, a product
gives each factor G ∘ (the product of the others), block by block.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend.cuda.pairs import CudaPair
from gplvm_xp.kernels._fields import leaf_blocks, merge_blocks, require_kernel
from gplvm_xp.kernels.base import DiagPullback, Gradients, Kernel, Pullback
from gplvm_xp.params import Block

Scales = tuple[tuple[int, frozenset[int]], ...]


@dataclass(frozen=True)
class _Many(Kernel):
    parts: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or not all(isinstance(part, Kernel) for part in self.parts):
            raise ValueError(f"{type(self).__name__} takes two or more kernels, got {self.parts!r}")

    @classmethod
    def of(cls, *kernels: Kernel) -> Self:
        """Join kernels; nested nodes of the same kind are flattened."""
        parts: list[Kernel] = []
        for kernel in kernels:
            parts += kernel.parts if isinstance(kernel, cls) else (kernel,)
        return cls(tuple(parts))

    def blocks(self) -> tuple[Block, ...]:
        return merge_blocks(*(part.blocks() for part in self.parts))

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        children = self._children(np.asarray(theta))
        return replace(self, parts=tuple(k.with_theta(t) for k, t in children))

    def takes_blocks(self) -> bool:
        return all(part.takes_blocks() for part in self.parts)

    def check(self, q: int) -> None:
        for part in self.parts:
            part.check(q)

    def scale_blocks(self, q: int) -> Scales:
        out: list[tuple[int, frozenset[int]]] = []
        offset = 0
        for part in self.parts:
            out += [(offset + place, dims) for place, dims in part.scale_blocks(q)]
            offset += len(part.blocks())
        return tuple(out)

    def cuda(self, q: int) -> CudaPair | None:
        codes = [part.cuda(q) for part in self.parts]
        known = [code for code in codes if code is not None]
        if len(known) < len(codes):
            return None
        name = type(self).__name__
        nested = functools.reduce(lambda a, t: f"{name}<{a}, {t}>", (c.type for c in known))
        definitions = tuple(dict.fromkeys(d for c in known for d in c.definitions))
        return CudaPair(nested, definitions, sum(c.parameters for c in known))

    def _children(self, theta: Array) -> list[tuple[Kernel, Array]]:
        out, start = [], 0
        for part in self.parts:
            out.append((part, theta[start : start + part.size]))
            start += part.size
        return out


@dataclass(frozen=True)
class Sum(_Many):
    """k = Σ k_c. Write ``a + b``; gradients add, with the same G for every part."""

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return functools.reduce(operator.add, (k._gram(t, X, Z) for k, t in self._children(theta)))

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        done = [k._gram_pullback(t, X, Z) for k, t in self._children(theta)]

        def pullback(G: Array) -> Gradients:
            return _add_gradients([pull(G) for _, pull in done])

        return functools.reduce(operator.add, (K for K, _ in done)), pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        pairs = zip(self._children(theta), self._children(dtheta), strict=True)
        return functools.reduce(
            operator.add, (k._gram_jvp(t, X, Z, dt, dX, dZ) for (k, t), (_, dt) in pairs)
        )

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return functools.reduce(
            operator.add, (k._input_jacobian(t, X, Z) for k, t in self._children(theta))
        )

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        parts = [k._theta_jacobian(t, X, Z) for k, t in self._children(theta)]
        return backend.of(X).xp.concat(parts)

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        done = [k.diag_pullback(t, X) for k, t in self._children(theta)]

        def pullback(g: Array) -> tuple[Array, Array]:
            return _add_gradients([(*pull(g), None) for _, pull in done])[:2]

        return functools.reduce(operator.add, (d for d, _ in done)), pullback


@dataclass(frozen=True)
class Product(_Many):
    """k = Π k_c. Write ``a * b``; a factor is pulled back with G ∘ (the product of the others)."""

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return functools.reduce(operator.mul, (k._gram(t, X, Z) for k, t in self._children(theta)))

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        done = [k._gram_pullback(t, X, Z) for k, t in self._children(theta)]
        Ks = [K for K, _ in done]

        def pullback(G: Array) -> Gradients:
            return _add_gradients([pull(G * _others(Ks, c)) for c, (_, pull) in enumerate(done)])

        return functools.reduce(operator.mul, Ks), pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        Ks = [k._gram(t, X, Z) for k, t in self._children(theta)]
        pairs = zip(self._children(theta), self._children(dtheta), strict=True)
        return functools.reduce(
            operator.add,
            (
                _others(Ks, c) * k._gram_jvp(t, X, Z, dt, dX, dZ)
                for c, ((k, t), (_, dt)) in enumerate(pairs)
            ),
        )

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        Ks = [k._gram(t, X, Z) for k, t in self._children(theta)]
        return functools.reduce(
            operator.add,
            (
                _others(Ks, c)[:, :, None] * k._input_jacobian(t, X, Z)
                for c, (k, t) in enumerate(self._children(theta))
            ),
        )

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        Ks = [k._gram(t, X, Z) for k, t in self._children(theta)]
        parts = [
            _others(Ks, c)[None, :, :] * k._theta_jacobian(t, X, Z)
            for c, (k, t) in enumerate(self._children(theta))
        ]
        return backend.of(X).xp.concat(parts)

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        done = [k.diag_pullback(t, X) for k, t in self._children(theta)]
        values = [d for d, _ in done]

        def pullback(g: Array) -> tuple[Array, Array]:
            pulled = [pull(g * _others(values, c)) for c, (_, pull) in enumerate(done)]
            return _add_gradients([(*gradients, None) for gradients in pulled])[:2]

        return functools.reduce(operator.mul, values), pullback


@dataclass(frozen=True)
class Scale(Kernel):
    """k = s k₀ with a positive parameter s. Write ``2.0 * k0``.

    Parameters
    ----------
    kernel : Kernel
    factor : float
        s, the starting value.
    fixed : tuple of str
        ``("factor",)`` to leave it alone in fits.
    """

    kernel: Kernel
    factor: float = 1.0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_kernel(self, self.kernel)
        self.blocks()

    def blocks(self) -> tuple[Block, ...]:
        return merge_blocks(leaf_blocks(self, "factor"), self.kernel.blocks())

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        values = np.asarray(theta, dtype=np.float64)
        return replace(self, factor=float(values[0]), kernel=self.kernel.with_theta(values[1:]))

    def takes_blocks(self) -> bool:
        return self.kernel.takes_blocks()

    def check(self, q: int) -> None:
        self.kernel.check(q)

    def scale_blocks(self, q: int) -> Scales:
        return tuple((place + 1, dims) for place, dims in self.kernel.scale_blocks(q))

    def cuda(self, q: int) -> CudaPair | None:
        inner = self.kernel.cuda(q)
        if inner is None:
            return None
        return CudaPair(f"Scale<{inner.type}>", inner.definitions, 1 + inner.parameters)

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return theta[0] * self.kernel._gram(theta[1:], X, Z)

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        xp = backend.of(X).xp
        K, pull = self.kernel._gram_pullback(theta[1:], X, Z)

        def pullback(G: Array) -> Gradients:
            gtheta, gX, gZ = pull(G)
            own = xp.reshape(xp.sum(G * K), (1,))
            gZ = None if gZ is None else theta[0] * gZ
            return xp.concat([own, theta[0] * gtheta]), theta[0] * gX, gZ

        return theta[0] * K, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        inner = self.kernel._gram_jvp(theta[1:], X, Z, dtheta[1:], dX, dZ)
        return dtheta[0] * self.kernel._gram(theta[1:], X, Z) + theta[0] * inner

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return theta[0] * self.kernel._input_jacobian(theta[1:], X, Z)

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        own = self.kernel._gram(theta[1:], X, Z)[None, :, :]
        inner = self.kernel._theta_jacobian(theta[1:], X, Z)
        return backend.of(X).xp.concat([own, theta[0] * inner])

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        xp = backend.of(X).xp
        d, pull = self.kernel.diag_pullback(theta[1:], X)

        def pullback(g: Array) -> tuple[Array, Array]:
            gtheta, gX = pull(g)
            return xp.concat([xp.reshape(xp.sum(g * d), (1,)), theta[0] * gtheta]), theta[0] * gX

        return theta[0] * d, pullback


@dataclass(frozen=True)
class ActiveDims(Kernel):
    """A kernel that sees only some input dimensions, in the order given.

    Parameters
    ----------
    kernel : Kernel
    dims : sequence of int
        Different non-negative indices into the columns of X.
    """

    kernel: Kernel
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        require_kernel(self, self.kernel)
        try:
            dims = tuple(operator.index(d) for d in self.dims)
        except TypeError as error:
            raise TypeError(f"dims={self.dims!r} was given; expected indices: (0,)") from error
        object.__setattr__(self, "dims", dims)
        if not dims or min(dims) < 0 or len(set(dims)) < len(dims):
            raise ValueError(
                f"dims={dims} was given; expected one or more different non-negative indices"
            )
        self.kernel.check(len(dims))

    def blocks(self) -> tuple[Block, ...]:
        return self.kernel.blocks()

    def with_theta(self, theta: Sequence[float] | np.ndarray) -> Self:
        return replace(self, kernel=self.kernel.with_theta(theta))

    def takes_blocks(self) -> bool:
        return self.kernel.takes_blocks()

    def check(self, q: int) -> None:
        if max(self.dims) >= q:
            raise ValueError(
                f"ActiveDims uses dimension {max(self.dims)} and the inputs have {q} "
                f"(0 to {q - 1}); use smaller indices or a larger n_components"
            )
        self.kernel.check(len(self.dims))

    def scale_blocks(self, q: int) -> Scales:
        return tuple(
            (place, frozenset(self.dims[d] for d in dims))
            for place, dims in self.kernel.scale_blocks(len(self.dims))
        )

    def cuda(self, q: int) -> CudaPair | None:
        inner = self.kernel.cuda(len(self.dims))
        if inner is None:
            return None
        dims = ", ".join(map(str, self.dims))
        return CudaPair(f"Active<{inner.type}, {dims}>", inner.definitions, inner.parameters)

    def _take(self, X: Array | None) -> Array | None:
        if X is None:
            return None
        return backend.of(X).xp.stack([X[..., d] for d in self.dims], axis=-1)

    def _put(self, part: Array, q: int) -> Array:
        """Columns of the whole input from those of the part, along the last axis."""
        xp = backend.of(part).xp
        nothing = xp.zeros_like(part[..., 0])
        columns = [part[..., self.dims.index(d)] if d in self.dims else nothing for d in range(q)]
        return xp.stack(columns, axis=-1)

    def _gram(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return self.kernel._gram(theta, self._take(X), self._take(Z))

    def _gram_pullback(self, theta: Array, X: Array, Z: Array | None) -> tuple[Array, Pullback]:
        K, pull = self.kernel._gram_pullback(theta, self._take(X), self._take(Z))

        def pullback(G: Array) -> Gradients:
            gtheta, gX, gZ = pull(G)
            q = X.shape[-1]
            return gtheta, self._put(gX, q), None if gZ is None else self._put(gZ, q)

        return K, pullback

    def _gram_jvp(
        self, theta: Array, X: Array, Z: Array | None, dtheta: Array, dX: Array, dZ: Array | None
    ) -> Array:
        take = self._take
        return self.kernel._gram_jvp(theta, take(X), take(Z), dtheta, take(dX), take(dZ))

    def _input_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        part = self.kernel._input_jacobian(theta, self._take(X), self._take(Z))
        return self._put(part, X.shape[1])

    def _theta_jacobian(self, theta: Array, X: Array, Z: Array | None) -> Array:
        return self.kernel._theta_jacobian(theta, self._take(X), self._take(Z))

    def diag_pullback(self, theta: Array, X: Array) -> tuple[Array, DiagPullback]:
        d, pull = self.kernel.diag_pullback(theta, self._take(X))

        def pullback(g: Array) -> tuple[Array, Array]:
            gtheta, gX = pull(g)
            return gtheta, self._put(gX, X.shape[1])

        return d, pullback


def _others(factors: Sequence[Array], skip: int) -> Array:
    """The product of all factors but one; no division, so zeros are harmless."""
    return functools.reduce(operator.mul, (f for c, f in enumerate(factors) if c != skip))


def _add_gradients(parts: list[Gradients]) -> Gradients:
    xp = backend.of(parts[0][0]).xp
    gX = functools.reduce(operator.add, (p[1] for p in parts))
    gZ = None if parts[0][2] is None else functools.reduce(operator.add, (p[2] for p in parts))
    return xp.concat([p[0] for p in parts]), gX, gZ


__all__ = ["ActiveDims", "Product", "Scale", "Sum"]
