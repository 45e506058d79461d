"""One shard of the rows of a model with inducing inputs: what its worker holds and does.

The worker keeps its rows of Y, their latents and its part of the optimiser's vectors. Calls bring
shared parameters or cotangents and take sums over its rows away: O(M² + M D) numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.objectives.bayesian import kl
from gplvm_xp.objectives.rows import Rows, Sums, backward, forward
from gplvm_xp.optim.slices import Slices, SliceState
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class Worker:
    """Builds a :class:`Shard` where it will live.

    Attributes
    ----------
    kernel : Kernel
        Structure; values arrive with each call.
    latent_prior : Prior or None
        Of points.
    name, dtype : str
        The backend to compute on, as :func:`gplvm_xp.backend.get` takes them.
    resident : bool
        False keeps rows and latents on the host and moves them for the time of a call, one shard
        after the other: for tables that do not fit the device.
    """

    kernel: Kernel
    latent_prior: Prior | None = None
    name: str | None = "numpy"
    dtype: str = "float64"
    resident: bool = True

    def __call__(self, index: int, count: int, Y: Any) -> Shard:
        return Shard(self, index, count, np.asarray(Y, dtype=np.float64))


class Shard:
    """The worker of one shard.

    Parameters
    ----------
    plan : Worker
    index, count : int
        Its place among the shards.
    Y : ndarray (n, D)
        NaN where missing.
    """

    def __init__(self, plan: Worker, index: int, count: int, Y: np.ndarray) -> None:
        self._plan, self._index, self._count = plan, index, count
        self._b: Backend = backend.get(plan.name, dtype=plan.dtype)
        self._home = self._b if plan.resident else backend.get("numpy", dtype=plan.dtype)
        self._raw = Y
        self._W: Array | None = None

    # -- the table -------------------------------------------------------------------------------

    def survey(self) -> tuple[Array, ...]:
        """What the table holds here, before anything is done to it.

        Observed entries, sum of squares and Σ_nd (n + 1)(d + 1) y_nd (3,), by which other data are
        told apart; how many entries are infinite, and the row and column of the first (3,); how
        many rows have no observed entry, and the first (2,); lowest and highest of each column.
        """
        Y = self._raw
        seen, infinite = np.isfinite(Y), np.isinf(Y)
        known = np.where(seen, Y, 0.0)
        down, across = (np.arange(1.0, 1.0 + length) for length in Y.shape)
        empty = np.all(np.isnan(Y), axis=1)
        return (
            np.asarray([np.sum(seen), np.sum(known * known), down @ known @ across]),
            np.asarray([np.sum(infinite), *np.unravel_index(np.argmax(infinite), Y.shape)], float),
            np.asarray([np.sum(empty), np.argmax(empty)], dtype=float),
            np.min(np.where(seen, Y, np.inf), axis=0),
            np.max(np.where(seen, Y, -np.inf), axis=0),
        )

    def moments(self, centre: Array) -> tuple[Array, ...]:
        """Observed entries, sum and squares about a centre (D,) of each column."""
        seen = ~np.isnan(self._raw)
        away = np.where(seen, self._raw - np.asarray(centre), 0.0)
        count = np.sum(seen, axis=0).astype(float)
        return count, np.sum(away, axis=0), np.sum(away * away, axis=0)

    def patterns(self) -> tuple[Array, ...]:
        """A number for each column (D,), the same for columns observed in the same rows here."""
        _, which = np.unique(~np.isnan(self._raw), axis=1, return_inverse=True)
        return (np.ravel(which),)

    def prepare(self, mean: Array, scale: Array, which: Array) -> tuple[Array, ...]:
        """Centre and scale the rows; their observed rows and squares by groups (r,)."""
        which = np.asarray(which, dtype=np.int64)
        groups = int(which.max()) + 1
        seen = ~np.isnan(self._raw)
        Y = np.where(seen, (self._raw - np.asarray(mean)) / np.asarray(scale), 0.0)
        rows = np.full(1, float(Y.shape[0]))
        if groups > 1 or not seen.all():
            first = np.unique(which, return_index=True)[1]
            W = seen[:, first].astype(float)
            rows, self._W = np.sum(W, axis=0), self._home.asarray(W)
        self._Y = self._home.asarray(Y)
        self._raw = self._raw[:0]
        squares = np.bincount(which, weights=np.sum(Y * Y, axis=0), minlength=groups)
        return rows, squares

    def power(self, V: Array) -> tuple[Array, ...]:
        """Yᵀ Y V for V (D, k), a step of the search for principal components."""
        Y, V = self._Y, self._home.asarray(V)
        return (self._home.xp.matrix_transpose(Y) @ (Y @ V),)

    # -- the latents -----------------------------------------------------------------------------

    def project(self, V: Array) -> tuple[Array, ...]:
        """Latents Y V; of each column (q,) the sum and squares, and the entry farthest from 0."""
        xp = self._home.xp
        mu = self._Y @ self._home.asarray(V)
        self._mu: Array = mu
        self._S: Array | None = None
        low, high = xp.min(mu, axis=0), xp.max(mu, axis=0)
        far = xp.where(high >= -low, high, low)
        return xp.sum(mu, axis=0), xp.sum(mu * mu, axis=0), far

    def adjust(self, factor: Array, shift: Array, variance: Array) -> tuple[Array, ...]:
        """Latents times ``factor`` (q,) minus ``shift`` (q,); variances (1,), or (0,): points."""
        xp = self._home.xp
        factor, shift, variance = (self._home.asarray(a) for a in (factor, shift, variance))
        self._mu = self._mu * factor - shift
        self._S = None if variance.shape[0] == 0 else xp.zeros_like(self._mu) + variance
        return ()

    def place(self, mu: Array, S: Array) -> tuple[Array, ...]:
        """Take latents (n, q) and their variances, (0, q) for points."""
        self._mu = self._home.asarray(mu)
        self._S = None if S.shape[0] != mu.shape[0] else self._home.asarray(S)
        return ()

    def sample(self, step: Array) -> tuple[Array, ...]:
        """Every ``step``-th row of the latents."""
        return (self._mu[:: int(step[0]), :],)

    def latents(self) -> tuple[Array, ...]:
        """Latents (n, q) and variances, (0, q) for points."""
        return self._mu, self._mu[:0, :] if self._S is None else self._S

    # -- the search ------------------------------------------------------------------------------

    def begin(self, held: Array, memory: Array) -> tuple[Array, ...]:
        """Begin a search at the latents; ``held`` (2,) says whether means and variances stay."""
        host = self._home.to_host
        blocks = [Block("mu", host(self._mu), "identity", bool(held[0]))]
        if self._S is not None:
            blocks.append(Block("S", host(self._S), "log", bool(held[1])))
        self._layout = Layout(tuple(block for block in blocks if not block.fixed))
        self._slices = Slices(self._home.asarray(self._layout.start()), int(memory[0]))
        return ()

    # A point that fails is a value.
    @np.errstate(all="ignore")
    def sums(
        self, theta: Array, Z: Array, head: Array, coefficients: Array, keep: Array
    ) -> tuple[Array, ...]:
        """Follow an order; sums over the rows, the rows' own terms (1,), products of the line."""
        b, xp = self._b, self._b.xp
        x, line = self._slices.move((head, coefficients, keep))
        values, self._to_gradient = self._natural(x)
        mu, S = values["mu"], values.get("S")
        self._at = b.asarray(theta), b.asarray(Z), Rows(mu, S, self._moved(self._Y), self._where())
        sums = forward(self._plan.kernel, *self._at)
        if S is not None:
            own = -kl(mu, S)
        elif self._plan.latent_prior is not None:
            own = self._plan.latent_prior.log_density(mu)[0]
        else:
            own = b.scalar(0.0)
        return *sums, xp.reshape(own, (1,)), line

    @np.errstate(all="ignore")
    def gradients(self, psi0: Array, cross: Array, psi2: Array) -> tuple[Array, ...]:
        """Gradients for cotangents: in theta and Z; products; the largest entry, by shard."""
        b, home = self._b, self._home
        theta, Z, rows = self._at
        cotangents = Sums(b.asarray(psi0), b.asarray(cross), b.asarray(psi2))
        g = backward(self._plan.kernel, theta, Z, rows, cotangents)
        gmu, gS = g.mu, g.S
        if rows.S is not None:
            gmu, gS = gmu - rows.mu, gS - (0.5 - 0.5 / rows.S)
        elif self._plan.latent_prior is not None:
            gmu = gmu + self._plan.latent_prior.log_density(rows.mu)[1]
        own = -self._back(self._to_gradient({"mu": gmu, "S": gS}))
        products = self._slices.note(own)
        xp = home.xp
        largest = xp.max(xp.abs(own)) if own.shape[0] else home.scalar(0.0)
        here = xp.arange(self._count, device=home.device) == self._index
        return g.theta, g.Z, products, xp.where(here, largest, 0.0)

    def settle(self, head: Array, coefficients: Array, keep: Array) -> tuple[Array, ...]:
        """The part of the search after its last step."""
        self._slices.settle((head, coefficients, keep))
        return self._slices.state()

    def restore(self, x: Array, g: Array, s: Array, y: Array) -> tuple[Array, ...]:
        """Go on from such a part."""
        self._slices.restore(SliceState(*(self._home.asarray(a) for a in (x, g, s, y))))
        return ()

    def end(self, point: Array) -> tuple[Array, ...]:
        """Make a point of the search, by its number, the latents."""
        values, _ = self._natural(self._slices.point(int(point[0])))
        self._mu = self._back(values["mu"])
        self._S = self._back(values["S"]) if self._S is not None else None
        return ()

    def totals(self, theta: Array, Z: Array) -> tuple[Array, ...]:
        """Sums over the rows at the latents."""
        b = self._b
        S = None if self._S is None else self._moved(self._S)
        rows = Rows(self._moved(self._mu), S, self._moved(self._Y), self._where())
        return tuple(forward(self._plan.kernel, b.asarray(theta), b.asarray(Z), rows))

    def _natural(self, x: Array) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], Array]]:
        values, to_gradient = self._layout.unpack(self._moved(x))
        values.setdefault("mu", self._moved(self._mu))
        if self._S is not None:
            values.setdefault("S", self._moved(self._S))
        return values, to_gradient

    def _where(self) -> Array | None:
        return None if self._W is None else self._moved(self._W)

    def _moved(self, a: Array) -> Array:
        return a if self._plan.resident else self._b.asarray(a)

    def _back(self, a: Array) -> Array:
        return a if self._plan.resident else self._b.to_host(a)


__all__ = ["Shard", "Worker"]
