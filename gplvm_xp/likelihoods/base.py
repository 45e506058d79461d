"""What a likelihood is: ln p(y | f) and four derivatives in f; expectations come with it.

An expected log-likelihood under f ~ N(m, v), ℓ(m, v) = E[ln p(y | f)], has by the theorems of
Bonnet and Price ℓ_m = E[∂], ℓ_v = ½E[∂²], ℓ_mm = E[∂²], ℓ_mv = ½E[∂³], ℓ_vv = ¼E[∂⁴] with
∂ = d/df ln p. A new likelihood implements the methods marked *contract*, in one file; quadrature
gives the rest, and a likelihood with closed forms overrides :meth:`Likelihood.expected_varying`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.likelihoods import quadrature
from gplvm_xp.params import Block

# Below this share of width², v is small: see _expectations.
_SMALL = 0.05


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
    NaN (y = 0, exposure = 0). m and v have one shape; y and exposure broadcast to it. Results are
    arrays of m's (or f's) library, device and dtype. What overflows is infinite, without a warning.

    Attributes
    ----------
    name : str
        For files, the command line and the names of blocks.
    parameters : tuple of str
        Fields that are hyperparameters, each one positive number.
    log_concave : bool
        Whether ln p is concave in f, so that expected curvatures are never negative.
    normalised : bool
        Whether p sums to 1 over y, so that a free energy bounds the evidence.
    nodes : int
        Order of the Gauss-Hermite rule, see :func:`gplvm_xp.likelihoods.quadrature.rule`; a field
        of those likelihoods that use it.
    fixed : tuple of str
        Hyperparameters that a fit leaves alone; a field of those that have any.
    """

    name: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]] = ()
    log_concave: ClassVar[bool] = True
    normalised: ClassVar[bool] = True
    nodes: int = 180
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.blocks()
        if not (isinstance(self.nodes, int) and 2 <= self.nodes <= quadrature.MOST_NODES):
            raise ValueError(
                f"{type(self).__name__} got nodes={self.nodes!r}; expected a whole number from "
                f"2 to {quadrature.MOST_NODES}"
            )

    # -- contract: a new likelihood implements these ---------------------------------------------

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
    def varying(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """The terms of ln p(y | f) that depend on f, of f's shape.

        Terms that do not may be here too; in :meth:`constant` they cost one pass instead of one a
        node.
        """

    @abstractmethod
    def derivatives(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """First to fourth derivative of ln p(y | f) in f, each of f's shape."""

    @abstractmethod
    def moments(
        self, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """Mean and variance of y given f, each of f's shape."""

    # -- what those with hyperparameters, constants or an own scale add --------------------------

    def constant(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """The other terms of ln p(y | f), of a shape that broadcasts to f's. Default: none."""
        return backend.of(y).scalar(0.0)

    def varying_theta(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """∂ :meth:`varying`/∂θ, (p, *f.shape). Needed where there are hyperparameters."""
        if self.parameters:
            raise NotImplementedError(
                f"{type(self).__name__} has the hyperparameters {list(self.parameters)}; define "
                "varying_theta, the derivatives of varying in them"
            )
        return backend.of(f).zeros((0, *f.shape))

    def constant_theta(
        self, y: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """∂ :meth:`constant`/∂θ, of a shape that broadcasts to (p, *y.shape). Default: zero."""
        return backend.of(y).scalar(0.0)

    def width(self, theta: Array | None = None) -> Array | float:
        """Change of f over which ln p bends, such as the distance of its nearest pole.

        Only says from which v on quadrature uses which of two forms; default 1.
        """
        return 1.0

    # -- what follows from it --------------------------------------------------------------------

    def theta(self) -> np.ndarray:
        """The starting values in natural space, (p,), on the host."""
        return np.asarray([getattr(self, p) for p in self.parameters], dtype=np.float64)

    def theta_in(self, b: Backend, theta: Array | None) -> Array:
        """``theta``, or the starting values as an array of the backend where it is None."""
        return b.asarray(self.theta()) if theta is None else theta

    def blocks(self) -> tuple[Block, ...]:
        """Hyperparameters: names, starting values, transforms.

        Raises
        ------
        ValueError
            If ``fixed`` has a name that is not one of them, or one is not a positive number.
        """
        if isinstance(self.fixed, str):
            raise ValueError(
                f"fixed={self.fixed!r} was given; expected a tuple of names: ({self.fixed!r},)"
            )
        unknown = sorted(set(self.fixed) - set(self.parameters))
        if unknown:
            raise ValueError(
                f"fixed names {unknown}; {type(self).__name__} has {list(self.parameters)}"
            )
        blocks = tuple(
            Block(f"{self.name}.{p}", getattr(self, p), fixed=p in self.fixed)
            for p in self.parameters
        )
        for p, block in zip(self.parameters, blocks, strict=True):
            if block.value.ndim:
                raise ValueError(
                    f"{type(self).__name__} got {p}={getattr(self, p)!r}; expected one number"
                )
        return blocks

    def with_theta(self, theta: np.ndarray) -> Self:
        """The same likelihood with other starting values (host numbers, natural space)."""
        flat = [float(v) for v in np.asarray(theta, dtype=np.float64).ravel()]
        values: dict[str, Any] = dict(zip(self.parameters, flat, strict=True))
        this: Any = self
        changed: Self = dataclasses.replace(this, **values)
        return changed

    def log_prob(
        self, y: Array, f: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> Array:
        """ln p(y | f), all constants, of f's shape."""
        return self.varying(y, f, theta, exposure) + self.constant(y, theta, exposure)

    def expected(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        """ℓ(m, v) to second order; v ≥ 0, which is not checked."""
        e = self.expected_varying(y, m, v, theta, exposure)
        return e._replace(value=e.value + self.constant(y, theta, exposure))

    @np.errstate(all="ignore")
    def expected_varying(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Expected:
        """:meth:`expected` without :meth:`constant`, for loops over m and v.

        By quadrature, f_k = m + √v x_k with weights ω_k: the derivatives are those of the returned
        value itself, ℓ_v = Σ ω x ∂/(2√v), ℓ_mv = Σ ω x ∂²/(2√v),
        ℓ_vv = ¼ Σ ω [x² ∂²/v − x ∂/v^(3/2)], so that line searches and Newton steps see one
        function. They cancel as v → 0, so that for v < 0.05 width² the averages of ½∂², ½∂³, ¼∂⁴
        stand in; there the two differ by less than rounding (derivations/likelihoods.md). Cost:
        evaluations of :meth:`varying` and :meth:`derivatives`; memory O(N).
        """
        xp = backend.of(m).xp
        value = d1 = d2 = d3 = d4 = xd1 = xd2 = xxd2 = xp.zeros_like(m)
        for f, w in quadrature.along(m, v, self.nodes, powers=3):
            value = value + xp.tensordot(w[0, :], self.varying(y, f, theta, exposure), axes=1)
            first, second, third, fourth = self.derivatives(y, f, theta, exposure)
            one = xp.tensordot(w[:2, :], first, axes=1)
            two = xp.tensordot(w, second, axes=1)
            d1, xd1 = d1 + one[0, ...], xd1 + one[1, ...]
            d2, xd2, xxd2 = d2 + two[0, ...], xd2 + two[1, ...], xxd2 + two[2, ...]
            d3 = d3 + xp.tensordot(w[0, :], third, axes=1)
            d4 = d4 + xp.tensordot(w[0, :], fourth, axes=1)
        width = self.width(theta)
        small = v < _SMALL * (width * width)
        safe = xp.where(small, 1.0, v)
        root = xp.sqrt(safe)
        return Expected(
            value,
            d1,
            0.5 * xp.where(small, d2, xd1 / root),
            d2,
            0.5 * xp.where(small, d3, xd2 / root),
            0.25 * xp.where(small, d4, (xxd2 - xd1 / root) / safe),
        )

    @np.errstate(all="ignore")
    def expected_theta(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """∂ℓ/∂θ, (p, *m.shape)."""
        b = backend.of(m)
        total = b.zeros((len(self.parameters), *m.shape))
        if not self.parameters:
            return total
        for f, w in quadrature.along(m, v, self.nodes):
            slopes = self.varying_theta(y, f, theta, exposure)
            total = total + b.xp.tensordot(w[0, :], slopes, axes=((0,), (1,)))
        return total + self.constant_theta(b.xp.broadcast_to(y, m.shape), theta, exposure)

    @np.errstate(all="ignore")
    def predict(
        self, m: Array, v: Array, theta: Array | None = None, exposure: Array | None = None
    ) -> tuple[Array, Array]:
        """Mean and variance of a new y under f ~ N(m, v) (law of total variance)."""
        xp = backend.of(m).xp
        # Deviations from a value in the middle, because the variance is a difference of squares.
        middle, _ = self.moments(m, theta, exposure)
        first = second = spread = xp.zeros_like(m)
        for f, w in quadrature.along(m, v, self.nodes):
            mean, variance = self.moments(f, theta, exposure)
            away = mean - middle
            first = first + xp.tensordot(w[0, :], away, axes=1)
            second = second + xp.tensordot(w[0, :], away * away, axes=1)
            spread = spread + xp.tensordot(w[0, :], variance, axes=1)
        return middle + first, spread + (second - first * first)

    @np.errstate(all="ignore")
    def log_predictive(
        self,
        y: Array,
        m: Array,
        v: Array,
        theta: Array | None = None,
        exposure: Array | None = None,
    ) -> Array:
        """ln E[p(y | f)] under f ~ N(m, v), of m's shape.

        By a sum that adapts to the place and width of p(y | f) N(f; m, v), for a likelihood that
        is log-concave in f; others may have a second mode, and override this.
        """

        def value(f: Array) -> Array:
            return self.varying(y, f, theta, exposure)

        def slopes(f: Array) -> tuple[Array, Array]:
            first, second, _, _ = self.derivatives(y, f, theta, exposure)
            return first, second

        average = quadrature.log_average(value, slopes, m, v)
        return average + self.constant(y, theta, exposure)


__all__ = ["Expected", "Likelihood"]
