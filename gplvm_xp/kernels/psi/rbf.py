"""Psi statistics of the RBF kernel: a product of thin matrices and an exponential for each pair.

In units of the lengthscales (μ, Z divided by ℓ about the mean of Z, S by ℓ²), with e₁ = S + 1,
e₂ = 2S + 1, c = 1/e₂, d = μ_n − z_m, z̄ = (z_m + z_m′)/2, d̄ = μ_n − z̄, δ = z_m − z_m′
(Titsias & Lawrence 2010; derivations/psi.md):

* Ψ1 = σ² Π e₁^(−½) exp(−½ d²/e₁), Ψ2⁽ⁿ⁾ = σ⁴ Π e₂^(−½) exp(−¼ δ² − d̄²/e₂).

Over the P = M (M + 1)/2 pairs, Ψ2 costs one product of 2 n P (2q + 2) operations and n P
exponentials, its gradients two products more (:mod:`.blocked`); a device with a kernel of its own
makes no E (:mod:`.streamed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.psi import blocked, streamed
from gplvm_xp.kernels.psi.base import Contracted, Psi, Statistics
from gplvm_xp.kernels.psi.pairs import folded, sums_by_member, unfolded

if TYPE_CHECKING:
    from gplvm_xp.backend.cuda.psi import FusedPsi


@dataclass(frozen=True)
class RBFPsi(Psi):
    """Analytic; theta is (σ², ℓ) with one lengthscale or one a dimension."""

    def forward(
        self, theta: Array, mu: Array, S: Array, Z: Array, W: Array | None = None
    ) -> Statistics:
        xp = backend.of(mu).xp
        variance, (mu, S, Z) = _in_lengths(theta, mu, S, Z)
        code = _code(mu, W)
        if code is not None:
            sums = streamed.pair_sums(code, variance, mu, S, Z, W)
        else:
            sums = blocked.pair_sums(variance, mu, S, Z, W)
        psi0 = variance * xp.ones_like(mu[:, 0])
        return Statistics(psi0, _singles(variance, mu, S, Z), unfolded(sums, Z.shape[0]))

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
        variance, (mu, S, Z) = _in_lengths(theta, mu, S, Z)
        q, M = mu.shape[1], Z.shape[0]
        # Ψ1: A = G1 ∘ Ψ1, and its sums with Z.
        A = _singles(variance, mu, S, Z) * G1
        c1 = 1.0 / (S + 1.0)
        ones = xp.ones_like(Z[:, :1])
        row, column = b.thin_products(
            A,
            xp.concat([xp.ones_like(mu[:, :1]), c1, c1 * mu], axis=1),
            xp.concat([ones, Z, Z * Z], axis=1),
        )
        A1, AZ, AZZ = row[:, :1], row[:, 1 : q + 1], row[:, q + 1 :]
        gmu = c1 * (AZ - mu * A1)
        gS = 0.5 * c1 * (c1 * (mu * (mu * A1 - 2.0 * AZ) + AZZ) - A1)
        gZ = column[:, q + 1 :] - Z * column[:, 1 : q + 1]
        # Ψ2.
        code, g = _code(mu, W), folded(G2)
        if code is not None:
            P, *own, N, gmiddle = streamed.pair_gradients(code, variance, mu, S, Z, W, g)
        else:
            P, *own, N, gmiddle = blocked.pair_gradients(variance, mu, S, Z, W, g)
        gmu, gS = gmu + own[0], gS + own[1]
        # z̄ moves half with each member of a pair, δ with one and against the other.
        gZ = gZ + sums_by_member(gmiddle, M)
        N = unfolded(xp.matrix_transpose(N), M)[0, ...]
        gZ = gZ - 0.5 * (Z * _sum(N) - N @ Z)
        value = g0 * variance + A1[:, 0] + P[:, 0]
        total = xp.sum(value) + xp.sum(P)
        # Scaling μ, Z and √S together by 1/ℓ is the whole of ℓ's effect.
        ell = theta[1:]
        gell = -(xp.sum(mu * gmu + 2.0 * S * gS, axis=0) + xp.sum(Z * gZ, axis=0))
        if ell.shape[0] == 1:
            gell = xp.sum(gell, keepdims=True)
        gtheta = xp.concat([xp.reshape(total / variance, (1,)), gell / ell])
        return Contracted(value, gtheta, gmu / ell, gS / (ell * ell), gZ / ell)

    def singles(self, theta: Array, mu: Array, S: Array, Z: Array) -> Array:
        """Ψ1 alone, (n, M)."""
        variance, scaled = _in_lengths(theta, mu, S, Z)
        return _singles(variance, *scaled)


def _in_lengths(
    theta: Array, mu: Array, S: Array, Z: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """σ², and μ, S, Z in units of the lengthscales, about the mean of Z: products stay small."""
    ell = theta[1:]
    centre = backend.of(Z).xp.mean(Z, axis=0, keepdims=True)
    return theta[0], ((mu - centre) / ell, S / (ell * ell), (Z - centre) / ell)


def _singles(variance: Array, mu: Array, S: Array, Z: Array) -> Array:
    """Ψ1 (n, M)."""
    b = backend.of(mu)
    xp = b.xp
    c = 1.0 / (S + 1.0)
    constant = xp.log(variance) - 0.5 * _sum(xp.log(S + 1.0) + c * mu * mu)
    left = xp.concat([c * mu, -0.5 * c, constant], axis=1)
    right = xp.concat([Z, Z * Z, xp.ones_like(Z[:, :1])], axis=1)
    return b.exp(left @ xp.matrix_transpose(right))


def _code(mu: Array, W: Array | None) -> FusedPsi | None:
    """The device's own sums over pairs, for one weight a row."""
    if W is not None and W.shape[1] != 1:
        return None
    return backend.of(mu).fused_psi(mu.shape[1])


def _sum(a: Array) -> Array:
    return backend.of(a).xp.sum(a, axis=1, keepdims=True)


__all__ = ["RBFPsi"]
