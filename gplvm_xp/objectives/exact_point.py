"""The exact objective at one point: its gradient, and exact Hessian-vector products (HVPs).

With G = ∂𝓛/∂K = ½ (α αᵀ − D K⁻¹) and K̇ the change of K along a direction in (X, θ, σ²)
(docs/derivations/second_order.md):

* α̇ = −K⁻¹ K̇ α, Ġ = ½ (α̇ αᵀ + α α̇ᵀ + D K⁻¹ K̇ K⁻¹);
* the gradient's derivative contracts Ġ as the gradient contracts G, and G with the kernel's second
  derivatives; ∂𝓛/∂σ² = tr G changes by tr Ġ;
* for a positive parameter θ = e^η: H_η u = θ ∘ H_θ (θ ∘ u) + g_η ∘ u.

K is factorised once at each point. A product then costs 3 n³ flops for few outputs, where only half
of K⁻¹ K̇ K⁻¹ is computed, and 4 n³ for many, O(n² (q + D)) aside.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels.curvature import fill_jvp
from gplvm_xp.latents import Points, RowPrior, spread
from gplvm_xp.objectives.exact import ExactObjective, Group
from gplvm_xp.objectives.exact_metric import rows_metric
from gplvm_xp.priors import Prior


class _State(NamedTuple):
    """A group of outputs at a point.

    Attributes
    ----------
    group : Group
    X : array (r, q)
        Latents of its rows.
    matrix : array (r, r)
        The lower Cholesky factor of K; K⁻¹, both triangles, from the first derivative on.
    alpha : array (r, c)
        K⁻¹ Y.
    """

    group: Group
    X: Array
    matrix: Array
    alpha: Array


class _Move(NamedTuple):
    """A direction in natural space: of theta (p,), the noise (0-d) and all latents (n, q)."""

    theta: Array
    noise: Array
    X: Array


class ExactPoint:
    """An exact objective at x, as :func:`gplvm_xp.optim.newton_krylov` asks for it.

    Parameters
    ----------
    objective : ExactObjective
        With the positions themselves as parameters, and a prior of each coordinate or none. Its
        buffer is used: it and its points compute one at a time.
    x : array (size,)
        Unconstrained values. The work of a value is done at once, that of derivatives when they
        are asked for.

    Raises
    ------
    ValueError
        If the latents come from a map, or their prior ties rows together.
    NotImplementedError
        If the kernel has no second derivatives; from :meth:`hvp`, if a prior has none.
    NotEnoughMemoryError
        If an n × n matrix for each group of outputs and two common ones, four for many outputs, do
        not fit beside the objective's.
    """

    # A point that fails is a value: NumPy need not warn of the infinities on the way to it.
    @np.errstate(all="ignore")
    def __init__(self, objective: ExactObjective, x: Array) -> None:
        _require_points(objective)
        self.objective, self.x = objective, x
        self.curvature = objective.kernel.curvature()
        b = self._b = objective.backend
        sizes = [group.Y.shape[0] for group in objective.groups]
        # Beside the inverses: K⁻¹ K̇ and its strips, or both factors of a product and their sum.
        common = 2 if all(_few(group.Y) for group in objective.groups) else 4
        b.require_memory(
            b.itemsize * (sum(n * n for n in sizes) + common * max(sizes) ** 2),
            f"second derivatives of the exact likelihood of {max(sizes)} rows",
            "use fewer rows, optimizer='lbfgs', or a machine with more memory",
        )
        self._natural, self._to_gradient = objective.layout.unpack(x)
        self._theta, self._noise = objective.unknowns.named(b, self._natural)
        self._X = objective.unknowns.place(b, self._natural)[0]
        self._states: list[_State] = []
        self._inverted = False
        self._gradient: Array | None = None
        self._solve: Callable[[Array], Array] | None = None
        self._value = self._evaluate()

    @property
    def value(self) -> Array:
        """Negative log posterior (nats, 0-d); +inf where K is not positive definite."""
        return self._value

    @np.errstate(all="ignore")
    def gradient(self) -> Array:
        """The gradient in the flat vector, (size,); arbitrary where the value is +inf."""
        if self._gradient is None:
            b, o = self._b, self.objective
            gtheta, gnoise = b.xp.zeros_like(self._theta), b.scalar(0.0)
            gX = b.xp.zeros_like(self._X)
            for state in self._with_inverses():
                G = self._cotangent(state, self._square(state))
                gnoise = gnoise + b.xp.sum(b.diagonal(G))
                gt, gr = o.kernel.symmetric_pullback(self._theta, state.X, G)
                gtheta, gX = gtheta + gt, gX + self._all_rows(state, gr)
            gradients = {"noise": gnoise, "X": gX, **o.unknowns.kernel_gradients(o.backend, gtheta)}
            for name, prior in self._priors():
                gradients[name] = gradients[name] + prior.log_density(self._value_of(name))[1]
            self._gradient = -self._to_gradient(gradients)
        return self._gradient

    @np.errstate(all="ignore")
    def hvp(self, u: Array) -> Array:
        """The Hessian in the flat vector times u (size,)."""
        move = self._move(u)
        along = self._contract(move, self._second_order)
        for name, prior in self._priors():
            if name in self._natural:
                bend = prior.curvatures(self._natural[name])
                along[name] = along[name] + bend * self._natural_block(name, u)
        return self._log_mask() * self.gradient() * u - self._to_gradient(along)

    @np.errstate(all="ignore")
    def fisher(self, u: Array) -> Array:
        """The expected Hessian of the likelihood, over Y, times u (size,): semi-definite.

        G has expectation zero, and what is left is ½ D K⁻¹ K̇ K⁻¹, contracted as a gradient.
        """
        return self._to_gradient(self._contract(self._move(u), self._expected))

    def precondition(self, u: Array) -> Array:
        """P⁻¹ u for a positive definite P like the Hessian's blocks, (size,); see
        :func:`gplvm_xp.objectives.exact_metric.rows_metric`."""
        if self._solve is None:
            self._solve = rows_metric(self)
        return self._solve(u)

    # -- what a metric is made of, too ------------------------------------------------------------

    def _with_inverses(self) -> list[_State]:
        """Every group of outputs, with K⁻¹; made from the factor in place on the first call."""
        if not self._inverted:
            b = self._b
            self._states = [
                s._replace(matrix=b.complete(b.inverse_from_cholesky(s.matrix)))
                for s in self._states
            ]
            self._inverted = True
        return self._states

    def _all_rows(self, state: _State, part: Array) -> Array:
        """Rows of a group put among all rows, with zeros for the rest."""
        rows = state.group.rows
        return part if rows is None else spread(self._b, part, rows, self._X.shape[0])

    def _priors(self) -> list[tuple[str, Prior]]:
        """Priors of what is learned, and the latents' prior, by the name of the block."""
        o = self.objective
        own = [(name, prior) for name, prior in o.priors.items() if name in self._natural]
        return own if o.latent_prior is None else [*own, ("X", o.latent_prior)]  # type: ignore[list-item]

    def _move(self, u: Array) -> _Move:
        """How theta, noise and X move along u in the flat vector."""
        b, o = self._b, self.objective
        parts = [
            b.xp.reshape(self._natural_block(k.name, u), (k.size,))
            if k.name in self._natural
            else b.zeros((k.size,))
            for k in o.kernel.blocks()
        ]
        noise, X = (
            self._natural_block(name, u) if name in self._natural else b.xp.zeros_like(still)
            for name, still in (("noise", self._noise), ("X", self._X))
        )
        return _Move(b.xp.concat(parts), noise, X)

    def _log_mask(self) -> Array:
        """1 where the flat vector holds a logarithm, 0 elsewhere, (size,)."""
        blocks = self.objective.layout.blocks
        ones = [np.full(block.size, block.transform == "log") for block in blocks]
        return self._b.asarray(np.concatenate(ones).astype(np.float64))

    # -- a group of outputs ----------------------------------------------------------------------

    def _evaluate(self) -> Array:
        b, o = self._b, self.objective
        xp = b.xp
        total, ok = b.scalar(0.0), xp.asarray(True, device=b.device)
        for group in o.groups:
            X = self._X if group.rows is None else b.rows(self._X, group.rows)
            n, D = X.shape[0], group.outputs
            K = o.kernel.fill_lower(self._theta, X, b.empty((n, n)))
            L, fine = b.cholesky(b.add_diagonal(K, self._noise + o.jitter))
            alpha = b.cho_solve(L, group.Y)
            value = -D * xp.sum(xp.log(b.diagonal(L))) - 0.5 * xp.sum(group.Y * alpha)
            total, ok = total + value - 0.5 * n * D * math.log(2.0 * math.pi), ok & fine
            self._states.append(_State(group, X, L, alpha))
        for name, prior in self._priors():
            total = total + prior.log_density(self._value_of(name))[0]
        inf = xp.asarray(xp.inf, dtype=b.dtype, device=b.device)
        return xp.where(ok & xp.isfinite(total), -total, inf)

    def _contract(
        self, move: _Move, part: Callable[[_State, _Move], tuple[Array, Array, Array]]
    ) -> dict[str, Array]:
        """Sums over groups of what ``part`` gives for theta, noise and the rows; by block name."""
        b = self._b
        gtheta, gnoise = b.xp.zeros_like(self._theta), b.scalar(0.0)
        gX = b.xp.zeros_like(self._X)
        for state in self._with_inverses():
            rows = state.group.rows
            here = move if rows is None else move._replace(X=b.rows(move.X, rows))
            gt, gn, gr = part(state, here)
            gtheta, gnoise, gX = gtheta + gt, gnoise + gn, gX + self._all_rows(state, gr)
        return {
            "noise": gnoise,
            "X": gX,
            **self.objective.unknowns.kernel_gradients(self._b, gtheta),
        }

    def _second_order(self, state: _State, move: _Move) -> tuple[Array, Array, Array]:
        """The change of the log-likelihood's gradient in theta, noise and the group's rows."""
        b = self._b
        xp = b.xp
        inverse, alpha, D = state.matrix, state.alpha, state.group.outputs
        dK, P = self._moved(state, move)
        if _few(alpha):
            dalpha = -b.product(P, alpha)
            dG = _lower_of_products(b, [(P, inverse)], dK)
            dG *= 0.5 * D
            # ½ (α̇ αᵀ + α α̇ᵀ) = ¼ ((α + α̇)(α + α̇)ᵀ − (α − α̇)(α − α̇)ᵀ), with both of one size.
            ratio = xp.sqrt(xp.sum(dalpha * dalpha) / xp.sum(alpha * alpha))
            root = xp.sqrt(xp.where(ratio > 0.0, ratio, 1.0))
            dG = b.rank_update(dG, root * alpha + dalpha / root, 0.25, 1.0)
            dG = b.rank_update(dG, root * alpha - dalpha / root, -0.25, 1.0)
            G = self._cotangent(state, P)
        else:
            # Many outputs: sym(P (½ D K⁻¹ − α αᵀ)) at once.
            G = self._cotangent(state, b.empty(inverse.shape))
            M = b.complete(-2.0 * G - (0.5 * D) * inverse)
            dG = _lower_of_products(b, [(P, M), (M, P)], dK)
            dG *= 0.5
        trace = xp.sum(b.diagonal(dG))
        gtheta, gX = self.curvature.symmetric(self._theta, state.X, G, dG, move.theta, move.X)
        return gtheta, trace, gX

    def _expected(self, state: _State, move: _Move) -> tuple[Array, Array, Array]:
        dK, P = self._moved(state, move)
        S = _lower_of_products(self._b, [(P, state.matrix)], dK)
        S *= 0.5 * state.group.outputs
        trace = self._b.xp.sum(self._b.diagonal(S))
        gtheta, gX = self.objective.kernel.symmetric_pullback(self._theta, state.X, S)
        return gtheta, trace, gX

    def _moved(self, state: _State, move: _Move) -> tuple[Array, Array]:
        """K̇, in the objective's buffer, and K⁻¹ K̇."""
        b, kernel = self._b, self.objective.kernel
        dK = fill_jvp(kernel, self._theta, state.X, move.theta, move.X, self._square(state))
        dK = b.complete(b.add_diagonal(dK, move.noise))
        return dK, b.product(state.matrix, dK)

    def _square(self, state: _State) -> Array:
        n = state.X.shape[0]
        return self._b.xp.reshape(self.objective.buffer[: n * n], (n, n))

    def _cotangent(self, state: _State, out: Array) -> Array:
        """G, its lower triangle; ``out`` is consumed."""
        out[...] = state.matrix
        return self._b.rank_update(out, state.alpha, 0.5, -0.5 * state.group.outputs)

    def _value_of(self, name: str) -> Array:
        return self._X if name == "X" else self._natural[name]

    def _natural_block(self, name: str, u: Array) -> Array:
        layout = self.objective.layout
        move = self._b.xp.reshape(u[layout.slices()[name]], self._natural[name].shape)
        log = next(k.transform == "log" for k in layout.blocks if k.name == name)
        return self._natural[name] * move if log else move


def _few(Y: Array) -> bool:
    """Whether products with Y (n, c) are cheap beside those of n × n matrices."""
    n, c = Y.shape
    few: bool = 4 * c < n
    return few


def _lower_of_products(b: Backend, pairs: list[tuple[Array, Array]], out: Array) -> Array:
    """The lower triangle of Σ A Bᵀ over pairs of n × n matrices, in ``out``: n³ flops a pair."""
    n = out.shape[0]
    step = max(128, -(-n // 8))
    for i0 in range(0, n, step):
        i1 = min(i0 + step, n)
        strips = [b.product(A[i0:i1, :], b.xp.matrix_transpose(B[:i1, :])) for A, B in pairs]
        out[i0:i1, :i1] = functools.reduce(operator.add, strips)
    return out


def _require_points(objective: ExactObjective) -> None:
    if not isinstance(objective.positions, Points) or isinstance(objective.latent_prior, RowPrior):
        raise ValueError(
            "second derivatives of the exact objective are known for latents that are parameters "
            "themselves, with a prior of each coordinate or none; use optimizer='scipy' with a map "
            "to the latents or a prior that ties rows together"
        )


__all__ = ["ExactPoint"]
