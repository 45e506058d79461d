"""The exact objective at a point with its Hessian as a matrix: what a Newton search steps on.

The matrix costs about ten Hessian-vector products (:mod:`gplvm_xp.objectives.exact_matrices`), and
solving with it is worth hundreds of steps of conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.objectives.exact import ExactObjective
from gplvm_xp.objectives.exact_matrices import Order, matrices
from gplvm_xp.objectives.exact_point import ExactPoint

# Added to the Fisher information, relative to its mean diagonal, until it has a factor.
RIDGES = (0.0, 1e-10, 1e-7, 1e-4, 1e-1)
# Added for logarithms. Where a part of the kernel fades, the information about its variance goes
# faster than the gradient does: steps would have no bound.
LOGS = 0.01
# A logarithm beyond this is a parameter on its way to 0 or infinity: such a point is refused.
MOST_LOG = 100.0


class Metric(NamedTuple):
    """Second derivatives at a point, in an :class:`~gplvm_xp.objectives.exact_matrices.Order`.

    Attributes
    ----------
    hessian : array (d, d)
        Across the flat directions; along them it is as large as its largest diagonal entry.
    factor : array (d, d)
        Lower Cholesky factor of it, or of the Fisher information where it has none.
    definite : bool
        Whether it had one.
    bent : 0-d array
        Largest ‖H u‖ of the flat directions u: where the gradient vanishes, it does too.
    """

    hessian: Array
    factor: Array
    definite: bool
    bent: Array


class HessianPoint:
    """An exact objective at x with its Hessian as a matrix, as Newton's method asks for it.

    The metric is the Hessian where it is positive definite across the flat directions, else the
    Fisher information: far from a minimum that gives steps like those of the natural gradient.

    Parameters
    ----------
    objective : ExactObjective
    x : array (size,)
    flat : callable
        From ``objective`` and x to orthonormal directions (size, k), on the host, along which the
        objective does not change; k may be 0. They are projected out of everything.

    Raises
    ------
    ValueError, NotImplementedError
        As :class:`~gplvm_xp.objectives.exact_point.ExactPoint`.
    NotEnoughMemoryError
        If three matrices of size × size do not fit.
    """

    def __init__(
        self,
        objective: ExactObjective,
        x: Array,
        flat: Callable[[ExactObjective, Array], np.ndarray],
    ) -> None:
        self.exact, self.x = ExactPoint(objective, x), x
        b = self._b = objective.backend
        n, q = objective.positions.shape
        self._order = Order(b, x.shape[0] - n * q, n, q)
        b.require_memory(
            b.itemsize * (3 * x.shape[0] ** 2 + (5 * q + 6) * n * n),
            f"the Hessian of {x.shape[0]} parameters",
            "use fewer rows, optimizer='lbfgs', or a machine with more memory",
        )
        self._flat = flat
        self._directions: Array | None = None
        self._metric: Metric | None = None

    @property
    def value(self) -> Array:
        """Negative log posterior (nats, 0-d); +inf where it can't be evaluated."""
        xp = self._b.xp
        most = xp.max(xp.abs(self.exact._log_mask() * self.x))
        return xp.where(most <= MOST_LOG, self.exact.value, xp.inf)

    def gradient(self) -> Array:
        """The gradient, (size,), without the rounding it has along flat directions."""
        return self.across(self.exact.gradient())

    def hvp(self, u: Array) -> Array:
        """The Hessian across the flat directions times u. O(size²)."""
        return self.across(self.hessian(self.across(u)))

    def precondition(self, u: Array) -> Array:
        """The inverse of the metric times u, across the flat directions. O(size²)."""
        return self.across(self.solve(self.across(u)))

    def hessian(self, u: Array) -> Array:
        """The Hessian of :class:`Metric` times u."""
        return self._order.back(self.metric().hessian @ self._order.here(u))

    def scale(self, u: Array) -> Array:
        """The metric times u."""
        xp = self._b.xp
        L = xp.tril(self.metric().factor)
        return self._order.back(L @ (xp.matrix_transpose(L) @ self._order.here(u)))

    def solve(self, u: Array) -> Array:
        """The inverse of the metric times u."""
        v = self._order.here(u)[:, None]
        return self._order.back(self._b.cho_solve(self.metric().factor, v)[:, 0])

    def lowest(self) -> Array:
        """The eigenvector of the smallest eigenvalue of ``metric().hessian``. O(size³)."""
        _, vectors = self._b.xp.linalg.eigh(self.metric().hessian)
        return self._order.back(vectors[:, 0])

    @property
    def directions(self) -> Array:
        """The flat directions, (size, k)."""
        if self._directions is None:
            self._directions = self._b.asarray(self._flat(self.exact.objective, self.x))
        return self._directions

    def across(self, u: Array) -> Array:
        """u without its part along the flat directions."""
        U = self.directions
        return u - U @ (self._b.xp.matrix_transpose(U) @ u) if U.shape[1] else u

    @np.errstate(all="ignore")
    def metric(self) -> Metric:
        """The matrices at this point, made when first asked for; waits for the device."""
        if self._metric is None:
            self._metric = self._factorised(*matrices(self.exact, self._order))
        return self._metric

    def _factorised(self, hessian: Array, fisher: Array) -> Metric:
        b, xp = self._b, self._b.xp
        mean = xp.mean(b.diagonal(fisher))
        # Above the smallest eigenvalue, so that it is that of another direction.
        most = xp.max(xp.abs(xp.concat([b.diagonal(fisher), b.diagonal(hessian)])))
        U = self._order.here(self.directions)
        bent = b.scalar(0.0)
        if U.shape[1]:
            # (1 − U Uᵀ) H (1 − U Uᵀ) + most U Uᵀ = H − U Wᵀ − W Uᵀ.
            HU = hessian @ U
            bent = xp.sqrt(xp.max(xp.sum(HU * HU, axis=0)))
            W = HU - 0.5 * (U @ (xp.matrix_transpose(U) @ HU + most * b.eye(U.shape[1])))
            hessian -= U @ xp.matrix_transpose(W)
            hessian -= W @ xp.matrix_transpose(U)
            fisher += (most * U) @ xp.matrix_transpose(U)
        fisher = b.add_diagonal(fisher, LOGS * self._order.here(self.exact._log_mask()))
        L, ok = b.cholesky(xp.asarray(hessian, copy=True))
        if b.to_host(ok):
            return Metric(hessian, L, True, bent)
        for ridge in RIDGES:
            L, ok = b.cholesky(b.add_diagonal(xp.asarray(fisher, copy=True), ridge * mean))
            if b.to_host(ok):
                break
        return Metric(hessian, L, False, bent)


__all__ = ["HessianPoint", "Metric"]
