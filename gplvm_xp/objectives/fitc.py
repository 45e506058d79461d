"""The FITC likelihood of a sparse GPLVM: a noise of its own for every row.

With Q = K_xu K_uu⁻¹ K_ux the training conditional is taken as independent over rows, so that
y_d ~ N(0, Q + Λ), Λ_n = k(x_n, x_n) − Q_nn + σ² (Snelson & Ghahramani 2006; for latents Lawrence
2007). For each group k of D_k outputs that are observed in the same rows (W_nk = 1), with
L_u L_uᵀ = K_uu, rows a_n of A = K_xu L_u⁻ᵀ, w = 1/Λ and w_nk = W_nk w_n:

* B_k = I + Aᵀ diag(w_k) A = L_B L_Bᵀ, c = L_B⁻¹ Aᵀ diag(w_k) Y, m = L_B⁻ᵀ c, all of whitened size;
* F = Σ_k {−½ N_k D_k ln 2π − ½ D_k Σ_n W_nk ln Λ_n − D_k Σ ln (L_B)_ii} − ½ Σ w_n ‖y_n‖² + ½ ‖c‖².

Cotangents (ours; derivations/sparse.md), with residuals P = W ∘ (Y − A m), h_nk = a_nᵀ B_k⁻¹ a_n,
T_k = B_k⁻¹ Aᵀ diag(w_k) A and back(S) = L_u⁻ᵀ S L_u⁻¹:

* ∂Λ_n = γ_n = ½ w_n² {‖P_n‖² − Σ_k W_nk D_k (Λ_n − h_nk)}, ∂σ² = Σ γ_n, ∂k(x_n, x_n) = γ_n;
* ∂K_xu = {diag(w) P mᵀ − Σ_k D_k diag(w_k) A B_k⁻¹ − 2 diag(γ) A} L_u⁻¹;
* ∂K_uu = −½ back(m mᵀ − Σ_k D_k T_k − 2 Aᵀ diag(γ) A).

k(x_n, x_n) − Q_nn is never negative but for rounding; what rounding makes of it is taken as 0, with
no gradient, and where it is negative by more than a part in 10⁶ of Σ k(x_n, x_n) the point counts
as one without factors. The optimal q(u_d) = N(L_u m_d, L_u B_k⁻¹ L_uᵀ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.objectives.bayesian import Bound, InducingObjective, Values, inducing_gram
from gplvm_xp.objectives.collapsed import SLACK, back, grouped, ungrouped
from gplvm_xp.objectives.rows import ROWS_BYTES, added, chunks


@dataclass(frozen=True)
class FITCObjective(InducingObjective):
    """The FITC likelihood; parameters as of its base, with ``S`` None.

    Raises
    ------
    ValueError
        If variances of the latents are given.

    Notes
    -----
    Two passes over the rows in chunks: cost O(n M (q + M r + D) + r M³), memory O(r M² + M D) and a
    chunk of rows a thread.
    """

    def __post_init__(self) -> None:
        if self.S is not None:
            raise ValueError("S was given; FITC is a likelihood of points: give S=None")
        super().__post_init__()

    def bound(self, v: Values) -> Bound:
        b, totals = self.backend, self.data.totals
        xp = b.xp
        K, pull_uu = inducing_gram(self.kernel, v.theta, v.Z, self.jitter)
        f = self._factors(v, K)
        D, N = b.asarray(totals.outputs), b.asarray(totals.entries)
        half = xp.sum(xp.log(xp.linalg.diagonal(f.LB)), axis=1)
        cc = xp.sum(f.c * f.c, axis=(1, 2))
        value = -0.5 * math.log(2.0 * math.pi) * N - 0.5 * D * f.logs - D * half + 0.5 * cc
        mean = self._mean(f)
        gtheta, gZ, noise, inner, gmu = self._second(v, f, mean)
        S = mean @ xp.matrix_transpose(mean) - 2.0 * inner
        T = b.solve_factor(f.LB, b.solve_factor(f.LB, f.C), trans=True)
        S = S - xp.sum(D[:, None, None] * T, axis=0)
        more, more_Z = pull_uu(-0.5 * back(b, f.lower, S[None, ...])[0, ...])
        return Bound(
            xp.sum(value) - 0.5 * f.squares,
            f.ok,
            Values(gtheta + more, noise, gZ + more_Z, gmu, None),
        )

    def optimal(self, v: Values) -> tuple[Array, Array, Array]:
        b = self.backend
        f = self._factors(v, inducing_gram(self.kernel, v.theta, v.Z, self.jitter)[0])
        return self._mean(f), b.xp.matrix_transpose(b.inverse_factor(f.LB)), f.ok

    def _mean(self, f: _Factors) -> Array:
        b = self.backend
        return ungrouped(b, b.solve_factor(f.LB, f.c, trans=True), self.data.totals)

    def _factors(self, v: Values, K: Array) -> _Factors:
        """The sums over rows, and the factors of the M × M algebra."""
        b, data = self.backend, self.data
        xp = b.xp
        lower, ok = b.factor(K)

        def one(where: slice) -> tuple[Array, ...]:
            X, Y, W = v.mu[where, :], data.Y[where, :], _part(data.W, where)
            A = _whitened(lower, self.kernel.gram(v.theta, X, v.Z))
            own, explained = self.kernel.diag(v.theta, X), xp.sum(A * A, axis=1)
            spread, _ = _spread(own - explained, v.noise)
            root = A / xp.sqrt(spread)[:, None]
            parts = [root] if W is None else [root * W[:, k][:, None] for k in range(W.shape[1])]
            logs, light = xp.log(spread), Y / spread[:, None]
            return (
                xp.stack([xp.matrix_transpose(part) @ part for part in parts]),
                xp.matrix_transpose(A) @ light,
                xp.sum(logs, keepdims=True) if W is None else logs @ W,
                xp.sum(Y * light),
                xp.sum(own),
                xp.sum(explained),
            )

        C, right, logs, squares, own, explained = added(b, one, _parts(b, v.mu, data.Y, v.Z))
        LB, fine = b.factor(C + b.eye(K.shape[0]))
        c = b.solve_factor(LB, grouped(b, right, data.totals))
        ok = ok & xp.all(fine) & (explained <= (1.0 + SLACK) * own)
        return _Factors(ok, lower, C, LB, c, logs, squares)

    def _second(self, v: Values, f: _Factors, mean: Array) -> tuple[Array, ...]:
        """Gradients through the rows: theta, Z, noise, Aᵀ diag(γ) A, and X."""
        b, data = self.backend, self.data
        xp = b.xp
        gmu = b.empty(v.mu.shape)
        half = b.inverse_factor(f.LB)
        inverse = xp.matrix_transpose(half) @ half
        outputs = b.asarray(data.totals.outputs)
        turned = xp.matrix_transpose(mean)
        place = xp.asarray(data.totals.which, dtype=xp.int64, device=b.device)

        def one(where: slice) -> tuple[Array, ...]:
            X, Y, W = v.mu[where, :], data.Y[where, :], _part(data.W, where)
            K, pull = self.kernel.gram_pullback(v.theta, X, v.Z)
            own, diag_pull = self.kernel.diag_pullback(v.theta, X)
            A = _whitened(f.lower, K)
            spread, inside = _spread(own - xp.sum(A * A, axis=1), v.noise)
            rest = Y - A @ mean
            counts = xp.broadcast_to(outputs, (X.shape[0], outputs.shape[0]))
            if W is not None:
                rest, counts = rest * xp.take(W, place, axis=1), counts * W
            gamma, gA = xp.sum(rest * rest, axis=1), rest @ turned
            for k in range(outputs.shape[0]):
                near = A @ inverse[k, ...]
                gamma = gamma - counts[:, k] * (spread - xp.sum(A * near, axis=1))
                gA = gA - counts[:, k][:, None] * near
            gamma = 0.5 * gamma / spread**2
            seen = gamma * inside
            weighted = seen[:, None] * A
            gA = gA / spread[:, None] - 2.0 * weighted
            gK = b.solve_triangular(f.lower, xp.matrix_transpose(gA), trans=True)
            gtheta, gX, gZ = pull(xp.matrix_transpose(gK))
            gtheta_own, gX_own = diag_pull(seen)
            gmu[where, :] = gX + gX_own
            return gtheta + gtheta_own, gZ, xp.sum(gamma), xp.matrix_transpose(A) @ weighted

        return (*added(b, one, _parts(b, v.mu, data.Y, v.Z)), gmu)


class _Factors(NamedTuple):
    ok: Array
    lower: Array  # L_u (M, M)
    C: Array  # B − I (r, M, M)
    LB: Array  # (r, M, M)
    c: Array  # (r, M, w), zero columns where a group has fewer than w outputs
    logs: Array  # Σ W ln Λ (r,)
    squares: Array  # Σ ‖y_n‖²/Λ_n


def _whitened(lower: Array, K: Array) -> Array:
    """K L⁻ᵀ (n, M)."""
    b = backend.of(K)
    return b.xp.matrix_transpose(b.solve_triangular(lower, b.xp.matrix_transpose(K)))


def _spread(rest: Array, noise: Array) -> tuple[Array, Array]:
    """Λ (n,), and 1 where what is left of the prior is no rounding error, else 0."""
    xp = backend.of(rest).xp
    inside = xp.astype(rest > 0.0, rest.dtype)
    return inside * rest + noise, inside


def _part(W: Array | None, where: slice) -> Array | None:
    return None if W is None else W[where, :]


def _parts(b: Backend, X: Array, Y: Array, Z: Array) -> list[slice]:
    return chunks(X.shape[0], ROWS_BYTES // (b.itemsize * max(Z.shape[0], Y.shape[1])))


__all__ = ["FITCObjective"]
