"""What priors over sequences add to a structured prior: where a trajectory goes on."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.latents import RowFacts, StructuredPrior


@dataclass(frozen=True)
class Path:
    """Latents that follow one another, each a Gaussian.

    Attributes
    ----------
    mean : array (T, q)
    covariance : array (T, q, q)
        Of each on its own, not between them.
    """

    mean: Array
    covariance: Array


class OverSequences(StructuredPrior):
    """A structured prior under which the latents of a sequence can be continued."""

    @abstractmethod
    def ahead(self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, steps: int) -> Path:
        """The next latents of a sequence (a number from 0), given all latents X (n, q)."""

    @abstractmethod
    def draws_ahead(
        self, b: Backend, rows: RowFacts, X: np.ndarray, sequence: int, normals: np.ndarray
    ) -> Array:
        """Draws of the next latents, (S, T, q), from standard normal numbers of that shape."""


__all__ = ["OverSequences", "Path"]
