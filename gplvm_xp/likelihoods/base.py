"""What a likelihood is: ln p(y | f) and four derivatives in f; expectations come with it.

An expected log-likelihood under f ~ N(m, v), ℓ(m, v) = E[ln p(y | f)], has by the theorems of
Bonnet and Price ℓ_m = E[∂], ℓ_v = ½E[∂²], ℓ_mm = E[∂²], ℓ_mv = ½E[∂³], ℓ_vv = ¼E[∂⁴] with
∂ = d/df ln p. Gauss-Hermite quadrature is inherited; a likelihood with closed forms overrides
:meth:`Likelihood.expected`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.params import Block


class Expected(NamedTuple):
    """ℓ(m, v) and its derivatives, one number an observation, all of m's shape."""

    value: Array
    m: Array
    v: Array
    mm: Array
    mv: Array
    vv: Array


class Likelihood(ABC):
    """p(y | f), independent over observations.

    Subclasses are frozen dataclasses of hyperparameters (starting values) and settings; the
    hyperparameters in use arrive as ``theta`` (p,), natural space, in the order of
    :meth:`blocks`; None means the starting values. ``exposure`` multiplies: for counts the mean
    is exposure · exp(f); for a binomial it is the number of trials; None is 1. Observations with
    exposure 0, or masked ones, have weight 0 in the caller's sums: here they only must not give
    NaN (y = 0, exposure = 0).

    Attributes
    ----------
    name : str
        For files and the command line.
    log_concave : bool
        Whether ln p is concave in f, so that expected curvatures are never negative.
    normalised : bool
        Whether p sums to 1 over y, so that a free energy bounds the evidence.
    """

    name: ClassVar[str]
    log_concave: ClassVar[bool] = True
    normalised: ClassVar[bool] = True

    @abstractmethod
    def blocks(self) -> tuple[Block, ...]:
        """Hyperparameters: names, starting values, transforms."""

    @abstractmethod
    def with_theta(self, theta: np.ndarray) -> Likelihood:
        """The same likelihood with other starting values (host numbers, natural space)."""

    @abstractmethod
    def check(self, y: np.ndarray, exposure: np.ndarray | None = None) -> None:
        """Refuse host data that is not in the support (NaN entries are masked by the caller and
        ignored here).

        Raises
        ------
        ValueError
            With what was seen, what was expected, what to do.
        """

    @abstractmethod
    def log_prob(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """ln p(y | f), all constants, of f's shape."""

    @abstractmethod
    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """First to fourth derivative of ln p(y | f) in f."""

    @abstractmethod
    def expected(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        """ℓ(m, v) to second order; v ≥ 0."""

    @abstractmethod
    def expected_theta(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """∂ℓ/∂θ, (p, *m.shape)."""

    @abstractmethod
    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """Mean and variance of a new y under f ~ N(m, v) (law of total variance)."""

    @abstractmethod
    def log_predictive(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """ln E[p(y | f)] under f ~ N(m, v)."""


__all__ = ["Expected", "Likelihood"]
