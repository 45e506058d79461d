"""Psi statistics of any kernel by quadrature: the whole tree at nodes x = μ + √S ∘ ξ.

Every statistic is a mean over the same nodes with positive weights w_j. With K_j = k(X_j, Z):
Ψ1 = Σ_j w_j K_j and Ψ2_k = Σ_j w_j K_jᵀ diag(W_k) K_j, positive semi-definite and never below
Ψ1ᵀ diag(W_k) Ψ1: what a bound needs. Its derivatives are exact for the sum itself: K_j has the
cotangent w_j (G1 + Σ_k diag(W_k) K_j (G2_k + G2_kᵀ)), pulled back by the kernel, and X_j's gradient
moves μ with 1 and S with ξ/(2 √S).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.base import Kernel
from gplvm_xp.kernels.compose import ActiveDims, Product, Scale, Sum
from gplvm_xp.kernels.linear import Linear
from gplvm_xp.kernels.polynomial import Polynomial
from gplvm_xp.kernels.psi.base import Contracted, Psi, Statistics
from gplvm_xp.kernels.psi.pairs import row_blocks
from gplvm_xp.kernels.psi.rules import rule_for
from gplvm_xp.kernels.static import Constant, White


class _Nodes(NamedTuple):
    """Some nodes for all rows: points (B n, q), ξ (B n, q) and weights (B n, 1)."""

    X: Array
    xi: Array
    weights: Array


@dataclass(frozen=True)
class QuadraturePsi(Psi):
    """Tensor Gauss-Hermite for up to 3 dimensions, quasi-Monte-Carlo above.

    Only dimensions that the tree looks at have nodes. Polynomials (also with linear, constant and
    white parts, sums and products) are exact where the tensor rule has at most 4096 nodes. Measured
    errors of the rest are in derivations/psi.md; :meth:`error` states them for data at hand.

    Parameters
    ----------
    kernel : Kernel
    level : int
        0, 1 or 2: each has about four times the nodes of the one before (twice in one dimension).

    Notes
    -----
    J nodes cost J times what points would: J n M kernel values and 2 J n M² operations. Nodes are
    taken a few at a time: memory is a few n M, or the backend's block where that is more.
    """

    kernel: Kernel
    level: int = 0

    def __post_init__(self) -> None:
        if self.level not in (0, 1, 2):
            raise ValueError(f"level={self.level!r} was given; expected 0, 1 or 2")

    def forward(
        self, theta: Array, mu: Array, S: Array, Z: Array, W: Array | None = None
    ) -> Statistics:
        b = backend.of(mu)
        xp = b.xp
        n, M = mu.shape[0], Z.shape[0]
        psi0, psi1 = xp.zeros_like(mu[:, 0]), b.zeros((n, M))
        psi2 = b.zeros((1 if W is None else W.shape[1], M, M))
        for nodes in self._nodes(mu, S, M):
            K = self.kernel.gram(theta, nodes.X, Z)
            diagonal = nodes.weights * self.kernel.diag(theta, nodes.X)[:, None]
            weighted = nodes.weights * K
            psi0 = psi0 + _over_nodes(diagonal, n)[:, 0]
            psi1 = psi1 + _over_nodes(weighted, n)
            Kt = xp.matrix_transpose(K)
            psi2 = psi2 + xp.stack([Kt @ part for part in _by_group(weighted, W)])
        return Statistics(psi0, psi1, psi2)

    def contract(
        self,
        theta: Array,
        mu: Array,
        S: Array,
        Z: Array,
        g0: Array,
        G1: Array,
        G2: Array,
        W: Array | None = None,
    ) -> Contracted:
        b = backend.of(mu)
        xp = b.xp
        n, M = mu.shape[0], Z.shape[0]
        both = G2 + xp.matrix_transpose(G2)
        value = xp.zeros_like(mu[:, 0])
        gtheta, gZ = xp.zeros_like(theta), xp.zeros_like(Z)
        gmu, gsd = xp.zeros_like(mu), xp.zeros_like(mu)
        for nodes in self._nodes(mu, S, M):
            count = nodes.X.shape[0] // n
            K, pull = self.kernel.gram_pullback(theta, nodes.X, Z)
            diagonal, diag_pull = self.kernel.diag_pullback(theta, nodes.X)
            # The weights of rows come after the product: it is then one for all rows.
            parts = [K @ both[k, ...] for k in range(both.shape[0])]
            if W is not None:
                parts = [_repeated(W[:, k], count)[:, None] * p for k, p in enumerate(parts)]
            KG = sum(parts[1:], start=parts[0])
            G, g = _repeated(G1, count), nodes.weights[:, 0] * _repeated(g0, count)
            of_rows = g * diagonal + nodes.weights[:, 0] * xp.sum((G + 0.5 * KG) * K, axis=1)
            value = value + _over_nodes(of_rows[:, None], n)[:, 0]
            part, gX, gZ_part = pull(nodes.weights * (G + KG))
            part_diag, gX_diag = diag_pull(g)
            gtheta, gZ = gtheta + part + part_diag, gZ + gZ_part
            gX = gX + gX_diag
            gmu = gmu + _over_nodes(gX, n)
            gsd = gsd + _over_nodes(gX * nodes.xi, n)
        return Contracted(value, gtheta, gmu, 0.5 * gsd / _deviations(S), gZ)

    def error(self, theta: Array, mu: Array, S: Array, Z: Array) -> Array:
        """How far the statistics are from those at the next level (at level 2: the one before).

        Returns
        -------
        array (3,)
            For ψ0, Ψ1 and Σ_n Ψ2⁽ⁿ⁾ the largest difference over the largest entry.
        """
        xp = backend.of(mu).xp
        level = 1 if self.level == 2 else self.level + 1
        here = self.forward(theta, mu, S, Z)
        there = QuadraturePsi(self.kernel, level).forward(theta, mu, S, Z)
        # White noise has statistics that are 0.
        largest = [xp.max(xp.abs(a)) + 1e-30 for a in there]
        return xp.stack(
            [xp.max(xp.abs(a - c)) / w for a, c, w in zip(here, there, largest, strict=True)]
        )

    def _nodes(self, mu: Array, S: Array, M: int) -> Iterator[_Nodes]:
        """Nodes in groups that fit the backend's block of rows × M."""
        b = backend.of(mu)
        xp = b.xp
        n, q = mu.shape
        dims = sorted(_seen(self.kernel, tuple(range(q))))
        rule = rule_for(len(dims), _degree(self.kernel), self.level)
        xi = np.zeros((rule.weights.size, q))
        xi[:, dims] = rule.nodes
        sd = _deviations(S)
        # Several arrays of this size are at work together.
        for where in row_blocks(b, xi.shape[0], 4 * n * M):
            part = b.asarray(xi[where])
            count = part.shape[0]
            spread = xp.broadcast_to(part[:, None, :], (count, n, q))
            X = mu[None, :, :] + sd[None, :, :] * spread
            w = xp.broadcast_to(b.asarray(rule.weights[where])[:, None], (count, n))
            yield _Nodes(
                xp.reshape(X, (-1, q)), xp.reshape(spread, (-1, q)), xp.reshape(w, (-1, 1))
            )


def _deviations(S: Array) -> Array:
    """√S; from a floor where S is nearer to 0 than a difference of kernel values can tell."""
    b = backend.of(S)
    floor = b.eps**0.75
    return b.xp.sqrt(b.xp.where(floor > S, floor, S))


def _repeated(a: Array, count: int) -> Array:
    """(n, …) → (count n, …): the rows again for every node."""
    xp = backend.of(a).xp
    return xp.reshape(xp.broadcast_to(a[None, ...], (count, *a.shape)), (-1, *a.shape[1:]))


def _over_nodes(a: Array, n: int) -> Array:
    """(count n, c) → (n, c): sums over the nodes."""
    xp = backend.of(a).xp
    return xp.sum(xp.reshape(a, (-1, n, a.shape[1])), axis=0)


def _by_group(weighted: Array, W: Array | None) -> list[Array]:
    """The rows times each column of W."""
    if W is None:
        return [weighted]
    count = weighted.shape[0] // W.shape[0]
    return [_repeated(W[:, k], count)[:, None] * weighted for k in range(W.shape[1])]


def _seen(kernel: Kernel, dims: tuple[int, ...]) -> set[int]:
    """Which of ``dims`` a tree looks at."""
    if isinstance(kernel, Sum | Product):
        return set().union(*(_seen(part, dims) for part in kernel.parts))
    if isinstance(kernel, ActiveDims):
        return _seen(kernel.kernel, tuple(dims[d] for d in kernel.dims))
    if isinstance(kernel, Scale):
        return _seen(kernel.kernel, dims)
    return set() if isinstance(kernel, Constant | White) else set(dims)


def _degree(kernel: Kernel) -> int | None:
    """The degree of a tree that is a polynomial in each argument, else None."""
    if isinstance(kernel, Sum | Product):
        degrees = [_degree(part) for part in kernel.parts]
        known = [d for d in degrees if d is not None]
        if len(known) < len(degrees):
            return None
        return max(known) if isinstance(kernel, Sum) else sum(known)
    if isinstance(kernel, ActiveDims | Scale):
        return _degree(kernel.kernel)
    # A subclass may mean another function: exact types only.
    if isinstance(kernel, Polynomial) and type(kernel) is Polynomial:
        return kernel.degree
    return {Linear: 1, Constant: 0, White: 0}.get(type(kernel))


__all__ = ["QuadraturePsi"]
