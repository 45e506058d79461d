"""Psi statistics against integrals that share nothing with them, in values and in gradients."""

from __future__ import annotations

import functools
import math
import tracemalloc

import numpy as np
import pytest

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
    RationalQuadratic,
    Scale,
    White,
)
from gplvm_xp.kernels.psi import QuadraturePsi, RBFPsi, SumPsi, psi_of
from gplvm_xp.kernels.psi.pairs import row_blocks
from gplvm_xp.kernels.psi.rules import gauss_hermite, quasi_monte_carlo, rule_for
from gplvm_xp.testing import check_gradient

# Two input dimensions; every pair of leaves meets in some sum.
ANALYTIC = {
    "rbf": RBF(1.3, 0.8),
    "rbf-ard": RBF(1.2, (0.9, 1.4)),
    "linear": Linear(0.7),
    "linear-ard": Linear((0.5, 0.9)),
    "constant": Constant(0.6),
    "white": White(0.3),
    "rbf+linear": RBF(1.2, (0.9, 1.4)) + Linear((0.5, 0.9)),
    "rbf+rbf": RBF(0.8, 0.7) + RBF(1.1, (1.3, 0.9)),
    "linear+linear": Linear(0.4) + Linear((0.3, 0.8)),
    "all": 1.7 * RBF(1.2, 1.1) + Linear(0.4) + Constant(0.5) + White(0.2),
    "on-parts": ActiveDims(RBF(1.1, 0.9), (1,))
    + ActiveDims(RBF(0.9, 0.8), (0,))
    + ActiveDims(Linear(0.6), (1,)),
    "scaled-sum": 0.6 * (RBF(1.1, 0.7) + ActiveDims(Linear(0.6), (0,))) + Constant(0.3),
    "swapped": ActiveDims(RBF(1.1, (0.9, 1.6)) + Linear((0.3, 0.7)), (1, 0)),
    "product": ActiveDims(RBF(1.1, 0.8), (0,)) * ActiveDims(RBF(0.9, 1.2), (1,)),
    "product-same": RBF(1.1, (0.9, 1.2)) * RBF(0.9, 0.8) + Constant(0.3) * Linear(0.7),
    "product-of-sums": (RBF(0.8, 0.9) + Constant(0.4))
    * (ActiveDims(RBF(0.7, 1.1), (1,)) + White(0.3))
    + 0.5 * (Linear(0.3) + RBF(0.5, 2.0)),
}
QUADRATURE = {
    "matern32": Matern32(0.9, (1.1, 1.5)),
    "matern52": Matern52(1.1, 1.2),
    "rq": RationalQuadratic(1.2, 0.9, alpha=0.7),
    "periodic": Periodic(0.8, 1.1, 3.0),
    "polynomial": Polynomial(0.5, 0.7, degree=3),
    "hexagonal": Hexagonal(0.8, 3.5, 0.3, 1.2),
    "rbf*linear": RBF(1.1, 0.9) * Linear((0.5, 0.8)),
    "matern+rbf": Matern52(0.7, 1.3) + RBF(0.6, 0.8) + White(0.1),
    "on-one": ActiveDims(Matern52(0.9, 1.1), (1,)) + Constant(0.2),
}
KERNELS = ANALYTIC | QUADRATURE
N, M, Q = 4, 3, 2


def problem(kernel, q=Q, n=N, m=M, r=2, seed=0, spread=0.3):
    """theta, μ, S, Z and cotangents with weights; nothing symmetric, S of several sizes."""
    rng = np.random.default_rng(seed)
    theta = kernel.theta() * np.exp(0.1 * rng.standard_normal(kernel.size))
    mu, Z = rng.standard_normal((n, q)), rng.standard_normal((m, q))
    S = spread * np.exp(0.7 * rng.standard_normal((n, q)))
    g = (rng.standard_normal(n), rng.standard_normal((n, m)), rng.standard_normal((r, m, m)))
    return theta, (mu, S, Z), (*g, rng.uniform(0.2, 1.5, (n, r)))


@functools.cache
def grid(q, side, reach=9.0):
    """A rectangle rule for N(0, I): for smooth integrands exact to rounding, and no Gauss rule."""
    x = np.linspace(-reach, reach, side)
    w = np.exp(-0.5 * x * x)
    w /= w.sum()
    nodes = np.stack(np.meshgrid(*[x] * q, indexing="ij"), axis=-1).reshape(-1, q)
    return nodes, functools.reduce(np.multiply.outer, [w] * q).ravel()


def integrals(kernel, theta, mu, S, Z, rule):
    """ψ0 (n,), Ψ1 (n, M) and Ψ2⁽ⁿ⁾ (n, M, M) by summing the kernel over a rule."""
    xi, w = rule
    out = []
    for m, s in zip(mu, S, strict=True):
        X = m + np.sqrt(s) * xi
        K = kernel.gram(theta, X, Z)
        out.append((w @ kernel.diag(theta, X), w @ K, K.T @ (w[:, None] * K)))
    return [np.stack(part) for part in zip(*out, strict=True)]


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def off(psi, kernel, args, rule, W=None):
    """Largest relative error of each statistic."""
    want = integrals(kernel, *args, rule)
    got = psi.forward(*args, W)
    weights = np.ones((args[1].shape[0], 1)) if W is None else W
    want[2] = np.einsum("nk,nab->kab", weights, want[2])
    tiny = [max(np.max(np.abs(w)), 1e-300) for w in want]
    return [np.max(np.abs(a - w)) / t for a, w, t in zip(got, want, tiny, strict=True)]


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_statistics_are_the_integrals(name):
    kernel = ANALYTIC[name]
    assert isinstance(kernel.psi(), RBFPsi | SumPsi)
    theta, points, (*_, W) = problem(kernel)
    assert max(off(kernel.psi(), kernel, (theta, *points), grid(Q, 161), W)) < 1e-11


@pytest.mark.parametrize(
    ("name", "tolerance"),
    {
        "matern32": 3e-4, "matern52": 2e-5, "rq": 5e-6, "periodic": 3e-4, "polynomial": 1e-12,
        "hexagonal": 5e-8, "rbf*linear": 5e-10, "matern+rbf": 1e-5, "on-one": 5e-6,
    }.items(),
)  # fmt: skip
def test_quadratures_are_the_integrals(name, tolerance):
    kernel = QUADRATURE[name]
    assert isinstance(kernel.psi(), QuadraturePsi)
    theta, points, (*_, W) = problem(kernel)
    assert max(off(kernel.psi(), kernel, (theta, *points), grid(Q, 401), W)) < tolerance


@pytest.mark.parametrize(
    ("kernel", "tolerance"),
    [
        (Matern32(1.1, 0.9), 2e-4),
        (RationalQuadratic(1.2, 0.9, alpha=0.7), 1e-8),
        (Periodic(0.8, 1.1, 3.0), 1e-5),
        (RBF() * Linear(), 1e-13),
        (Polynomial(degree=5), 1e-13),
    ],
)
def test_quadratures_on_the_line_against_mpmath(kernel, tolerance):
    mp = pytest.importorskip("mpmath")
    theta, (mu, S, Z), _ = problem(kernel, q=1, n=1, m=2)
    z = [float(v) for v in Z[:, 0]]
    center, sd = float(mu[0, 0]), math.sqrt(S[0, 0])

    def k(x, j):
        return float(kernel.gram(theta, np.array([[x]]), Z[j : j + 1])[0, 0])

    cuts = sorted({center - 9 * sd, *[v for v in z if abs(v - center) < 9 * sd], center + 9 * sd})

    def mean(f):
        # Between the kinks, so that the rule sees smooth pieces.
        with mp.workdps(15):
            density = lambda x: math.exp(-0.5 * ((x - center) / sd) ** 2)  # noqa: E731
            total = mp.quad(lambda x: f(float(x)) * density(float(x)), cuts, maxdegree=6)
            return float(total) / (sd * math.sqrt(2 * math.pi))

    got = kernel.psi().forward(theta, mu, S, Z)
    one = np.array([mean(lambda x, j=j: k(x, j)) for j in range(2)])
    two = np.array([[mean(lambda x, i=i, j=j: k(x, i) * k(x, j)) for i in (0, 1)] for j in (0, 1)])
    assert relative(got.psi1[0], one) < tolerance
    assert relative(got.psi2[0], two) < tolerance


@functools.cache
def halton(q, log2=17):
    from scipy.special import ndtri
    from scipy.stats import qmc

    x = ndtri(qmc.Halton(q, scramble=False).random(2**log2 + 1)[1:])
    return x, np.full(x.shape[0], 1.0 / x.shape[0])


FIVE = [
    Matern52(1.0, 2.2),
    RationalQuadratic(1.0, 2.2),
    RBF(1.0, 2.2) * Linear(),
    Matern32(1.0, 3.0),
]


@pytest.mark.parametrize("kernel", FIVE)
def test_quadratures_in_five_dimensions(kernel):
    """Near a large quasi-Monte-Carlo set of another kind; sharing one node index among the
    dimensions, a mistake that no gradient check finds, is 20 times further off."""
    theta, points, _ = problem(kernel, q=5, n=3, spread=0.4)
    args = (theta, *points)
    assert max(off(kernel.psi(), kernel, args, halton(5))) < 5e-3
    x, w = np.polynomial.hermite_e.hermegauss(40)
    shared = integrals(kernel, *args, (np.repeat(x[:, None], 5, axis=1), w / w.sum()))
    right = integrals(kernel, *args, halton(5))
    assert relative(shared[2].sum(axis=0), right[2].sum(axis=0)) > 0.1


def test_the_sobol_rule_against_the_analytic_rbf():
    kernel = RBF(1.0, 3.0)
    theta, points, _ = problem(kernel, q=10, n=5, m=6, spread=0.4)
    exact = kernel.psi().forward(theta, *points)
    errors = []
    for level in (0, 1, 2):
        got = QuadraturePsi(kernel, level).forward(theta, *points)
        errors.append(max(relative(a, b) for a, b in zip(got, exact, strict=True)))
    assert errors[0] < 2e-3
    assert errors[1] < 6e-4
    assert errors[2] < 2e-4


@pytest.mark.parametrize("q", [1, 2, 3, 5])
def test_the_stated_error_is_the_error(q):
    kernel = Matern52(1.0, 0.7 * math.sqrt(q))
    theta, points, _ = problem(kernel, q=q, n=3, spread=0.6)
    args = (theta, *points)
    rule = {1: (1, 20001), 2: (2, 601), 3: (3, 101)}
    true = off(QuadraturePsi(kernel), kernel, args, grid(*rule[q]) if q < 4 else halton(5))
    stated = QuadraturePsi(kernel).error(*args)
    assert np.all(np.array(true[1:]) < 2.0 * stated[1:] + 1e-9)
    assert np.all(stated[1:] < 5.0 * np.array(true[1:]) + 1e-9)
    assert stated[0] < 1e-12


def test_polynomials_are_exact():
    """Degree 3 in two dimensions has products of degree 6: four nodes a dimension do."""
    kernel = Polynomial(0.8, 0.5, degree=3)
    theta, points, _ = problem(kernel, spread=2.0)
    assert rule_for(2, 3, 0).weights.size == 16
    assert max(off(kernel.psi(), kernel, (theta, *points), grid(2, 401, 14.0))) < 1e-12
    mixed = Linear(0.3) * Polynomial(0.5, 0.4, degree=1) + Constant(0.2) + White(0.1)
    theta, points, _ = problem(mixed, spread=2.0)
    assert max(off(mixed.psi(), mixed, (theta, *points), grid(2, 401, 14.0))) < 1e-12


# -- gradients: an oracle of its own, by reverse differentiation -----------------------------------


def _torch_kernel(torch):
    """Kernels written again, in torch: k(x (..., q), z (..., q)) for broadcast points."""

    def distance(x, z, ell):
        return (((x - z) / ell) ** 2).sum(-1)

    def rbf(v, ell):
        return lambda x, z: v * torch.exp(-0.5 * distance(x, z, ell))

    def linear(alpha):
        return lambda x, z: (x * z * alpha).sum(-1)

    def matern52(v, ell):
        def k(x, z):
            # Away from the root's infinite slope at coincident points.
            r = torch.sqrt(5.0 * distance(x, z, ell) + 1e-300)
            return v * (1.0 + r + r * r / 3.0) * torch.exp(-r)

        return k

    def rq(v, alpha, ell):
        return lambda x, z: v * (1.0 + distance(x, z, ell) / (2.0 * alpha)) ** (-alpha)

    def pick(k, dims):
        return lambda x, z: k(x[..., dims], z[..., dims])

    def add(*ks):
        return lambda x, z: sum(k(x, z) for k in ks)

    def multiply(*ks):
        return lambda x, z: math.prod(k(x, z) for k in ks)

    def constant(c):
        return lambda x, z: c + 0.0 * (x + z)[..., 0]

    return {
        "rbf": lambda t: rbf(t[0], t[1]),
        "rbf-ard": lambda t: rbf(t[0], t[1:]),
        "linear": lambda t: linear(t[0]),
        "linear-ard": linear,
        "rbf+linear": lambda t: add(rbf(t[0], t[1:3]), linear(t[3:])),
        "rbf+rbf": lambda t: add(rbf(t[0], t[1]), rbf(t[2], t[3:])),
        "linear+linear": lambda t: add(linear(t[0]), linear(t[1:])),
        "all": lambda t: add(
            multiply(constant(t[0]), rbf(t[1], t[2])), linear(t[3]), constant(t[4])
        ),
        "on-parts": lambda t: add(
            pick(rbf(t[0], t[1]), [1]), pick(rbf(t[2], t[3]), [0]), pick(linear(t[4]), [1])
        ),
        "swapped": lambda t: pick(add(rbf(t[0], t[1:3]), linear(t[3:])), [1, 0]),
        "product-same": lambda t: add(
            multiply(rbf(t[0], t[1:3]), rbf(t[3], t[4])), multiply(constant(t[5]), linear(t[6]))
        ),
        "rq": lambda t: rq(t[0], t[1], t[2]),
        "matern52": lambda t: matern52(t[0], t[1]),
        "rbf*linear": lambda t: multiply(rbf(t[0], t[1]), linear(t[2:])),
    }


LIMITS = {"rq": 1e-5, "matern52": 1e-4, "rbf*linear": 1e-7}


@pytest.mark.parametrize(
    "name",
    [
        "rbf", "rbf-ard", "linear", "linear-ard", "rbf+linear", "rbf+rbf", "linear+linear", "all",
        "on-parts", "swapped", "product-same", "rq", "matern52", "rbf*linear",
    ],
)  # fmt: skip
def test_gradients_against_torch(name):
    """Reverse differentiation of the integrals themselves, with kernels written in torch."""
    torch = pytest.importorskip("torch")
    kernel = KERNELS[name]
    theta, points, (g0, G1, G2, W) = problem(kernel, spread=0.4)
    leaves = [torch.tensor(a, requires_grad=True) for a in (theta, *points)]
    t, mu, S, Z = leaves
    k = _torch_kernel(torch)[name](t)
    xi, w = (torch.tensor(a) for a in grid(Q, 161 if name in LIMITS else 57, 8.0))
    rows = []
    white = t[-1] if name == "all" else 0.0
    for n in range(N):
        X = mu[n] + torch.sqrt(S[n]) * xi
        K, diag = k(X[:, None, :], Z[None, :, :]), k(X, X) + white
        two = K.T @ (w[:, None] * K)
        G = (torch.tensor(W[n])[:, None, None] * torch.tensor(G2)).sum(0)
        rows.append(g0[n] * (w @ diag) + (w @ K) @ torch.tensor(G1[n]) + (G * two).sum())
    value = torch.stack(rows)
    wanted = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    got = kernel.psi().contract(theta, *points, g0, G1, G2, W)
    limit = LIMITS.get(name, 1e-10)
    np.testing.assert_allclose(got.value, value.detach().numpy(), rtol=limit, atol=limit)
    for label, a, want in zip(("theta", "mu", "S", "Z"), got[1:], wanted, strict=True):
        want = np.zeros(a.shape) if want is None else want.numpy()
        scale = max(np.max(np.abs(want)), 1e-2)
        assert np.max(np.abs(a - want)) < 10 * limit * scale, label


@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_gradients_of_the_sums_as_they_are(name, r):
    """Differences of ``forward``: for a quadrature the derivative of its own sum, to rounding."""
    kernel = KERNELS[name]
    theta, points, (g0, G1, G2, W) = problem(kernel, r=r)
    parts = (theta, *points)
    ends = np.cumsum([0, *(a.size for a in parts)])

    def fun(x):
        cut = [x[i:j].reshape(a.shape) for i, j, a in zip(ends[:-1], ends[1:], parts, strict=True)]
        s, c = psi.forward(*cut, W), psi.contract(*cut, g0, G1, G2, W)
        value = g0 @ s.psi0 + np.sum(G1 * s.psi1) + np.sum(G2 * s.psi2)
        assert abs(np.sum(c.value) - value) < 1e-11 * (1.0 + abs(value))
        return value, np.concatenate([g.ravel() for g in c[1:]])

    psi = kernel.psi()
    check_gradient(fun, np.concatenate([a.ravel() for a in parts]), rtol=1e-8)


# -- rules that hold whatever the kernel -----------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_rows_weights_and_values(name):
    """Rows are apart from each other, W enters Ψ2 only, and None is a column of ones."""
    kernel = KERNELS[name]
    psi = kernel.psi()
    theta, (mu, S, Z), (g0, G1, G2, W) = problem(kernel)
    whole = psi.forward(theta, mu, S, Z, W)
    single = [psi.forward(theta, mu[i : i + 1], S[i : i + 1], Z) for i in range(N)]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    close(whole.psi0, np.concatenate([s.psi0 for s in single]))
    close(whole.psi1, np.concatenate([s.psi1 for s in single]))
    close(whole.psi2, np.einsum("nk,nab->kab", W, np.stack([s.psi2[0] for s in single])))
    close(psi.forward(theta, mu, S, Z).psi2, psi.forward(theta, mu, S, Z, np.ones((N, 1))).psi2)
    both = psi.contract(theta, mu, S, Z, g0, G1, G2, W)
    parts = [
        psi.contract(theta, mu[i : i + 1], S[i : i + 1], Z, g0[i : i + 1], G1[i : i + 1], G2, w)
        for i, w in enumerate(W[:, None, :])
    ]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)
    for field in ("value", "mu", "S"):
        close(getattr(both, field), np.concatenate([getattr(p, field) for p in parts]))
    for field in ("theta", "Z"):
        close(getattr(both, field), sum(getattr(p, field) for p in parts))
    ones = psi.contract(theta, mu, S, Z, g0, G1, G2[:1], np.ones((N, 1)))
    for a, c in zip(psi.contract(theta, mu, S, Z, g0, G1, G2[:1]), ones, strict=True):
        close(a, c)


@pytest.mark.parametrize("name", KERNELS)
def test_second_moments_are_above_the_products_of_the_first(name):
    kernel = KERNELS[name]
    theta, (mu, S, Z), (*_, W) = problem(kernel, n=6, m=5)
    s = kernel.psi().forward(theta, mu, S, Z, W)
    for k in range(2):
        np.testing.assert_array_equal(s.psi2[k], s.psi2[k].T) if name == "rbf" else None
        np.testing.assert_allclose(s.psi2[k], s.psi2[k].T, rtol=0, atol=1e-13)
        gap = s.psi2[k] - s.psi1.T @ (W[:, k][:, None] * s.psi1)
        assert np.linalg.eigvalsh(gap)[0] > -1e-12


@pytest.mark.parametrize("name", KERNELS)
def test_certain_latents_give_products_of_the_gram_matrix(name):
    kernel = KERNELS[name]
    theta, (mu, S, Z), (g0, G1, G2, W) = problem(kernel)
    for scale in (0.0, 1e-13):
        s = kernel.psi().forward(theta, mu, scale * S, Z, W)
        K = kernel.gram(theta, mu, Z)
        np.testing.assert_allclose(s.psi0, kernel.diag(theta, mu), rtol=1e-10)
        want = np.einsum("nk,na,nb->kab", W, K, K)
        np.testing.assert_allclose(s.psi1, K, rtol=0, atol=1e-10 * np.max(np.abs(K)))
        np.testing.assert_allclose(s.psi2, want, rtol=0, atol=1e-10 * np.max(np.abs(want)))
    # The derivative in S is there too: half the Laplacian, whichever way S goes to 0.
    at = kernel.psi().contract(theta, mu, 0.0 * S, Z, g0, G1, G2, W)
    near = kernel.psi().contract(theta, mu, np.full_like(S, 1e-6), Z, g0, G1, G2, W)
    scale = np.max(np.abs(near.S))
    kink = 5e-2 if "matern32" in name else 2e-3
    assert np.max(np.abs(at.S - near.S)) <= kink * scale


def test_a_scale_and_a_sum_follow_their_rules():
    a, c = RBF(0.8, 0.7), Linear((0.4, 0.9))
    _, points, (*_, W) = problem(a)
    sa, sc = (k.psi().forward(k.theta(), *points, W) for k in (a, c))
    total = (a + c).psi().forward((a + c).theta(), *points, W)
    scaled = Scale(a + c, 1.7)
    factor = scaled.psi().forward(scaled.theta(), *points, W)
    for power, x, y, s, f in zip((1, 1, 2), sa, sc, total, factor, strict=True):
        np.testing.assert_allclose(f, 1.7**power * s, rtol=1e-13)
        if power == 1:
            np.testing.assert_allclose(s, x + y, rtol=1e-13)
    cross = total.psi2 - sa.psi2 - sc.psi2
    assert np.min(np.linalg.norm(cross, axis=(1, 2))) > 0.1
    # Twice the same kernel is one of twice the variance, all cross terms included.
    twice = a + a
    got, want = twice.psi().forward(twice.theta(), *points, W), (2.0 * a).psi()
    for x, y in zip(got, want.forward((2.0 * a).theta(), *points, W), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_which_rule_is_taken():
    class Mine(RBF):
        """Another function may hide behind a subclass."""

    def kind(kernel):
        return type(psi_of(kernel))

    assert kind(RBF()) is RBFPsi
    for kernel in ANALYTIC.values():
        assert kind(kernel) is (RBFPsi if type(kernel) is RBF else SumPsi)
    for kernel in (Mine(), Linear() * Linear(), White() * Linear(), RBF() + Matern52(), 2 * Mine()):
        assert kind(kernel) is QuadraturePsi
    with pytest.raises(ValueError, match="level=3"):
        QuadraturePsi(RBF(), 3)


def test_only_dimensions_that_are_seen_have_nodes(monkeypatch):
    kernel = ActiveDims(Matern52(0.9, 1.1), (3,)) + ActiveDims(Periodic(period=2.0), (1,))
    theta, (mu, S, Z), (g0, G1, G2, W) = problem(kernel, q=6)
    seen = []
    gram = type(kernel).gram
    monkeypatch.setattr(
        type(kernel), "gram", lambda self, t, X, Z: seen.append(X.copy()) or gram(self, t, X, Z)
    )
    kernel.psi().forward(theta, mu, S, Z)
    X = np.concatenate(seen)
    assert X.shape[0] == N * 28**2
    assert [len(np.unique(X[:, d])) for d in (0, 2, 4, 5)] == [N] * 4
    c = kernel.psi().contract(theta, mu, S, Z, g0, G1, G2, W)
    assert np.all(c.S[:, [0, 2, 4, 5]] == 0.0)
    assert np.all(c.S[:, [1, 3]] != 0.0)


# -- rules of integration --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [gauss_hermite(1, 256), gauss_hermite(3, 12), rule_for(5, None, 0), rule_for(0, None, 0)],
)
def test_rules_are_distributions(rule):
    x, w = rule
    d = x.shape[1]
    assert np.all(w > 0.0)
    np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(w @ x, np.zeros(d), atol=1e-12)
    np.testing.assert_allclose((x.T * w) @ x, np.eye(d), atol=1e-12)


def test_the_sobol_rule_is_the_same_each_time():
    first = quasi_monte_carlo(4, 64, 0)
    quasi_monte_carlo.cache_clear()
    np.testing.assert_array_equal(quasi_monte_carlo(4, 64, 0).nodes, first.nodes)
    assert not np.any(quasi_monte_carlo(4, 64, 1).nodes == first.nodes)


# -- every array library ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbf-ard", "all", "rbf+rbf", "product-same", "matern52"])
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_on_every_library(case, name, groups):
    kernel = KERNELS[name]
    psi = kernel.psi()
    theta, points, (g0, G1, G2, W) = problem(kernel, n=5, m=4)
    G2 = G2[: groups or 1]
    W = None if groups is None else W[:, :groups]

    def run(put):
        args = [put(a) for a in (theta, *points)]
        w = None if W is None else put(W)
        s = psi.forward(*args, w)
        return (*s, *psi.contract(*args, put(g0), put(G1), put(G2), w))

    like = case.asarray(theta)
    for i, (got, want) in enumerate(zip(run(case.asarray), run(np.asarray), strict=True)):
        assert type(got) is type(like)
        assert got.dtype == like.dtype
        host = case.to_numpy(got)
        assert host.shape == want.shape
        scale = np.max(np.abs(want))
        assert np.max(np.abs(host - want)) <= case.tolerance(1e-11, 1e-4) * scale, i


# -- hard inputs and memory ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("what", ["certain", "vague", "far", "very far", "coincident"])
@pytest.mark.parametrize("name", ["rbf-ard", "rbf+rbf", "all", "on-parts", "product", "matern52"])
def test_hard_inputs_stay_finite(name, what, dtype):
    kernel = KERNELS[name]
    theta, (mu, S, Z), cotangents = problem(kernel)
    if what == "certain":
        S[:] = 0.0
    elif what == "vague":
        S[:2] = 1e25
    elif what == "far":
        mu[:2] = 1e7
    elif what == "very far":
        if name in ("all", "on-parts", "matern52"):
            pytest.skip("the kernel itself overflows there")
        mu[:2] = 1e25 if dtype == "float32" else 1e170
    else:
        Z[:] = Z[0]
        S[0] = 0.0
    args = [a.astype(dtype) for a in (theta, mu, S, Z)]
    cotangents = [a.astype(dtype) for a in cotangents]
    psi = kernel.psi()
    with np.errstate(over="ignore" if what == "very far" else "warn"):
        results = (*psi.forward(*args, cotangents[-1]), *psi.contract(*args, *cotangents))
    for i, a in enumerate(results):
        assert a.dtype == dtype
        assert np.all(np.isfinite(a)), i


@pytest.mark.parametrize("name", ["rbf", "rbf+rbf", "all", "on-one"])
def test_no_array_of_rows_times_pairs(name):
    kernel = KERNELS[name]
    n, m = 2000, 60
    theta, points, (g0, G1, G2, _) = problem(kernel, n=n, m=m, r=1)
    psi = kernel.psi()
    psi.forward(theta, points[0][:2], points[1][:2], points[2])
    tracemalloc.start()
    try:
        psi.forward(theta, *points)
        psi.contract(theta, *points, g0, G1, G2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few blocks and a few arrays of (rows, M), of which one with all pairs would be 58 MB.
    assert peak < 20e6, peak


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    from gplvm_xp.kernels.psi import blocked, crossed, quadrature

    def few(b, n, width):
        return [slice(i, min(i + 3, n)) for i in range(0, n, 3)]

    for name in ("rbf+rbf", "polynomial"):
        kernel = KERNELS[name]
        theta, points, g = problem(kernel, n=10)
        runs = []
        for cut in (row_blocks, few):
            for module in (blocked, crossed, quadrature):
                monkeypatch.setattr(module, "row_blocks", cut)
            psi = kernel.psi()
            runs.append((*psi.forward(theta, *points, g[-1]), *psi.contract(theta, *points, *g)))
        for a, c in zip(*runs, strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-11, atol=1e-12)


def test_no_rows_at_all():
    for name in ("rbf", "all", "rbf+rbf"):
        kernel = KERNELS[name]
        theta, (_, _, Z), _ = problem(kernel)
        none = np.zeros((0, Q))
        s = kernel.psi().forward(theta, none, none, Z)
        assert [a.shape for a in s] == [(0,), (0, M), (1, M, M)]
        assert np.all(s.psi2 == 0.0)
