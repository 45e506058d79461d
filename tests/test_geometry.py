"""Geometry: slopes and metric against differences, autograd and draws; shortest curves against
conserved quantities."""

from __future__ import annotations

import functools
import io
import itertools
import types
import warnings

import numpy as np
import pytest
from conftest import open_case, why_not
from scipy import integrate, optimize
from sklearn.exceptions import ConvergenceWarning
from test_kernels import KERNELS, LEAVES, STRANGERS, torch_gram

import gplvm_xp
from gplvm_xp import GPLVM, BayesianGPLVM, SparseGPLVM, backend
from gplvm_xp.geometry import Geodesic, Surface, curve_length, geodesic, log_volume
from gplvm_xp.geometry.geodesic import _Frame, _Waves
from gplvm_xp.inducing import InducingPosterior
from gplvm_xp.kernels import RBF, ActiveDims, Linear, Matern32, Matern52, Polynomial
from gplvm_xp.likelihoods import Poisson
from gplvm_xp.predict import Posterior
from gplvm_xp.testing import check_gradient
from gplvm_xp.testing._gradients import richardson

NUMPY = backend.get("numpy")
NOISE = 0.15
FEW = ("rbf-ard", "matern32", "active-product", "deep")
ROUGH = {"matern32", "matern52", "scaled", "active-product"}


def problem(n=9, q=3, seed=0):
    """Latents and a table with two patterns of missing rows, and a column of nothing."""
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, q)), rng.standard_normal((n, 5))
    Y[2:5, 1] = Y[2:5, 3] = np.nan
    Y[:, 2] = np.nan
    return X, Y


def places(N=4, q=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, q)), rng.standard_normal((N, q))


def exact(b, kernel, **shape):
    X, Y = problem(**shape)
    return Surface.exact(Posterior.of(b, kernel, NOISE, X, Y))


def whitened(M=6, D=5, q=3, r=2, seed=3):
    rng = np.random.default_rng(seed)
    T = np.tril(0.3 * rng.standard_normal((r, M, M))) + 0.4 * np.eye(M)
    return rng.standard_normal((M, q)), rng.standard_normal((M, D)), T, np.array([0, 1, 0, 1, 1])


def inducing(b, kernel):
    Z, mean, T, which = whitened()
    p = InducingPosterior.of(b, kernel, Z, 1e-6, mean, T, which, NOISE, np.arange(5.0))
    return Surface.inducing(p)


# -- oracles: moments from the textbook, and their differences -------------------------------------


def textbook_exact(kernel):
    """Mean (N, D), and the posterior covariance (N,) of outputs of each group, at x and x'."""
    X, Y = problem()
    theta = kernel.theta()
    groups = [np.array([0, 4]), np.array([1, 3]), np.array([2])]
    rows = [np.arange(9), np.array([0, 1, 5, 6, 7, 8]), np.arange(0)]
    which = np.array([0, 1, 2, 1, 0])

    def mean(x):
        out = np.zeros((len(x), 5))
        for columns, r in zip(groups[:2], rows[:2], strict=True):
            K = kernel.gram(theta, X[r]) + NOISE * np.eye(r.size)
            out[:, columns] = kernel.gram(theta, x, X[r]) @ np.linalg.solve(
                K, Y[np.ix_(r, columns)]
            )
        return out

    def covariance(x, z):
        own = paired(kernel, x, z)
        out = np.repeat(own[:, None], 3, axis=1)
        for g, r in enumerate(rows[:2]):
            K = kernel.gram(theta, X[r]) + NOISE * np.eye(r.size)
            left, right = kernel.gram(theta, x, X[r]), kernel.gram(theta, z, X[r])
            out[:, g] -= np.sum(left * np.linalg.solve(K, right.T).T, axis=1)
        return out

    return mean, covariance, which


def textbook_inducing(kernel):
    Z, white, factors, which = whitened()
    theta = kernel.theta()
    K = kernel.gram(theta, Z) + 1e-6 * np.eye(len(Z))
    L = np.linalg.cholesky(K)

    def mean(x):
        return kernel.gram(theta, x, Z) @ np.linalg.solve(K, L @ white) + np.arange(5.0)

    def covariance(x, z):
        left, right = kernel.gram(theta, x, Z), np.linalg.solve(K, kernel.gram(theta, z, Z).T).T
        own = paired(kernel, x, z) - np.sum(left * right, axis=1)
        left = np.linalg.solve(K, left.T).T
        known = [np.sum((left @ (L @ T @ T.T @ L.T)) * right, axis=1) for T in factors]
        return own[:, None] + np.stack(known, axis=1)

    return mean, covariance, which


def paired(kernel, x, z):
    """k(x_i, z_i) of a function: white noise has none of it."""
    return np.diagonal(kernel.gram(kernel.theta(), x, z))


def extrapolated(difference, h, levels, powers):
    """The limit of a difference whose error has some powers of the step: 1 all, 2 even ones."""
    steps = [(h / 2**i) ** powers for i in range(levels)]
    column = [difference(h / 2**i) for i in range(levels)]
    for k in range(1, levels):
        column = [
            (steps[i] * column[i + 1] - steps[i + k] * column[i]) / (steps[i] - steps[i + k])
            for i in range(levels - k)
        ]
    return column[0]


def mixed(covariance, at, rough):
    """∂_a ∂'_b of the covariance at x' = x, (N, r, q, q); Matérn's are rough there."""
    N, q = at.shape
    levels, powers = (6, 1) if rough else (4, 2)
    out = np.empty((N, covariance(at, at).shape[1], q, q))
    for a, c in itertools.combinations_with_replacement(range(q), 2):
        e, d = np.eye(q)[a], np.eye(q)[c]

        def difference(h, e=e, d=d):
            total = 0.0
            for s, t in itertools.product((-1, 1), repeat=2):
                total = total + s * t * covariance(at + s * h * e, at + t * h * d)
            return total / (4.0 * h * h)

        out[:, :, a, c] = out[:, :, c, a] = extrapolated(difference, 0.1, levels, powers)
    return out


@functools.cache
def answers(kind, name):
    """Mean slopes, covariance of slopes by output, and metric, of differences of the textbook."""
    kernel = KERNELS[name]
    mean, covariance, which = (textbook_exact if kind == "exact" else textbook_inducing)(kernel)
    at = places()[0]
    e = np.eye(3)
    J = [
        richardson(lambda h, a=a: (mean(at + h * e[a]) - mean(at - h * e[a])) / (2.0 * h), 2e-2)
        for a in range(3)
    ]
    J, C = np.stack(J, axis=2), mixed(covariance, at, name in ROUGH)[:, which]
    return J, C, np.einsum("nda,ndb->nab", J, J) + C.sum(axis=1)


MAKERS = {"exact": exact, "inducing": inducing}


def held_to(case, kind, name):
    surface = MAKERS[kind](case.backend, KERNELS[name])
    at, V = places()
    x, v = case.asarray(at), case.asarray(V)
    J, C, G = answers(kind, name)
    got_J = case.to_numpy(surface.jacobian(x))
    got_C = case.to_numpy(surface.jacobian_covariance(x))[:, surface.which]
    got_G = case.to_numpy(surface.metric(x))
    near = case.tolerance(1e-7, 1e-3)
    for got, want in ((got_J, J), (got_C, C), (got_G, G)):
        np.testing.assert_allclose(got, want, rtol=near, atol=near * (np.abs(want).max() + 1e-3))
    f, gX, gV = (case.to_numpy(a) for a in surface.squared_speed(x, v))
    assert gX.shape == gV.shape == (4, 3)
    # The same numbers by another way: rounding only.
    tight, size = case.tolerance(1e-10, 1e-3), np.abs(got_G).max() + 1e-6
    np.testing.assert_allclose(f, np.einsum("na,nab,nb->n", V, got_G, V), atol=10 * tight * size)
    np.testing.assert_allclose(gV, 2.0 * np.einsum("nab,nb->na", got_G, V), atol=10 * tight * size)


@pytest.mark.parametrize("name", KERNELS)
def test_slopes_and_metric_against_differences(case, name):
    held_to(case, "exact", name)


@pytest.mark.parametrize("name", FEW)
def test_slopes_and_metric_of_inducing_models(case, name):
    held_to(case, "inducing", name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("exact", name) for name in KERNELS] + [("inducing", name) for name in FEW],
)
def test_gradient_of_the_squared_speed_against_differences(kind, name):
    surface = MAKERS[kind](NUMPY, KERNELS[name])
    at, V = places(3)

    def along(z):
        x, v = z.reshape(2, 3, 3)
        f, gX, gV = surface.squared_speed(x, v)
        return f.sum(), np.concatenate([gX.ravel(), gV.ravel()])

    check_gradient(along, np.concatenate([at.ravel(), V.ravel()]), rtol=1e-7, step=4e-3)


def test_gradient_of_the_squared_speed_everywhere(case):
    """A kernel with every term: not stationary, ARD, a product."""
    kernel = RBF(1.0, (0.8, 1.3, 0.6)) * Polynomial(0.5, 0.7, 2) + Linear(0.4)
    at, V = places()
    want = exact(NUMPY, kernel).squared_speed(at, V)
    got = exact(case.backend, kernel).squared_speed(case.asarray(at), case.asarray(V))
    near = case.tolerance(1e-9, 1e-2)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(case.to_numpy(a), b, rtol=near, atol=near * np.abs(b).max())


# Autograd can't pass through the root in Matérn's kernels at a distance of zero.
SMOOTH = sorted(set(KERNELS) - ROUGH)


@pytest.mark.parametrize("name", SMOOTH)
def test_squared_speed_and_its_gradient_against_autograd(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kernel = KERNELS[name]
    X, Y = problem()
    theta = torch.tensor(kernel.theta())
    at, V = places(2)

    def gram(a, c):
        return torch_gram(torch, kernel, theta, a, c)

    def speed(x, v):
        s = torch.zeros(2, dtype=theta.dtype, requires_grad=True)
        one, two = (x + s[0] * v)[None], (x + s[1] * v)[None]

        def slope(y, i):
            """∂y/∂s_i, 0 where y does not depend on it."""
            found = [None]
            if y.requires_grad:
                found = torch.autograd.grad(y, s, create_graph=True, allow_unused=True)
            return torch.zeros((), dtype=theta.dtype) if found[0] is None else found[0][i]

        total = torch.zeros((), dtype=theta.dtype)
        own = gram(one, two)[0, 0]
        for d in range(5):
            r = np.flatnonzero(~np.isnan(Y[:, d]))
            c = own
            if r.size:
                data = torch.tensor(X[r])
                K = gram(data, None) + NOISE * torch.eye(r.size, dtype=theta.dtype)
                left, right = gram(one, data)[0], gram(two, data)[0]
                c = own - left @ torch.linalg.solve(K, right)
                mean = left @ torch.linalg.solve(K, torch.tensor(Y[r, d]))
                total = total + slope(mean, 0) ** 2
            total = total + slope(slope(c, 0), 1)
        return total

    f, gX, gV = exact(NUMPY, kernel).squared_speed(at, V)
    for i in range(2):
        x, v = (torch.tensor(a[i], requires_grad=True) for a in (at, V))
        value = speed(x, v)
        if not value.requires_grad:
            assert f[i] == 0.0
            assert not gX[i].any()
            continue
        wx, wv = torch.autograd.grad(value, (x, v), allow_unused=True)
        wx = torch.zeros_like(wv) if wx is None else wx
        size = max(1.0, float(wv.abs().max()))
        np.testing.assert_allclose(f[i], value.item(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(gV[i], wv.numpy(), rtol=1e-9, atol=1e-11 * size)
        # The prior's own term is a difference of fourth order.
        np.testing.assert_allclose(gX[i], wx.numpy(), rtol=1e-8, atol=1e-8 * size)


def test_the_metric_is_the_mean_square_of_drawn_slopes():
    """Draws of the joint posterior at points beside x, by their covariance alone."""
    kernel, h, draws = KERNELS["rbf+linear+bias+white"], 1e-3, 40_000
    mean = textbook_exact(kernel)[0]
    X, Y = problem()
    x = places()[0][0]
    at = np.concatenate([x + h * np.eye(3), x - h * np.eye(3)])
    theta, rng = kernel.theta(), np.random.default_rng(5)
    squares = np.zeros((draws, 3, 3))
    for d in range(5):
        r = np.flatnonzero(~np.isnan(Y[:, d]))
        C = kernel.gram(theta, at, at.copy())
        if r.size:
            Ks = kernel.gram(theta, at, X[r])
            K = kernel.gram(theta, X[r]) + NOISE * np.eye(r.size)
            C = C - Ks @ np.linalg.solve(K, Ks.T)
        values, vectors = np.linalg.eigh(C)
        f = rng.standard_normal((draws, 6)) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        J = ((f + mean(at)[:, d])[:, :3] - (f + mean(at)[:, d])[:, 3:]) / (2.0 * h)
        squares += J[:, :, None] * J[:, None, :]
    error = squares.std(axis=0) / np.sqrt(draws)
    got = exact(NUMPY, kernel).metric(x[None])[0]
    assert np.all(np.abs(squares.mean(axis=0) - got) < 4.0 * error)
    assert np.all(error < 0.02 * np.trace(got))


def test_slopes_of_the_prior_in_closed_form(case):
    """Where nothing is observed: −2 κ'(0)/ℓ², and α."""
    X, Y = problem()
    ell = np.array([0.8, 1.3, 0.6])
    for kernel, want in (
        (RBF(1.3, ell), 1.3 / ell**2),
        (Matern32(1.3, ell), 3.0 * 1.3 / ell**2),
        (Matern52(1.3, ell), 5.0 / 3.0 * 1.3 / ell**2),
        (Linear(ell), ell),
    ):
        surface = Surface.exact(Posterior.of(case.backend, kernel, NOISE, X, Y))
        C = case.to_numpy(surface.jacobian_covariance(case.asarray(places()[0])))
        got = C[:, surface.which[2]]
        want = np.broadcast_to(np.diag(want), got.shape)
        np.testing.assert_allclose(got, want, rtol=case.tolerance(1e-13, 1e-5), atol=1e-12)
        J = case.to_numpy(surface.jacobian(case.asarray(places()[0])))
        assert not J[:, 2].any()


def test_an_inducing_model_that_is_exact_has_the_exact_surface():
    """Z = X and the optimal q(u)."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((12, 2)), rng.standard_normal((12, 3))
    kernel, at = RBF(1.2, (0.9, 1.3)), places(5, 2)[0]
    L = np.linalg.cholesky(kernel.gram(kernel.theta(), X) + 1e-9 * np.eye(12))
    inside = np.linalg.inv(np.eye(12) + L.T @ L / NOISE)
    T, mean = np.linalg.cholesky(inside), inside @ L.T @ Y / NOISE
    which = np.zeros(3, dtype=int)
    p = InducingPosterior.of(NUMPY, kernel, X, 1e-9, mean, T[None], which, NOISE)
    one, two = Surface.inducing(p), Surface.exact(Posterior.of(NUMPY, kernel, NOISE, X, Y))
    np.testing.assert_allclose(one.metric(at), two.metric(at), rtol=1e-5)
    np.testing.assert_allclose(one.jacobian(at), two.jacobian(at), rtol=1e-5, atol=1e-6)


def test_many_points_in_batches(monkeypatch):
    from gplvm_xp.geometry import surface as module

    surface = exact(NUMPY, KERNELS["deep"])
    at, V = places(50)
    whole = [surface.metric(at), surface.jacobian(at), *surface.squared_speed(at, V)]
    monkeypatch.setattr(module, "_BATCH_BYTES", 8 * 9 * 3 * 4 * 8)
    assert len(surface.batches(50)) == 7
    parts = [surface.metric(at), surface.jacobian(at), *surface.squared_speed(at, V)]
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_magnification(case):
    at = places()[0]
    surface = exact(case.backend, KERNELS["rbf-ard"])
    x = case.asarray(at)
    G = case.to_numpy(surface.metric(x))
    got = case.to_numpy(log_volume(surface.metric(x)))
    want = 0.5 * np.log(np.linalg.det(G))
    np.testing.assert_allclose(got, want, rtol=case.tolerance(1e-12, 1e-4))


def test_a_singular_metric_magnifies_nothing(case):
    surface = exact(case.backend, ActiveDims(RBF(), (0, 2)))
    G = surface.metric(case.asarray(places()[0]))
    assert np.all(case.to_numpy(G)[:, 1] == 0.0)
    assert np.all(case.to_numpy(log_volume(G)) == -np.inf)


def test_a_kernel_without_second_derivatives_says_so():
    with pytest.raises(NotImplementedError, match=r"InverseMultiquadric has no second derivatives"):
        exact(NUMPY, STRANGERS["imq"]).metric(places()[0])
    J = exact(NUMPY, STRANGERS["imq"]).jacobian(places()[0])
    assert np.all(np.isfinite(J))


def test_emulated_gpu_has_the_same_metric():
    if why_not("emulated"):
        pytest.skip(why_not("emulated"))
    at = places()[0]
    with open_case("emulated") as case:
        got = case.to_numpy(exact(case.backend, LEAVES["rbf-ard"]).metric(case.asarray(at)))
    np.testing.assert_allclose(got, exact(NUMPY, LEAVES["rbf-ard"]).metric(at), rtol=1e-11)


# -- shortest curves -------------------------------------------------------------------------------


def ring(kernel=RBF(1.0, 0.5), n=24, radius=1.0, noise=1e-3):  # noqa: B008
    """Data on a circle: the disc inside is unknown ground."""
    t = 2.0 * np.pi * np.arange(n) / n
    X = radius * np.stack([np.cos(t), np.sin(t)], axis=1)
    Y = np.stack([np.cos(t), np.sin(t), np.cos(2 * t)], axis=1) * 0.5
    p = Posterior.of(NUMPY, kernel, noise, X, Y)
    return Surface.exact(p), X


def of_the_prior(kernel, q=2):
    """One output of which nothing is known: q(u) is the prior."""
    Z = np.random.default_rng(0).standard_normal((3, q))
    which = np.zeros(1, dtype=int)
    p = InducingPosterior.of(NUMPY, kernel, Z, 0.0, np.zeros((3, 1)), np.eye(3)[None], which, NOISE)
    return Surface.inducing(p)


def test_in_a_flat_metric_the_shortest_curve_is_straight():
    X, Y = problem(q=2)
    kernel = Linear((0.5, 0.9))
    surface = Surface.exact(Posterior.of(NUMPY, kernel, NOISE, X, Y))
    G = surface.metric(X[:1])[0]
    np.testing.assert_allclose(surface.metric(X), np.broadcast_to(G, (9, 2, 2)), rtol=1e-12)
    start, end = np.array([-1.0, 0.3]), np.array([0.7, 1.1])
    found = geodesic(surface, start, end, X, n_points=7)
    assert found.converged
    np.testing.assert_allclose(found.path, np.linspace(start, end, 7), atol=1e-9)
    want = np.sqrt((end - start) @ G @ (end - start))
    np.testing.assert_allclose(found.length, want, rtol=1e-10)
    np.testing.assert_allclose(found.energy, 0.5 * want**2, rtol=1e-10)
    np.testing.assert_allclose(curve_length(surface, found.path), want, rtol=1e-10)


def test_in_a_round_metric_the_length_is_that_of_clairauts_integral():
    """k = (x·x' + c)² has ds² = (4 r² + 2 c) dr² + 2 (r² + c) r² dφ², whose geodesics keep their
    angular momentum: their length is an integral over r."""
    c, R, angle = 0.3, 1.2, 2.0
    surface = of_the_prior(Polynomial(1.0, c, 2))

    def radial(r):
        return 4.0 * r**2 + 2.0 * c

    def around(r):
        return 2.0 * (r**2 + c) * r**2

    def integral(nearest, what):
        # r = nearest + s², which takes the root out of the integrand's denominator.
        momentum = around(nearest)

        def inside(s):
            r = nearest + s * s
            # B(r) − B(r₀) divided by s² = r − r₀, both as polynomials: no digits are lost.
            gap = 2.0 * (r + nearest) * (r * r + nearest**2 + c)
            return 2.0 * what(r, momentum) * np.sqrt(radial(r) / gap)

        return 2.0 * integrate.quad(inside, 0.0, np.sqrt(R - nearest), epsabs=1e-13)[0]

    def turned(nearest):
        return integral(nearest, lambda r, m: np.sqrt(m / around(r)))

    def travelled(nearest):
        return integral(nearest, lambda r, m: np.sqrt(around(r)))

    nearest = optimize.brentq(lambda r: turned(r) - angle, 0.01 * R, 0.999 * R, xtol=1e-14)
    ends = R * np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    found = geodesic(surface, ends[0], ends[1], ends, n_points=101, tol=1e-7)
    assert found.converged
    np.testing.assert_allclose(found.length, travelled(nearest), rtol=1e-6)
    np.testing.assert_allclose(np.hypot(*found.path.T).min(), nearest, rtol=1e-5)
    straight = curve_length(surface, np.linspace(ends[0], ends[1], 100))
    assert found.length < 0.999 * straight


@pytest.mark.parametrize("kernel", [RBF(1.0, 0.5), Matern52(1.0, 0.6)], ids=["rbf", "matern52"])
def test_a_shortest_curve_goes_round_what_is_unknown(kernel):
    surface, X = ring(kernel)
    start, end = X[0], X[9]
    found = geodesic(surface, start, end, X, n_points=201, tol=1e-4)
    straight = curve_length(surface, np.linspace(start, end, 200))
    assert found.converged, found.message
    assert found.message == "converged"
    assert found.length < 0.8 * straight
    np.testing.assert_array_equal(found.path[[0, -1]], [start, end])
    assert np.abs(np.hypot(*found.path.T) - 1.0).max() < 0.25
    # The Hamiltonian is constant along it: equal times are equal lengths.
    np.testing.assert_allclose(found.energy, 0.5 * found.length**2, rtol=1e-6)
    parts = [curve_length(surface, found.path[i : i + 2]) for i in range(200)]
    np.testing.assert_allclose(parts, np.mean(parts), rtol=2e-3)
    # To first order no bend changes its length, to second order every bend adds to it.
    t = np.linspace(0.0, 1.0, 201)[:, None]
    for k, way in ((1, [1.0, 0.0]), (2, [0.0, 1.0]), (3, [1.0, 1.0])):
        bend = 0.02 * np.sin(k * np.pi * t) * np.array(way)
        up, down = (curve_length(surface, found.path + s * bend) for s in (1, -1))
        assert up > found.length
        assert down > found.length
        assert abs(up - down) < 0.1 * (0.5 * (up + down) - found.length)


def test_neighbours_show_the_way_where_the_straight_line_is_a_dead_end():
    """Between opposite points the straight line is a geodesic too, by symmetry, and a long one."""
    surface, X = ring()
    found = geodesic(surface, X[0], X[12], X)
    straight = curve_length(surface, np.linspace(X[0], X[12], 200))
    assert found.converged
    assert found.length < 0.5 * straight
    alone = geodesic(surface, X[0], X[12], X[[0, 12]])
    np.testing.assert_allclose(alone.length, straight, rtol=1e-6)
    np.testing.assert_allclose(alone.path[:, 1], 0.0, atol=1e-6)


def test_the_units_of_the_latents_do_not_matter():
    surface, X = ring()
    small, Y = ring(RBF(1.0, 0.5e-3), radius=1e-3)
    a = geodesic(surface, X[0], X[7], X)
    b = geodesic(small, Y[0], Y[7], Y)
    assert a.converged
    assert b.converged
    np.testing.assert_allclose(b.length, a.length, rtol=1e-4)
    np.testing.assert_allclose(1e3 * b.path, a.path, atol=1e-3)


def test_a_dimension_without_influence_costs_nothing():
    X, Y = problem(q=3)
    kernel = ActiveDims(RBF(1.0, 0.9), (0, 2))
    surface = Surface.exact(Posterior.of(NUMPY, kernel, NOISE, X, Y))
    found = geodesic(surface, X[0], X[1], X)
    apart = X[1].copy()
    apart[1] += 2.0
    other = geodesic(surface, X[0], apart, X)
    assert np.all(np.isfinite(other.path))
    np.testing.assert_allclose(other.length, found.length, rtol=1e-3)


def test_energy_of_a_curve_of_waves_and_its_gradient():
    surface, X = ring(RBF(1.0, (0.5, 0.8)) * Polynomial(0.5, 0.7, 2))
    rng = np.random.default_rng(2)
    frame = _Frame.along(surface, [np.linspace(X[0], X[5], 20)])
    np.testing.assert_allclose(frame.outside(frame.inside(X)), X, atol=1e-13)
    waves = _Waves(frame, frame.inside(X[[0, 5]]), 7)
    c = 0.3 * rng.standard_normal((7, 2))
    check_gradient(waves.energy, c.ravel(), rtol=1e-7, step=1e-2)
    # The energy is that of the curve, in units of the frame.
    t = np.linspace(0.0, 1.0, 2001)
    w, velocity = waves.at(c, t)
    np.testing.assert_allclose(np.gradient(w, t, axis=0)[1:-1], velocity[1:-1], atol=1e-4)
    f, _, _ = surface.squared_speed(frame.outside(w), velocity @ frame.map.T)
    want = 0.5 * integrate.trapezoid(f, t) / frame.unit**2
    # (the rule has four points a half wave of the curve, and the metric bends too)
    np.testing.assert_allclose(waves.energy(c.ravel())[0], want, rtol=2e-3)
    # Coefficients of a curve of fewer waves are found again, and a straight line has none.
    np.testing.assert_allclose(_Waves(frame, waves.ends, 9).of(w)[:7], c, atol=2e-3)
    assert np.abs(waves.of(np.linspace(*waves.ends, 30))).max() < 1e-12
    # In a flat metric the Hessian is the identity.
    flat = Surface.exact(Posterior.of(NUMPY, Linear((0.5, 0.9)), NOISE, *problem(q=2)))
    frame = _Frame.along(flat, [np.linspace(X[0], X[5], 20)])
    waves = _Waves(frame, frame.inside(X[[0, 5]]), 7)
    value, slope = waves.energy(c.ravel())
    np.testing.assert_allclose(value, 0.5 + 0.5 * np.sum(c**2), rtol=1e-5)
    np.testing.assert_allclose(slope, c.ravel(), rtol=1e-3, atol=1e-4)


def test_a_failed_solver_leaves_the_best_curve():
    surface, X = ring()
    found = geodesic(surface, X[0], X[9], X, max_nodes=170, tol=1e-9, n_points=30)
    assert not found.converged
    assert "maximum number of mesh nodes" in found.message
    assert "max_nodes" in found.message
    good = geodesic(surface, X[0], X[9], X)
    np.testing.assert_allclose(found.length, good.length, rtol=1e-4)
    np.testing.assert_array_equal(found.path[[0, -1]], X[[0, 9]])
    assert found.path.shape == (30, 2)


def test_no_way_to_go():
    surface, X = ring()
    found = geodesic(surface, X[3], X[3], X, n_points=4)
    assert found == found
    assert (found.length, found.energy, found.converged) == (0.0, 0.0, True)
    np.testing.assert_array_equal(found.path, np.repeat(X[3:4], 4, axis=0))


def test_bad_arguments_of_a_geodesic():
    surface, X = ring()
    with pytest.raises(ValueError, match=r"n_points=1 was given; expected 2 or more"):
        geodesic(surface, X[0], X[1], X, n_points=1)
    with open_case("numpy-f32") as case:
        p = Posterior.of(case.backend, RBF(), NOISE, *problem())
        with pytest.raises(ValueError, match=r"float32; expected float64"):
            geodesic(Surface.exact(p), *problem()[0][:2], problem()[0])


@pytest.mark.only_backend("strictest", "torch-cpu", "emulated", "cupy")
def test_a_geodesic_of_arrays_elsewhere(case):
    X, Y = problem(q=2)
    want, got = (
        geodesic(
            Surface.exact(Posterior.of(b, RBF(1.2, 0.9), NOISE, X, Y)), X[0], X[1], X, tol=1e-2
        )
        for b in (NUMPY, case.backend)
    )
    assert got.converged
    assert isinstance(got.path, np.ndarray)
    np.testing.assert_allclose(got.path, want.path, atol=1e-6)
    np.testing.assert_allclose(got.length, want.length, rtol=1e-8)


# -- fitted models ---------------------------------------------------------------------------------


def table(n=40, D=6, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1.5, 1.5, (n, 2))
    Y = np.sin(z @ rng.normal(size=(2, D))) + 0.05 * rng.normal(size=(n, D))
    return Y * np.array([1.0, 5.0, 0.2, 1.0, 2.0, 1.0]) + 3.0


def quick(model, Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(Y)


@functools.cache
def fitted(name):
    Y = table()
    if name == "exact":
        Y[4:9, 1] = np.nan
        return quick(GPLVM(2, max_iter=30, scale=True), Y)
    if name == "sparse":
        return quick(SparseGPLVM(2, n_inducing=12, max_iter=30, scale=True, random_state=0), Y)
    if name == "bayesian":
        return quick(BayesianGPLVM(3, n_inducing=12, max_iter=30, random_state=0), Y)
    counts = np.random.default_rng(1).poisson(np.exp(0.5 * (Y - 3.0)))
    model = BayesianGPLVM(
        2, n_inducing=8, inference="minibatch", likelihood=Poisson(), n_epochs=3, batch_size=20,
        random_state=0,
    )  # fmt: skip
    return quick(model, counts)


MODELS = ("exact", "sparse", "bayesian", "counts")


@pytest.mark.parametrize("name", MODELS)
def test_methods_of_fitted_models(name):
    model = fitted(name)
    Z = np.asarray(model.embedding_)[:5] + 0.01
    q, D = Z.shape[1], 6
    J, C = model.jacobian(Z, return_cov=True)
    assert J.shape == (5, D, q)
    assert C.shape == (5, D, q, q)
    h = 1e-2 * float(Z.std())
    for a in range(q):
        e = np.eye(q)[a]

        def slope(h, e=e):
            up, down = (model.predict(Z + s * h * e, noise=False) for s in (1, -1))
            return (up - down) / (2.0 * h)

        want = richardson(slope, h)
        np.testing.assert_allclose(J[:, :, a], want, rtol=1e-5, atol=1e-6 * np.abs(J).max())
    # Columns weigh as in the fit: those of "exact" and "sparse" are scaled.
    assert (name in ("exact", "sparse")) == np.any(model.scale_ != 1.0)
    J, C = J / model.scale_[:, None], C / model.scale_[:, None, None] ** 2
    G, want = model.metric_tensor(Z), np.einsum("nda,ndb->nab", J, J) + C.sum(axis=1)
    np.testing.assert_allclose(G, want, rtol=1e-9, atol=1e-9 * np.abs(G).max())
    volume = np.sqrt(np.linalg.det(G))
    np.testing.assert_allclose(model.magnification(Z), volume, rtol=1e-6)
    np.testing.assert_allclose(model.magnification(Z, log=True), np.log(volume), rtol=1e-6)
    np.testing.assert_array_equal(model.jacobian(Z), model.jacobian(Z, return_cov=True)[0])


@pytest.mark.parametrize("name", MODELS)
def test_geodesics_of_fitted_models(name):
    model = fitted(name)
    Z = np.asarray(model.embedding_)
    found = model.geodesic(Z[0], Z[1], n_points=15)
    assert isinstance(found, Geodesic)
    assert found.path.shape == (15, Z.shape[1])
    straight = model.curve_length(np.linspace(Z[0], Z[1], 60))
    assert found.length <= straight * (1.0 + 1e-6)
    # No curve is shorter than what its two ends are apart.
    ends = model.predict(Z[:2], noise=False) / model.scale_
    assert found.length > np.linalg.norm(ends[1] - ends[0])


def test_a_saved_model_has_the_same_geometry(tmp_path):
    model = fitted("exact")
    model.save(tmp_path / "model.npz")
    again = gplvm_xp.load(tmp_path / "model.npz")
    Z = model.embedding_[:3]
    np.testing.assert_allclose(again.metric_tensor(Z), model.metric_tensor(Z), rtol=1e-10)


def test_results_are_in_the_library_of_the_latents():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = fitted("exact")
    Z = model.embedding_[:3]
    G = model.metric_tensor(torch.tensor(Z))
    assert isinstance(G, torch.Tensor)
    np.testing.assert_array_equal(G.numpy(), model.metric_tensor(Z))
    found = model.geodesic(torch.tensor(Z[0]), torch.tensor(Z[1]), n_points=3)
    assert isinstance(found.path, torch.Tensor)


def test_geodesics_of_a_model_in_single_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPLVM(2, max_iter=15, dtype="float32", noise_variance=0.1).fit(table())
    Z = np.asarray(model.embedding_, dtype=np.float64)
    found = model.geodesic(Z[0], Z[1])
    assert found.converged
    assert found.path.dtype == np.float64
    straight = model.curve_length(np.linspace(Z[0], Z[1], 60))
    assert found.length <= straight * (1.0 + 1e-3)


def test_bad_latents():
    model = fitted("exact")
    with pytest.raises(ValueError, match=r"Z has shape \(4, 6\); expected latents \(N, 2\)"):
        model.metric_tensor(np.ones((4, 6)))
    with pytest.raises(ValueError, match=r"latents contain NaN"):
        model.jacobian(np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match=r"end has shape \(1, 2\); expected one latent \(2,\)"):
        model.geodesic(model.embedding_[0], model.embedding_[:1])
    with pytest.raises(ValueError, match=r"latents contain NaN"):
        model.geodesic([0.0, np.inf], [0.0, 1.0])


# -- pictures --------------------------------------------------------------------------------------


def drawn(ax):
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=50)
    return ax


def test_magnification_as_a_background():
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from gplvm_xp import plot

    model = fitted("exact")
    ax = drawn(plot.latent(model, background="magnification", resolution=21))
    (image,) = ax.images
    values = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    i, j = 4, 6
    x = left + (j + 0.5) * (right - left) / values.shape[1]
    y = bottom + (i + 0.5) * (top - bottom) / values.shape[0]
    want = model.magnification(np.array([[x, y]]), log=True)[0] / np.log(10.0)
    np.testing.assert_allclose(values[i, j], want, rtol=0.02, atol=1e-3)
    assert "magnification" in ax.child_axes[0].get_ylabel()
    with pytest.raises(ValueError, match=r"background='grey'.*'uncertainty', 'magnification'"):
        plot.latent(model, background="grey")
    bare = types.SimpleNamespace(embedding_=model.embedding_)
    with pytest.raises(ValueError, match=r"needs a model with a metric, and SimpleNamespace has"):
        plot.latent(bare, background="magnification")


def test_magnification_of_the_plane_of_the_map():
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from gplvm_xp import plot

    model = fitted("bayesian")
    ax = drawn(plot.latent(model, background="magnification", dims=(2, 0), resolution=9))
    values = np.asarray(ax.images[0].get_array())
    left, right, bottom, top = ax.images[0].get_extent()
    z = np.asarray(model.embedding_).mean(axis=0)
    step = max(right - left, top - bottom) / 9
    z[2], z[0] = left + 0.5 * step, bottom + 0.5 * step
    G = model.metric_tensor(z[None])[0][np.ix_([2, 0], [2, 0])]
    np.testing.assert_allclose(values[0, 0], 0.5 * np.log10(np.linalg.det(G)), rtol=1e-6)


def test_curves_on_the_map():
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from gplvm_xp import plot

    model = fitted("exact")
    Z = model.embedding_
    found = model.geodesic(Z[0], Z[1], n_points=12)
    straight = np.linspace(Z[0], Z[1], 5)
    ax = drawn(plot.latent(model, curves=[found, straight], uncertainty=False, dims=(1, 0)))
    one, two = ax.lines
    np.testing.assert_array_equal(one.get_xydata(), found.path[:, ::-1])
    np.testing.assert_array_equal(two.get_xydata(), straight[:, ::-1])
    assert one.get_linestyle() == "-"
    assert two.get_linestyle() == ":"
    with pytest.raises(ValueError, match=r"a curve has shape \(5,\); expected latents \(T, 2\)"):
        plot.latent(model, curves=[np.ones(5)])
