"""Several tables with the same rows and one set of latents: the exact log posterior of all.

Table v (n, D_v) is a draw of D_v Gaussian processes over latents X (n, q) that all tables have in
common, with a kernel and a noise of its own (Shon, Grochow, Hertzmann & Rao, NIPS 2005;
docs/derivations/shared.md):

* 𝓛 = Σ_v ln p(Y_v | X, θ_v, σ_v²), every term that of :mod:`gplvm_xp.objectives.exact`;
* ∂𝓛/∂X = Σ_v ∂𝓛_v/∂X; parameters of a table see their own term only.

A kernel that takes some of the dimensions only (``ActiveDims``) makes the others private to the
rest of the tables (Ek, Rihan, Torr, Rogez & Lawrence 2008). Tables go one after the other through
one n × n buffer: Σ_v (n³ + O(n² (q + D_v))) operations an evaluation, 8 n² bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Named, Points, Pull, complete
from gplvm_xp.objectives.exact import Group, log_likelihood
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class View:
    """One of several tables with the same rows.

    Parameters
    ----------
    name : str
        Its parameters are called by it: ``"left.rbf.variance"``, ``"left.noise"``.
    kernel : Kernel
        Of all q latent dimensions, with starting values.
    groups : tuple of Group
        The data, see :func:`gplvm_xp.objectives.groups_of`; rows that it lacks are in no group.
    noise : float
        Starting noise variance, squared units of the table.
    jitter : float
        Added to the diagonal, in the model.
    """

    name: str
    kernel: Kernel
    groups: tuple[Group, ...]
    noise: float
    jitter: float = 0.0

    def blocks(self) -> tuple[Block, ...]:
        """The parameters: those of the kernel in its order, and the noise last."""
        own = (*self.kernel.blocks(), Block("noise", self.noise))
        return tuple(replace(block, name=f"{self.name}.{block.name}") for block in own)

    def gradients(self, gtheta: Array, gnoise: Array) -> dict[str, Array]:
        """gtheta (p,) and the noise's by the names of :meth:`blocks`."""
        xp = backend.of(gtheta).xp
        *kernel, noise = self.blocks()
        where = Layout(tuple(kernel)).slices()
        out = {k.name: xp.reshape(gtheta[where[k.name]], k.value.shape) for k in kernel}
        return {**out, noise.name: gnoise}


@dataclass(frozen=True)
class UnitWidth(Latents):
    r"""Points whose scale is divided out: a gauge that leaves all lengthscales to be learned.

    Columns a of one set S share a scale that is divided out: X_a = R_a / s_S with

    .. math:: s_S^2 = \frac{1}{n |S|} \sum_{a \in S} \sum_i (R_{ia} - \bar R_a)^2,

    so that kernels' lengthscales along S can be learned and compared; columns of no set stay as
    they are. The gradient in R, with h_a = Σ_i gX_ia R_ia,

    .. math:: gR_{ia} = gX_{ia}/s_S - (R_{ia} - \bar R_a)\, \sum_{c \in S} h_c / (n |S| s_S^3),

    has no part along R's own scale.

    Parameters
    ----------
    start : ndarray (n, q)
        On the host; any scale.
    sets : tuple of tuples of int
        Disjoint sets of columns.
    """

    start: np.ndarray
    sets: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, int]:
        n, q = self.start.shape
        return n, q

    def blocks(self) -> tuple[Block, ...]:
        return (Block("X", self.start, "identity"),)

    def positions(self, values: Named) -> tuple[Array, Pull]:
        R = values["X"]
        b = backend.of(R)
        xp = b.xp
        n, q = self.shape
        average, alone = np.zeros((q, q)), np.ones(q)
        for columns in self.sets:
            average[np.ix_(columns, columns)], alone[list(columns)] = 1.0 / len(columns), 0.0
        M = b.asarray(average)
        from_mean = R - xp.mean(R, axis=0, keepdims=True)
        scale = xp.sqrt(xp.mean(from_mean * from_mean, axis=0) @ M + b.asarray(alone))

        def pull(gX: Array) -> dict[str, Array]:
            along = (xp.sum(gX * R, axis=0) @ M) / (n * scale * scale * scale)
            return {"X": gX / scale - from_mean * along}

        return R / scale, pull


@dataclass(frozen=True)
class SharedObjective:
    """Negative log posterior (nats) of the latents and every table's parameters.

    Parameters
    ----------
    views : tuple of View
        One or more tables, with different names.
    latents : Latents or ndarray (n, q)
        Where they come from; an array holds the starting positions, on the host.
    latent_prior : Prior or None
        Of every latent coordinate.
    priors : mapping of str to Prior
        Of parameters by name, see :meth:`View.blocks`, in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values.

    Raises
    ------
    NotEnoughMemoryError
        If the buffer does not fit, before it is allocated.
    ValueError
        If a kernel can't take q dimensions, two tables have one name, or a prior or a held name is
        not the name of a parameter.
    """

    views: tuple[View, ...]
    latents: Latents | np.ndarray
    latent_prior: Prior | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    layout: Layout = field(init=False)
    buffer: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        blocks = tuple(block for view in self.views for block in view.blocks())
        names = [block.name for block in blocks]
        for view in self.views:
            view.kernel.check(self.positions.shape[1])
        for label, given in (("priors", self.priors), ("held", self.held)):
            unknown = sorted(set(given) - {*names, *(["X"] if label == "held" else [])})
            if unknown:
                raise ValueError(f"{label} names {unknown}; the parameters are {names}")
        blocks = (*blocks, *self.positions.blocks())
        free = tuple(k for k in blocks if not k.fixed and k.name not in self.held)
        object.__setattr__(self, "layout", Layout(free))
        b = self.backend
        rows = max(group.Y.shape[0] for view in self.views for group in view.groups)
        b.require_memory(
            b.itemsize * rows * rows,
            f"the exact likelihood of {rows} rows",
            "use fewer rows, dtype='float32' (half of it), or a machine with more memory",
        )
        object.__setattr__(self, "buffer", b.empty((rows * rows,)))

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.views[0].groups[0].Y)

    @property
    def positions(self) -> Latents:
        """Where the latents come from."""
        given = self.latents
        return given if isinstance(given, Latents) else Points(given)

    def start(self) -> Array:
        """The starting point: the flat unconstrained vector, on the device."""
        return self.backend.asarray(self.layout.start())

    def values(self, x: Array) -> tuple[list[tuple[Array, Array]], Array]:
        """(theta (p_v,), noise (0-d)) of every table and X (n, q), held blocks included."""
        natural = self.layout.unpack(x)[0]
        return [self._named(view, natural) for view in self.views], self._place(natural)[0]

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
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
            Its gradient, arbitrary where f is +inf.
        """
        b = self.backend
        xp = b.xp
        natural, to_gradient = self.layout.unpack(x)
        X, pull = self._place(natural)
        total, gX = b.scalar(0.0), xp.zeros_like(X)
        gradients: dict[str, Array] = {}
        ok = xp.asarray(True, device=b.device)
        for view in self.views:
            theta, noise = self._named(view, natural)
            value, fine, gtheta, gnoise, gown = log_likelihood(
                b, self.buffer, view.kernel, view.groups, theta, noise + view.jitter, X
            )
            total, ok, gX = total + value, ok & fine, gX + gown
            gradients |= view.gradients(gtheta, gnoise)
        for name, prior in self.priors.items():
            if name in natural:
                density, slope = prior.log_density(natural[name])
                total, gradients[name] = total + density, gradients[name] + slope
        if self.latent_prior is not None:
            density, slope = self.latent_prior.log_density(X)
            total, gX = total + density, gX + slope
        f = xp.where(
            ok & xp.isfinite(total), -total, xp.asarray(xp.inf, dtype=b.dtype, device=b.device)
        )
        g = to_gradient(gradients | pull(gX))
        g *= -1.0
        return f, g

    def _named(self, view: View, natural: Mapping[str, Array]) -> tuple[Array, Array]:
        xp = self.backend.xp
        *kernel, noise = complete(self.backend, view.blocks(), natural).values()
        return xp.concat([xp.reshape(value, (-1,)) for value in kernel]), noise

    def _place(self, natural: Mapping[str, Array]) -> tuple[Array, Pull]:
        where = self.positions
        return where.positions(complete(self.backend, where.blocks(), natural))


__all__ = ["SharedObjective", "UnitWidth", "View"]
