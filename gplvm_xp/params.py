"""The flat unconstrained vector that optimisers see, and its named view in natural space.

Kernels never see a logarithm, optimisers never a constraint; fixing a parameter is leaving its
block out of the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array

Transform = Literal["identity", "log"]


@dataclass(frozen=True)
class Block:
    """One named parameter array.

    Parameters
    ----------
    name : str
        Unique within a layout, for example ``"rbf.lengthscale"``.
    init : float or array
        Starting value in natural space; fixes the shape.
    transform : {"log", "identity"}
        "log" for positive parameters: the optimiser moves the logarithm.
    fixed : bool
        Whether fits leave it alone.

    Raises
    ------
    ValueError
        If a value is not finite, or not positive where the transform is "log".
    """

    name: str
    init: float | Sequence[float] | np.ndarray
    transform: Transform = "log"
    fixed: bool = False

    def __post_init__(self) -> None:
        value = self.value
        if not np.all(np.isfinite(value)) or (self.transform == "log" and not np.all(value > 0)):
            need = "positive finite" if self.transform == "log" else "finite"
            raise ValueError(
                f"parameter {self.name} starts at {value.tolist()}; {need} numbers were expected"
            )

    @property
    def value(self) -> np.ndarray:
        """The starting value as a float64 host array."""
        return np.asarray(self.init, dtype=np.float64)

    @property
    def size(self) -> int:
        """How many numbers the block has."""
        return math.prod(self.value.shape)


@dataclass(frozen=True)
class Layout:
    """Where each block lies in the flat vector. Build it once, before the loop."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError(f"parameter names must differ from each other, got {names}")

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(block.size for block in self.blocks)

    def slices(self) -> dict[str, slice]:
        """Where each block lies in the flat vector."""
        out, start = {}, 0
        for block in self.blocks:
            out[block.name] = slice(start, start + block.size)
            start += block.size
        return out

    def start(self) -> np.ndarray:
        """The flat unconstrained vector of the starting values, on the host."""
        parts = [
            np.log(block.value.ravel()) if block.transform == "log" else block.value.ravel()
            for block in self.blocks
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unpack(self, x: Array) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], Array]]:
        """Natural-space values by name, and the map from their gradients to the flat one.

        Parameters
        ----------
        x : array (size,)
            Unconstrained values.

        Returns
        -------
        values : dict of arrays
            In each block's own shape.
        to_gradient : callable
            Takes gradients in natural space, by name (a missing name is a zero), and returns the
            gradient in the unconstrained vector: g_η = θ ∘ g_θ for θ = e^η.
        """
        xp = backend.of(x).xp
        where = self.slices()
        values = {}
        for block in self.blocks:
            flat = x[where[block.name]]
            natural = xp.exp(flat) if block.transform == "log" else flat
            values[block.name] = xp.reshape(natural, block.value.shape)

        def to_gradient(gradients: Mapping[str, Array]) -> Array:
            parts = []
            for block in self.blocks:
                if block.name not in gradients:
                    parts.append(xp.zeros_like(x[where[block.name]]))
                    continue
                g = xp.reshape(gradients[block.name], (block.size,))
                if block.transform == "log":
                    g = g * xp.reshape(values[block.name], (block.size,))
                parts.append(g)
            return xp.concat(parts) if parts else xp.zeros_like(x)

        return values, to_gradient


__all__ = ["Block", "Layout", "Transform"]
