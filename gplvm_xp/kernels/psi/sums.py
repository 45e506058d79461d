"""Psi statistics of sums of Gaussian, linear, constant and white terms, with all cross terms.

Constants and linear terms together are affine: φ(x)ᵀ diag(w) φ(z) with φ(x) = (1, x). With
V = φ(Z) diag(w), U_k = (G2_k + G2_kᵀ) V and a tilted mean x̃ for each Gaussian term,

* Gaussian × itself: :class:`~gplvm_xp.kernels.psi.rbf.RBFPsi` on the dimensions that it sees;
* Gaussian × another Gaussian: a product of Gaussians (:mod:`~gplvm_xp.kernels.psi.crossed`);
* Gaussian × affine: H_k Vᵀ with H_k = Σ_n W_nk Ψ1_nm φ(x̃_nm), x̃ = μ + t (z − μ), t = S/(ℓ² + S):
  ⟨G2_k + G2_kᵀ, H_k Vᵀ⟩ only adds Σ_k W_nk φ(x̃_nm)·U_k,m to the cotangent of Ψ1;
* affine × affine: V M_k Vᵀ with M_k = Σ_n W_nk E[φ φᵀ].

The first is in the literature (Titsias & Lawrence 2010; Damianou, Titsias & Lawrence 2016), the
others are derived in derivations/psi.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.psi.base import Contracted, Psi, Statistics
from gplvm_xp.kernels.psi.crossed import CrossedGaussians
from gplvm_xp.kernels.psi.rbf import RBFPsi
from gplvm_xp.kernels.psi.terms import (
    Gaussian,
    Term,
    columns,
    placed,
    pull_weights,
    weights,
)


@dataclass(frozen=True)
class SumPsi(Psi):
    """Analytic, for the terms of :func:`~gplvm_xp.kernels.psi.terms.terms_of`.

    Cost: that of :class:`RBFPsi` for each Gaussian term, and of twice its pairs for each two of
    them; affine terms cost O(n M q), with O(M² q) besides.
    """

    terms: tuple[Term, ...]

    def forward(
        self, theta: Array, mu: Array, S: Array, Z: Array, W: Array | None = None
    ) -> Statistics:
        b = backend.of(mu)
        xp = b.xp
        n, q = mu.shape
        W1 = xp.ones_like(mu[:, :1]) if W is None else W
        gaussians = self._gaussians(q)
        own = [g.theta(theta) for g in gaussians]
        affine = self._affine()
        w = weights(affine, theta, q)
        psi0 = self._white(theta) * xp.ones_like(mu[:, 0])
        psi1, psi2 = b.zeros((n, Z.shape[0])), b.zeros((W1.shape[1], Z.shape[0], Z.shape[0]))
        V = _phi(Z) * w
        Vt = xp.matrix_transpose(V)
        for g, t in zip(gaussians, own, strict=True):
            part = RBFPsi().forward(t, *g.seen(mu, S, Z), W)
            psi0, psi1, psi2 = psi0 + part.psi0, psi1 + part.psi1, psi2 + part.psi2
            if affine:
                tilt = _Tilt(g, t, mu, S)
                H = xp.stack([tilt.mean(part.psi1, W1[:, k], Z) for k in range(W1.shape[1])])
                psi2 = psi2 + _with_transpose(H @ Vt)
        for i, j in self._pairs(len(gaussians)):
            crossed = CrossedGaussians(gaussians[i].dims, gaussians[j].dims)
            psi2 = psi2 + _with_transpose(crossed.forward(own[i], own[j], mu, S, Z, W1))
        if affine:
            psi0 = psi0 + w[0] + (mu * mu + S) @ w[1:]
            psi1 = psi1 + _phi(mu) @ Vt
            psi2 = psi2 + V @ _second_moments(mu, S, W1) @ Vt
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
        q = mu.shape[1]
        W1 = xp.ones_like(mu[:, :1]) if W is None else W
        both = G2 + xp.matrix_transpose(G2)
        gaussians = self._gaussians(q)
        own = [g.theta(theta) for g in gaussians]
        gown = [xp.zeros_like(t) for t in own]
        affine = self._affine()
        w = weights(affine, theta, q)
        phi_z, phi = _phi(Z), _phi(mu)
        V = phi_z * w
        U = both @ V
        out = Contracted(
            g0 * self._white(theta),
            xp.zeros_like(theta),
            xp.zeros_like(mu),
            xp.zeros_like(S),
            xp.zeros_like(Z),
        )
        gU = xp.zeros_like(U)
        for i, (g, t) in enumerate(zip(gaussians, own, strict=True)):
            some = g.seen(mu, S, Z)
            G1_all = G1
            if affine:
                tilt = _Tilt(g, t, mu, S)
                psi1, cotangent = RBFPsi().singles(t, *some), tilt.cotangent(U, W1, Z)
                G1_all = G1 + cotangent
                gU_i, gt, gmu, gS, gZ = tilt.pull(psi1, U, W1, Z)
                gU = gU + gU_i
                gown[i] = gown[i] + gt
                out = _plus(out, mu=gmu, S=gS, Z=gZ)
            c = RBFPsi().contract(t, *some, g0, G1_all, G2, W)
            gown[i] = gown[i] + c.theta
            out = _plus(out, c.value, *(placed(a, g.dims, q) for a in (c.mu, c.S, c.Z)))
        for i, j in self._pairs(len(gaussians)):
            crossed = CrossedGaussians(gaussians[i].dims, gaussians[j].dims)
            value, gi, gj, gmu, gS, gZ = crossed.contract(own[i], own[j], mu, S, Z, both, W1)
            gown[i], gown[j] = gown[i] + gi, gown[j] + gj
            out = _plus(out, value, gmu, gS, gZ)
        gtheta = self._pull_white(theta, xp.sum(g0))
        for g, t, gt in zip(gaussians, own, gown, strict=True):
            gtheta = gtheta + g.pull(theta, t, gt)
        if affine:
            # Per row: φᵀ Q_k φ + diag(Q_k)·S with Q_k = Vᵀ G2_k V, and G1 V.
            Q = 0.5 * (xp.matrix_transpose(V) @ U)
            Q_n = xp.reshape(W1 @ xp.reshape(Q, (Q.shape[0], -1)), (-1, 1 + q, 1 + q))
            Q_phi = (Q_n @ phi[:, :, None])[:, :, 0]
            spread = xp.stack([Q_n[:, d, d] for d in range(1, 1 + q)], axis=1)
            G1V = G1 @ V
            of_psi0 = w[0] + (mu * mu + S) @ w[1:]
            value = g0 * of_psi0 + xp.sum(phi * (Q_phi + G1V), axis=1) + xp.sum(spread * S, axis=1)
            gphi = 2.0 * Q_phi + G1V
            gmu = gphi[:, 1:] + 2.0 * g0[:, None] * mu * w[1:]
            gS = spread + g0[:, None] * w[1:]
            gV = xp.matrix_transpose(G1) @ phi
            gV = gV + xp.sum(both @ (V @ _second_moments(mu, S, W1) + gU), axis=0)
            own_w = xp.concat([xp.sum(g0, keepdims=True), g0 @ (mu * mu + S)])
            gtheta = gtheta + pull_weights(affine, theta, q, own_w + xp.sum(gV * phi_z, axis=0))
            out = _plus(out, value, gmu, gS, (gV * w)[:, 1:])
        return out._replace(theta=gtheta)

    def _gaussians(self, q: int) -> list[Gaussian]:
        return [Gaussian.of(term, q) for term in self.terms if term.kind == "gaussian"]

    def _affine(self) -> tuple[Term, ...]:
        return tuple(term for term in self.terms if term.kind in ("constant", "linear"))

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        return [(i, j) for i in range(count) for j in range(i)]

    def _white(self, theta: Array) -> Array:
        total = backend.of(theta).scalar(0.0)
        for term in self.terms:
            total = total + term.coefficient(theta) if term.kind == "white" else total
        return total

    def _pull_white(self, theta: Array, g: Array) -> Array:
        total = backend.of(theta).xp.zeros_like(theta)
        for term in self.terms:
            total = total + term.pull_coefficient(theta, g) if term.kind == "white" else total
        return total


class _Tilt:
    """The mean of x under q(x) times a Gaussian term about z: x̃_nm = μ + t (z − μ) for each row.

    φ(x̃_nm)·u = L_n · R_m with L = (1, (1 − t) μ, t) and R = (u_0, u, z ∘ u).
    """

    def __init__(self, gaussian: Gaussian, own: Array, mu: Array, S: Array) -> None:
        xp = backend.of(mu).xp
        q = mu.shape[1]
        self.dims, self.q, self.own = gaussian.dims, q, own
        self.a = placed(1.0 / (own[1:] * own[1:])[None, :], gaussian.dims, q)
        self.mu = mu
        self.c = 1.0 / (1.0 + self.a * S)
        self.S = S
        t = self.a * S * self.c
        self.L = xp.concat([xp.ones_like(mu[:, :1]), self.c * mu, t], axis=1)

    def mean(self, psi1: Array, w: Array, Z: Array) -> Array:
        """Σ_n w_n Ψ1_nm φ(x̃_nm), (M, 1 + q)."""
        xp = backend.of(psi1).xp
        sums = xp.matrix_transpose(psi1) @ (w[:, None] * self.L)
        q = self.q
        return xp.concat([sums[:, :1], sums[:, 1 : 1 + q] + Z * sums[:, 1 + q :]], axis=1)

    def cotangent(self, U: Array, W: Array, Z: Array) -> Array:
        """Σ_k W_nk φ(x̃_nm)·U_k,m, (n, M)."""
        xp = backend.of(W).xp
        total = xp.zeros_like(self.L[:, :1] * Z[:, 0])
        for k in range(W.shape[1]):
            R = self._right(U[k, ...], Z)
            total = total + (W[:, k][:, None] * self.L) @ xp.matrix_transpose(R)
        return total

    def pull(self, psi1: Array, U: Array, W: Array, Z: Array) -> tuple[Array, ...]:
        """Gradients of Σ Ψ1 ∘ :meth:`cotangent` in U, (c, ℓ), μ, S and Z, where Ψ1 is held."""
        xp = backend.of(psi1).xp
        q = self.q
        gL, gZ, gU = xp.zeros_like(self.L), xp.zeros_like(Z), []
        for k in range(W.shape[1]):
            w = W[:, k][:, None]
            gL = gL + w * (psi1 @ self._right(U[k, ...], Z))
            gR = xp.matrix_transpose(psi1) @ (w * self.L)
            gU.append(xp.concat([gR[:, :1], gR[:, 1 : 1 + q] + Z * gR[:, 1 + q :]], axis=1))
            gZ = gZ + gR[:, 1 + q :] * U[k, :, 1:]
        # t = aS/(1 + aS) and c = 1 − t.
        gmu = self.c * gL[:, 1 : 1 + q]
        gt = gL[:, 1 + q :] - self.mu * gL[:, 1 : 1 + q]
        slope = gt * self.c * self.c
        gell = -2.0 * columns(xp.sum(slope * self.S, axis=0)[None, :], self.dims)[0, :]
        ell = self.own[1:]
        gown = xp.concat([xp.zeros_like(self.own[:1]), gell / (ell * ell * ell)])
        return xp.stack(gU), gown, gmu, slope * self.a, gZ

    def _right(self, U: Array, Z: Array) -> Array:
        return backend.of(U).xp.concat([U, Z * U[:, 1:]], axis=1)


def _phi(X: Array) -> Array:
    xp = backend.of(X).xp
    return xp.concat([xp.ones_like(X[:, :1]), X], axis=1)


def _second_moments(mu: Array, S: Array, W: Array) -> Array:
    """Σ_n W_nk E[φ φᵀ], (r, 1 + q, 1 + q)."""
    b = backend.of(mu)
    xp = b.xp
    phi = _phi(mu)
    products = [xp.matrix_transpose(W[:, k][:, None] * phi) @ phi for k in range(W.shape[1])]
    spread = xp.concat([b.zeros((1, W.shape[1])), xp.matrix_transpose(S) @ W])
    return xp.stack(products) + xp.matrix_transpose(spread)[:, None, :] * b.eye(phi.shape[1])


def _with_transpose(A: Array) -> Array:
    return A + backend.of(A).xp.matrix_transpose(A)


def _plus(
    c: Contracted,
    value: Array | None = None,
    mu: Array | None = None,
    S: Array | None = None,
    Z: Array | None = None,
) -> Contracted:
    return Contracted(
        c.value if value is None else c.value + value,
        c.theta,
        c.mu if mu is None else c.mu + mu,
        c.S if S is None else c.S + S,
        c.Z if Z is None else c.Z + Z,
    )


__all__ = ["SumPsi"]
