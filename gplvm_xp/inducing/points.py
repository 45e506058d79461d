"""New rows of a model whose latents are points: the mode of their density, and its curvature.

With m_d, s_d = v_d + σ² the predictive moments at x*, over the observed outputs of the row,

f = ½ Σ_d [(y_d − m_d)²/s_d + ln s_d + ln 2π] − ln p(x*),

∂f/∂m_d = (m_d − y_d)/s_d, ∂f/∂v_d = ½ [1/s_d − (y_d − m_d)²/s_d²]: the exact model's objective
(derivations/new_rows.md) with the moments of :class:`gplvm_xp.inducing.InducingPosterior`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.inducing.base import InducingPosterior
from gplvm_xp.inducing.search import Placed, starts
from gplvm_xp.optim.modes import best_of, hessians, laplace, newton_step
from gplvm_xp.priors import Prior


@dataclass(frozen=True)
class NewPoints:
    """Latents x* of new rows; made by :meth:`of`.

    Attributes
    ----------
    posterior : InducingPosterior
        With Gaussian noise.
    prior : Prior or None
        Of the latents.
    Y : array (N, D)
        Anything where ``seen`` is 0.
    seen : array (N, D)
        1 where observed, 0 where missing.
    """

    posterior: InducingPosterior
    prior: Prior | None
    Y: Array
    seen: Array

    @classmethod
    def of(cls, p: InducingPosterior, prior: Prior | None, Y: np.ndarray) -> NewPoints:
        """Host rows (N, D), NaN for missing.

        Raises
        ------
        ValueError
            If the posterior's likelihood is not Gaussian.
        """
        if p.noise is None:
            raise ValueError(
                f"new rows as points need Gaussian noise, and the likelihood is {p.likelihood!r}; "
                "use a model with uncertain latents"
            )
        b = p.backend
        seen = ~np.isnan(Y)
        return cls(p, prior, b.asarray(np.where(seen, Y, 0.0)), b.asarray(seen.astype(np.float64)))

    # A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
    @np.errstate(all="ignore")
    def value_and_grad(self, X: Array, index: Array) -> tuple[Array, Array]:
        """f (c,) and its gradient (c, q) of the rows ``index`` (c,) at X (c, q)."""
        p, xp = self.posterior, self.posterior.backend.xp
        assert p.noise is not None
        Y, seen = xp.take(self.Y, index, axis=0), xp.take(self.seen, index, axis=0)
        mean, var, pull = p.moments_pullback(X)
        s = var + p.noise
        residual = seen * (mean - Y)
        z = residual / s
        f = 0.5 * xp.sum(z * residual + seen * (xp.log(s) + math.log(2.0 * math.pi)), axis=1)
        g = pull(z, 0.5 * (seen / s - z * z))
        if self.prior is not None:
            density, slope = self.prior.log_densities(X)
            f, g = f - xp.sum(density, axis=1), g - slope
        return f, g

    def solve(self, anchors: Array, *, max_steps: int = 100) -> Placed:
        """The most probable latents of all rows.

        BFGS from the ``anchors`` (A, q) that explain each row best, the best end of each row, then
        two Newton steps. A row has settled where a further one promises less than 1e-6 nats
        (1e-2 in float32).
        """
        b = self.posterior.backend
        spread = float(np.std(b.to_host(anchors), axis=0).max())
        near = b.full((anchors.shape[1],), 0.05 * spread if spread > 0.0 else 1.0)
        end = best_of(
            self.value_and_grad,
            starts(self.posterior, anchors, near, self.Y, self.seen),
            max_steps=max_steps,
            # Below this rounding may rule; the Newton steps do the rest.
            gtol=1e-3,
            # A long first step would land where nothing is known, and stay.
            first_step=0.1 * spread if spread > 0.0 else 0.1,
        )
        x, f, promise = end.x, end.value, end.value
        for _ in range(2):
            x, f, promise = newton_step(self.value_and_grad, x, f)
        return Placed(x, None, -f, promise <= (1e-6 if b.itemsize == 8 else 1e-2))

    def laplace(self, X: Array) -> tuple[Array, Array]:
        """Covariance of each row's latents (N, q, q) and ln|H| (N,), H the Hessian of f at X.

        Eigenvalues of H below the prior's precision are raised to it.
        """
        sd = getattr(self.prior, "sd", None)
        least = 1.0 / sd**2 if sd else self.posterior.backend.eps**0.5
        return laplace(hessians(self.value_and_grad, X), least)

    def log_density(self, X: Array) -> Array:
        """ln p(y* | training data), (N,), nats, with x* integrated out around X.

        By Laplace's method: −f + ½ q ln 2π − ½ ln|H|. Without a prior there is no such integral,
        and ln p(y* | X) is returned.
        """
        xp = self.posterior.backend.xp
        index = xp.arange(X.shape[0], dtype=xp.int64, device=self.posterior.backend.device)
        f = self.value_and_grad(X, index)[0]
        if self.prior is None:
            return -f
        return -f - 0.5 * self.laplace(X)[1] + 0.5 * X.shape[1] * math.log(2.0 * math.pi)


__all__ = ["NewPoints"]
