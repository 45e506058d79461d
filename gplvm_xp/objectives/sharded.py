"""The bound of a model with inducing inputs whose rows are with the workers of an engine.

One evaluation is two journeys: parameters out and sums over rows back, cotangents out and gradients
in the shared parameters back; the M × M algebra between them is done here. The latents, most of
what is learned, stay with their rows, and so do the optimiser's vectors of them
(:mod:`gplvm_xp.optim.sharded`). Value and gradient are those of
:class:`~gplvm_xp.objectives.bayesian.BayesianObjective`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.engine import Session, one_blas_thread
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.bayesian import inducing_gram
from gplvm_xp.objectives.collapsed import Totals, collapsed, optimum
from gplvm_xp.objectives.rows import Sums
from gplvm_xp.optim.sharded import Answer, Parts
from gplvm_xp.optim.slices import Order, SliceState
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class Globals:
    """What all rows share, on the host.

    Attributes
    ----------
    kernel : Kernel
        Structure and values.
    noise : float
        σ², squared units of the (scaled) data.
    Z : ndarray (M, q)
    """

    kernel: Kernel
    noise: float
    Z: np.ndarray


class Shared(NamedTuple):
    """The same at a point of a search, where the algebra is done: (p,), 0-d, (M, q)."""

    theta: Array
    noise: Array
    Z: Array


@dataclass(frozen=True)
class ShardedBound(Parts):
    """Negative bound (nats) over rows that workers hold.

    Parameters
    ----------
    session : Session
        Of :class:`~gplvm_xp.objectives.shard.Shard` workers that have begun a search.
    start : Globals
    totals : Totals
        Of all rows.
    b : Backend
        Where the M × M algebra is done.
    priors : mapping of str to Prior
        Of shared parameters by block name, in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values; "mu" and "S" are the workers'.
    jitter : float
        Added to the diagonal of K_uu as this multiple of its mean; part of the model.
    trace : bool
        False leaves the trace term out (DTC).

    Raises
    ------
    ValueError
        If a prior or a held name is not the name of a parameter, or every shared one is held.
    """

    session: Session
    start: Globals
    totals: Totals
    b: Backend
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    jitter: float = 0.0
    trace: bool = True
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        kernel, Z = self.start.kernel, self.start.Z
        kernel.check(Z.shape[1])
        blocks = [*kernel.blocks(), Block("noise", self.start.noise), Block("Z", Z, "identity")]
        names = [block.name for block in blocks]
        known = {"priors": set(names), "held": {*names, "mu", "S"}}
        for label, given in (("priors", self.priors), ("held", self.held)):
            unknown = sorted(set(given) - known[label])
            if unknown:
                raise ValueError(f"{label} names {unknown}; expected some of {names}")
        free = tuple(k for k in blocks if not k.fixed and k.name not in self.held)
        if not free:
            raise ValueError(
                f"every shared parameter of {names} is held; expected at least one to learn"
            )
        object.__setattr__(self, "layout", Layout(free))

    def shared(self, x: Array) -> Shared:
        """What all rows share at a point, blocks that are held included."""
        return self._named(self.layout.unpack(x)[0])

    def globals(self, x: Array) -> Globals:
        """The same on the host."""
        theta, noise, Z = (self.b.to_host(a).astype(np.float64) for a in self.shared(x))
        return Globals(self.start.kernel.with_theta(theta), noise.item(), Z)

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def evaluate(self, x: Array, order: Order) -> Answer:
        b = self.b
        xp = b.xp
        natural, to_gradient = self.layout.unpack(x)
        v = self._named(natural)
        *sums, own, line = self.session.map_reduce("sums", v.theta, v.Z, *order)
        with one_blas_thread():
            K, pull = inducing_gram(self.start.kernel, v.theta, v.Z, self.jitter)
            rows = Sums(*(b.asarray(a) for a in sums))
            c = collapsed(b, K, v.noise, rows, self.totals, trace=self.trace)
            gtheta, gZ = pull(c.K)
        total = c.value + b.asarray(own)[0]
        slopes = {}
        for name, prior in self.priors.items():
            if name in natural:
                density, slopes[name] = prior.log_density(natural[name])
                total = total + density
        f = xp.where(c.ok & xp.isfinite(total), -total, xp.full_like(total, xp.inf))
        line = _host(b, line)
        if not np.isfinite(b.to_host(f)):
            # The workers need not know: a point without a value has no gradient.
            return Answer(f, xp.zeros_like(x), line, np.zeros(0), np.inf)
        *shared, products, largest = self.session.map_reduce("gradients", *c.sums)
        gradients = {"noise": c.noise, "Z": gZ + b.asarray(shared[1])}
        gradients |= self._by_block(gtheta + b.asarray(shared[0]))
        for name, slope in slopes.items():
            gradients[name] = gradients[name] + slope
        norm = np.max(_host(b, largest))
        return Answer(f, -to_gradient(gradients), line, _host(b, products), norm)

    def settle(self, order: Order) -> list[SliceState]:
        states = self.session.collect("settle", *order)
        return [SliceState(*(_host(self.b, a) for a in state)) for state in states]

    def restore(self, states: list[SliceState]) -> None:
        self.session.scatter("restore", [tuple(state) for state in states])

    def optimal(self, at: Globals) -> tuple[Array, Array, Array]:
        """The optimal whitened q(u) at the workers' latents: mean (M, D), factor (r, M, M), ok."""
        b = self.b
        theta, Z = b.asarray(at.kernel.theta()), b.asarray(at.Z)
        sums = Sums(*(b.asarray(a) for a in self.session.map_reduce("totals", theta, Z)))
        with one_blas_thread():
            K, _ = inducing_gram(at.kernel, theta, Z, self.jitter)
            return optimum(b, K, b.scalar(at.noise), sums, self.totals)

    def _named(self, natural: Mapping[str, Array]) -> Shared:
        b = self.b

        def one(name: str, value: np.ndarray) -> Array:
            return natural[name] if name in natural else b.asarray(value)

        parts = [
            b.xp.reshape(one(block.name, block.value), (block.size,))
            for block in self.start.kernel.blocks()
        ]
        noise = one("noise", np.asarray(self.start.noise))
        return Shared(b.xp.concat(parts), noise, one("Z", self.start.Z))

    def _by_block(self, gtheta: Array) -> dict[str, Array]:
        blocks = self.start.kernel.blocks()
        where = Layout(blocks).slices()
        return {k.name: self.b.xp.reshape(gtheta[where[k.name]], k.value.shape) for k in blocks}


def _host(b: Backend, a: Array) -> np.ndarray:
    """Numbers of a worker, which may have been on a device or have travelled."""
    return np.asarray(a if isinstance(a, np.ndarray) else b.to_host(a), dtype=np.float64)


__all__ = ["Globals", "ShardedBound", "Shared"]
