"""The likelihood of neighbourhoods on their own (Yao, Gall, Van Gool & Urtasun 2011).

A block is a row, its centre, with the R − 1 rows nearest to it in latent space. The exact
likelihood of a block's rows on their own gives gradients for their latents, and for the kernel and
the noise. It sees nothing of the other rows: summed over all centres it is no likelihood of the
table, and its mean gradient is not that of the exact one.

A row in several blocks of a batch gets the *average* of what they say. All of them look from one
point, so that their sum would be a step as many times too long, where steps one after the other
would have looked again in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Points, spread
from gplvm_xp.objectives.exact import Group
from gplvm_xp.objectives.local import joint
from gplvm_xp.objectives.local_sums import Blocks, summed
from gplvm_xp.objectives.unknowns import Fit, Unknowns
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class NeighbourhoodObjective:
    """Negative log posterior of the rows of a batch of blocks, an estimate for all rows.

    Parameters
    ----------
    unknowns : Unknowns
        Kernel and noise, with ``"X"`` held: latents come from the search.
    groups : tuple of Group
        The data, as :func:`~gplvm_xp.objectives.groups_of` makes it. An output that is not observed
        on a row leaves it out of the row's blocks.
    rows : int
        n.
    latent_prior : Prior or None
        Of each latent coordinate.
    jitter : float
        Added to the diagonal; part of the model.
    """

    unknowns: Unknowns
    groups: tuple[Group, ...]
    rows: int
    latent_prior: Prior | None = None
    jitter: float = 0.0
    places: tuple[np.ndarray | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        places = (None if g.rows is None else _places(g.rows, self.rows) for g in self.groups)
        object.__setattr__(self, "places", tuple(places))

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        groups: tuple[Group, ...],
        shape: tuple[int, int],
        noise: float,
        latent_prior: Prior | None,
        priors: Mapping[str, Prior],
        held: frozenset[str],
        jitter: float,
    ) -> NeighbourhoodObjective:
        """With starting values of kernel and noise, for latents of a shape (n, q)."""
        unknowns = Unknowns(
            kernel, Points(np.zeros((1, shape[1]))), noise, None, priors, held | {"X"}
        )
        return cls(unknowns, groups, shape[0], latent_prior, jitter)

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.groups[0].Y)

    def evaluate(
        self, x: Array, X: Array, rows: np.ndarray, index: np.ndarray
    ) -> tuple[Array, Array, Array]:
        """The estimate, and its gradients in kernel and noise and in the rows.

        Parameters
        ----------
        x : array (p,)
            Unconstrained kernel parameters and noise.
        X : array (U, q)
            Latents of the rows of the blocks.
        rows : ndarray of int (U,)
            Their numbers.
        index : ndarray of int (B, R)
            Places in ``rows`` of the rows of each block.

        Returns
        -------
        f : 0-d array
            n/(B R) times the blocks' negative log-likelihood and n/U times the rows' negative log
            prior, with the priors of kernel and noise; nats. +inf where a block has no factor.
        gx : array (p,)
        gX : array (U, q)
            Not of f, but of each row's own terms: the mean over its blocks, and its prior.
        """
        b, xp = self.backend, self.backend.xp
        share = self.rows / index.size
        kept: list[Array] = []

        def likelihood(theta: Array, noise: Array, _: Array) -> Fit:
            value, gtheta, gnoise = b.scalar(0.0), xp.zeros_like(theta), b.scalar(0.0)
            gX = xp.zeros_like(X)
            for group, place in zip(self.groups, self.places, strict=True):
                blocks, there = _observed(index, rows if place is None else place[rows])
                if not blocks.size:
                    continue
                whole = there.size == rows.size
                numbers = rows[there] if place is None else place[rows[there]]
                part = summed(
                    self.unknowns.kernel, theta, noise + self.jitter,
                    X if whole else b.rows(X, there), b.rows(group.Y, numbers),
                    Blocks.of(b, blocks, there.size, group.Y.shape[1]), joint, group.outputs,
                )  # fmt: skip
                value, gtheta, gnoise = value + part.value, gtheta + part.theta, gnoise + part.noise
                gX = gX + (part.X if whole else spread(b, part.X, there, rows.size))
            kept.append(gX)
            # The one position that the unknowns hold has no gradient.
            return Fit(share * value, share * gtheta, share * gnoise, gX[:1, :])

        f, gx = self.unknowns.value_and_grad(b, x, likelihood)
        visits = b.asarray(np.bincount(index.ravel(), minlength=rows.size))
        gX = -kept[0] / visits[:, None]
        if self.latent_prior is not None:
            density, slope = self.latent_prior.log_density(X)
            f, gX = f - (self.rows / rows.size) * density, gX - slope
        return f, gx, gX


def _places(rows: np.ndarray, n: int) -> np.ndarray:
    """Where each of n rows is among those of a group, −1 where it is not."""
    out = np.full(n, -1)
    out[rows] = np.arange(rows.size)
    return out


def _observed(index: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks with −1 in front for rows whose number is negative, renumbered, and the other rows."""
    seen = numbers >= 0
    there = np.flatnonzero(seen)
    if there.size == numbers.size:
        return index, there
    blocks = np.where(seen, np.cumsum(seen) - 1, -1)[index]
    blocks = np.take_along_axis(blocks, np.argsort(blocks >= 0, axis=1, kind="stable"), axis=1)
    return blocks[blocks[:, -1] >= 0], there


__all__ = ["NeighbourhoodObjective"]
