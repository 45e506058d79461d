"""Back-constraints by a small neural network, with its backward pass written by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.encoders.base import Encoder, check_arrays, known, require_complete, starting_rows
from gplvm_xp.latents import Named, Pull
from gplvm_xp.optim import minimise
from gplvm_xp.params import Block, Layout

# The last layer starts by least squares, with this ridge relative to its features' mean square.
_RIDGE = 1e-6
# Steps in which all layers then come nearer to the starting latents, and what a unit weight costs
# in them, in squared distances of a row: a start that is noise would ask for a rough map.
_STEPS, _DECAY = 50, 1e-2


@dataclass(frozen=True)
class MLPEncoder(Encoder):
    """X = g(Y), layers of tanh units and a linear one: H₀ = Y/s, H_l = tanh(H_{l−1} W_l + 1 b_lᵀ).

    X = H_L W_{L+1} + 1 b_{L+1}ᵀ. With the cotangent gX of the output, from the last layer back,
    gW_l = H_{l−1}ᵀ gA_l, gb_l = gA_lᵀ 1 and gA_{l−1} = (gA_l W_lᵀ) ∘ (1 − H_{l−1}²), gA of the last
    being gX (Rumelhart, Hinton & Williams 1986).

    The weights have no prior: the latents' own bounds them. Their number does not grow with the
    rows, so it is the encoder for many rows; a :class:`KernelEncoder` is smoother for few.

    Parameters
    ----------
    hidden : tuple of int
        Units of each hidden layer.
    seed : int
        Of the starting weights.

    Attributes
    ----------
    offset : ndarray (D,)
        The mean of the rows, which is taken from them first, once settled.
    unit : float
        s, the root mean square of what is left, once settled.
    weights : tuple of ndarray
        W_1, b_1, W_2, b_2, ..., once started.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    Cost: some 6 n times the number of weights an evaluation, and n numbers for each unit.
    """

    hidden: tuple[int, ...] = (32,)
    seed: int = 0
    offset: np.ndarray | None = field(default=None, repr=False, compare=False)
    unit: float | None = field(default=None, repr=False, compare=False)
    weights: tuple[np.ndarray, ...] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        hidden = self.hidden
        right = isinstance(hidden, tuple | list) and len(hidden) > 0
        if not right or any(
            isinstance(h, bool) or not isinstance(h, Integral) or h < 1 for h in hidden
        ):
            raise ValueError(
                f"hidden={hidden!r} was given; expected units of each hidden layer, such as (32,)"
            )
        object.__setattr__(self, "hidden", tuple(hidden))

    def settled(self, data: np.ndarray) -> Self:
        require_complete(data)
        offset = data.mean(axis=0)
        unit = math.sqrt(np.mean((data - offset) ** 2)) or 1.0
        return replace(self, offset=offset, unit=unit, weights=None)

    def started(self, data: np.ndarray, start: np.ndarray) -> Self:
        b = backend.get("numpy")
        rows = starting_rows(data.shape[0], 0, self.seed)
        features, goal = self.features(b, data[rows]), start[rows]
        first = replace(self, weights=self._first(features, goal))
        layout = Layout(first.blocks())
        decay = np.concatenate(
            [np.full(k.size, _DECAY * rows.size * (k.value.ndim - 1)) for k in layout.blocks]
        )

        def misfit(x: Array) -> tuple[Array, Array]:
            values, to_gradient = layout.unpack(x)
            X, pull = first._forward(values, features)
            value = 0.5 * (np.sum((X - goal) ** 2) + np.sum(decay * x * x))
            return value, to_gradient(pull(X - goal)) + decay * x

        end = minimise(misfit, layout.start(), max_steps=_STEPS, gtol=1e-6 * goal.size)
        return first.with_values(layout.unpack(end.x)[0])

    def blocks(self) -> tuple[Block, ...]:
        values = known(self.weights)
        return tuple(Block(_name(i), a, "identity") for i, a in enumerate(values))

    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        names = [_name(i) for i in range(2 * len(self.hidden) + 2)]
        return replace(self, weights=tuple(np.array(values[k], dtype=np.float64) for k in names))

    @property
    def dimensions(self) -> int:
        return known(self.weights)[-1].size

    def check(self, columns: int, dimensions: int) -> None:
        sizes = (columns, *self.hidden, dimensions)
        expected: list[tuple[int, ...]] = [(columns,)]
        for a, z in itertools.pairwise(sizes):
            expected += [(a, z), (z,)]
        weights = self.weights if isinstance(self.weights, tuple) else ()
        check_arrays((self.offset, *weights), expected)
        if not isinstance(self.unit, float) or not 0.0 < self.unit < math.inf:
            raise ValueError(
                f"the unit of its encoder is {self.unit!r}; expected a positive number"
            )

    def _features(self, b: Backend, data: np.ndarray) -> Array:
        return b.asarray((data - known(self.offset)) / known(self.unit))

    def _forward(self, values: Named, features: Array) -> tuple[Array, Pull]:
        xp = backend.of(features).xp
        depth = len(self.hidden)
        W = [values[_name(2 * i)] for i in range(depth + 1)]
        layers = [features]
        for i in range(depth):
            layers.append(xp.tanh(layers[-1] @ W[i] + values[_name(2 * i + 1)]))

        def pull(gX: Array) -> dict[str, Array]:
            out, g = {}, gX
            for i in range(depth, -1, -1):
                H = layers[i]
                out[_name(2 * i)] = xp.matrix_transpose(H) @ g
                out[_name(2 * i + 1)] = xp.sum(g, axis=0)
                if i:
                    g = (g @ xp.matrix_transpose(W[i])) * (1.0 - H * H)
            return out

        return layers[-1] @ W[depth] + values[_name(2 * depth + 1)], pull

    def _first(self, features: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, ...]:
        """Random hidden layers, and the last one by least squares."""
        rng = np.random.default_rng(self.seed)
        weights: list[np.ndarray] = []
        H = features
        for size in self.hidden:
            weights.append(rng.standard_normal((H.shape[1], size)) / math.sqrt(H.shape[1]))
            weights.append(0.5 * rng.standard_normal(size))
            H = np.tanh(H @ weights[-2] + weights[-1])
        centred, mean = H - H.mean(axis=0), goal.mean(axis=0)
        gram = centred.T @ centred
        ridge = _RIDGE * max(np.trace(gram) / gram.shape[0], 1e-300)
        last = np.linalg.solve(gram + ridge * np.eye(gram.shape[0]), centred.T @ (goal - mean))
        return (*weights, last, mean - H.mean(axis=0) @ last)


def _name(place: int) -> str:
    """Of W_1, b_1, W_2, ... by their place."""
    return f"encoder.{'bias' if place % 2 else 'weights'}_{place // 2 + 1}"


__all__ = ["MLPEncoder"]
