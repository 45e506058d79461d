"""New rows of a model whose latents are uncertain: q(x*) by the row's own bound, and its density.

For each row on its own, with q(u) held, F_n = E[ln p(y_n | f)] − KL(N(μ, diag S) ‖ N(0, I)) is
maximised over (μ, ln S): a lower bound of ln p(y_n | training data) as the model has it
(Titsias & Lawrence 2010, section 3.2, where q(u) moves with the new row; derivations/
new_rows_inducing.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.inducing.base import InducingPosterior
from gplvm_xp.inducing.expected import Expected, expected
from gplvm_xp.inducing.nodes import nodes
from gplvm_xp.inducing.search import Placed, starts
from gplvm_xp.likelihoods.quadrature import log_sum
from gplvm_xp.optim.modes import Modes, best_of

# No variance of a latent is that far from 1; a trial step may be.
_FARTHEST = 60.0
# Steps from every start, after which only a row's best goes on.
_FIRST_STEPS = 5
# Nodes of the average that is a row's density.
DENSITY_NODES = 256


@dataclass(frozen=True)
class NewLatents:
    """q(x*) of new rows; made by :meth:`of`.

    Attributes
    ----------
    posterior : InducingPosterior
    Y : array (N, D)
        Something the likelihood takes where ``seen`` is 0.
    seen : array (N, D)
        1 where observed, 0 where missing.
    exposure : array (N, D) or None
    terms : Expected
        The expected log-likelihood.
    """

    posterior: InducingPosterior
    Y: Array
    seen: Array
    exposure: Array | None
    terms: Expected

    @classmethod
    def of(
        cls, p: InducingPosterior, Y: np.ndarray, exposure: np.ndarray | None = None
    ) -> NewLatents:
        """Host rows (N, D), NaN for missing; exposure broadcasts to them."""
        b = p.backend
        seen = ~np.isnan(Y)
        stand_in = Y[seen][0] if seen.any() else 1.0
        wide = None if exposure is None else b.asarray(np.broadcast_to(exposure, Y.shape).copy())
        return cls(
            p,
            b.asarray(np.where(seen, Y, stand_in)),
            b.asarray(seen.astype(np.float64)),
            wide,
            expected(p, Y, exposure),
        )

    # A trial may lie anywhere, and one that fails is a value: NumPy need not warn of it.
    @np.errstate(all="ignore")
    def bounds(self, mu: Array, S: Array, index: Array) -> tuple[Array, Array, Array]:
        """F (c,) of the rows ``index`` (c,), and its gradients in μ and S, (c, q) each.

        KL = ½ Σ (μ² + S − ln S − 1), with gradients μ and ½ (1 − 1/S).
        """
        xp = self.posterior.backend.xp
        value, gmu, gS = self.terms.value_and_grads(mu, S, index)
        kl = 0.5 * xp.sum(mu * mu + S - xp.log(S) - 1.0, axis=1)
        return value - kl, gmu - mu, gS - 0.5 * (1.0 - 1.0 / S)

    def value_and_grad(self, x: Array, index: Array, unit: Array) -> tuple[Array, Array]:
        """−F (c,) and its gradient in x = (μ/unit, ln S) (c, 2q); ``unit`` (N, q), of all rows.

        Near the optimum −F has about the curvature 1/S in μ and ½ in ln S: with the root of a
        typical S as the unit, one step size suits all. Infinite where an S is beyond e^±60.
        """
        xp = self.posterior.backend.xp
        unit = xp.take(unit, index, axis=0)
        q = unit.shape[1]
        log = x[:, q:]
        far = xp.abs(log) > _FARTHEST
        S = xp.exp(xp.where(far, 0.0, log))
        f, gmu, gS = self.bounds(unit * x[:, :q], S, index)
        return xp.where(xp.any(far, axis=1), xp.inf, -f), -xp.concat([unit * gmu, S * gS], axis=1)

    def solve(self, anchors: Array, S: Array, *, max_steps: int = 200) -> Placed:
        """The best q(x*) of all rows.

        Parameters
        ----------
        anchors : array (A, q)
            Latents to begin at, some of the training rows': each row takes those that explain
            it best. N · A numbers are made.
        S : array (q,)
            Variances to begin at, such as the mean of the training rows'.
        max_steps : int
            BFGS steps of the last stage.

        Returns
        -------
        Placed
            A row with nothing observed has its prior, N(0, I), and the value 0.

        Notes
        -----
        BFGS of 2q numbers for each row, all rows at once: five steps from every start, the rest
        from the best of them. An evaluation costs what the psi statistics of the rows do.
        """
        b, xp = self.posterior.backend, self.posterior.backend.xp
        q, gtol = S.shape[0], 1e-3 if b.itemsize == 8 else 3e-2
        places = starts(self.posterior, anchors, xp.sqrt(S), self.Y, self.seen, self.exposure)
        S = xp.broadcast_to(S, places[0].shape)

        def stage(means: list[Array], S: Array, steps: int) -> tuple[Array, Array, Modes]:
            unit = xp.sqrt(S)
            end = best_of(
                lambda x, index: self.value_and_grad(x, index, unit),
                [xp.concat([mu / unit, xp.log(S)], axis=1) for mu in means],
                max_steps=steps,
                gtol=gtol,
            )
            return unit * end.x[:, :q], xp.exp(end.x[:, q:]), end

        # A row of few entries has larger variances: the second stage has units of its own.
        mean, variance, _ = stage(places, S, _FIRST_STEPS)
        mean, variance, end = stage([mean], variance, max_steps)
        some = xp.sum(self.seen, axis=1) > 0.0
        which = some[:, None]
        return Placed(
            xp.where(which, mean, 0.0),
            xp.where(which, variance, 1.0),
            xp.where(some, -end.value, 0.0),
            # In units of the row's own deviations, so that what is left is below 0.01 nats; where F
            # is steep, rounding leaves its gradient no more digits.
            (end.grad_norm <= 30.0 * gtol) | ~some,
        )

    def log_density(self, mean: Array, variance: Array, count: int = DENSITY_NODES) -> Array:
        """A sharper estimate of ln p(y* | training data) than the bound, (N,), nats.

        ln of the average of p(y* | x) p(x)/q(x) over ``count`` fixed nodes of q(x) =
        N(mean, diag variance), with q(u) integrated out of p(y* | x): by Jensen's inequality above
        the bound, and below the true value in expectation (Burda, Grosse & Salakhutdinov,
        Importance weighted autoencoders, ICLR 2016). Where noise is not Gaussian, exp of the
        expected ln p(y* | f) stands for p(y* | x), which keeps it a lower bound. For a Gaussian
        of the latents it would be exact where q(x) is the posterior. O(N count M (M + D)).
        """
        p, b, xp = self.posterior, self.posterior.backend, self.posterior.backend.xp
        places, weights = nodes(mean.shape[1], count)
        root = xp.sqrt(variance)
        inside = 0.5 * xp.sum(xp.log(variance), axis=1)

        def one(where: slice) -> Array:
            y, there = self.Y[where, :], self.seen[where, :] > 0.0
            exposure = None if self.exposure is None else self.exposure[where, :]
            parts = []
            for eps, weight in zip(places, weights, strict=True):
                e = b.asarray(eps.copy())
                x = mean[where, :] + root[where, :] * e
                m, v = p.moments(x)
                if p.noise is None:
                    density = p.likelihood.expected(y, m, v, None, exposure).value
                else:
                    density = p.log_density(y, m, v)
                density = xp.sum(xp.where(there, density, 0.0), axis=1)
                prior = 0.5 * xp.sum(e * e - x * x, axis=1)
                parts.append(density + prior + inside[where] + math.log(weight))
            return log_sum(parts[0], iter([xp.stack(parts)]))

        done = [one(part) for part in p.batches(mean.shape[0])]
        return xp.concat(done) if done else b.zeros((0,))


__all__ = ["DENSITY_NODES", "NewLatents"]
