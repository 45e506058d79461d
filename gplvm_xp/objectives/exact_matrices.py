"""The exact objective's Hessian and its Fisher information as matrices.

∂K/∂x_ia has one row and one column, so that all second derivatives in the latents cost q (q + 3)/2
products of n × n matrices, little more than a Hessian-vector product. With M = K⁻¹, N = α αᵀ,
T_a[i, l] = ∂k(x_i, x_l)/∂x_ia and S_ac = T_a M T_cᵀ, for dimensions a and c of row and column
(docs/derivations/second_order.md):

* Fisher information, ½ D tr(M ∂K M ∂K): F_ac = D ((T_c M)ᵀ ∘ (T_a M) + M ∘ S_ac), nowhere negative;
* Hessian of −𝓛: (T_c M)ᵀ ∘ (T_a N) + M ∘ (T_a N T_cᵀ) + S_ac ∘ N + (T_a M) ∘ (T_c N)ᵀ − F_ac, less
  G contracted with the second derivatives of k;
* columns of parameters and noise are products with both, as in a search without matrices.
"""

from __future__ import annotations

import numpy as np

from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.kernels.curvature import Curvature
from gplvm_xp.objectives.exact_metric import convex
from gplvm_xp.objectives.exact_point import ExactPoint, _State
from gplvm_xp.priors import Prior


class Order:
    """The order of the matrices: what is learned of kernel and noise, then X by its dimensions.

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


def matrices(point: ExactPoint, order: Order) -> tuple[Array, Array]:
    """Hessian of the objective, and Fisher information with what is convex of the priors.

    Both are (size, size) in ``order``, with both triangles. O(q² n³) and a Hessian-vector product
    and an expected one for each number that is no latent.
    """
    b = point._b
    xp = b.xp
    k, size = order.k, order.size
    curved, informed = b.zeros((size, size)), b.zeros((size, size))
    for state in point._with_inverses():
        _add_latents(point, state, order, curved, informed)
    for j in range(k):
        unit = b.asarray(np.eye(1, size, j)[0])
        curved[:, j] = order.here(point.hvp(unit))
        informed[:, j] = order.here(point.fisher(unit))
    prior = point.objective.latent_prior
    if isinstance(prior, Prior):
        bends = xp.reshape(-prior.curvatures(point._X), (-1,))
        curved = b.add_diagonal(curved, order.here(xp.concat([b.zeros((k,)), bends])))
    return b.complete(curved), b.complete(b.add_diagonal(informed, order.here(convex(point))))


def _add_latents(
    point: ExactPoint, state: _State, order: Order, curved: Array, informed: Array
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

            def strip(
                part: slice, a: int = a, c: int = c, S: Array = S, bend: Array = bends[c]
            ) -> tuple[Array, Array]:
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
                hessian -= bend[part, :]
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
    n, q = X.shape

    def strip(part: slice) -> list[Array]:
        across, own = curvature.mixed(theta, X[part, :], X, 2.0 * G[part, :], a)
        here = b.asarray(np.eye(own[0].shape[0], n, part.start))
        return [m + here * d[:, None] for m, d in zip(across, own, strict=True)]

    strips = list(b.map_parts(strip, b.stacks(n, n * q)))
    return [b.xp.concat(list(many)) for many in zip(*strips, strict=True)]


__all__ = ["Order", "matrices"]
