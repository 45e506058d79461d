"""Kernel trees as sums of terms whose expectations are known: Gaussian, linear, constant, white.

Scale factors and constants multiply anything, products of RBF kernels are one with the inverse
squared lengthscales added, and products of sums are sums of products. A term names places in theta
only: its values, and the gradients in theta, follow from these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels.base import Kernel
from gplvm_xp.kernels.compose import ActiveDims, Product, Scale, Sum
from gplvm_xp.kernels.linear import Linear
from gplvm_xp.kernels.static import Constant, White
from gplvm_xp.kernels.stationary import RBF


class Piece(NamedTuple):
    """Parameters of dimensions: ``first``, or one after the other from there if ``many``."""

    first: int
    many: bool
    dims: tuple[int, ...] | None

    def places(self, q: int) -> dict[int, int]:
        """The place in theta for every dimension that it covers."""
        dims = range(q) if self.dims is None else self.dims
        return {d: self.first + (i if self.many else 0) for i, d in enumerate(dims)}


@dataclass(frozen=True)
class Term:
    """c times exp(−½ Σ (x − z)²/ℓ²), Σ α x z, 1, or δ of the points.

    Attributes
    ----------
    kind : str
    factors : tuple of int
        Places in theta whose product is c, each once.
    pieces : tuple of Piece
        Where the lengthscales are (several for a product of Gaussians) or the weights α.
    """

    kind: Literal["gaussian", "linear", "constant", "white"]
    factors: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()

    def dims(self, q: int) -> tuple[int, ...]:
        """The dimensions that it looks at, ascending."""
        return tuple(sorted({d for piece in self.pieces for d in piece.places(q)}))

    def coefficient(self, theta: Array) -> Array:
        """c, 0-d."""
        c = backend.of(theta).scalar(1.0)
        for place in self.factors:
            c = c * theta[place]
        return c

    def pull_coefficient(self, theta: Array, gc: Array) -> Array:
        """gc ∂c/∂theta, (p,)."""
        b = backend.of(theta)
        if not self.factors:
            return b.xp.zeros_like(theta)
        chosen = _take(theta, self.factors)
        return _put(gc * self.coefficient(theta) / chosen, self.factors, theta)


def terms_of(
    kernel: Kernel, start: int = 0, dims: tuple[int, ...] | None = None
) -> tuple[Term, ...] | None:
    """The terms that a tree is the sum of, or None where some part has no closed form.

    Parameters
    ----------
    kernel : Kernel
    start : int
        Where its parameters begin in the whole theta.
    dims : tuple of int, optional
        The dimensions that it sees, in its order.
    """
    # A subclass may mean another function: exact types only.
    kind = type(kernel)
    if isinstance(kernel, RBF) and kind is RBF:
        many = isinstance(kernel.lengthscale, tuple)
        return (Term("gaussian", (start,), (Piece(start + 1, many, dims),)),)
    if isinstance(kernel, Linear) and kind is Linear:
        return (Term("linear", (), (Piece(start, isinstance(kernel.variance, tuple), dims),)),)
    if kind is Constant or kind is White:
        return (Term("constant" if kind is Constant else "white", (start,)),)
    if isinstance(kernel, ActiveDims) and kind is ActiveDims:
        inner = kernel.dims if dims is None else tuple(dims[d] for d in kernel.dims)
        return terms_of(kernel.kernel, start, inner)
    if isinstance(kernel, Scale) and kind is Scale:
        scaled = terms_of(kernel.kernel, start + 1, dims)
        if scaled is None:
            return None
        return tuple(replace(term, factors=(start, *term.factors)) for term in scaled)
    if not (isinstance(kernel, Sum | Product) and kind in (Sum, Product)):
        return None
    out: tuple[Term, ...] | None = () if kind is Sum else (Term("constant"),)
    for part in kernel.parts:
        found = terms_of(part, start, dims)
        start += part.size
        if out is None or found is None:
            return None
        out = out + found if kind is Sum else _products(out, found)
    return out


def _products(first: tuple[Term, ...], second: tuple[Term, ...]) -> tuple[Term, ...] | None:
    """Every term of one times every term of the other."""
    out = []
    for a in first:
        for c in second:
            if a.kind == "constant" or c.kind == "constant":
                kind = c.kind if a.kind == "constant" else a.kind
            elif "linear" in (a.kind, c.kind):
                return None
            else:
                # Between different points white noise is 0, and at a point a Gaussian is 1.
                kind = "gaussian" if a.kind == c.kind == "gaussian" else "white"
            pieces = () if kind == "white" else a.pieces + c.pieces
            out.append(Term(kind, a.factors + c.factors, pieces))
    return tuple(out)


class Gaussian(NamedTuple):
    """A Gaussian term at q dimensions: which of them it sees, and each one's lengthscales."""

    term: Term
    dims: tuple[int, ...]
    rows: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, term: Term, q: int) -> Gaussian:
        """The term, with its dimensions looked up."""
        dims = term.dims(q)
        entries = [(dims.index(d), p) for piece in term.pieces for d, p in piece.places(q).items()]
        entries.sort()
        return cls(term, dims, tuple(r for r, _ in entries), tuple(p for _, p in entries))

    def seen(self, mu: Array, S: Array, Z: Array) -> tuple[Array, Array, Array]:
        """The columns of its dimensions."""
        return columns(mu, self.dims), columns(S, self.dims), columns(Z, self.dims)

    def theta(self, theta: Array) -> Array:
        """(c, ℓ) of the one RBF that it is, 1 + number of dims; ℓ⁻² = Σ of the pieces' ℓ⁻²."""
        b = backend.of(theta)
        ell = _take(theta, self.places)
        if len(self.places) > len(self.dims):
            join = _one_hot(b, self.rows, len(self.dims))
            ell = 1.0 / b.xp.sqrt(join @ (1.0 / (ell * ell)))
        return b.xp.concat([b.xp.reshape(self.term.coefficient(theta), (1,)), ell])

    def pull(self, theta: Array, own: Array, g: Array) -> Array:
        """Gradient in theta, (p,), from that in :meth:`theta`'s result ``own``."""
        ratio = _take(own[1:], self.rows) / _take(theta, self.places)
        along = _take(g[1:], self.rows) * ratio * ratio * ratio
        return self.term.pull_coefficient(theta, g[0]) + _put(along, self.places, theta)


def weights(terms: tuple[Term, ...], theta: Array, q: int) -> Array:
    """(c, α): the constants' sum and that of the linear weights, (1 + q,)."""
    b = backend.of(theta)
    out = b.zeros((1 + q,))
    for term in terms:
        slots, places = _slots(term, q)
        value = b.xp.ones_like(theta[:1]) if places is None else _take(theta, places)
        out = out + _one_hot(b, slots, 1 + q) @ (term.coefficient(theta) * value)
    return out


def pull_weights(terms: tuple[Term, ...], theta: Array, q: int, g: Array) -> Array:
    """Gradient in theta, (p,), from that in :func:`weights`, (1 + q,)."""
    xp = backend.of(theta).xp
    out = xp.zeros_like(theta)
    for term in terms:
        slots, places = _slots(term, q)
        part = _take(g, slots)
        if places is None:
            out = out + term.pull_coefficient(theta, part[0])
            continue
        value = _take(theta, places)
        out = out + term.pull_coefficient(theta, xp.sum(part * value))
        out = out + _put(term.coefficient(theta) * part, places, theta)
    return out


def _slots(term: Term, q: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    if term.kind == "constant":
        return (0,), None
    entries = [(1 + d, p) for piece in term.pieces for d, p in piece.places(q).items()]
    return tuple(slot for slot, _ in entries), tuple(place for _, place in entries)


def columns(A: Array, dims: tuple[int, ...]) -> Array:
    """Some columns of A; A itself where they are all of them in order."""
    if dims == tuple(range(A.shape[1])):
        return A
    b = backend.of(A)
    return b.xp.take(A, b.xp.asarray(np.array(dims), dtype=b.xp.int64, device=b.device), axis=1)


def placed(A: Array, dims: tuple[int, ...], q: int) -> Array:
    """The opposite of :func:`columns` for gradients: zeros in the other columns."""
    if dims == tuple(range(q)):
        return A
    b = backend.of(A)
    return A @ b.xp.matrix_transpose(_one_hot(b, dims, q))


def _take(theta: Array, places: tuple[int, ...]) -> Array:
    return backend.of(theta).rows(theta, np.array(places, dtype=np.int64))


def _put(values: Array, places: tuple[int, ...], like: Array) -> Array:
    return _one_hot(backend.of(like), places, like.shape[0]) @ values


def _one_hot(b: Backend, places: tuple[int, ...], size: int) -> Array:
    """(size, len(places)): adds values up at their places."""
    return b.asarray((np.arange(size)[:, None] == np.array(places)[None, :]) * 1.0)


__all__ = [
    "Gaussian", "Term", "columns", "placed", "pull_weights", "terms_of", "weights",
]  # fmt: skip
