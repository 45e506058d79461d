"""What a search moves, and what is believed of it before the data: latents, kernel, noise.

Likelihoods of very different kinds share this frame: a flat vector goes to kernel parameters, noise
and positions, and the gradients of a likelihood in these three come back as that of the vector,
with the priors added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.latents import Latents, Pull, RowPrior, complete
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Prior


class Fit(NamedTuple):
    """A log-likelihood and its gradients.

    Attributes
    ----------
    value : array, 0-d
        Nats; not finite where it can't be evaluated.
    theta, noise, X : array (p,), 0-d and (n, q)
        Gradients in natural space.
    """

    value: Array
    theta: Array
    noise: Array
    X: Array


@dataclass(frozen=True)
class Unknowns:
    """Kernel parameters, noise and latents as one flat vector, with their priors.

    Parameters
    ----------
    kernel : Kernel
        Structure and starting values.
    latents : Latents
        Where positions come from.
    noise : float
        Starting noise variance σ², squared units of Y.
    latent_prior : Prior, RowPrior or None
        Prior of every latent coordinate, or of all rows together: its parameters are learned too.
    priors : mapping of str to Prior
        Priors of parameters by block name, in natural space.
    held : frozenset of str
        Names of blocks that stay at their starting values.

    Raises
    ------
    ValueError
        If a prior or a held name is not the name of a parameter.
    """

    kernel: Kernel
    latents: Latents
    noise: float
    latent_prior: Prior | RowPrior | None = None
    priors: Mapping[str, Prior] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.kernel.check(self.latents.shape[1])
        own = (*self.kernel.blocks(), Block("noise", self.noise), *self.row_blocks())
        names = [block.name for block in own]
        for label, given in (("priors", self.priors), ("held", self.held)):
            unknown = sorted(set(given) - {*names, "X"})
            if unknown:
                raise ValueError(f"{label} names {unknown}; the parameters are {names}")
        blocks = (*own, *self.latents.blocks())
        free = tuple(k for k in blocks if not k.fixed and k.name not in self.held)
        object.__setattr__(self, "layout", Layout(free))

    def values(self, b: Backend, x: Array) -> tuple[Array, Array, Array]:
        """theta (p,), noise (0-d) and X (n, q) at a point, blocks that are held included."""
        natural = self.layout.unpack(x)[0]
        return *self.named(b, natural), self.place(b, natural)[0]

    def all_values(self, b: Backend, x: Array) -> dict[str, Array]:
        """Every block of the latents and of a prior of rows by name, held ones included."""
        blocks = (*self.latents.blocks(), *self.row_blocks())
        return complete(b, blocks, self.layout.unpack(x)[0])

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def value_and_grad(
        self, b: Backend, x: Array, likelihood: Callable[[Array, Array, Array], Fit]
    ) -> tuple[Array, Array]:
        """The negative log posterior and its gradient.

        Parameters
        ----------
        b : Backend
        x : array (size,)
            Unconstrained values.
        likelihood : callable
            (theta (p,), noise (0-d), X (n, q)) → :class:`Fit`.

        Returns
        -------
        f : 0-d array
            Nats; +inf where the likelihood or a prior is not finite.
        g : array (size,)
            Arbitrary where f is +inf.
        """
        xp = b.xp
        natural, to_gradient = self.layout.unpack(x)
        theta, noise = self.named(b, natural)
        X, pull = self.place(b, natural)
        fit = likelihood(theta, noise, X)
        total, gX = fit.value, fit.X
        gradients = {"noise": fit.noise, **self.kernel_gradients(b, fit.theta)}
        if isinstance(self.latent_prior, RowPrior):
            own = complete(b, self.row_blocks(), natural)
            density, slope, gown = self.latent_prior.log_density(own, X)
            total, gX, gradients = total + density, gX + slope, {**gradients, **gown}
        elif self.latent_prior is not None:
            density, slope = self.latent_prior.log_density(X)
            total, gX = total + density, gX + slope
        gradients |= pull(gX)
        for name, prior in self.priors.items():
            if name in natural:
                density, slope = prior.log_density(natural[name])
                total, gradients[name] = total + density, gradients[name] + slope
        g = to_gradient(gradients)
        g *= -1.0
        infinite = xp.asarray(xp.inf, dtype=b.dtype, device=b.device)
        return xp.where(xp.isfinite(total), -total, infinite), g

    def named(self, b: Backend, natural: Mapping[str, Array]) -> tuple[Array, Array]:
        """theta (p,) and the noise (0-d) from the values that are learned."""
        values = complete(b, (*self.kernel.blocks(), Block("noise", self.noise)), natural)
        parts = [b.xp.reshape(values[k.name], (k.size,)) for k in self.kernel.blocks()]
        return b.xp.concat(parts), values["noise"]

    def place(self, b: Backend, natural: Mapping[str, Array]) -> tuple[Array, Pull]:
        """X (n, q) from the values that are learned, and its pullback."""
        return self.latents.positions(complete(b, self.latents.blocks(), natural))

    def row_blocks(self) -> tuple[Block, ...]:
        """Those of a prior of rows."""
        own = self.latent_prior
        return own.blocks() if isinstance(own, RowPrior) else ()

    def kernel_gradients(self, b: Backend, gtheta: Array) -> dict[str, Array]:
        """Gradients (p,) in theta by block."""
        where = Layout(self.kernel.blocks()).slices()
        return {
            block.name: b.xp.reshape(gtheta[where[block.name]], block.value.shape)
            for block in self.kernel.blocks()
        }


__all__ = ["Fit", "Unknowns"]
