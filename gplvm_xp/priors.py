"""Prior densities of parameters, with their gradients; all constants are kept.

A prior on a positive parameter is a density of the parameter itself, not of its logarithm: a fit
finds the mode in natural space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array


class Prior(ABC):
    """Independent prior of every entry of an array."""

    @abstractmethod
    def log_densities(self, value: Array) -> tuple[Array, Array]:
        """Log density of every entry (nats) and its slope; both in the shape of ``value``."""

    def log_density(self, value: Array) -> tuple[Array, Array]:
        """Sum of the log densities (0-d, nats) and its gradient (the shape of ``value``)."""
        density, slope = self.log_densities(value)
        return backend.of(value).xp.sum(density), slope

    def curvatures(self, value: Array) -> Array:
        """Second derivative of every entry's log density; only second-order methods need it.

        Raises
        ------
        NotImplementedError
            If the prior does not give it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no curvatures(): give it the second derivative of every "
            "entry's log density, or fit with an optimizer that needs none, such as 'lbfgs'"
        )


def _require_positive(prior: Prior, **values: float) -> None:
    bad = {k: v for k, v in values.items() if not (math.isfinite(v) and v > 0)}
    if bad:
        raise ValueError(f"{type(prior).__name__} got {bad}; expected positive finite numbers")


@dataclass(frozen=True)
class Gaussian(Prior):
    """N(mean, sd²). The default prior of the latents is ``Gaussian()``, N(0, 1)."""

    mean: float = 0.0
    sd: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, sd=self.sd)

    def log_densities(self, value: Array) -> tuple[Array, Array]:
        z = (value - self.mean) / self.sd
        constant = 0.5 * math.log(2.0 * math.pi) + math.log(self.sd)
        return -0.5 * z * z - constant, -z / self.sd

    def curvatures(self, value: Array) -> Array:
        return backend.of(value).xp.zeros_like(value) - 1.0 / (self.sd * self.sd)


@dataclass(frozen=True)
class LogNormal(Prior):
    """ln θ ~ N(mu, sigma²): ln p = −ln θ − ln σ − ½ ln 2π − (ln θ − μ)²/2σ²."""

    mu: float = 0.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, sigma=self.sigma)

    def log_densities(self, value: Array) -> tuple[Array, Array]:
        log = backend.of(value).xp.log(value)
        z = (log - self.mu) / self.sigma
        constant = 0.5 * math.log(2.0 * math.pi) + math.log(self.sigma)
        return -log - 0.5 * z * z - constant, -(1.0 + z / self.sigma) / value

    def curvatures(self, value: Array) -> Array:
        z = (backend.of(value).xp.log(value) - self.mu) / self.sigma
        return (1.0 + z / self.sigma - 1.0 / (self.sigma * self.sigma)) / (value * value)


@dataclass(frozen=True)
class Gamma(Prior):
    """Gamma(shape a, rate b), mean a/b: ln p = a ln b − ln Γ(a) + (a − 1) ln θ − b θ."""

    shape: float = 2.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, shape=self.shape, rate=self.rate)

    def log_densities(self, value: Array) -> tuple[Array, Array]:
        log = backend.of(value).xp.log(value)
        constant = self.shape * math.log(self.rate) - math.lgamma(self.shape)
        density = (self.shape - 1.0) * log - self.rate * value + constant
        return density, (self.shape - 1.0) / value - self.rate

    def curvatures(self, value: Array) -> Array:
        return (1.0 - self.shape) / (value * value)


__all__ = ["Gamma", "Gaussian", "LogNormal", "Prior"]
