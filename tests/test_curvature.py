"""Second derivatives of kernels: oracles of other origin, and the conformance suite on trial.

The suite itself (differences, leading axes, blocks, every array library) runs in test_kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from test_kernels import KERNELS, STRANGERS, InverseMultiquadric, torch_gram

from gplvm_xp import backend
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Hexagonal,
    Linear,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    Radial,
    RationalQuadratic,
    Scale,
)
from gplvm_xp.kernels.curvature import Curvature, Tangent, fill_jvp
from gplvm_xp.kernels.radial import Bend
from gplvm_xp.testing import check_kernel
from gplvm_xp.testing._gradients import richardson


def draw(kernel, given, seed=5, q=3):
    """Points, an unsymmetric cotangent and a direction."""
    rng = np.random.default_rng(seed)
    X, Z = rng.standard_normal((6, q)), rng.standard_normal((4, q)) if given else None
    G = rng.standard_normal((6, 4 if given else 6))
    theta = kernel.theta()
    moves = [rng.standard_normal(a.shape) for a in (theta, X)]
    moves.append(rng.standard_normal(Z.shape) if given else None)
    return theta, X, Z, G, moves


def joined(parts):
    return np.concatenate([np.ravel(a) for a in parts if a is not None])


# -- oracles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["Z-none", "Z-given"])
@pytest.mark.parametrize("name", KERNELS)
def test_pullback_jvp_against_double_backward(name, given):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kernel = KERNELS[name]
    theta, X, Z, G, moves = draw(kernel, given)
    got = joined(kernel.curvature().pullback_jvp(theta, X, Z, G, *moves))
    leaves = [torch.tensor(a, requires_grad=True) for a in (theta, X, Z) if a is not None]
    value = torch_gram(torch, kernel, leaves[0], leaves[1], leaves[2] if given else None)
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad((value * torch.tensor(G)).sum(), leaves, **options)
    along = sum(
        (g * torch.tensor(u)).sum()
        for g, u in zip(gradient, [u for u in moves if u is not None], strict=True)
    )
    if along.requires_grad:
        along = torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True)
        want = joined([a.numpy() for a in along])
    else:
        want = np.zeros(got.shape)
    scale = max(np.abs(want).max(), 1.0)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("given", [False, True], ids=["Z-none", "Z-given"])
@pytest.mark.parametrize("name", KERNELS)
def test_pullback_jvp_against_differences(name, given):
    kernel = KERNELS[name]
    theta, X, Z, G, moves = draw(kernel, given, seed=6)

    def slope(h):
        def at(s):
            place = [
                None if a is None else a + s * u for a, u in zip((theta, X, Z), moves, strict=True)
            ]
            return joined(kernel.gram_pullback(*place)[1](G))

        return (at(h) - at(-h)) / (2.0 * h)

    got, want = (
        joined(kernel.curvature().pullback_jvp(theta, X, Z, G, *moves)),
        richardson(slope, 2e-3),
    )
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8 * max(np.abs(want).max(), 1.0))


@pytest.mark.parametrize("name", KERNELS)
def test_directions_left_out_stand_still(name):
    kernel = KERNELS[name]
    curvature = kernel.curvature()
    theta, X, Z, G, moves = draw(kernel, given=True)
    whole = joined(curvature.pullback_jvp(theta, X, Z, G, *moves))
    parts = 0.0
    for k, word in enumerate(("dtheta", "dX", "dZ")):
        parts = parts + joined(curvature.pullback_jvp(theta, X, Z, G, **{word: moves[k]}))
    np.testing.assert_allclose(parts, whole, rtol=1e-10, atol=1e-11 * max(np.abs(whole).max(), 1.0))
    assert not joined(curvature.pullback_jvp(theta, X, Z, G)).any()
    with pytest.raises(ValueError, match="dZ was given without Z"):
        curvature.pullback_jvp(theta, X, None, np.eye(6), dZ=moves[2])


@pytest.mark.parametrize("name", KERNELS)
def test_second_derivatives_are_symmetric(name):
    """⟨u, H w⟩ = ⟨w, H u⟩ for the Hessian of ⟨G, K⟩ in everything that moves."""
    kernel = KERNELS[name]
    for given in (False, True):
        theta, X, Z, G, u = draw(kernel, given)
        w = draw(kernel, given, seed=8)[-1]
        Hu = joined(kernel.curvature().pullback_jvp(theta, X, Z, G, *u))
        Hw = joined(kernel.curvature().pullback_jvp(theta, X, Z, G, *w))
        one, two = float(joined(w) @ Hu), float(joined(u) @ Hw)
        assert abs(one - two) <= 1e-12 * (np.linalg.norm(Hu) + np.linalg.norm(Hw)) * 10


@pytest.mark.parametrize(
    "kernel",
    [RBF(1.1, (0.7, 1.2)), Matern32(1.1, 0.9), Matern52(0.8, 0.9),
     RationalQuadratic(1.0, 0.9, alpha=0.8), Periodic(1.0, 0.9, 2.1), Hexagonal(1.0, 1.7, 0.3, 1.1),
     Linear(0.6) * Matern32(), Polynomial(0.4, 0.6, degree=3)],
    ids=lambda k: type(k).__name__,
)  # fmt: skip
def test_points_that_coincide_are_the_limit_of_points_that_nearly_do(kernel):
    theta, X, _, G, moves = draw(kernel, given=False, q=2)
    X[3] = X[1]
    near = X.copy()
    near[3] += 1e-7 * np.array([0.6, -0.8])
    at, beside = (
        joined(kernel.curvature().pullback_jvp(theta, place, None, G, *moves))
        for place in (X, near)
    )
    assert np.all(np.isfinite(at))
    np.testing.assert_allclose(at, beside, rtol=0, atol=3e-5 * np.abs(beside).max())
    # The same with the two points in different sets.
    at, beside = (
        joined(kernel.curvature().pullback_jvp(theta, place, X[2:], G[:, 2:], dX=moves[1]))
        for place in (X, near)
    )
    np.testing.assert_allclose(at, beside, rtol=0, atol=3e-5 * np.abs(beside).max())


def test_many_outcomes_of_one_direction_in_blocks(case):
    """More points than one block of any backend has; the tangent matrix by its lower triangle."""
    n = 50 if case.id == "emulated" else 300
    kernel = RBF(1.0, 0.9) * Linear(0.7) + Periodic(0.5, 1.0, 2.0)
    rng = np.random.default_rng(1)
    X, dX, dtheta = rng.standard_normal((n, 2)), rng.standard_normal((n, 2)), rng.standard_normal(6)
    G, dG = (a + a.T for a in rng.standard_normal((2, n, n)))
    b = case.backend
    t, x, dt, dx = (case.asarray(a) for a in (kernel.theta(), X, dtheta, dX))
    got = kernel.curvature().symmetric(
        t, x, case.asarray(np.tril(G)), case.asarray(np.tril(dG)), dt, dx
    )
    held = kernel.curvature().pullback_jvp(t, x, None, case.asarray(G), dt, dx)
    moved = kernel.gram_pullback(t, x)[1](case.asarray(dG))
    tight = case.tolerance(1e-12, 1e-4)
    for a, c, d in zip(got, held, moved, strict=False):
        want = case.to_numpy(c) + case.to_numpy(d)
        np.testing.assert_allclose(
            case.to_numpy(a), want, rtol=tight, atol=tight * np.abs(want).max()
        )
    filled = case.to_numpy(fill_jvp(kernel, t, x, dt, dx, b.zeros((n, n))))
    want = case.to_numpy(kernel.gram_jvp(t, x, dtheta=dt, dX=dx))
    np.testing.assert_allclose(
        np.tril(filled), np.tril(want), rtol=tight, atol=tight * np.abs(want).max()
    )


# -- kernels of one's own --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bending(InverseMultiquadric):
    """The stranger's kernel with all that second derivatives take: κ″ = ¾ (1 + u)^{−5/2}."""

    def profile_bend(self, b, u, e):
        k = self.profile(b, u, e)
        return Bend(k, -0.5 * k**3, 0.75 * k**5)


def test_a_profile_of_ones_own_bends(case):
    kernel = Bending(1.2, (0.8, 1.3, 0.6)) * Linear(0.4) + 0.3 * Bending(0.7, 1.1)
    check_kernel(kernel, 3, make=case.asarray, dtype=case.dtype)


@pytest.mark.parametrize("name", STRANGERS)
def test_what_has_none_says_what_to_do(name):
    with pytest.raises(
        NotImplementedError, match=r"no second derivatives: give it profile_bend.*lbfgs"
    ):
        STRANGERS[name].curvature()
    # The rest of the suite still runs: no second derivatives is no error.
    check_kernel(STRANGERS[name], 3)
    for tree in (
        STRANGERS[name] + RBF(),
        2.0 * STRANGERS[name],
        ActiveDims(InverseMultiquadric(), (1,)),
    ):
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            tree.curvature()


@dataclass(frozen=True)
class Doubled(Curvature):
    inner: Curvature

    def tangent(self, theta, X, Z, dtheta, dX, dZ):
        t = self.inner.tangent(theta, X, Z, dtheta, dX, dZ)
        return Tangent(
            t.values, lambda G, dG: t.pullback(2.0 * G, None if dG is None else 2.0 * dG)
        )


def test_a_part_of_a_tree_is_asked_for_its_own():
    @dataclass(frozen=True)
    class Own(RBF):
        def curvature(self):
            return Doubled(RBF.curvature(self))

    theta, X, Z, G, moves = draw(RBF(1.1, 0.9), given=True)
    plain = joined(RBF(1.1, 0.9).curvature().pullback_jvp(theta, X, Z, G, *moves))
    for kernel in (Own(1.1, 0.9), ActiveDims(Own(1.1, 0.9), (0, 1, 2))):
        got = joined(kernel.curvature().pullback_jvp(theta, X, Z, G, *moves))
        np.testing.assert_allclose(got, 2.0 * plain, rtol=1e-13)


# -- the suite catches errors ----------------------------------------------------------------------


def spoilt(change):
    """An RBF whose second derivatives are spoilt by ``change(bend)``."""

    @dataclass(frozen=True)
    class Spoilt(RBF):
        def profile_bend(self, b, u, e):
            return change(super().profile_bend(b, u, e))

    return Spoilt(1.2, (0.8, 1.1, 0.9))


PLANTED = {
    "no bend": lambda p: p._replace(bend=0.0 * p.bend),
    "half the bend": lambda p: p._replace(bend=0.5 * p.bend),
    "the slope of u/2": lambda p: p._replace(slope=0.5 * p.slope),
    "another value": lambda p: p._replace(k=1.01 * p.k),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_suite_catches_a_planted_error(name):
    with pytest.raises(AssertionError, match=r"tangent|pullback_jvp"):
        check_kernel(spoilt(PLANTED[name]), 3)


def test_the_suite_catches_a_wrong_alpha():
    @dataclass(frozen=True)
    class Wrong(RationalQuadratic):
        def profile_bend(self, b, u, e):
            p = super().profile_bend(b, u, e)
            return p._replace(extra_bend=((0.9 * p.extra_bend[0][0],),))

    check_kernel(RationalQuadratic(1.2, 0.9, alpha=0.7), 2)
    with pytest.raises(AssertionError, match="pullback_jvp and differences"):
        check_kernel(Wrong(1.2, 0.9, alpha=0.7), 2)


def test_the_suite_catches_a_cotangent_that_stands_still():
    """What only trees and the exact objective use: the part of Ġ."""

    @dataclass(frozen=True)
    class Deaf(Curvature):
        inner: Curvature

        def tangent(self, theta, X, Z, dtheta, dX, dZ):
            t = self.inner.tangent(theta, X, Z, dtheta, dX, dZ)
            return Tangent(t.values, lambda G, dG: t.pullback(G, None))

    @dataclass(frozen=True)
    class Own(RBF):
        def curvature(self):
            return Deaf(RBF.curvature(self))

    with pytest.raises(AssertionError, match="symmetric is off"):
        check_kernel(Own(1.1, 0.9), 2)


def test_radial_profiles_alone():
    """Each profile's derivatives by differences in u, without the rest of the kernel."""
    b = backend.of(np.zeros(1))
    u = np.linspace(0.2, 6.0, 9)
    for kernel in (RBF(), Matern32(), Matern52(), RationalQuadratic(alpha=0.6)):
        assert isinstance(kernel, Radial)
        e = (np.asarray(0.6),) if kernel.extras else ()

        def bend(du, de=0.0, kernel=kernel, e=e):
            moved = tuple(a + de for a in e)
            return kernel.profile_bend(b, kernel.factor * (u + du), moved)

        p = bend(0.0)
        pairs = [
            (p.slope, lambda h: (bend(h).k - bend(-h).k) / (2 * h)),
            (p.bend, lambda h: (bend(h).slope - bend(-h).slope) / (2 * h)),
        ]
        if e:
            pairs += [
                (p.extra[0], lambda h: (bend(0, h).k - bend(0, -h).k) / (2 * h)),
                (p.extra_slope[0], lambda h: (bend(0, h).slope - bend(0, -h).slope) / (2 * h)),
                (
                    p.extra_bend[0][0],
                    lambda h: (bend(0, h).extra[0] - bend(0, -h).extra[0]) / (2 * h),
                ),
            ]
        for got, slope in pairs:
            np.testing.assert_allclose(got, richardson(slope, 1e-2), rtol=1e-8, atol=1e-10)


def test_scale_and_product_with_a_constant_agree():
    theta, X, Z, G, moves = draw(Scale(RBF(1.1, 0.9), 1.7), given=True)
    other = Constant(1.7) * RBF(1.1, 0.9)
    one = joined(Scale(RBF(1.1, 0.9), 1.7).curvature().pullback_jvp(theta, X, Z, G, *moves))
    two = joined(other.curvature().pullback_jvp(theta, X, Z, G, *moves))
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)
