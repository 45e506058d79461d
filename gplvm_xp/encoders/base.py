"""What a back-constraint is: a map from data to latents, whose weights a fit learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.latents import Latents, Named, Pull, complete
from gplvm_xp.params import Block

# Rows that pass through an encoder together, so that temporaries stay small.
_PART = 4096
# Rows, at random, to which starting weights are fitted: enough for a start.
_START_ROWS = 2000
T = TypeVar("T")


class Encoder(ABC):
    """X = g(Y; W), a frozen dataclass of settings, and of weights once they are learned.

    Lawrence & Quiñonero-Candela, Local distance preservation in the GP-LVM through back
    constraints, ICML 2006 (docs/derivations/back_constraints.md). The data Y (n, D) are complete
    host tables of centred (and scaled) rows. A fit goes through three states: settings, then
    ``settled`` on a table, then ``started`` with weights, which the search replaces.
    """

    # -- contract --------------------------------------------------------------------------------

    @abstractmethod
    def settled(self, data: np.ndarray) -> Self:
        """All that is taken from the table once and then held; settings stay as they are.

        Raises
        ------
        ValueError
            If the data can't be encoded: missing entries, or settings that don't fit.
        """

    @abstractmethod
    def started(self, data: np.ndarray, start: np.ndarray) -> Self:
        """A settled one with weights for which g(data) is near ``start`` (n, k)."""

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The weights, with the values they have; names begin with "encoder."."""

    @abstractmethod
    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        """The same map with other weights: host arrays by block name."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """k, of a started one."""

    @abstractmethod
    def check(self, columns: int, dimensions: int) -> None:
        """Raise ``ValueError`` unless it takes rows of D ``columns`` to k ``dimensions``."""

    @abstractmethod
    def _features(self, b: Backend, data: np.ndarray) -> Array:
        """What of g does not depend on the weights, for each row: (N, r)."""

    @abstractmethod
    def _forward(self, values: Named, features: Array) -> tuple[Array, Pull]:
        """g (N, k) from the weights by name, and the map gX (N, k) → gradients by name."""

    # -- what follows from it --------------------------------------------------------------------

    def bind(self, b: Backend, data: np.ndarray, start: np.ndarray) -> Latents:
        """The latents of ``data`` (n, D) by a settled encoder, near ``start`` (n, k)."""
        return self.started(data, start).latents(b, data)

    def latents(self, b: Backend, data: np.ndarray) -> Latents:
        """The latents of ``data`` (N, D), whose parameters are the weights of a started one."""
        return _Encoded(self, self.features(b, data))

    def features(self, b: Backend, data: np.ndarray) -> Array:
        """What of g does not depend on the weights, (N, r), in b's library."""
        require_complete(data)
        parts = [
            self._features(b, data[i : i + _PART]) for i in range(0, max(data.shape[0], 1), _PART)
        ]
        return parts[0] if len(parts) == 1 else b.xp.concat(parts)

    def encode(self, b: Backend, data: np.ndarray) -> Array:
        """g of rows (N, D) by the weights it has, (N, k), in b's library.

        Raises
        ------
        ValueError
            If entries are missing.
        """
        values = complete(b, self.blocks(), {})
        parts = [
            self._forward(values, self.features(b, data[i : i + _PART]))[0]
            for i in range(0, max(data.shape[0], 1), _PART)
        ]
        return parts[0] if len(parts) == 1 else b.xp.concat(parts)


@dataclass(frozen=True)
class _Encoded(Latents):
    """The latents of some rows: those of ``features`` (n, r)."""

    encoder: Encoder
    features: Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.features.shape[0], self.encoder.dimensions

    def blocks(self) -> tuple[Block, ...]:
        return self.encoder.blocks()

    def positions(self, values: Named) -> tuple[Array, Pull]:
        return self.encoder._forward(values, self.features)


def require_complete(data: np.ndarray) -> None:
    """Refuse rows with entries missing.

    Raises
    ------
    ValueError
        With the first of them.
    """
    gaps = np.argwhere(np.isnan(data))
    if gaps.size:
        raise ValueError(
            f"row {gaps[0][0]} has NaN in column {gaps[0][1]} ({len(gaps)} such entries), and an "
            "encoder takes complete rows only; fill the gaps first, for example by impute of a "
            "BayesianGPLVM, or fit without an encoder"
        )


def starting_rows(n: int, least: int, seed: int) -> np.ndarray:
    """Which of n rows starting weights are fitted to: all, or a random choice of a few."""
    most = max(_START_ROWS, least)
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng((seed, 1)).choice(n, most, replace=False))


def check_arrays(found: Sequence[Any], expected: Sequence[tuple[int, ...]]) -> None:
    """Hold the arrays of an encoder, which may come from a file, to their shapes.

    Raises
    ------
    ValueError
        If one has another shape or type, or is not finite.
    """
    shapes = [getattr(a, "shape", None) for a in found]
    if shapes != list(expected) or any(a.dtype != np.float64 for a in found):
        raise ValueError(
            f"the arrays of its encoder have the shapes {shapes}; expected numbers of the shapes "
            f"{list(expected)}"
        )
    if not all(np.all(np.isfinite(a)) for a in found):
        raise ValueError("the arrays of its encoder are not finite; expected finite numbers")


def known(value: T | None) -> T:
    """A learned part of an encoder.

    Raises
    ------
    ValueError
        If it is not there yet.
    """
    if value is None:
        raise ValueError(
            "the encoder has no weights; expected a fitted one: fit a model with it first, and use "
            "its encoder_"
        )
    return value


__all__ = ["Encoder", "check_arrays", "known", "require_complete", "starting_rows"]
