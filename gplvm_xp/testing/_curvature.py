"""The part of the conformance suite of kernels that concerns second derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array
from gplvm_xp.kernels.curvature import Curvature
from gplvm_xp.testing._gradients import richardson

if TYPE_CHECKING:
    from gplvm_xp.testing._kernels import KernelRun


def check_curvature(
    run: KernelRun, curvature: Curvature, theta: np.ndarray, X: np.ndarray, Z: np.ndarray
) -> None:
    """Hold second derivatives to differences of the pullback, and their forms to each other.

    Third derivatives need not exist where points coincide: X and Z have none that do.
    """
    rng = run.rng
    dtheta, dX = theta * rng.standard_normal(theta.shape), rng.standard_normal(X.shape)
    for other, dZ in ((None, None), (Z, rng.standard_normal(Z.shape))):
        G = rng.standard_normal((X.shape[0], (X if other is None else Z).shape[0]))
        _against_differences(run, curvature, (theta, X, other), (dtheta, dX, dZ), G)
        _over_leading_axes(run, curvature, (theta, X, other), (dtheta, dX, dZ), G)
    _symmetric(run, curvature, theta, X, dtheta, dX)


def _flat(like: Array, parts: Any) -> np.ndarray:
    b = backend.of(like)
    return np.concatenate([b.to_host(a).astype(float).ravel() for a in parts if a is not None])


def _against_differences(
    run: KernelRun, curvature: Curvature, at: Any, along: Any, G: np.ndarray
) -> None:
    t, x, z = (run.put(a) for a in at)
    dt, dx, dz = (run.put(a) for a in along)
    g = run.put(G)

    def slope(h: float) -> np.ndarray:
        sides = []
        for step in (h, -h):
            theta, X, Z = (
                None if a is None else run.put(a + step * d) for a, d in zip(at, along, strict=True)
            )
            sides.append(_flat(x, run.kernel.gram_pullback(theta, X, Z)[1](g)))
        return np.asarray((sides[0] - sides[1]) / (2.0 * h))

    got = curvature.pullback_jvp(t, x, z, g, dt, dx, dz)
    label = "Z = None" if at[2] is None else "Z given"
    for name, a, given in zip(("gtheta", "gX", "gZ"), got, at, strict=True):
        if given is None:
            assert a is None, "gZ of pullback_jvp must be None where Z is None"
        else:
            run.get(a, x, given.shape, f"{name} of pullback_jvp")
    want = richardson(slope, run.step)
    run.close(_flat(x, got), want, run.loose, f"pullback_jvp and differences ({label})")
    tangent = curvature.tangent(t, x, z, dt, dx, dz)
    K, dK = (run.get(a, x, G.shape, "a value of tangent") for a in tangent.values())
    run.close(K, run.gram64(*at), run.tight, f"K of tangent against gram ({label})")
    jvp = run.kernel.gram_jvp(t, x, z, dtheta=dt, dX=dx, dZ=dz)
    want = run.get(jvp, x, G.shape, "gram_jvp")
    run.close(dK, want, 100 * run.tight, f"dK of tangent against gram_jvp ({label})")


def _over_leading_axes(
    run: KernelRun, curvature: Curvature, at: Any, along: Any, G: np.ndarray
) -> None:
    """Two problems at once, the second with its points the other way round."""
    theta, X, Z = at
    dtheta, dX, dZ = along

    def both(a: np.ndarray | None) -> Array:
        return None if a is None else run.put(np.stack([a, a[::-1]]))

    t, dt = run.put(theta), run.put(dtheta)
    got = curvature.pullback_jvp(t, both(X), both(Z), both(G), dt, both(dX), both(dZ))
    put = run.put
    alone = [
        curvature.pullback_jvp(t, put(x), put(z), put(g), dt, put(u), put(v))
        for x, z, g, u, v in ((X, Z, G, dX, dZ), _reversed(X, Z, G, dX, dZ))
    ]
    host = backend.of(t).to_host
    sums = host(alone[0][0]).astype(float) + host(alone[1][0]).astype(float)
    run.close(host(got[0]).astype(float), sums, 100 * run.tight, "gtheta over leading axes")
    for a, one, two in zip(got[1:], alone[0][1:], alone[1][1:], strict=True):
        if a is not None:
            want = np.stack([host(one), host(two)]).astype(float)
            run.close(host(a).astype(float), want, 100 * run.tight, "gX and gZ over leading axes")


def _reversed(*arrays: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    return tuple(None if a is None else a[::-1].copy() for a in arrays)


def _symmetric(
    run: KernelRun, curvature: Curvature, theta: np.ndarray, X: np.ndarray,
    dtheta: np.ndarray, dX: np.ndarray,
) -> None:  # fmt: skip
    n = X.shape[0]
    G, dG = (a + a.T for a in run.rng.standard_normal((2, n, n)))
    t, x, dt, dx = (run.put(a) for a in (theta, X, dtheta, dX))
    held = curvature.pullback_jvp(t, x, None, run.put(G), dt, dx)
    moved = run.kernel.gram_pullback(t, x)[1](run.put(dG))
    want = _flat(x, held) + _flat(x, moved)
    cuts = [(0, n // 2, 0, n // 2), (n // 2, n, 0, n // 2), (n // 2, n, n // 2, n)]
    g, dg = (run.put(np.tril(a)) for a in (G, dG))
    for tiles in (None, cuts):
        got = curvature.symmetric(t, x, g, dg, dt, dx, tiles)
        what = "symmetric" + (" in blocks" if tiles else "")
        run.close(_flat(x, got), want, 100 * run.tight, what)


__all__ = ["check_curvature"]
