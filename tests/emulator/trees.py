"""Kernel trees for the tests: their CUDA code, and what it should compute, in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gplvm_xp.backend.cuda.pairs import CudaPair, radial_profile


@dataclass(frozen=True)
class Tree:
    """A kernel tree as CUDA code and as a function of (X, Z, theta, same)."""

    code: CudaPair
    f: Callable


def differences(X, Z, ell):
    return (X[:, None, :] - Z[None, :, :]) / ell


def radial_tree(name, snippet, profile, scales, extras=0):
    def f(X, Z, th, same):
        u = (differences(X, Z, th[1 + extras :]) ** 2).sum(-1)
        return th[0] * profile(u, *th[1 : 1 + extras])

    text = radial_profile(name, snippet, extras)
    return Tree(CudaPair(f"Radial<profile_{name}, {scales}>", (text,), 1 + extras + scales), f)


def rbf(scales):
    return radial_tree(
        "rbf", "k = exp(-0.5 * u); dk = -0.5 * k;", lambda u: np.exp(-0.5 * u), scales
    )


def matern32(scales):
    snippet = "const T r = sqrt(3.0 * u), w = exp(-r); k = (1.0 + r) * w; dk = -1.5 * w;"
    r = lambda u: np.sqrt(3 * u)  # noqa: E731
    return radial_tree("m32", snippet, lambda u: (1 + r(u)) * np.exp(-r(u)), scales)


def matern52(scales):
    snippet = """const T r = sqrt(5.0 * u), w = exp(-r);
    k = (1.0 + r + r * r / 3.0) * w; dk = -5.0 / 6.0 * (1.0 + r) * w;"""
    r = lambda u: np.sqrt(5 * u)  # noqa: E731
    f = lambda u: (1 + r(u) + r(u) ** 2 / 3) * np.exp(-r(u))  # noqa: E731
    return radial_tree("m52", snippet, f, scales)


def rational_quadratic(scales):
    snippet = """const T s = 1.0 + u / (2.0 * e[0]); k = exp(-e[0] * log(s));
    dk = -0.5 * k / s; de[0] = k * ((s - 1.0) / s - log(s));"""
    return radial_tree("rq", snippet, lambda u, a: (1 + u / (2 * a)) ** (-a), scales, 1)


def linear(scales):
    def f(X, Z, th, same):
        return (X * th) @ Z.T

    return Tree(CudaPair(f"Linear<{scales}>", (), scales), f)


def polynomial(degree):
    def f(X, Z, th, same):
        return th[0] * (X @ Z.T + th[1]) ** degree

    return Tree(CudaPair(f"Polynomial<{degree}>", (), 2), f)


def periodic(scales):
    def f(X, Z, th, same):
        s = np.sin(np.pi * differences(X, Z, th[-1])) / th[1:-1]
        return th[0] * np.exp(-2 * (s**2).sum(-1))

    return Tree(CudaPair(f"Periodic<{scales}>", (), 2 + scales), f)


def hexagonal():
    def f(X, Z, th, same):
        d = X[:, None, :] - Z[None, :, :]
        number = 4 * np.pi / (np.sqrt(3) * th[1])
        waves = [
            np.cos(number * (d[..., 0] * np.cos(a) + d[..., 1] * np.sin(a)))
            for a in th[2] + np.pi / 3 * np.arange(3)
        ]
        return th[0] * sum(waves) / 3 * np.exp(-0.5 * (d**2).sum(-1) / th[3] ** 2)

    return Tree(CudaPair("Hexagonal", (), 4), f)


def constant():
    return Tree(CudaPair("Constant", (), 1), lambda X, Z, th, same: th[0] * np.ones(same.shape))


def white():
    return Tree(CudaPair("White", (), 1), lambda X, Z, th, same: th[0] * same)


def pair_of(kind, operation):
    def make(a, b):
        code = CudaPair(
            f"{kind}<{a.code.type}, {b.code.type}>",
            a.code.definitions + b.code.definitions,
            a.code.parameters + b.code.parameters,
        )
        split = a.code.parameters

        def f(X, Z, th, same):
            return operation(a.f(X, Z, th[:split], same), b.f(X, Z, th[split:], same))

        return Tree(code, f)

    return make


add = pair_of("Sum", np.add)
multiply = pair_of("Product", np.multiply)


def scale(a):
    code = CudaPair(f"Scale<{a.code.type}>", a.code.definitions, 1 + a.code.parameters)
    return Tree(code, lambda X, Z, th, same: th[0] * a.f(X, Z, th[1:], same))


def active(a, *dims):
    code = CudaPair(
        f"Active<{a.code.type}, {', '.join(map(str, dims))}>", a.code.definitions, a.code.parameters
    )
    return Tree(code, lambda X, Z, th, same: a.f(X[:, list(dims)], Z[:, list(dims)], th, same))


# All for q = 3. Each costs four compilations: what a composite shows is not there alone.
TREES = {
    "rbf_ard": rbf(3),
    "matern52_ard": matern52(3),
    "rq_ard": rational_quadratic(3),
    "linear": linear(1),
    "linear_ard": linear(3),
    "polynomial3": polynomial(3),
    "periodic": periodic(1),
    "periodic_ard": periodic(3),
    "sum": add(add(rbf(3), white()), constant()),
    "product": multiply(matern52(1), polynomial(1)),
    "scale": scale(add(rational_quadratic(1), white())),
    "hexagonal": active(hexagonal(), 2, 0),
    "active": active(add(rbf(2), linear(1)), 2, 0),
    "nested": add(
        multiply(active(periodic(1), 1), active(matern32(2), 2, 0)),
        scale(multiply(rbf(1), active(add(linear(1), multiply(white(), constant())), 0))),
    ),
}
