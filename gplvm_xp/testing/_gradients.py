"""Gradients and Hessian-vector products against differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array


def check_gradient(
    fun: Callable[[Array], tuple[Array, Array]],
    x: Array,
    *,
    rtol: float = 1e-7,
    step: float = 1e-3,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Hold a value-and-gradient function to central differences along random directions.

    One inner product tests the whole gradient vector, and two Richardson steps leave an O(h⁶)
    error for a wrong factor to hide behind. Differences pass on a wrong objective: use an
    independent oracle as well.

    Parameters
    ----------
    fun : callable
        x (d,) → (f, g): 0-d and (d,) arrays of x's library.
    x : array (d,)
    rtol : float
        Largest allowed |difference − ⟨g, u⟩| relative to |⟨g, u⟩| + |g|₂ |u|₂ / √d.
    step : float
        Largest step along the unit direction; h, h/2 and h/4 are used.

    Raises
    ------
    AssertionError
    """
    b = backend.of(x)
    rng = np.random.default_rng(seed)
    _, gradient = fun(x)
    g = b.to_host(gradient).astype(np.float64)
    for k in range(directions):
        u = rng.standard_normal(g.shape)
        u /= np.linalg.norm(u)
        move = b.asarray(u)

        def slope(h: float, move: Array = move) -> float:
            up, down = b.to_host(fun(x + h * move)[0]), b.to_host(fun(x - h * move)[0])
            return float(up - down) / (2.0 * h)

        got, want = float(g @ u), richardson(slope, step)
        scale = abs(want) + float(np.linalg.norm(g)) / np.sqrt(max(g.size, 1))
        assert abs(got - want) <= rtol * scale, (
            f"direction {k}: the gradient gives {got:.15g}, differences give {want:.15g} "
            f"(relative error {abs(got - want) / scale:.2e}, allowed {rtol:.0e})"
        )


def richardson(slope: Callable[[float], Any], h: float) -> Any:
    """A central difference of steps h, h/2 and h/4 extrapolated twice; the error is O(h⁶)."""
    first = [slope(h), slope(h / 2), slope(h / 4)]
    second = [(4 * first[1] - first[0]) / 3, (4 * first[2] - first[1]) / 3]
    return (16 * second[1] - second[0]) / 15


def check_hvp(
    gradient: Callable[[Array], Array],
    hvp: Callable[[Array, Array], Array],
    x: Array,
    *,
    project: Callable[[np.ndarray], np.ndarray] = lambda u: u,
    rtol: float = 1e-8,
    step: float = 1e-3,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Hold a Hessian-vector product to differences of its gradient, and to self-adjointness.

    Parameters
    ----------
    gradient : callable
        x → g of x's shape.
    hvp : callable
        (x, M) → H M, of x's shape.
    x : array
        Any shape.
    project : callable
        Takes a random host direction to an allowed one (a lower triangle, a symmetric matrix).
    rtol : float
        Largest |H M − difference| relative to |difference|, in the Frobenius norm.
    step : float
        Largest step along the unit direction.

    Raises
    ------
    AssertionError
    """
    b = backend.of(x)
    rng = np.random.default_rng(seed)

    def host(a: Array) -> np.ndarray:
        return np.asarray(b.to_host(a), dtype=np.float64)

    def direction() -> np.ndarray:
        u = project(rng.standard_normal(x.shape))
        return np.asarray(u / np.linalg.norm(u))

    for k in range(directions):
        u, w = direction(), direction()
        move = b.asarray(u)

        def slope(h: float, move: Array = move) -> np.ndarray:
            up, down = host(gradient(x + h * move)), host(gradient(x - h * move))
            return np.asarray((up - down) / (2.0 * h))

        got, want = host(hvp(x, move)), richardson(slope, step)
        error = float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-300))
        assert error <= rtol, f"direction {k}: H M and differences are {error:.2e} apart"
        other = host(hvp(x, b.asarray(w)))
        one, two = float(np.sum(w * got)), float(np.sum(u * other))
        scale = float(np.linalg.norm(got) + np.linalg.norm(other))
        limit = max(1e-12, 100.0 * b.eps) * scale
        assert abs(one - two) <= limit, f"⟨w, H u⟩ = {one:.15g} but ⟨H w, u⟩ = {two:.15g}"


__all__ = ["check_gradient", "check_hvp", "richardson"]
