"""The variational bound of a GPLVM with inducing inputs, in everything that is learned.

F = collapsed bound − KL(q(X) || p(X)), q(x_n) = N(μ_n, diag S_n), p(x_n) = N(0, I),
KL = ½ Σ (μ² + S − ln S − 1) (Titsias & Lawrence 2010). With points in place of q(X) it is the
sparse GPLVM: the same algebra on S = 0, and a prior density in place of the KL. μ and S are
parameters, or a map of the data gives them (docs/derivations/back_constraints.md). Missing entries:
outputs with the same observed rows form a group, each with factors of its own (exact).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Named, complete
from gplvm_xp.objectives.collapsed import Totals, collapsed, optimum
from gplvm_xp.objectives.exact import reduced
from gplvm_xp.objectives.rows import CHUNK_BYTES, ROWS_BYTES, Rows, backward, forward
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior

CloudPull = Callable[[Array, Array], dict[str, Array]]


@dataclass(frozen=True)
class Observed:
    """A centred table ready for the objectives.

    Attributes
    ----------
    Y : array (n, D)
        0 where missing.
    W : array (n, r) or None
        Which groups of outputs are observed in each row; None: all of them.
    totals : Totals
    """

    Y: Array
    W: Array | None
    totals: Totals

    @classmethod
    def of(cls, b: Backend, Y: np.ndarray, *, reduce: bool = False) -> Observed:
        """Of a centred host table (n, D), NaN for missing.

        Parameters
        ----------
        reduce : bool
            Replace a complete table of more columns than rows by n columns with the same Y Yᵀ,
            which is all that the bound sees of it.
        """
        seen = ~np.isnan(Y)
        if seen.all():
            which = np.zeros(Y.shape[1], dtype=np.int64)
            table = reduced(b, Y) if reduce else b.asarray(Y)
            return cls(table, None, Totals.of(Y, which, None))
        patterns, which = np.unique(seen, axis=1, return_inverse=True)
        zeroed, W = np.where(seen, Y, 0.0), patterns.astype(float)
        totals = Totals.of(zeroed, np.ravel(which), W)
        return cls(b.asarray(zeroed), b.asarray(W), totals)


class Values(NamedTuple):
    """Everything learned, at one point, in natural space.

    Attributes
    ----------
    theta : array (p,)
    noise : 0-d array
    Z : array (M, q)
    mu : array (n, q)
    S : array (n, q) or None
    """

    theta: Array
    noise: Array
    Z: Array
    mu: Array
    S: Array | None


class Bound(NamedTuple):
    """A bound or an approximate likelihood, without priors of parameters or of points.

    Attributes
    ----------
    value : 0-d array
        Nats.
    ok : 0-d bool array
        Whether every factor exists.
    gradients : Values
        In everything learned.
    """

    value: Array
    ok: Array
    gradients: Values


def memory(b: Backend, latents: tuple[int, ...], M: int, r: int, D: int) -> int:
    """Bytes that an evaluation takes beside the data, about and rather too many.

    The latents (n, q), their gradients and copies, M × M matrices of each of r groups of D
    outputs, and the temporaries of a chunk of rows.
    """
    n, q = latents
    held: int = b.itemsize * (10 * n * q + (12 * r + 6) * M * M + 6 * M * D)
    widest = b.itemsize * n * max(M, D)
    return held + min(CHUNK_BYTES, b.itemsize * n * M * M) + 8 * min(ROWS_BYTES, widest)


def require_memory(b: Backend, latents: tuple[int, ...], M: int, r: int, D: int) -> None:
    """Refuse where evaluations do not fit: see :func:`memory`.

    Raises
    ------
    NotEnoughMemoryError
        If they don't.
    """
    b.require_memory(
        memory(b, latents, M, r, D),
        f"the bound of {latents[0]} rows with {M} inducing inputs and {r} group(s) of columns with "
        "the same observed rows",
        "use a smaller n_inducing, dtype='float32' (half of it), minibatches, or a machine with "
        "more memory",
    )


@dataclass(frozen=True)
class InducingObjective(ABC):
    """Negative bound (nats) of latents, inducing inputs, kernel parameters and noise.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    data : Observed
    mu : ndarray (n, q)
        Starting means of the latents, or the points, on the host.
    S : ndarray (n, q) or None
        Starting variances; None for points.
    Z : ndarray (M, q)
        Starting inducing inputs.
    noise : float
        Starting noise variance σ², squared units of Y.
    latent_prior : Prior or None
        Of points only; q(X) has N(0, I).
    priors : mapping of str to Prior
        Of parameters by block name, in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values: kernel blocks, "noise", "Z", "mu", "S".
    jitter : float
        Added to the diagonal of K_uu as this multiple of its mean; part of the model.
    latents : Latents or None
        Where (μ, ln S) come from, positions (n, 2q), in the place of parameters "mu" and "S".

    Raises
    ------
    ValueError
        If a prior or a held name is not the name of a parameter.
    """

    kernel: Kernel
    data: Observed
    mu: np.ndarray
    S: np.ndarray | None
    Z: np.ndarray
    noise: float
    latent_prior: Prior | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    jitter: float = 0.0
    latents: Latents | None = None
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.kernel.check(self.Z.shape[1])
        blocks = [
            *self.kernel.blocks(),
            Block("noise", self.noise),
            Block("Z", self.Z, "identity"),
        ]
        if self.latents is not None:
            blocks += self.latents.blocks()
        else:
            blocks.append(Block("mu", self.mu, "identity"))
            blocks += [] if self.S is None else [Block("S", self.S)]
        names = [block.name for block in blocks]
        for label, given in (("priors", self.priors), ("held", self.held)):
            unknown = sorted(set(given) - set(names))
            if unknown:
                raise ValueError(f"{label} names {unknown}; the parameters are {names}")
        free = tuple(k for k in blocks if not k.fixed and k.name not in self.held)
        object.__setattr__(self, "layout", Layout(free))

    def memory(self) -> int:
        """Bytes that an evaluation takes beside the data: see :func:`memory`."""
        return memory(self.backend, self.mu.shape, self.Z.shape[0], *self._outputs)

    @property
    def _outputs(self) -> tuple[int, int]:
        return self.data.totals.outputs.size, self.data.totals.which.size

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.data.Y)

    def start(self) -> Array:
        """The starting point: the flat unconstrained vector, on the device.

        Raises
        ------
        NotEnoughMemoryError
            If evaluations do not fit, see :func:`memory`; nothing is allocated then.
        """
        require_memory(self.backend, self.mu.shape, self.Z.shape[0], *self._outputs)
        return self.backend.asarray(self.layout.start())

    def values(self, x: Array) -> Values:
        """Everything learned at a point, blocks that are held included."""
        return self._named(self.layout.unpack(x)[0])[0]

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """The objective and its gradient in the flat vector; nothing waits for the device.

        Parameters
        ----------
        x : array (size,)

        Returns
        -------
        f : 0-d array
            Negative bound in nats; +inf where a factor does not exist.
        g : array (size,)
            Its gradient, arbitrary where f is +inf.
        """
        b = self.backend
        xp = b.xp
        natural, to_gradient = self.layout.unpack(x)
        v, pull = self._named(natural)
        total, ok, g = self.bound(v)
        gradients = {"noise": g.noise, "Z": g.Z, **pull(g.mu, g.S)}
        gradients |= self._kernel_gradients(g.theta)
        priors = dict(self.priors)
        if v.S is None and self.latent_prior is not None:
            priors["mu"] = self.latent_prior
        for name, prior in priors.items():
            if name in natural:
                density, slope = prior.log_density(natural[name])
                total, gradients[name] = total + density, gradients[name] + slope
        inf = xp.asarray(xp.inf, dtype=b.dtype, device=b.device)
        f = xp.where(ok & xp.isfinite(total), -total, inf)
        out = to_gradient(gradients)
        out *= -1.0
        return f, out

    @abstractmethod
    def bound(self, v: Values) -> Bound:
        """The bound at a point, KL(q(X) || p(X)) included, and its gradients."""

    @abstractmethod
    def optimal(self, v: Values) -> tuple[Array, Array, Array]:
        """The optimal whitened q(u) at a point: mean (M, D), factor (r, M, M), ok.

        As :func:`gplvm_xp.objectives.collapsed.optimum`; the data must not be reduced.
        """

    def _named(self, natural: Mapping[str, Array]) -> tuple[Values, CloudPull]:
        """Everything learned, and what gradients in μ and S are in what they are made of."""
        b = self.backend

        def one(name: str, value: np.ndarray | float) -> Array:
            return natural[name] if name in natural else b.asarray(np.asarray(value))

        parts = [
            b.xp.reshape(one(block.name, block.value), (block.size,))
            for block in self.kernel.blocks()
        ]
        theta, noise, Z = b.xp.concat(parts), one("noise", self.noise), one("Z", self.Z)
        if self.latents is not None:
            own = complete(b, self.latents.blocks(), natural)
            mu, S, pull = clouds(self.latents, own)
            return Values(theta, noise, Z, mu, S), pull
        S = None if self.S is None else one("S", self.S)
        return Values(theta, noise, Z, one("mu", self.mu), S), lambda gmu, gS: {"mu": gmu, "S": gS}

    def _kernel_gradients(self, gtheta: Array) -> dict[str, Array]:
        where = Layout(self.kernel.blocks()).slices()
        return {
            block.name: self.backend.xp.reshape(gtheta[where[block.name]], block.value.shape)
            for block in self.kernel.blocks()
        }


@dataclass(frozen=True)
class BayesianObjective(InducingObjective):
    """The variational bound, or with points and without its trace term the DTC likelihood.

    Parameters
    ----------
    trace : bool
        False leaves the trace term out (DTC).
    """

    trace: bool = True

    def bound(self, v: Values) -> Bound:
        rows = Rows(v.mu, v.S, self.data.Y, self.data.W)
        sums = forward(self.kernel, v.theta, v.Z, rows)
        K, pull = inducing_gram(self.kernel, v.theta, v.Z, self.jitter)
        c = collapsed(self.backend, K, v.noise, sums, self.data.totals, trace=self.trace)
        g = backward(self.kernel, v.theta, v.Z, rows, c.sums)
        gtheta, gZ = pull(c.K)
        value, gmu, gS = c.value, g.mu, g.S
        if v.S is not None:
            # In place: these arrays are the largest of all.
            value = value - kl(v.mu, v.S)
            gmu -= v.mu
            gS -= 0.5 - 0.5 / v.S
        return Bound(value, c.ok, Values(gtheta + g.theta, c.noise, gZ + g.Z, gmu, gS))

    def optimal(self, v: Values) -> tuple[Array, Array, Array]:
        rows = Rows(v.mu, v.S, self.data.Y, self.data.W)
        sums = forward(self.kernel, v.theta, v.Z, rows)
        K, _ = inducing_gram(self.kernel, v.theta, v.Z, self.jitter)
        return optimum(self.backend, K, v.noise, sums, self.data.totals)


def clouds(latents: Latents, values: Named) -> tuple[Array, Array, CloudPull]:
    """Means and variances (n, q) from positions (n, 2q), which hold means and ln variances.

    The pullback takes gradients in both to gradients by name: ∂/∂ln S = S ∂/∂S.
    """
    both, pull = latents.positions(values)
    xp = backend.of(both).xp
    q = both.shape[1] // 2
    mu, S = both[:, :q], xp.exp(both[:, q:])
    return mu, S, lambda gmu, gS: pull(xp.concat([gmu, S * gS], axis=1))


def inducing_gram(
    kernel: Kernel, theta: Array, Z: Array, jitter: float
) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """K_uu = k(Z, Z) + ε mean_m k(z_m, z_m) I, and its pullback G (M, M) → (gtheta, gZ).

    Relative, because a kernel's variance may grow by orders of magnitude in a fit, and an absolute
    jitter would then be lost in the rounding of K_uu, and the bound with it.
    """
    b = backend.of(Z)
    M = Z.shape[0]
    K, pull = kernel.gram_pullback(theta, Z)
    diagonal, diag_pull = kernel.diag_pullback(theta, Z)
    share = jitter / M

    def pullback(G: Array) -> tuple[Array, Array]:
        gtheta, gZ, _ = pull(G)
        trace = share * b.xp.sum(b.diagonal(G))
        more, gZ_more = diag_pull(b.xp.broadcast_to(trace, (M,)))
        return gtheta + more, gZ + gZ_more

    return b.add_diagonal(K, share * b.xp.sum(diagonal)), pullback


def kl(mu: Array, S: Array) -> Array:
    """KL(q(X) || N(0, I)) = ½ Σ (μ² + S − ln S − 1), 0-d; gradients μ and ½ (1 − 1/S)."""
    xp = backend.of(mu).xp
    return 0.5 * (xp.sum(mu * mu) + xp.sum(S - xp.log(S)) - mu.shape[0] * mu.shape[1])


__all__ = [
    "BayesianObjective",
    "Bound",
    "CloudPull",
    "InducingObjective",
    "Observed",
    "Values",
    "clouds",
    "inducing_gram",
    "kl",
    "memory",
    "require_memory",
]
