"""One part of the vectors of an L-BFGS search, and the recursion in products between vectors.

Of the two-loop recursion only inner products of s_i, y_i and g are needed to know the direction's
coefficients in them (Chen, Wang & Zhou, Large-scale L-BFGS using MapReduce, NIPS 2014, algorithm
3). Every part of a vector is a :class:`Slices` and follows the same orders. An order is three host
vectors: ``head`` = (point, t, origin, taken, mode), ``coefficients`` of a new direction in
(s_1 … s_k, y_1 … y_k, g), empty where the line goes on, and ``keep``, the points that may be asked
for later. Mode 1 remembers the pair of the step t = ``taken`` that led to ``origin``, 2 only moves
there, 3 empties the memory.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array

Order: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
SAME, REMEMBER, MOVE, FORGET = range(4)


class SliceState(NamedTuple):
    """All of a part that a search goes on from.

    Attributes
    ----------
    x, g : array (d,)
        Point and gradient.
    s, y : array (k, d)
        Remembered pairs, the oldest first.
    """

    x: Array
    g: Array
    s: Array
    y: Array


class Slices:
    """One part of the vectors of a search: points, gradients, direction and pairs.

    Parameters
    ----------
    x : array (d,)
        The part of the start, point 0.
    memory : int
        Pairs remembered.
    """

    def __init__(self, x: Array, memory: int) -> None:
        zero = backend.of(x).xp.zeros_like(x)
        self._memory = memory
        self._points: dict[int, tuple[Array, Array]] = {0: (x, zero)}
        self._origin, self._new = 0, 0
        self._d, self._pairs = zero, list[tuple[Array, Array]]()

    def point(self, number: int) -> Array:
        """The part of a point that was kept."""
        return self._points[number][0]

    def move(self, order: Order) -> tuple[Array, Array]:
        """Follow an order.

        Returns
        -------
        x : array (d,)
            The part of the point to evaluate.
        products : array (2 + 2 k,)
            g·d, d·d, d·s_i and d·y_i of this part; g is the gradient at the line's origin.
        """
        b = backend.of(self._d)
        xp = b.xp
        head, coefficients, keep = (a.tolist() for a in order)
        self.settle(order)
        g = self._points[self._origin][1]
        if coefficients:
            d, k = coefficients[-1] * g, len(self._pairs)
            for i, (s, y) in enumerate(self._pairs):
                d = d + coefficients[i] * s + coefficients[k + i] * y
            self._d = d
        kept = {self._origin, *keep}
        self._points = {number: p for number, p in self._points.items() if number in kept}
        self._new = round(head[0])
        x = self._points[self._origin][0] + head[1] * self._d
        self._points[self._new] = x, xp.zeros_like(x)
        return x, self._products([(self._d, g), (self._d, self._d)], [self._d])

    def note(self, g: Array) -> Array:
        """Take the gradient at the new point.

        Returns
        -------
        array (5 + 4 k,)
            g·g, g·d, g·y, y·d, y·y with y the change of g from the line's origin; g·s_i, g·y_i,
            y·s_i and y·y_i.
        """
        y = g - self._points[self._origin][1]
        self._points[self._new] = self._points[self._new][0], g
        d = self._d
        return self._products([(g, g), (g, d), (g, y), (y, d), (y, y)], [g, y])

    def settle(self, order: Order) -> None:
        """Do only what an order says of the last step, so that the state is whole."""
        _, _, origin, taken, mode = order[0].tolist()
        before, self._origin = self._origin, round(origin)
        if mode == REMEMBER:
            y = self._points[self._origin][1] - self._points[before][1]
            self._pairs = [*self._pairs, (taken * self._d, y)][-self._memory :]
        elif mode == FORGET:
            self._pairs = []

    def state(self) -> SliceState:
        """What a search goes on from, after :meth:`settle`."""
        b = backend.of(self._d)
        x, g = self._points[self._origin]
        none = b.zeros((0, x.shape[0]))
        s, y = (
            b.xp.stack([pair[i] for pair in self._pairs]) if self._pairs else none for i in range(2)
        )
        return SliceState(x, g, s, y)

    def restore(self, state: SliceState) -> None:
        """Go on from a state; its point is number 0."""
        self._points, self._origin = {0: (state.x, state.g)}, 0
        self._pairs = [(state.s[i, ...], state.y[i, ...]) for i in range(state.s.shape[0])]

    # A length may overflow where the entries do not, and a failed point has any numbers.
    @np.errstate(all="ignore")
    def _products(self, pairs: list[tuple[Array, Array]], vectors: list[Array]) -> Array:
        xp = backend.of(self._d).xp
        out = [xp.matmul(a, c) for a, c in pairs]
        for v in vectors:
            out += [xp.matmul(v, s) for s, _ in self._pairs]
            out += [xp.matmul(v, y) for _, y in self._pairs]
        return xp.stack(out)


def coefficients(gram: np.ndarray) -> np.ndarray:
    """Minus the inverse Hessian times g, in (s_1 … s_k, y_1 … y_k, g), from their products.

    Parameters
    ----------
    gram : ndarray (2 k + 1, 2 k + 1)

    Returns
    -------
    ndarray (2 k + 1,)
    """
    k = gram.shape[0] // 2
    delta = np.zeros(2 * k + 1)
    delta[-1] = -1.0
    kept = np.zeros(k)
    for i in reversed(range(k)):
        kept[i] = delta @ gram[:, i] / gram[i, k + i]
        delta[k + i] -= kept[i]
    if k:
        delta *= gram[k - 1, 2 * k - 1] / gram[2 * k - 1, 2 * k - 1]
    for i in range(k):
        delta[i] += kept[i] - delta @ gram[:, k + i] / gram[i, k + i]
    return delta


def grown(
    gram: np.ndarray,
    t: float,
    line: np.ndarray,
    products: np.ndarray,
    remember: bool,
    memory: int,
) -> np.ndarray:
    """The products after a step t d: of the old pairs, perhaps the new one, and the new g.

    Parameters
    ----------
    gram : ndarray (2 k + 1, 2 k + 1)
        As in :func:`coefficients`, before the step.
    t : float
    line, products : ndarray
        What :meth:`Slices.move` and :meth:`Slices.note` returned, added over all parts.
    remember : bool
        Whether the pair of the step is new.
    memory : int
        Pairs remembered.
    """
    k = gram.shape[0] // 2
    gg, gd, gy, yd, yy = products[:5]
    with_g, with_y = products[5 : 5 + 2 * k], products[5 + 2 * k :]
    if not remember:
        out = gram.copy()
        out[-1, :-1] = out[:-1, -1] = with_g
        out[-1, -1] = gg
        return out
    s, y, g = 2 * k, 2 * k + 1, 2 * k + 2
    out = np.empty((2 * k + 3, 2 * k + 3))
    out[: 2 * k, : 2 * k] = gram[:-1, :-1]
    for row, known in ((s, t * line[2:]), (y, with_y), (g, with_g)):
        out[row, : 2 * k] = out[: 2 * k, row] = known
    out[s, s], out[y, y], out[g, g] = t * t * line[1], yy, gg
    out[s, y] = out[y, s] = t * yd
    out[s, g] = out[g, s] = t * gd
    out[y, g] = out[g, y] = gy
    drop = max(0, k + 1 - memory)
    order = [*range(drop, k), s, *range(k + drop, 2 * k), y, g]
    return out[np.ix_(order, order)]


__all__ = [
    "FORGET", "MOVE", "REMEMBER", "SAME", "Order", "SliceState", "Slices", "coefficients", "grown",
]  # fmt: skip
