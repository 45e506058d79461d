"""The exact log-likelihood of a GPLVM and its gradient, in one n × n buffer.

With K = k(X, X) + (σ² + jitter) I and Y (n, D) centred (Lawrence 2005; docs/derivations/exact.md):

* 𝓛 = −½ nD ln 2π − D Σ_i ln L_ii − ½ ⟨Y, α⟩, K = L Lᵀ, α = K⁻¹ Y;
* G = ∂𝓛/∂K = ½ (α αᵀ − D K⁻¹);
* ∂𝓛/∂X and ∂𝓛/∂θ contract G with the kernel's derivatives, ∂𝓛/∂σ² = tr G.

K is built into the buffer by blocks, factorised in place, inverted in place, turned into G in
place, and contracted by blocks that recompute k. Cost n³ + O(n² (q + D)); memory 8 n² bytes in
float64 and O(n) rows of blocks. Missing entries: outputs with the same set of observed rows share
a factorisation, one group after the other in the same buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Points, RowPrior, spread
from gplvm_xp.objectives.unknowns import Fit, Unknowns
from gplvm_xp.params import Layout
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class Group:
    """Outputs that are observed on the same rows.

    Attributes
    ----------
    columns : ndarray (c,)
        Host indices of the outputs.
    rows : ndarray (r,) or None
        Host indices of the observed rows; None is all of them.
    Y : array (r, min(c, r))
        The outputs, or a smaller matrix with the same Y Yᵀ (:func:`reduced`).
    outputs : int
        c, which the formulas need whatever Y was reduced to.
    """

    columns: np.ndarray
    rows: np.ndarray | None
    Y: Array
    outputs: int


def reduced(b: Backend, Y: np.ndarray) -> Array:
    """Y itself, or for c > r outputs the r × r factor R of Yᵀ = Q Rᵀ: the same Y Yᵀ.

    𝓛 sees Y through Y Yᵀ only, so this is done once, on the host.
    """
    if Y.shape[1] <= Y.shape[0]:
        return b.asarray(Y)
    return b.asarray(np.ascontiguousarray(np.linalg.qr(Y.T)[1].T))


def groups_of(b: Backend, Y: np.ndarray) -> tuple[Group, ...]:
    """Split a centred host table (n, D) with NaN for missing into groups of equal pattern.

    The number of factorisations an evaluation is the number of different patterns among the
    *columns*: 1 for complete data, up to D for entries that are missing at random.
    """
    seen = ~np.isnan(Y)
    if seen.all():
        columns = np.arange(Y.shape[1])
        return (Group(columns, None, reduced(b, Y), Y.shape[1]),)
    patterns, which = np.unique(seen, axis=1, return_inverse=True)
    which = np.ravel(which)
    groups = []
    for k in range(patterns.shape[1]):
        columns, rows = np.flatnonzero(which == k), np.flatnonzero(patterns[:, k])
        if rows.size == 0:
            continue
        part = Y[np.ix_(rows, columns)]
        complete = rows.size == Y.shape[0]
        groups.append(Group(columns, None if complete else rows, reduced(b, part), columns.size))
    return tuple(groups)


@dataclass(frozen=True)
class ExactObjective:
    """Negative log posterior (nats) of latents, kernel parameters and noise.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    groups : tuple of Group
        The data, see :func:`groups_of`.
    latents : Latents or ndarray (n, q)
        Where they come from; an array holds the starting positions, on the host.
    noise : float
        Starting noise variance σ², squared units of Y.
    latent_prior : Prior, RowPrior or None
        Prior of every latent coordinate, or of all rows together: its parameters are learned too.
    priors : mapping of str to Prior
        Priors of parameters by block name (``"rbf.variance"``, ``"noise"``), in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values.
    jitter : float
        Added to the diagonal; part of the model, in the value and in every derivative.

    Raises
    ------
    NotEnoughMemoryError
        If the buffer does not fit, before it is allocated.
    ValueError
        If a prior or a held name is not the name of a parameter.
    """

    kernel: Kernel
    groups: tuple[Group, ...]
    latents: Latents | np.ndarray
    noise: float
    latent_prior: Prior | RowPrior | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    jitter: float = 0.0
    unknowns: Unknowns = field(init=False)
    buffer: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unknowns = Unknowns(
            self.kernel, self.positions, self.noise, self.latent_prior, self.priors, self.held
        )
        object.__setattr__(self, "unknowns", unknowns)
        b = self.backend
        if isinstance(self.latent_prior, RowPrior):
            self.latent_prior.require_memory(b)
        rows = max(group.Y.shape[0] for group in self.groups)
        b.require_memory(
            b.itemsize * rows * rows,
            f"the exact likelihood of {rows} rows",
            "use fewer rows, dtype='float32' (half of it), or a machine with more memory",
        )
        object.__setattr__(self, "buffer", b.empty((rows * rows,)))

    @property
    def backend(self) -> Backend:
        """Where the data is."""
        return backend.of(self.groups[0].Y)

    @property
    def layout(self) -> Layout:
        """Where each block lies in the flat vector."""
        return self.unknowns.layout

    @property
    def positions(self) -> Latents:
        """Where the latents come from."""
        given = self.latents
        return given if isinstance(given, Latents) else Points(given)

    def start(self) -> Array:
        """The starting point: the flat unconstrained vector, on the device."""
        return self.backend.asarray(self.layout.start())

    def values(self, x: Array) -> tuple[Array, Array, Array]:
        """theta (p,), noise (0-d) and X (n, q) at a point, blocks that are held included."""
        return self.unknowns.values(self.backend, x)

    def all_values(self, x: Array) -> dict[str, Array]:
        """Every block of the latents and of a prior of rows by name, held ones included."""
        return self.unknowns.all_values(self.backend, x)

    def value_and_grad(self, x: Array) -> tuple[Array, Array]:
        """The objective and its gradient in the flat vector; nothing waits for the device.

        Parameters
        ----------
        x : array (size,)
            Unconstrained values, see :meth:`start`.

        Returns
        -------
        f : 0-d array
            Negative log posterior in nats; +inf where K is not positive definite.
        g : array (size,)
            Its gradient, arbitrary where f is +inf.
        """
        b = self.backend

        def likelihood(theta: Array, noise: Array, X: Array) -> Fit:
            value, ok, gtheta, gnoise, gX = log_likelihood(
                b, self.buffer, self.kernel, self.groups, theta, noise + self.jitter, X
            )
            return Fit(b.xp.where(ok, value, b.xp.nan), gtheta, gnoise, gX)

        return self.unknowns.value_and_grad(b, x, likelihood)


def log_likelihood(
    b: Backend,
    buffer: Array,
    kernel: Kernel,
    groups: tuple[Group, ...],
    theta: Array,
    noise: Array,
    X: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    """ln p(Y | X) of one table and its gradients, group after group in one buffer.

    Parameters
    ----------
    buffer : array
        Flat, at least the square of the most rows of a group; overwritten.
    noise : 0-d array
        What is on the diagonal beside the kernel, jitter included.
    X : array (n, q)

    Returns
    -------
    value : 0-d array
        Nats, all constants; arbitrary where a group has no Cholesky factor.
    ok : 0-d bool array
        Whether all groups have one.
    gtheta : array (p,)
    gnoise : 0-d array
    gX : array (n, q)
    """
    xp = b.xp
    total, gtheta, gnoise, gX = b.scalar(0.0), xp.zeros_like(theta), b.scalar(0.0), None
    ok = xp.asarray(True, device=b.device)
    for group in groups:
        rows = X if group.rows is None else b.rows(X, group.rows)
        value, fine, gt, gn, gr = _group(b, buffer, kernel, group, theta, noise, rows)
        total, gtheta, gnoise, ok = total + value, gtheta + gt, gnoise + gn, ok & fine
        gr = gr if group.rows is None else spread(b, gr, group.rows, X.shape[0])
        gX = gr if gX is None else gX + gr
    return total, ok, gtheta, gnoise, gX


def _group(
    b: Backend,
    buffer: Array,
    kernel: Kernel,
    group: Group,
    theta: Array,
    noise: Array,
    X: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    xp = b.xp
    n, D, Y = X.shape[0], group.outputs, group.Y
    K = kernel.fill_lower(theta, X, xp.reshape(buffer[: n * n], (n, n)))
    L, ok = b.cholesky(b.add_diagonal(K, noise))
    alpha = b.cho_solve(L, Y)
    value = -D * xp.sum(xp.log(b.diagonal(L))) - 0.5 * xp.sum(Y * alpha)
    value = value - 0.5 * n * D * math.log(2.0 * math.pi)
    inverse = b.inverse_from_cholesky(L)
    gnoise = 0.5 * (xp.sum(alpha * alpha) - D * xp.sum(b.diagonal(inverse)))
    G = b.rank_update(inverse, alpha, 0.5, -0.5 * D)
    del alpha, inverse, L, K
    gtheta, gX = kernel.symmetric_pullback(theta, X, G)
    return value, ok, gtheta, gnoise, gX


__all__ = ["ExactObjective", "Group", "groups_of", "log_likelihood", "reduced"]
