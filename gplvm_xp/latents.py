"""Where latents come from, and what is believed of all of them together: two contracts.

:class:`Latents` makes positions X (n, q) of parameters: the parameters are the positions
(:class:`Points`), or weights of a map from the data (:mod:`gplvm_xp.encoders`). A
:class:`RowPrior` is a density of the whole X that ties its rows together (dynamics, time stamps,
labels; :mod:`gplvm_xp.row_priors`), with parameters of its own; a :class:`StructuredPrior` is what
a user writes down before there are rows. Both hand gradients back as dictionaries by block name,
so that an objective needs to know neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.params import Block

Named = Mapping[str, Array]
Pull = Callable[[Array], dict[str, Array]]


class Latents(ABC):
    """Positions (n, q) as a function of named parameters."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, q)."""

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """The parameters, with starting values."""

    @abstractmethod
    def positions(self, values: Named) -> tuple[Array, Pull]:
        """X (n, q) from the values of all blocks, and the map gX (n, q) → gradients by name."""


@dataclass(frozen=True)
class Points(Latents):
    """Every position is a parameter of its own, the block ``"X"``.

    Parameters
    ----------
    start : ndarray (n, q)
        On the host.
    """

    start: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        n, q = self.start.shape
        return n, q

    def blocks(self) -> tuple[Block, ...]:
        return (Block("X", self.start, "identity"),)

    def positions(self, values: Named) -> tuple[Array, Pull]:
        return values["X"], lambda gX: {"X": gX}


class RowPrior(ABC):
    """A log density of all latents together, bound to the rows of one table."""

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """Its own parameters, with starting values; names begin with the prior's own name."""

    @abstractmethod
    def log_density(self, values: Named, X: Array) -> tuple[Array, Array, dict[str, Array]]:
        """ln p(X) (0-d, nats; −inf or NaN where it can't be evaluated), ∂/∂X (n, q), and the
        gradients in its own parameters by name, in natural space.

        ``values`` has all of its blocks, those that are held included.
        """

    @abstractmethod
    def require_memory(self, b: Backend) -> None:
        """Refuse what does not fit before the search allocates it.

        Raises
        ------
        NotEnoughMemoryError
        """


@dataclass(frozen=True)
class RowFacts:
    """What is known of the rows of a table beside their entries, on the host and checked.

    Attributes
    ----------
    count : int
        n.
    sequences : ndarray of int (s,) or None
        Lengths of the sequences that the rows form, in their order; they sum to n. None is one
        sequence.
    times : ndarray (n,) or None
        A time stamp for each row, increasing within each sequence.
    labels : ndarray (n,) or None
        A label for each row: integers from 0, −1 where there is none.
    outputs : int
        D.
    """

    count: int
    sequences: np.ndarray | None = None
    times: np.ndarray | None = None
    labels: np.ndarray | None = None
    outputs: int = 1

    @property
    def edges(self) -> np.ndarray:
        """The first row of each sequence, and n at the end, (s + 1,)."""
        lengths = np.array([self.count]) if self.sequences is None else self.sequences
        return np.concatenate([[0], np.cumsum(lengths)])

    @property
    def stamps(self) -> np.ndarray:
        """Time stamps (n,); where none are known, the number of each row in its sequence."""
        if self.times is not None:
            return self.times
        lengths = np.diff(self.edges)
        return np.concatenate([np.arange(length, dtype=np.float64) for length in lengths])


class StructuredPrior(ABC):
    """What a user says of the latents as a whole: a frozen dataclass of settings.

    A fit binds it to its rows, and what was learned comes back as the same class with other
    starting values.
    """

    @abstractmethod
    def bind(self, b: Backend, rows: RowFacts, start: np.ndarray) -> RowPrior:
        """The density of the latents of these rows, in b's library.

        Raises
        ------
        ValueError
            If it needs something of the rows that was not given, or can't use them.
        """

    @abstractmethod
    def with_values(self, values: Mapping[str, np.ndarray]) -> Self:
        """The same settings, starting from what was learned: host arrays by block name."""

    @property
    @abstractmethod
    def uses(self) -> frozenset[str]:
        """What it makes use of beside the entries: some of "sequences", "times" and "labels"."""

    @property
    @abstractmethod
    def fills_rows(self) -> bool:
        """Whether a row with nothing observed is placed by the others: it may then be empty."""

    @abstractmethod
    def fill(self, b: Backend, rows: RowFacts, X: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Starting latents (n, q) of all rows; only called where :attr:`fills_rows` is true.

        Parameters
        ----------
        X : ndarray (n, q)
            Starting latents, anything where a row is ``empty``.
        empty : bool ndarray (n,)
            Rows with nothing observed; in every sequence some are not.
        """


def complete(b: Backend, blocks: Sequence[Block], values: Named) -> dict[str, Array]:
    """The values of all ``blocks``: those that are learned, and the starts of those held."""
    return {
        block.name: values[block.name] if block.name in values else b.asarray(block.value)
        for block in blocks
    }


def hold(values: Named, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Copies on the host of the values of ``names``."""
    return {
        name: np.asarray(backend.of(values[name]).to_host(values[name]), dtype=np.float64)
        for name in names
    }


def spread(b: Backend, part: Array, rows: np.ndarray, n: int) -> Array:
    """Rows of ``part`` put back at the different host indices ``rows`` of n, zeros elsewhere."""
    where = np.full(n, rows.size)
    where[rows] = np.arange(rows.size)
    return b.rows(b.xp.concat([part, b.zeros((1, part.shape[1]))]), where)


__all__ = [
    "Latents", "Named", "Points", "Pull", "RowFacts", "RowPrior", "StructuredPrior", "complete",
    "hold", "spread",
]  # fmt: skip
