"""The conformance suite of kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gplvm_xp import backend
from gplvm_xp._typing import Array, Device, Namespace
from gplvm_xp.backend import Backend
from gplvm_xp.kernels import Kernel
from gplvm_xp.kernels.psi import QuadraturePsi
from gplvm_xp.testing._curvature import check_curvature
from gplvm_xp.testing._gradients import richardson


def check_kernel(
    kernel: Kernel,
    q: int,
    *,
    xp: Namespace = np,
    device: Device = None,
    dtype: str = "float64",
    n: int = 7,
    m: int = 5,
    seed: int = 0,
    make: Callable[[np.ndarray], Array] | None = None,
) -> None:
    """Hold a kernel to the contract of :class:`gplvm_xp.kernels.Kernel`.

    Checked: symmetry, positive semi-definiteness, the diagonal; both Jacobian tensors against
    Richardson differences of the Gram matrix; the pullback for symmetric and unsymmetric
    cotangents, Z given or not, against the Jacobian tensors; the directional derivative against
    the pullback (adjointness); blocks against the whole; coincident points; psi statistics against
    an integral of the kernel on a dense grid, and their gradients against Richardson differences;
    second derivatives, where the kernel has them, against Richardson differences of the pullback;
    the library, device and dtype of every result; that inputs are left alone; round trip of the
    parameters.

    Parameters
    ----------
    kernel : Kernel
    q : int
        Number of input dimensions to try.
    xp, device, dtype
        Where to try it: any array-API library.
    n, m : int
        Numbers of points.
    make : callable, optional
        Makes a device array from a float64 host array; overrides ``xp`` and ``device``.

    Raises
    ------
    AssertionError
    """
    rng = np.random.default_rng(seed)
    if make is None:
        kind = getattr(xp, dtype)

        def make(a: np.ndarray) -> Array:
            return xp.asarray(a, dtype=kind, device=device)

    run = KernelRun(kernel, make, dtype, rng)
    X = rng.standard_normal((n, q))
    X[-1] = X[0]
    Z = rng.standard_normal((m, q))
    Z[0] = X[1]
    theta = kernel.theta() * np.exp(0.1 * rng.standard_normal(kernel.size))
    run.structure(theta, q)
    run.values(theta, X, Z)
    for other in (None, Z):
        run.jacobians(theta, X, other)
        run.pullback(theta, X, other)
        run.jvp(theta, X, other)
    run.diagonal(theta, X)
    run.symmetric(theta, X)
    run.psi(theta, X[:3, :], Z[:2, :])
    try:
        curvature = kernel.curvature()
    except NotImplementedError:
        return
    check_curvature(run, curvature, theta, X[:-1, :], Z[1:, :])


class KernelRun:
    """One kernel on one library; host arrays in, comparisons on the host."""

    def __init__(
        self, kernel: Kernel, make: Callable[[np.ndarray], Array], dtype: str, rng: Any
    ) -> None:
        self.kernel, self.make, self.rng = kernel, make, rng
        single = dtype == "float32"
        self.tight, self.loose = (2e-5, 2e-2) if single else (1e-11, 1e-7)
        self.step = 3e-2 if single else 2e-3

    def put(self, a: np.ndarray | None) -> Array:
        return None if a is None else self.make(np.asarray(a, dtype=np.float64))

    def get(self, a: Array, like: Array, shape: tuple[int, ...], what: str) -> np.ndarray:
        b = backend.of(like)
        assert type(a) is type(like), f"{what} is a {type(a)}, the inputs are {type(like)}"
        assert tuple(a.shape) == shape, f"{what} has shape {a.shape}, expected {shape}"
        assert a.dtype == like.dtype, f"{what} has dtype {a.dtype}, the inputs have {like.dtype}"
        assert backend.of(a).device == b.device, f"{what} has left the inputs' device"
        return b.to_host(a).astype(np.float64)

    def close(self, got: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> None:
        scale = max(float(np.max(np.abs(want), initial=0.0)), 1e-3)
        error = float(np.max(np.abs(got - want), initial=0.0)) / scale
        assert error <= tolerance, (
            f"{type(self.kernel).__name__}: {what} is off by {error:.2e} (allowed {tolerance:.0e})"
        )

    def gram64(self, theta: np.ndarray, X: np.ndarray, Z: np.ndarray | None) -> np.ndarray:
        t = self.put(theta)
        return backend.of(t).to_host(self.kernel.gram(t, self.put(X), self.put(Z))).astype(float)

    def structure(self, theta: np.ndarray, q: int) -> None:
        kernel = self.kernel
        kernel.check(q)
        names = [block.name for block in kernel.blocks()]
        assert len(set(names)) == len(names), f"block names repeat: {names}"
        assert kernel.theta().shape == (kernel.size,)
        moved = kernel.with_theta(theta)
        assert type(moved) is type(kernel)
        self.close(moved.theta(), theta, 1e-15, "with_theta followed by theta")
        for place, dims in kernel.scale_blocks(q):
            assert 0 <= place < len(names)
            assert dims <= set(range(q))

    def values(self, theta: np.ndarray, X: np.ndarray, Z: np.ndarray) -> None:
        t, x, z = self.put(theta), self.put(X), self.put(Z)
        n, m = X.shape[0], Z.shape[0]
        K = self.get(self.kernel.gram(t, x), x, (n, n), "gram(X)")
        self.close(K, K.T, self.tight, "gram(X) against its transpose")
        least = float(np.linalg.eigvalsh(0.5 * (K + K.T))[0])
        assert least >= -100 * self.tight * max(float(np.trace(K)), 1.0), (
            f"gram(X) has the eigenvalue {least:.3g}; a kernel is positive semi-definite"
        )
        d = self.get(self.kernel.diag(t, x), x, (n,), "diag")
        self.close(d, np.diag(K), self.tight, "diag against the diagonal of gram")
        cross = self.get(self.kernel.gram(t, x, z), x, (n, m), "gram(X, Z)")
        back = self.get(self.kernel.gram(t, z, x), x, (m, n), "gram(Z, X)")
        self.close(cross, back.T, self.tight, "gram(X, Z) against gram(Z, X) transposed")
        for name, used, given in (("theta", t, theta), ("X", x, X), ("Z", z, Z)):
            left = backend.of(used).to_host(used).astype(float)
            self.close(left, given, 1e-6, f"{name} after the calls (inputs must be left alone)")

    def jacobians(self, theta: np.ndarray, X: np.ndarray, Z: np.ndarray | None) -> None:
        """Tensors against differences: the second argument is kept still by passing it as Z."""
        t, x, z = self.put(theta), self.put(X), self.put(Z)
        n, m, q = X.shape[0], (X if Z is None else Z).shape[0], X.shape[1]
        T = self.get(self.kernel.input_jacobian(t, x, z), x, (n, m, q), "input_jacobian")
        P = self.get(self.kernel.theta_jacobian(t, x, z), x, (theta.size, n, m), "theta_jacobian")
        still = X if Z is None else Z

        for a in range(q):
            e = np.zeros(q)
            e[a] = 1.0

            def in_x(h: float, e: np.ndarray = e) -> np.ndarray:
                up, down = (self.gram64(theta, X + s * h * e, still) for s in (1.0, -1.0))
                return np.asarray((up - down) / (2 * h))

            want = richardson(in_x, self.step)
            self.close(T[:, :, a], want, self.loose, f"input_jacobian[..., {a}] and differences")
        for p in range(theta.size):
            e = np.zeros(theta.size)
            e[p] = theta[p]

            def in_theta(h: float, e: np.ndarray = e) -> np.ndarray:
                up, down = (self.gram64(theta + s * h * e, X, Z) for s in (1.0, -1.0))
                return np.asarray((up - down) / (2 * h))

            want = richardson(in_theta, self.step)
            got = theta[p] * P[p]
            self.close(got, want, self.loose, f"theta_jacobian[{p}] and differences")

    def pullback(self, theta: np.ndarray, X: np.ndarray, Z: np.ndarray | None) -> None:
        t, x, z = self.put(theta), self.put(X), self.put(Z)
        n, m, q = X.shape[0], (X if Z is None else Z).shape[0], X.shape[1]
        b = backend.of(x)
        T = b.to_host(self.kernel.input_jacobian(t, x, z)).astype(float)
        P = b.to_host(self.kernel.theta_jacobian(t, x, z)).astype(float)
        other = x if z is None else z
        back = b.to_host(self.kernel.input_jacobian(t, other, x)).astype(float)
        G = self.rng.standard_normal((n, m))
        G = b.to_host(self.put(G)).astype(float)
        K, pull = self.kernel.gram_pullback(t, x, z)
        K = self.get(K, x, (n, m), "K of gram_pullback")
        self.close(K, self.gram64(theta, X, Z), self.tight, "K of gram_pullback against gram")
        gtheta, gX, gZ = pull(self.put(G))
        label = "Z = None" if Z is None else "Z given"
        tensor_tolerance = 100 * self.tight
        self.close(
            self.get(gtheta, x, theta.shape, "gtheta"),
            np.einsum("nm,pnm->p", G, P),
            tensor_tolerance,
            f"gtheta against the tensor ({label})",
        )
        want_x = np.einsum("nm,nmq->nq", G, T)
        want_z = np.einsum("nm,mnq->mq", G, back)
        if Z is None:
            assert gZ is None, "gZ must be None where Z is None"
            want_x = want_x + want_z
        else:
            self.close(
                self.get(gZ, x, (m, q), "gZ"), want_z, tensor_tolerance, "gZ against the tensor"
            )
        self.close(
            self.get(gX, x, (n, q), "gX"), want_x, tensor_tolerance, f"gX and tensor ({label})"
        )

    def jvp(self, theta: np.ndarray, X: np.ndarray, Z: np.ndarray | None) -> None:
        rng = self.rng
        t, x, z = self.put(theta), self.put(X), self.put(Z)
        n, m = X.shape[0], (X if Z is None else Z).shape[0]
        dtheta, dX = rng.standard_normal(theta.shape), rng.standard_normal(X.shape)
        dZ = None if Z is None else rng.standard_normal(Z.shape)
        G = rng.standard_normal((n, m))
        dK = self.kernel.gram_jvp(
            t, x, z, dtheta=self.put(dtheta), dX=self.put(dX), dZ=self.put(dZ)
        )
        got = float(np.sum(G * self.get(dK, x, (n, m), "gram_jvp")))
        b = backend.of(x)
        gtheta, gX, gZ = self.kernel.gram_pullback(t, x, z)[1](self.put(G))
        want = float(b.to_host(gtheta) @ dtheta + np.sum(b.to_host(gX) * dX))
        if dZ is not None:
            want += float(np.sum(b.to_host(gZ) * dZ))
        scale = np.linalg.norm(G) * np.linalg.norm(b.to_host(dK)) + abs(want)
        assert abs(got - want) <= 100 * self.tight * scale, (
            f"⟨G, gram_jvp⟩ = {got:.15g} but ⟨pullback(G), direction⟩ = {want:.15g}"
        )

    def diagonal(self, theta: np.ndarray, X: np.ndarray) -> None:
        t, x = self.put(theta), self.put(X)
        b = backend.of(x)
        g = self.rng.standard_normal(X.shape[0])
        _, pull = self.kernel.diag_pullback(t, x)
        gtheta, gX = pull(self.put(g))
        P = b.to_host(self.kernel.theta_jacobian(t, x)).astype(float)
        T = b.to_host(self.kernel.input_jacobian(t, x)).astype(float)
        pick = np.arange(X.shape[0])
        self.close(
            self.get(gtheta, x, theta.shape, "gtheta of diag"),
            P[:, pick, pick] @ g,
            100 * self.tight,
            "gtheta of diag_pullback against the tensor",
        )
        self.close(
            self.get(gX, x, X.shape, "gX of diag"),
            2.0 * g[:, None] * T[pick, pick],
            100 * self.tight,
            "gX of diag_pullback against the tensor",
        )

    def symmetric(self, theta: np.ndarray, X: np.ndarray) -> None:
        t, x = self.put(theta), self.put(X)
        b: Backend = backend.of(x)
        n = X.shape[0]
        S = self.rng.standard_normal((n, n))
        S = S + S.T
        filled = self.kernel.fill_lower(t, x, b.zeros((n, n)))
        self.close(
            np.tril(b.to_host(filled).astype(float)),
            np.tril(self.gram64(theta, X, None)),
            self.tight,
            "fill_lower against gram",
        )
        want_t, want_x, _ = self.kernel.gram_pullback(t, x)[1](self.put(S))
        cuts = [(0, n // 2, 0, n // 2), (n // 2, n, 0, n // 2), (n // 2, n, n // 2, n)]
        for tiles in (None, cuts):
            gtheta, gX = self.kernel.symmetric_pullback(t, x, self.put(np.tril(S)), tiles)
            what = "symmetric_pullback" + (" in blocks" if tiles else "")
            for got, want in ((gtheta, want_t), (gX, want_x)):
                host = b.to_host(got).astype(float)
                self.close(host, b.to_host(want).astype(float), 100 * self.tight, what)

    def psi(self, theta: np.ndarray, mu: np.ndarray, Z: np.ndarray) -> None:
        rng, psi = self.rng, self.kernel.psi()
        # Small beside most lengthscales, so that any quadrature will do well.
        S = 0.01 * np.exp(0.3 * rng.standard_normal(mu.shape))
        (n, q), M = mu.shape, Z.shape[0]
        W = rng.uniform(0.5, 1.0, (n, 2))
        g0, G1, G2 = (rng.standard_normal(shape) for shape in ((n,), (n, M), (2, M, M)))
        put, like = self.put, self.put(mu)
        names, parts = ("theta", "mu", "S", "Z"), (theta, mu, S, Z)
        got = psi.forward(put(theta), like, put(S), put(Z), put(W))
        xi, w = _standard_normal_grid(q)
        want0, want1, want2 = np.empty(n), np.empty((n, M)), np.zeros((n, M, M))
        for i in range(n):
            # The oracle is the kernel itself in double precision, at points of a plain grid.
            points = mu[i] + np.sqrt(S[i]) * xi
            K = np.asarray(self.kernel.gram(theta, points, Z))
            want0[i] = w @ np.asarray(self.kernel.diag(theta, points))
            want1[i], want2[i] = w @ K, K.T @ (w[:, None] * K)
        # Quadratures of kernels with a kink, and the grid's own error above three dimensions.
        tolerance = 1e-3 if q < 4 else 3e-2
        if q < 4 and not isinstance(psi, QuadraturePsi):
            tolerance = 100 * self.tight
        wanted = (want0, want1, np.einsum("nk,nab->kab", W, want2))
        for name, a, want in zip(("psi0", "psi1", "psi2"), got, wanted, strict=True):
            host = self.get(a, like, want.shape, name)
            self.close(host, want, tolerance, f"{name} against its integral")
        rows = g0 * want0 + np.sum(G1 * want1, axis=1)
        rows = rows + np.einsum("nk,kab,nab->n", W, G2, want2)
        cotangents = [put(a) for a in (g0, G1, G2, W)]
        value, *gradients = psi.contract(*map(put, parts), *cotangents)
        scale = sum(float(np.max(np.abs(a))) for a in (want0, want1, want2))
        error = np.max(np.abs(self.get(value, like, (n,), "value of contract") - rows)) / scale
        assert error <= 30 * tolerance, f"contract's values are off by {error:.2e}"
        move = [rng.standard_normal(a.shape) for a in parts]
        move[0] *= theta
        length = np.sqrt(sum(float(np.sum(u * u)) for u in move))
        move = [u / length for u in move]

        def slope(h: float) -> float:
            out = 0.0
            for sign in (1.0, -1.0):
                moved = [put(a + sign * h * u) for a, u in zip(parts, move, strict=True)]
                s = psi.forward(moved[0], moved[1], moved[2], moved[3], put(W))
                host = [backend.of(like).to_host(a).astype(float) for a in s]
                out += sign * sum(
                    float(np.sum(g * a)) for g, a in zip((g0, G1, G2), host, strict=True)
                )
            return out / (2.0 * h)

        total, size = 0.0, 0.0
        for name, g, a, u in zip(names, gradients, parts, move, strict=True):
            host = self.get(g, like, a.shape, f"gradient of psi statistics in {name}")
            total += float(np.sum(host * u))
            size += float(np.linalg.norm(host) * np.linalg.norm(u))
        want = float(richardson(slope, self.step))
        error = abs(total - want) / max(size, 1e-3)
        assert error <= self.loose, (
            f"{type(self.kernel).__name__}: the gradient of psi statistics gives {total:.12g} "
            f"along a direction, differences give {want:.12g}"
        )


def _standard_normal_grid(q: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (J, q) and weights of a plain rectangle rule; a Halton set above 3 dimensions."""
    if q > 3:
        from scipy.special import ndtri
        from scipy.stats import qmc

        points = qmc.Halton(q, scramble=False).random(2**14 + 1)[1:]
        return ndtri(points), np.full(points.shape[0], 1.0 / points.shape[0])
    x = np.linspace(-8.0, 8.0, {1: 1601, 2: 129, 3: 49}[q])
    w = np.exp(-0.5 * x * x)
    grid = np.stack(np.meshgrid(*[x] * q, indexing="ij"), axis=-1).reshape(-1, q)
    weights = functools.reduce(np.multiply.outer, [w / np.sum(w)] * q).ravel()
    return grid, weights


__all__ = ["check_kernel"]
