"""What several parameterisations need: guards, triangles, variances of a factor, a conditional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.backend import Backend
from gplvm_xp.operators.base import LinearMap, Precision
from gplvm_xp.posteriors.base import Covariance, Variances


def require_shape(covariance: Covariance, theta: Array, L: int) -> None:
    """Refuse a θ whose trailing axes are not those of the parameterisation.

    Raises
    ------
    ValueError
    """
    want = covariance.shape(L)
    got = tuple(theta.shape)
    if got[len(got) - len(want) :] != want or len(got) < len(want):
        raise ValueError(
            f"{type(covariance).__name__}: θ has shape {got}; expected "
            f"(..., {', '.join(map(str, want))}) for a latent vector of length {L}"
        )


def require_length(covariance: Covariance, what: str, have: int, L: int) -> None:
    """Refuse a structure that belongs to a latent vector of another length.

    Raises
    ------
    ValueError
    """
    if have != L:
        raise ValueError(
            f"{type(covariance).__name__}: {what} is for a latent vector of length {have}, and "
            f"the prior's has length {L}; give both the same length"
        )


def guard(matrix: Array, ok: Array) -> Array:
    """The matrix where ``ok``, the identity elsewhere: what follows stays finite and silent."""
    b = backend.of(matrix)
    return b.xp.where(ok[..., None, None], matrix, b.eye(matrix.shape[-1]))


def or_infinity(value: Array, ok: Array) -> Array:
    """The value where ``ok``, +∞ elsewhere: a failed point must never look like a good one."""
    return backend.of(value).xp.where(ok, value, backend.of(value).xp.inf)


def positive(a: Array) -> tuple[Array, Array]:
    """The array with what is not a positive number replaced by 1, and whether all were."""
    xp = backend.of(a).xp
    good = (a > 0.0) & xp.isfinite(a)
    return xp.where(good, a, 1.0), xp.all(good, axis=-1)


def times(A: Array, z: Array) -> Array:
    """A z for matrices and vectors over leading axes."""
    return (A @ z[..., None])[..., 0]


def diagonal_matrix(d: Array) -> Array:
    """diag(d), (..., n) → (..., n, n)."""
    return d[..., None] * backend.of(d).eye(d.shape[-1])


def log_diagonal(L: Array) -> Array:
    """2 Σ ln L_ii, the logarithm of |L Lᵀ| for a triangle with a positive diagonal."""
    xp = backend.of(L).xp
    return 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=-1)


def symmetric(M: Array) -> Array:
    """(M + Mᵀ)/2."""
    return 0.5 * (M + backend.of(M).xp.matrix_transpose(M))


def gram_columns(B: LinearMap, s: Array, X: Array) -> Array:
    """Bᵀ diag(s) B X, (..., L, R), the way that is cheap for the map."""
    if B.gathers:
        return B.gram(s) @ X
    return B.columns_adjoint(s[..., None] * B.columns(X))


def factor_variances(B: LinearMap, X: Array, project: Callable[[Array], Array]) -> Variances:
    """Variances of Σ = X Xᵀ in X.

    With Z = B X, W = B M: v = rowsum(Z∘Z), dv = 2 rowsum(Z∘W), pullback 2 Bᵀ(s∘Z), second
    2 Bᵀ(s∘W). A map that gathers takes quad(X Xᵀ), 2 quad(M Xᵀ), 2 gram(s) X and 2 gram(s) M
    instead, so that no (N, R) array is made.

    Parameters
    ----------
    project : callable
        Takes a gradient to the free entries of X.
    """
    xp = backend.of(X).xp
    transposed = xp.matrix_transpose(X)
    if B.gathers:

        def second(s: Array) -> Callable[[Array], Array]:
            G = 2.0 * B.gram(s)
            return lambda M: project(G @ M)

        return Variances(
            value=B.quad(X @ transposed),
            jvp=lambda M: 2.0 * B.quad(M @ transposed),
            pullback=lambda s: project(2.0 * (B.gram(s) @ X)),
            second=second,
        )
    Z = B.columns(X)
    return Variances(
        value=xp.sum(Z * Z, axis=-1),
        jvp=lambda M: 2.0 * xp.sum(Z * B.columns(M), axis=-1),
        pullback=lambda s: project(2.0 * B.columns_adjoint(s[..., None] * Z)),
        second=lambda s: lambda M: project(2.0 * gram_columns(B, s, M)),
    )


def squared_variances(W: Array, v: Array) -> Variances:
    """Variances (W∘W) v, linear in v; W (..., N, n)."""
    xp = backend.of(v).xp
    squares = W * W
    return Variances(
        value=times(squares, v),
        jvp=lambda u: times(squares, u),
        pullback=lambda s: times(xp.matrix_transpose(squares), s),
        second=lambda s: xp.zeros_like,
    )


@dataclass(frozen=True)
class Conditional:
    """(Λ + G)⁻¹ = Yᵀ Y by way of the whitened matrix I + RᵀGR, where R Rᵀ = Λ⁻¹.

    Its error does not grow with the condition of Λ, as that of an inverse of Λ + G would: no
    inverse of the prior's covariance is formed (Rasmussen & Williams 2006, section 3.4.3, for
    any root R and for G of any sign).

    Attributes
    ----------
    Y : array (..., L, L)
        A⁻¹ Rᵀ, where A is the lower factor of I + RᵀGR.
    trace : array (...)
        tr{Λ (Λ + G)⁻¹} = |A⁻¹|².
    logdet : array (...)
        ln |Λ + G| − ln |Λ|.
    ok : bool array (...)
        Whether Λ + G is positive definite.
    """

    Y: Array
    trace: Array
    logdet: Array
    ok: Array


def conditional(prior: Precision, G: Array) -> Conditional:
    """Factor Λ + G for a symmetric G (..., L, L); about 7 L³ flops."""
    b: Backend = backend.of(G)
    xp = b.xp
    eye = b.eye(prior.size)
    R = prior.root_columns(eye)
    transposed = xp.matrix_transpose(R)
    A, ok = b.factor(eye + transposed @ (G @ R))
    # A root of an indefinite Λ is that of another matrix.
    ok = ok & xp.isfinite(prior.logdet())
    A = guard(A, ok)
    inverse = b.inverse_factor(A)
    return Conditional(
        Y=inverse @ transposed,
        trace=xp.sum(inverse * inverse, axis=(-2, -1)),
        logdet=log_diagonal(A),
        ok=ok,
    )


__all__ = [
    "Conditional",
    "conditional",
    "diagonal_matrix",
    "factor_variances",
    "gram_columns",
    "guard",
    "log_diagonal",
    "or_infinity",
    "positive",
    "require_length",
    "require_shape",
    "squared_variances",
    "symmetric",
    "times",
]
