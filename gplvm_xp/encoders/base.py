"""What a back-constraint is: a map from data to latents, whose weights a fit learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.latents import Latents


class Encoder(ABC):
    """X = g(Y; W), a frozen dataclass of settings, and of weights once they are learned.

    Lawrence & Quiñonero-Candela, Local distance preservation in the GP-LVM through back
    constraints, ICML 2006. The data are the centred (and scaled) rows.
    """

    @abstractmethod
    def bind(self, b: Backend, data: np.ndarray, start: np.ndarray) -> Latents:
        """The latents of ``data`` (n, D), complete, starting as near ``start`` (n, q) as it can.

        Raises
        ------
        ValueError
            If the data can't be encoded: missing entries, or settings that don't fit.
        """

    @abstractmethod
    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        """The same settings with learned weights: host arrays by block name."""

    @abstractmethod
    def encode(self, b: Backend, data: np.ndarray) -> Array:
        """Latents (N, q) of rows (N, D), by the learned weights, in b's library."""


__all__ = ["Encoder"]
