"""A latent variable model on batches of rows: what the minibatch search asks for.

The table stays where it is, a host array, a memory map or a sparse matrix, and only the rows of a
batch are read. Gaussian noise goes through psi statistics (minibatch.py), every other likelihood
through samples of the latents (sampled.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, complete
from gplvm_xp.likelihoods import Gaussian, Likelihood
from gplvm_xp.objectives.bayesian import CloudPull, clouds
from gplvm_xp.objectives.collapsed import Totals
from gplvm_xp.objectives.minibatch import BatchBound, Whitened, gaussian_bound
from gplvm_xp.objectives.rows import Rows
from gplvm_xp.objectives.sampled import Entries, sampled_bound
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior

NOISE = "noise"
# Rows that are placed together where all are.
PART = 4096


@dataclass(frozen=True)
class MinibatchObjective:
    """The bound of a Bayesian GPLVM, batch by batch.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    likelihood : Likelihood
        Structure and starting values. ``Gaussian(variance)`` is exact in the latents; its variance
        is the block "noise", that of others have their own names.
    Y : ndarray, memory map or SciPy sparse matrix (n, D)
        On the host, NaN for missing. Rows are read when their batch comes, ``Y[rows]``.
    inducing : array (M, q)
        Starting Z; its library, device and dtype are those of the computation.
    which : ndarray (D,), optional
        The group of each output, 0 to r − 1: outputs of a group share the covariance of q(u).
        Default for Gaussian noise: one group, which is exact while all of its entries of a row are
        observed or all are missing; ``numpy.arange(D)`` allows any pattern. Default for other
        likelihoods: one group each. Memory r M².
    offset, unit : ndarray (D,), optional
        What to subtract from Y, and then to divide by, for Gaussian noise. For other likelihoods
        ``offset`` is the constant mean of each output's function, see :func:`link_offsets`, and
        ``unit`` must be None. Default 0 and 1.
    exposure : ndarray (n,) or (n, D), optional
        See :class:`gplvm_xp.likelihoods.Likelihood`: for counts, each row's total over the mean
        total (library size).
    priors : mapping of str to Prior
        Priors of parameters by block name, in natural space, added to the bound.
    samples : int
        Draws for each row and step where latents are sampled, in antithetic pairs.
    jitter : float
        As in :func:`gplvm_xp.objectives.bayesian.inducing_gram`; part of the model. In float32
        Gaussian noise needs about 1e-3: L_u⁻¹ Ψ2 L_u⁻ᵀ loses as many digits as K_uu has. Sampled
        latents do without.
    place : callable, optional
        From rows, an integer ndarray (|B|,), to where their (μ, ln S) come from, positions
        (|B|, 2q) whose parameters are the same for all rows: they join the layout, and rows have
        none of their own.

    Raises
    ------
    ValueError
        If shapes do not fit, or a name is not the name of a parameter.
    """

    kernel: Kernel
    likelihood: Likelihood
    Y: Any
    inducing: Array
    which: np.ndarray | None = None
    offset: np.ndarray | None = None
    unit: np.ndarray | None = None
    exposure: np.ndarray | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    samples: int = 2
    jitter: float = 1e-6
    place: Callable[[np.ndarray], Latents] | None = None
    layout: Layout = field(init=False)
    totals: Totals = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, D = self.shape
        self.kernel.check(self.inducing.shape[1])
        own = self.likelihood.blocks()
        if self.gaussian:
            own = (Block(NOISE, own[0].init, fixed=own[0].fixed),)
        start = self.backend.to_host(self.inducing)
        blocks = (*self.kernel.blocks(), *own, Block("Z", start, "identity"))
        if self.place is not None:
            blocks += self.place(np.arange(1)).blocks()
        object.__setattr__(self, "layout", Layout(blocks))
        names = [block.name for block in blocks]
        unknown = sorted(set(self.priors) - set(names))
        if unknown:
            raise ValueError(f"priors names {unknown}; the parameters are {names}")
        which = self.which
        if which is None:
            which = np.zeros(D, np.int64) if self.gaussian else np.arange(D)
        which = np.asarray(which, dtype=np.int64)
        for name, a, shapes in (
            ("which", which, [(D,)]),
            ("offset", self.offset, [(D,)]),
            ("unit", self.unit, [(D,)]),
            ("exposure", self.exposure, [(n,), (n, D)]),
        ):
            if a is not None and a.shape not in shapes:
                raise ValueError(f"{name} has shape {a.shape}; expected one of {shapes}")
        counts = np.bincount(which)
        if not counts.all():
            raise ValueError(
                f"which leaves out the groups {np.flatnonzero(counts == 0).tolist()}; number "
                "groups from 0 without gaps, for example by numpy.unique(..., return_inverse=True)"
            )
        if self.samples < 1:
            raise ValueError(f"samples={self.samples!r} was given; expected 1 or more")
        if self.gaussian and self.exposure is not None:
            raise ValueError("exposure was given with Gaussian noise; expected None: leave it out")
        if not self.gaussian and self.unit is not None:
            raise ValueError(f"unit was given with {self.likelihood.name}; expected None")
        zero = np.zeros(counts.size)
        object.__setattr__(self, "totals", Totals(which, zero, zero, counts.astype(float)))

    @property
    def backend(self) -> Backend:
        """Where the computation is."""
        return backend.of(self.inducing)

    @property
    def gaussian(self) -> bool:
        """Whether latents are integrated by psi statistics."""
        return isinstance(self.likelihood, Gaussian)

    @property
    def shape(self) -> tuple[int, int]:
        """n, D."""
        n, D = self.Y.shape
        return n, D

    def parameters(self, x: Array) -> tuple[Array, Array, Array]:
        """theta (p,), the likelihood's φ (l,) and Z (M, q) at a point of the layout."""
        xp = self.backend.xp
        values, _ = self.layout.unpack(x)
        flat = [xp.reshape(values[b.name], (b.size,)) for b in self._numbers]
        split = len(self.kernel.blocks())
        phi = xp.concat(flat[split:]) if flat[split:] else self.backend.zeros((0,))
        return xp.concat(flat[:split]), phi, values["Z"]

    @property
    def _numbers(self) -> tuple[Block, ...]:
        """The kernel's blocks and the likelihood's, which lie before Z."""
        blocks = self.layout.blocks
        return blocks[: [block.name for block in blocks].index("Z")]

    def clouds(self, x: Array, index: np.ndarray) -> tuple[Array, Array, CloudPull]:
        """Means and variances (|B|, q) that ``place`` gives rows at a point, and their pullback."""
        assert self.place is not None
        where = self.place(index)
        return clouds(where, complete(self.backend, where.blocks(), self.layout.unpack(x)[0]))

    def placed(self, x: Array) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`clouds` gives all rows, (n, q) each, on the host; one pass over them."""
        b, n = self.backend, self.shape[0]
        parts = [
            [b.to_host(a) for a in self.clouds(x, np.arange(i, min(i + PART, n)))[:2]]
            for i in range(0, n, PART)
        ]
        mu, S = (np.concatenate(a).astype(np.float64) for a in zip(*parts, strict=True))
        return mu, S

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def evaluate(
        self,
        x: Array,
        q: Whitened,
        mu: Array | None,
        S: Array | None,
        index: np.ndarray,
        eps: np.ndarray,
    ) -> tuple[BatchBound, Array]:
        """The estimate of the bound from some rows.

        Parameters
        ----------
        x : array (size,)
            Unconstrained values, see :attr:`layout`.
        q : Whitened
        mu, S : array (|B|, q)
            None where ``place`` gives them.
        index : integer ndarray (|B|,)
            The rows.
        eps : ndarray (s, |B|, q)
            Draws, on the host; not looked at for Gaussian noise.

        Returns
        -------
        bound : BatchBound
            Priors included in the value.
        gradient : array (size,)
            In ``x``.

        Raises
        ------
        ValueError
            If the rows hold what the likelihood, or the groups of missing entries, do not allow.
        """
        b, xp = self.backend, self.backend.xp
        theta, phi, Z = self.parameters(x)
        pull: CloudPull | None = None
        if self.place is not None:
            mu, S, pull = self.clouds(x, index)
        scale = self.shape[0] / index.size
        table = self.read(index)
        seen = ~np.isnan(table)
        if self.gaussian:
            rows, totals = self._gaussian_rows(mu, S, table, seen)
            bound = gaussian_bound(
                self.kernel, theta, phi[0], Z, q, rows, totals, scale=scale, jitter=self.jitter
            )
        else:
            entries = self._entries(index, table, seen)
            bound = sampled_bound(
                self.kernel, theta, self.likelihood, phi, Z, q, mu, S, entries, self.totals,
                b.asarray(eps), scale=scale, jitter=self.jitter,
            )  # fmt: skip
        values, to_gradient = self.layout.unpack(x)
        flat = xp.concat([bound.theta, bound.likelihood])
        gradients: dict[str, Array] = {"Z": bound.Z}
        if pull is not None:
            gradients |= pull(bound.mu, bound.S)
        slices = self.layout.slices()
        for block in self._numbers:
            gradients[block.name] = xp.reshape(flat[slices[block.name]], block.value.shape)
        value = bound.value
        for name, prior in self.priors.items():
            density, slope = prior.log_density(values[name])
            value, gradients[name] = value + density, gradients[name] + slope
        return bound._replace(value=value), to_gradient(gradients)

    def draws(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """ε (s, rows, q) on the host, in antithetic pairs; none where latents are not sampled."""
        q = self.inducing.shape[1]
        if self.gaussian:
            return np.zeros((0, rows, q))
        half = rng.standard_normal(((self.samples + 1) // 2, rows, q))
        return np.concatenate([half, -half])[: self.samples, ...]

    def read(self, index: np.ndarray) -> np.ndarray:
        """Rows of Y in the model's units, host float64, NaN where missing."""
        from scipy.sparse import issparse

        part = self.Y[index]
        table = np.array(part.toarray() if issparse(part) else part, dtype=np.float64)
        if self.gaussian:
            table -= 0.0 if self.offset is None else self.offset
            table /= 1.0 if self.unit is None else self.unit
        exposure = None if self.exposure is None else self._exposure(index)
        self.likelihood.check(table, exposure)
        return table

    def _exposure(self, index: np.ndarray) -> np.ndarray:
        part: np.ndarray = np.asarray(self.exposure)[index]
        return part[:, None] if part.ndim == 1 else part

    def _gaussian_rows(
        self, mu: Array, S: Array, table: np.ndarray, seen: np.ndarray
    ) -> tuple[Rows, Totals]:
        which, r = self.totals.which, self.totals.outputs.size
        table = np.where(seen, table, 0.0)
        W = None
        if r > 1 or not seen.all():
            first = np.unique(which, return_index=True)[1]
            if not np.array_equal(seen[:, first][:, which], seen):
                raise ValueError(
                    "outputs of one group have missing entries in different rows; give which = "
                    "numpy.arange(D), or a group to each pattern of missing entries"
                )
            W = seen[:, first].astype(np.float64)
        b = self.backend
        totals = Totals.of(table, which, W)
        return Rows(mu, S, b.asarray(table), None if W is None else b.asarray(W)), totals

    def _entries(self, index: np.ndarray, table: np.ndarray, seen: np.ndarray) -> Entries:
        b = self.backend
        D = table.shape[1]
        exposure = None if self.exposure is None else b.asarray(self._exposure(index))
        mask = None if seen.all() else b.asarray(seen)
        offset = b.zeros((D,)) if self.offset is None else b.asarray(self.offset)
        return Entries(b.asarray(np.where(seen, table, 0.0)), mask, exposure, offset)


def link_offsets(likelihood: Likelihood, totals: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Constant functions that give each output its mean: the root of E[y | f] = mean.

    For counts with an exponential link ln(total/exposure), for binary outputs the logit or probit
    of the share. A mean at the edge of its range, such as that of an output without a count, is
    taken as half an event.

    Parameters
    ----------
    likelihood : Likelihood
    totals : ndarray (D,)
        Sums of each output over its observed rows.
    exposure : ndarray (D,)
        Sums of exposure over the same rows, or their number.

    Returns
    -------
    ndarray (D,)
    """
    share = totals / exposure
    low = np.minimum(np.log(0.5 / exposure), share)
    high = np.maximum(-np.log(0.5 / exposure), share)
    for _ in range(80):
        middle = 0.5 * (low + high)
        with np.errstate(all="ignore"):
            above = likelihood.moments(middle)[0] > share
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray(0.5 * (low + high))


__all__ = ["MinibatchObjective", "link_offsets"]
