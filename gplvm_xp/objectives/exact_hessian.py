"""The exact objective's Hessian as a matrix, and its Fisher information: a Newton step's metric.

∂K/∂x_ia has one row and one column, so that all second derivatives in the latents cost q (q + 3)/2
products of n × n matrices, little more than a Hessian-vector product. With M = K⁻¹, N = α αᵀ,
T_a[i, l] = ∂k(x_i, x_l)/∂x_ia and S_ac = T_a M T_cᵀ, for dimensions a and c of row and column:

* Fisher information, ½ D tr(M ∂K M ∂K): F_ac = D ((T_c M)ᵀ ∘ (T_a M) + M ∘ S_ac), nowhere negative;
* Hessian of −𝓛: (T_c M)ᵀ ∘ (T_a N) + M ∘ (T_a N T_cᵀ) + S_ac ∘ N + (T_a M) ∘ (T_c N)ᵀ − F_ac, less
  G contracted with the second derivatives of k;
* along one parameter of the kernel, or the noise, with B = M K̇ M: F is the pullback of ½ D B, and
  the Hessian that of −Ġ, as in a Hessian-vector product.

Solving with such a matrix is worth hundreds of steps of conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.kernels.curvature import Curvature, fill_jvp
from gplvm_xp.objectives.exact import ExactObjective
from gplvm_xp.objectives.exact_point import ExactPoint, _lower_of_products, _State
from gplvm_xp.params import Layout

# Added to the Fisher information, relative to its mean diagonal, until it has a factor.
RIDGES = (0.0, 1e-10, 1e-7, 1e-4, 1e-1)


class Metric(NamedTuple):
    """Second derivatives at a point, in the order of :class:`_Order`.

    Attributes
    ----------
    hessian : array (d, d)
        Across the flat directions; along them it is as large as its largest diagonal entry.
    factor : array (d, d)
        Lower Cholesky factor of it, or of the Fisher information where it has none.
    definite : bool
        Whether it had one.
    """

    hessian: Array
    factor: Array
    definite: bool


class _Order:
    """The order of the matrices: learned numbers of kernel and noise, then X dimension by dimension.

    A pair of dimensions is then one contiguous block of n × n.
    """

    def __init__(self, b: Backend, k: int, n: int, q: int) -> None:
        self.b, self.k, self.n, self.q = b, k, n, q

    @property
    def size(self) -> int:
        return self.k + self.n * self.q

    def here(self, u: Array) -> Array:
        """From the flat vector, (size,), or several, (size, r)."""
        return self._turned(u, self.n, self.q)

    def back(self, v: Array) -> Array:
        """To the flat vector."""
        return self._turned(v, self.q, self.n)

    def _turned(self, u: Array, rows: int, columns: int) -> Array:
        xp = self.b.xp
        rest = u[self.k :, ...]
        turned = xp.permute_dims(xp.reshape(rest, (rows, columns, -1)), (1, 0, 2))
        return xp.concat([u[: self.k, ...], xp.reshape(turned, rest.shape)])

    def place(self, a: int) -> slice:
        """Where dimension a lies."""
        return slice(self.k + a * self.n, self.k + (a + 1) * self.n)


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
        self._order = _Order(b, x.shape[0] - n * q, n, q)
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
        return self.exact.value

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
            self._metric = self._factorised(*_matrices(self.exact, self._order))
        return self._metric

    def _factorised(self, hessian: Array, fisher: Array) -> Metric:
        b, xp = self._b, self._b.xp
        mean = xp.mean(b.diagonal(fisher))
        # Above the smallest eigenvalue, so that it is that of another direction.
        most = xp.max(xp.abs(xp.concat([b.diagonal(fisher), b.diagonal(hessian)])))
        U = self._order.here(self.directions)
        if U.shape[1]:
            # (1 − U Uᵀ) H (1 − U Uᵀ) + most U Uᵀ = H − U Wᵀ − W Uᵀ.
            HU = hessian @ U
            W = HU - 0.5 * (U @ (xp.matrix_transpose(U) @ HU + most * b.eye(U.shape[1])))
            hessian -= U @ xp.matrix_transpose(W)
            hessian -= W @ xp.matrix_transpose(U)
            fisher += (most * U) @ xp.matrix_transpose(U)
        L, ok = b.cholesky(xp.asarray(hessian, copy=True))
        if b.to_host(ok):
            return Metric(hessian, L, True)
        for ridge in RIDGES:
            L, ok = b.cholesky(b.add_diagonal(xp.asarray(fisher, copy=True), ridge * mean))
            if b.to_host(ok):
                break
        return Metric(hessian, L, False)


def _matrices(point: ExactPoint, order: _Order) -> tuple[Array, Array]:
    """Hessian of the objective and Fisher information, (size, size), both triangles."""
    b = point._b
    xp = b.xp
    k, size = order.k, order.size
    gradient = point.gradient()
    curved, informed = b.zeros((size, size)), b.zeros((size, size))
    for state in point._states:
        _add_latents(point, state, order, curved, informed)
    scale, log = _to_flat(point)
    for j, place in enumerate(_learned(point.objective)):
        for out, column in zip((curved, informed), _columns(point, place), strict=True):
            out[:, j] = scale[j] * (scale * order.here(column))
    # d²/dη² of a parameter e^η has its gradient as a second part, priors included.
    own = log * gradient[:k]
    bends, convex = _prior_bends(point, scale[:k])
    own = xp.concat([own, b.zeros((size - k,))]) + order.here(bends)
    return b.complete(b.add_diagonal(curved, own)), b.complete(
        b.add_diagonal(informed, order.here(convex))
    )


def _learned(o: ExactObjective) -> list[int]:
    """Places of the learned numbers among those of (theta, noise), in the layout's order."""
    where = Layout(o.kernel.blocks()).slices()
    places: list[int] = []
    for block in o.layout.blocks:
        if block.name == "noise":
            places.append(o.kernel.size)
        elif block.name in where:
            places += range(where[block.name].start, where[block.name].stop)
    return places


def _add_latents(
    point: ExactPoint, state: _State, order: _Order, curved: Array, informed: Array
) -> None:
    """Add Hessian of −𝓛 and Fisher information in the latents of one group: lower blocks only."""
    b, kernel, theta = point._b, point.objective.kernel, point._theta
    flip, X = b.xp.matrix_transpose, state.X
    M, alpha, D = state.matrix, state.alpha, state.group.outputs
    n, q = X.shape
    G = b.complete(point._cotangent(state, point._square(state)))
    slopes = [_slope(b, kernel, theta, X, a) for a in range(q)]
    through = [b.product(slope, M) for slope in slopes]
    onto = [slope @ alpha for slope in slopes]
    for a in range(q):
        bends = _bends(b, point.curvature, theta, X, G, a)
        for c in range(a + 1):
            S = b.product(through[a], flip(slopes[c]))

            def strip(part: slice, a: int = a, c: int = c, S: Array = S) -> tuple[Array, Array]:
                m, s, rows, tMa = M[part, :], S[part, :], alpha[part, :], through[a][part, :]
                tMc = flip(through[c][:, part])
                information = tMc * tMa
                information += m * s
                information *= D
                hessian = tMc * (onto[a][part, :] @ flip(alpha))
                hessian += m * (onto[a][part, :] @ flip(onto[c]))
                hessian += s * (rows @ flip(alpha))
                hessian += tMa * (rows @ flip(onto[c]))
                hessian -= information
                hessian -= bends[c][part, :]
                return hessian, information

            parts = b.stacks(n, n)
            where = order.place(a), order.place(c)
            if state.group.rows is None:
                for part, both in zip(parts, b.map_parts(strip, parts), strict=True):
                    here = slice(where[0].start + part.start, where[0].start + part.stop)
                    for out, add in zip((curved, informed), both, strict=True):
                        out[here, where[1]] += add
            else:
                strips = zip(*b.map_parts(strip, parts), strict=True)
                for out, many in zip((curved, informed), strips, strict=True):
                    block = flip(point._all_rows(state, b.xp.concat(list(many))))
                    out[where[0], where[1]] += flip(point._all_rows(state, block))


def _slope(b: Backend, kernel: Kernel, theta: Array, X: Array, a: int) -> Array:
    """∂k(x_i, x_l)/∂x_ia, (n, n)."""
    n, q = X.shape
    unit = b.asarray(np.broadcast_to(np.eye(q)[a], (n, q)).copy())

    def strip(part: slice) -> Array:
        return kernel.gram_jvp(theta, X[part, :], X, dX=unit[part, :])

    return b.xp.concat(list(b.map_parts(strip, b.stacks(n, n))))


def _bends(
    b: Backend, curvature: Curvature, theta: Array, X: Array, G: Array, a: int
) -> list[Array]:
    """⟨G, K⟩ differentiated in x_ia and x_jc, (n, n) over i and j for each c <= a; G is held.

    For i ≠ j that is 2 G_ij ∂²k(x_i, x_j)/∂x_ia ∂x_jc; the diagonal has the second derivatives in
    one argument, summed over the other points, besides.
    """
    xp = b.xp
    n, q = X.shape
    unit = b.asarray(np.eye(q)[None, None, a, :])

    def strip(part: slice) -> list[Array]:
        rows = X[part, :][:, None, :]
        r = rows.shape[0]
        others = xp.broadcast_to(X[None, :, :], (r, n, q))
        step = xp.broadcast_to(unit, (r, 1, q))
        G2 = 2.0 * G[part, :][:, None, :]
        _, own, mixed = curvature.pullback_jvp(theta, rows, others, G2, dX=step)
        here = b.asarray(np.eye(r, n, part.start))
        return [mixed[:, :, c] + here * own[:, :, c] for c in range(a + 1)]

    strips = list(b.map_parts(strip, b.stacks(n, n * (2 * q + 1))))
    return [xp.concat(list(many)) for many in zip(*strips, strict=True)]


def _columns(point: ExactPoint, place: int) -> tuple[Array, Array]:
    """Hessian of −𝓛 and Fisher information times one number of (theta, noise), in natural space.

    Both are (learned + n q,): what is learned of (theta, noise), then X as in the flat vector.
    """
    b, o = point._b, point.objective
    xp = b.xp
    p = o.kernel.size
    unit = np.eye(p + 1)[place]
    dtheta, dnoise = b.asarray(unit[:p]), b.scalar(unit[p].item())
    sums = [[xp.zeros_like(point._theta), b.scalar(0.0), xp.zeros_like(point._X)] for _ in range(2)]
    for state in point._states:
        D, alpha = state.group.outputs, state.alpha
        still = xp.zeros_like(state.X)
        dK = fill_jvp(o.kernel, point._theta, state.X, dtheta, still, point._square(state))
        product = b.product(state.matrix, b.complete(b.add_diagonal(dK, dnoise)))
        B = _lower_of_products(b, [(product, state.matrix)], b.empty(product.shape))
        dalpha = -b.product(product, alpha)
        half = (0.5 * D) * B
        gt, gr = o.kernel.symmetric_pullback(point._theta, state.X, xp.asarray(half, copy=True))
        _add(sums[1], gt, xp.sum(b.diagonal(half)), point._all_rows(state, gr))
        # ½ (α̇ αᵀ + α α̇ᵀ) as the difference of two squares.
        dG = b.rank_update(half, alpha + dalpha, 0.25, 1.0)
        dG = b.rank_update(dG, alpha - dalpha, -0.25, 1.0)
        G = point._cotangent(state, product)
        gnoise = xp.sum(b.diagonal(dG))
        gt, gr = point.curvature.symmetric(point._theta, state.X, G, dG, dtheta, still)
        _add(sums[0], -gt, -gnoise, -point._all_rows(state, gr))
    learned = _learned(o)

    def joined(gtheta: Array, gnoise: Array, gX: Array) -> Array:
        both = xp.concat([gtheta, xp.reshape(gnoise, (1,))])
        return xp.concat([b.rows(both, learned), xp.reshape(gX, (-1,))])

    return joined(*sums[0]), joined(*sums[1])


def _add(sums: list[Array], *parts: Array) -> None:
    for i, part in enumerate(parts):
        sums[i] = sums[i] + part


def _to_flat(point: ExactPoint) -> tuple[Array, Array]:
    """∂θ/∂η of the flat vector, (size,), and which of its first numbers are logarithms."""
    b = point._b
    scale, log = [], []
    for block in point.objective.layout.blocks:
        value = b.xp.reshape(point._natural[block.name], (-1,))
        positive = block.transform == "log"
        scale.append(value if positive else b.xp.ones_like(value))
        if block.name != "X":
            log.append(np.full(block.size, float(positive)))
    return b.xp.concat(scale), b.asarray(np.concatenate(log) if log else np.zeros(0))


def _prior_bends(point: ExactPoint, scale: Array) -> tuple[Array, Array]:
    """Second derivatives of −ln p of the priors over the flat vector, and what is convex of them.

    The first lack what the gradient gives a logarithm.
    """
    b = point._b
    xp = b.xp
    where = point.objective.layout.slices()
    bends, convex = [], []
    priors = dict(point._priors())
    for block in point.objective.layout.blocks:
        flat = xp.zeros_like(point.x[where[block.name]])
        slope = flat
        if block.name in priors:
            value = point._value_of(block.name)
            flat = -xp.reshape(priors[block.name].curvatures(value), (-1,))
            slope = -xp.reshape(priors[block.name].log_density(value)[1], (-1,))
        if block.transform == "log":
            s = scale[where[block.name]]
            flat, slope = s * s * flat, s * slope
        else:
            slope = xp.zeros_like(slope)
        bends.append(flat)
        full = flat + slope
        convex.append(xp.where(full > 0.0, full, 0.0))
    return xp.concat(bends), xp.concat(convex)


__all__ = ["HessianPoint", "Metric"]
