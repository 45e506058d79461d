"""The nearest-neighbour likelihood of a GPLVM and its gradient, for any number of rows.

Rows in some order, each given a few of those before it (Vecchia 1988):

    ln p̃(Y | X) = Σ_i ln p(y_i | y_N(i)),  N(i) ⊂ {rows before i}.

Every factor is an exact conditional of the Gaussian process, so p̃ is a density, and the exact one
where N(i) is everything before i. It is not a bound: the gap may have either sign. The gradient is
that of p̃ with the neighbours held; they are structure, found again as the latents move. A term is
one factorisation of at most (k + 1)³/3 operations, and memory is O(n (q + D + k)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.backend.parts import chunks
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Points, RowPrior, spread
from gplvm_xp.objectives.exact import Group
from gplvm_xp.objectives.local import conditional
from gplvm_xp.objectives.local_sums import Blocks, nearby, stacks, summed
from gplvm_xp.objectives.unknowns import Fit, Unknowns
from gplvm_xp.params import Layout
from gplvm_xp.priors import Prior

# Arrays of a stack that are alive at a time, in a thread.
_ALIVE = 12
# Rows whose neighbours are looked at together, where there are very many of them.
_ROWS = 2**16


@dataclass(frozen=True)
class VecchiaObjective:
    """Negative log posterior (nats) under the nearest-neighbour likelihood.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    groups : tuple of Group
        The data, as :func:`~gplvm_xp.objectives.groups_of` makes it. An output that is not observed
        on a row is left out of that row's term and of what other rows are given; a row's neighbours
        are not replaced then.
    latents : Latents or ndarray (n, q)
        Where they come from; an array holds the starting positions, on the host.
    noise : float
        Starting noise variance σ², squared units of Y.
    order : ndarray of int (n,)
        Every row once, on the host.
    neighbours : ndarray of int (n, k)
        For each row the rows it is given, each before it in the order; −1 for none. See
        :func:`~gplvm_xp.neighbours.predecessors`.
    latent_prior : Prior, RowPrior or None
        Prior of every latent coordinate, or of all rows together.
    priors : mapping of str to Prior
        Priors of parameters by block name, in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values.
    jitter : float
        Added to the diagonal; part of the model, in the value and in every derivative.

    Raises
    ------
    NotEnoughMemoryError
        If row numbers, latents and a few stacks of blocks do not fit, before they are allocated.
    ValueError
        If a prior or a held name is not the name of a parameter, or a neighbour is not before its
        row.
    """

    kernel: Kernel
    groups: tuple[Group, ...]
    latents: Latents | np.ndarray
    noise: float
    order: np.ndarray
    neighbours: np.ndarray
    latent_prior: Prior | RowPrior | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    jitter: float = 0.0
    unknowns: Unknowns = field(init=False)
    blocks: tuple[Blocks, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.latents if isinstance(self.latents, Latents) else Points(self.latents)
        unknowns = Unknowns(
            self.kernel, given, self.noise, self.latent_prior, self.priors, self.held
        )
        object.__setattr__(self, "unknowns", unknowns)
        b, (n, q) = self.backend, given.shape
        if isinstance(self.latent_prior, RowPrior):
            self.latent_prior.require_memory(b)
        _check_neighbours(self.order, self.neighbours, n)
        R = self.neighbours.shape[1] + 1
        D = max(group.Y.shape[1] for group in self.groups)
        stack = stacks(b, n, R, D)[0].stop
        # Row numbers and what scatters gradients back to them, then what an evaluation makes.
        structure = (8 if b.name == "numpy" else 32) * n * R * len(self.groups)
        work = b.itemsize * (6 * n * q + _ALIVE * stack * R * max(R, D))
        b.require_memory(
            structure + work,
            f"the nearest-neighbour likelihood of {n} rows with {R - 1} neighbours each",
            "use fewer neighbours, fewer rows, or a machine with more memory",
        )
        X = b.to_host(self.values(self.start())[2])
        index = [_index(self.neighbours, group.rows, X) for group in self.groups]
        parts = zip(self.groups, index, strict=True)
        blocks = tuple(Blocks.of(b, rows, *group.Y.shape) for group, rows in parts)
        object.__setattr__(self, "blocks", blocks)

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.groups[0].Y)

    @property
    def layout(self) -> Layout:
        """Where each block lies in the flat vector."""
        return self.unknowns.layout

    def start(self) -> Array:
        """The starting point: the flat unconstrained vector, on the device."""
        return self.backend.asarray(self.layout.start())

    def values(self, x: Array) -> tuple[Array, Array, Array]:
        """theta (p,), noise (0-d) and X (n, q) at a point, blocks that are held included."""
        return self.unknowns.values(self.backend, x)

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """The objective and its gradient in the flat vector; nothing waits for the device.

        Parameters
        ----------
        x : array (size,)
            Unconstrained values, see :meth:`start`.

        Returns
        -------
        f : 0-d array
            Negative log posterior in nats; +inf where a covariance is not positive definite.
        g : array (size,)
            Its gradient with the neighbours held, arbitrary where f is +inf.
        """
        return self.unknowns.value_and_grad(self.backend, x, self.likelihood)

    def likelihood(self, theta: Array, noise: Array, X: Array) -> Fit:
        """ln p̃(Y | X) and its gradients in natural space."""
        b = self.backend
        total, gtheta, gnoise, gX = b.scalar(0.0), b.xp.zeros_like(theta), b.scalar(0.0), None
        for group, blocks in zip(self.groups, self.blocks, strict=True):
            rows = X if group.rows is None else b.rows(X, group.rows)
            part = summed(
                self.kernel, theta, noise + self.jitter, rows, group.Y, blocks, conditional,
                group.outputs,
            )  # fmt: skip
            total, gtheta, gnoise = total + part.value, gtheta + part.theta, gnoise + part.noise
            one = part.X if group.rows is None else spread(b, part.X, group.rows, X.shape[0])
            gX = one if gX is None else gX + one
        return Fit(total, gtheta, gnoise, gX)


def _check_neighbours(order: np.ndarray, neighbours: np.ndarray, n: int) -> None:
    if np.shape(order) != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"order has shape {np.shape(order)}; expected each of the {n} rows of the latents once"
        )
    if neighbours.ndim != 2 or neighbours.shape[0] != n:
        raise ValueError(
            f"neighbours has shape {neighbours.shape}; expected ({n}, k), the rows that each row "
            "is given"
        )
    if neighbours.size == 0:
        return
    if neighbours.max() >= n:
        raise ValueError(f"neighbours names row {neighbours.max()} of {n}; expected 0 to {n - 1}")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    for where in chunks(n, _ROWS):
        near = neighbours[where]
        late = (near >= 0) & (place[near] >= place[where, None])
        if late.any():
            row = np.flatnonzero(late.any(axis=1))[0]
            raise ValueError(
                f"row {where.start + row} is given row {near[row][late[row]][0]}, which is not "
                "before it in the order; use gplvm_xp.neighbours.predecessors with the same order"
            )


def _index(neighbours: np.ndarray, rows: np.ndarray | None, X: np.ndarray) -> np.ndarray:
    """Blocks (r, k + 1) of the observed rows, each last in its own; short ones come first.

    Numbers are those among the observed rows, −1 where there is none. Blocks that are near each
    other in X (n, q) come together.
    """
    n = X.shape[0]
    rows = np.arange(n) if rows is None else rows
    place = np.full(n + 1, -1, dtype=np.int32 if n < 2**31 else np.int64)
    place[rows] = np.arange(rows.size)
    index = np.empty((rows.size, neighbours.shape[1] + 1), dtype=place.dtype)
    index[:, -1] = place[rows]
    for where in chunks(rows.size, _ROWS):
        # The entry after the last stands for −1.
        index[where, :-1] = place[neighbours[rows[where]]]
    sequence = nearby(X[rows])
    short = np.flatnonzero(index.min(axis=1) < 0)
    sequence = np.concatenate([short, sequence[~np.isin(sequence, short)]])
    return np.take(index, sequence, axis=0)


__all__ = ["VecchiaObjective"]
