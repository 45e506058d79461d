"""The surface of a fitted model: slopes of its outputs over the latents, and its expected metric.

At a latent x the outputs' slopes J (D, q) are jointly Gaussian under the posterior, as derivatives
of Gaussian processes are (Tosi, Hauberg, Vellido & Lawrence, UAI 2014). With A, P and the points
X_g of a group of outputs (for an exact model α, K⁻¹ and its training latents), and derivatives ∂_a
in the first argument of k,

* mean of output d: ∂_a k(x, X_g) A_d;
* covariance of its slopes: Σ_ab = ∂_a ∂'_b k(x, x')|_{x' = x} − ∂_a k(x, X_g) P ∂_b k(X_g, x),
  equal for all outputs of a group.

The metric is the mean of JᵀJ, G = Σ_d (m_d m_dᵀ + Σ). Its volume element √|G| is the magnification
factor. Along a direction v, with c outputs in a group,

  vᵀGv = Σ_g |k_v A|² + c (k_vv − k_v P k_vᵀ),  k_v = v·∂k(x, X_g),

whose gradient in x goes through W = ∂(vᵀGv)/∂k_v = 2 k_v A Aᵀ − 2 c k_v P and the kernel's
curvature: second derivatives commute, so ∂_x ⟨W, v·∂k(x, X_g)⟩ with W held is the derivative along
v of ∂_x ⟨W, k(x, X_g)⟩ (docs/derivations/geometry.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.backend.parts import chunks
from gplvm_xp.kernels import Kernel

# What the arrays of a batch of points may take: the largest holds points times rows times q.
_BATCH_BYTES = 2**27


class _Exact(Protocol):
    """What is asked of the posterior of an exact model."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def theta(self) -> Array: ...
    @property
    def factors(self) -> tuple[Any, ...]: ...
    @property
    def outputs(self) -> int: ...


class _Inducing(Protocol):
    """What is asked of the posterior of a model with inducing inputs."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def theta(self) -> Array: ...
    @property
    def Z(self) -> Array: ...
    @property
    def weights(self) -> Array: ...
    @property
    def excess(self) -> Array: ...
    @property
    def member(self) -> Array: ...


@dataclass(frozen=True)
class Group:
    """Outputs with one covariance of slopes.

    Attributes
    ----------
    columns : ndarray (c,)
        Host indices of the outputs.
    X : array (r, q)
        Points whose covariance with x matters.
    weights : array (r, c)
        A.
    inverse : array (r, r)
        P, symmetric.
    """

    columns: np.ndarray
    X: Array
    weights: Array
    inverse: Array


@dataclass(frozen=True)
class Surface:
    """Slopes and metric of a conditioned model; made by :meth:`exact` or :meth:`inducing`.

    Attributes
    ----------
    kernel : Kernel
        White noise in it has no slope, and is left out.
    theta : array (p,)
    groups : tuple of Group
    sums : tuple of Group
        The same, or fewer with the same metric: those that share their points are one.
    spread : float
        Largest standard deviation of the points X_g along a latent dimension.
    """

    kernel: Kernel
    theta: Array
    groups: tuple[Group, ...]
    sums: tuple[Group, ...]
    spread: float

    @classmethod
    def exact(cls, posterior: _Exact) -> Surface:
        """Of :class:`gplvm_xp.predict.Posterior`: a group for each missing-data pattern."""
        p, b = posterior, backend.of(posterior.theta)
        groups = [Group(f.columns, f.X, f.alpha, f.inverse) for f in p.factors]
        gone = np.setdiff1d(np.arange(p.outputs), np.concatenate([f.columns for f in p.factors]))
        if gone.size:
            # Outputs never observed keep their prior: a point without weight says nothing.
            nothing = b.zeros((1, gone.size)), b.zeros((1, 1))
            groups.append(Group(gone, groups[0].X[:1, :], *nothing))
        done = tuple(groups)
        return cls(p.kernel, p.theta, done, done, spread(b, *(g.X for g in groups)))

    @classmethod
    def inducing(cls, posterior: _Inducing) -> Surface:
        """Of :class:`gplvm_xp.inducing.InducingPosterior`.

        X_g are the inducing inputs, A the weights v and P = −Q_k. The groups share X_g, so the
        metric needs one P, their average.
        """
        p, b = posterior, backend.of(posterior.theta)
        member = b.to_host(p.member)
        groups = []
        for k in range(member.shape[1]):
            columns = np.flatnonzero(member[:, k])
            weights = b.xp.take(p.weights, b.xp.asarray(columns, device=b.device), axis=1)
            groups.append(Group(columns, p.Z, weights, -p.excess[k, ...]))
        average = b.asarray(member.mean(axis=0))[:, None, None] * p.excess
        whole = Group(np.arange(member.shape[0]), p.Z, p.weights, -b.xp.sum(average, axis=0))
        return cls(p.kernel, p.theta, tuple(groups), (whole,), spread(b, p.Z))

    @property
    def backend(self) -> Backend:
        """Where the arrays are."""
        return backend.of(self.theta)

    @property
    def dimensions(self) -> int:
        """q."""
        q: int = self.sums[0].X.shape[1]
        return q

    @property
    def outputs(self) -> int:
        """D."""
        return sum(g.columns.size for g in self.groups)

    @property
    def which(self) -> np.ndarray:
        """The group of each output, (D,)."""
        out = np.empty(self.outputs, dtype=np.int64)
        for k, g in enumerate(self.groups):
            out[g.columns] = k
        return out

    def batches(self, n: int) -> list[slice]:
        """Ranges of n points whose arrays stay within the budget."""
        width = 4 * self.dimensions * max(g.X.shape[0] for g in self.groups)
        return chunks(n, _BATCH_BYTES // (self.backend.itemsize * width))

    # -- at many points --------------------------------------------------------------------------

    def jacobian(self, X: Array) -> Array:
        """Mean slopes of the outputs at X (N, q), (N, D, q). O(N q r D)."""
        b, xp = self.backend, self.backend.xp
        back = np.argsort(np.concatenate([g.columns for g in self.groups]))

        def part(X: Array) -> tuple[Array, ...]:
            means = [_mean(g, self._first(g, X)) for g in self.groups]
            mean = xp.take(xp.concat(means, axis=2), xp.asarray(back, device=b.device), axis=2)
            return (xp.matrix_transpose(mean),)

        return self._batched(part, X)[0]

    def jacobian_covariance(self, X: Array) -> Array:
        """Covariance of the q slopes of one output at X (N, q).

        Returns
        -------
        array (N, r, q, q)
            For each group of outputs, see :attr:`which`. O(N q n²) for each, n its points.
        """
        xp = self.backend.xp

        def part(X: Array) -> tuple[Array, ...]:
            own = self._prior(X)
            known = [_known(g, self._first(g, X)) for g in self.groups]
            return (xp.stack([own - C for C in known], axis=1),)

        return self._batched(part, X)[0]

    def metric(self, X: Array) -> Array:
        """G at X (N, q), (N, q, q): squared units of the outputs a squared unit of the latents."""
        xp = self.backend.xp

        def part(X: Array) -> tuple[Array, ...]:
            G = self.outputs * self._prior(X)
            for g in self.sums:
                T = self._first(g, X)
                mean = _mean(g, T)
                G = G + mean @ xp.matrix_transpose(mean) - g.columns.size * _known(g, T)
            return (G,)

        return self._batched(part, X)[0]

    def log_magnification(self, X: Array) -> Array:
        """½ ln|G| at X (N, q), (N,); −∞ where the metric is singular to working precision."""
        return log_volume(self.metric(X))

    def squared_speed(self, X: Array, V: Array) -> tuple[Array, Array, Array]:
        """vᵀGv at X along V (N, q), (N,), and its gradients in X and in V, (N, q) each.

        Exact but for one term of the gradient in X: that of k_vv, the prior's own, whose third
        derivatives no kernel has and whose differences of fourth order are taken. It is zero for
        stationary kernels. O(N r²).
        """
        xp = self.backend.xp
        curvature = self.kernel.curvature()

        def part(X: Array, V: Array) -> tuple[Array, ...]:
            f, gX, gV = self._prior_speed(X, V)
            for g in self.sums:
                _, pull = self.kernel.gram_pullback(self.theta, X, g.X)
                k_v = self.kernel.gram_jvp(self.theta, X, g.X, dX=V)
                mean, known = k_v @ g.weights, k_v @ g.inverse
                f = f + xp.sum(mean * mean, axis=1) - g.columns.size * xp.sum(known * k_v, axis=1)
                W = 2.0 * (mean @ xp.matrix_transpose(g.weights) - g.columns.size * known)
                gV = gV + pull(W)[1]
                gX = gX + curvature.pullback_jvp(self.theta, X, g.X, W, dX=V)[1]
            return f, gX, gV

        f, gX, gV = self._batched(part, X, V)
        return f, gX, gV

    # -- parts -----------------------------------------------------------------------------------

    def _batched(self, part: Callable[..., tuple[Array, ...]], *points: Array) -> list[Array]:
        ranges = self.batches(points[0].shape[0])
        done = [part(*(a[r, ...] for a in points)) for r in ranges]
        if len(done) == 1:
            return list(done[0])
        return [self.backend.xp.concat(list(a)) for a in zip(*done, strict=True)]

    def _first(self, g: Group, X: Array) -> Array:
        """∂_a k(x, X_g), (N, q, r)."""
        return self.backend.xp.matrix_transpose(self.kernel.input_jacobian(self.theta, X, g.X))

    def _prior(self, X: Array) -> Array:
        """∂_a ∂'_b k(x, x') at x' = x, (N, q, q)."""
        xp = self.backend.xp
        one, G = X[:, None, :], xp.ones_like(X[:, :1])[:, None, :]
        curvature = self.kernel.curvature()
        columns = []
        for a in range(X.shape[1]):
            e = self.backend.asarray(np.eye(X.shape[1])[a])
            move = xp.broadcast_to(e, one.shape)
            columns.append(curvature.pullback_jvp(self.theta, one, one, G, dZ=move)[1][:, 0, :])
        return xp.stack(columns, axis=2)

    def _prior_speed(self, X: Array, V: Array) -> tuple[Array, Array, Array]:
        """D k_vv, and its gradients in X and V."""
        xp = self.backend.xp
        curvature = self.kernel.curvature()

        def bent(X: Array, V: Array) -> Array:
            """∂_a (v·∂') k(x, x') at x' = x."""
            one, G = X[:, None, :], xp.ones_like(X[:, :1])[:, None, :]
            return curvature.pullback_jvp(self.theta, one, one, G, dZ=V[:, None, :])[1][:, 0, :]

        def value(X: Array) -> Array:
            return xp.sum(bent(X, V) * V, axis=1)

        # Where rounding and the fifth power of the step cost alike.
        h = self.backend.eps**0.2 * self.spread
        slopes = []
        for a in range(X.shape[1]):
            e = h * self.backend.asarray(np.eye(X.shape[1])[a])
            near, far = value(X + e) - value(X - e), value(X + 2.0 * e) - value(X - 2.0 * e)
            slopes.append((8.0 * near - far) / (12.0 * h))
        k = bent(X, V)
        gX = self.outputs * xp.stack(slopes, axis=1)
        return self.outputs * xp.sum(k * V, axis=1), gX, 2.0 * self.outputs * k


def spread(b: Backend, *points: Array) -> float:
    """Largest standard deviation of sets of points (r, q) along a dimension; 1 where it is 0."""
    most = max(float(np.std(b.to_host(X), axis=0).max()) for X in points)
    return most if most > 0.0 else 1.0


def _mean(g: Group, T: Array) -> Array:
    """Mean slopes (N, q, c) of a group from its ∂k, T (N, q, r)."""
    return _rows_times(T, g.weights)


def _known(g: Group, T: Array) -> Array:
    """What is known of the covariance of a group's slopes, ∂k P ∂k, (N, q, q)."""
    return _rows_times(T, g.inverse) @ backend.of(T).xp.matrix_transpose(T)


def _rows_times(T: Array, B: Array) -> Array:
    """T B for T (N, q, r) and B (r, c), as one product: many small ones are slow."""
    xp = backend.of(T).xp
    n, q, r = T.shape
    return xp.reshape(xp.reshape(T, (n * q, r)) @ B, (n, q, B.shape[1]))


def log_volume(G: Array) -> Array:
    """½ ln|G| of symmetric matrices (..., q, q); −∞ where |G| is not positive."""
    xp = backend.of(G).xp
    sign, log = xp.linalg.slogdet(G)
    return xp.where(sign > 0.0, 0.5 * log, -xp.inf)


__all__ = ["Group", "Surface", "log_volume"]
