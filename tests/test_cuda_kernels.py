"""The fused CUDA kernels and their host code, on the CPU emulator.

The reference is plain NumPy in float64; its derivatives are complex steps, so it shares no formula
for a derivative with the code under test.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emulator import ORDERS, EmulatedLauncher, EmulationError, PoisonedNumpy, why_no_emulator
from emulator.trees import TREES, active, add, linear, matern52, multiply, rbf, white

from gplvm_xp.backend.cuda.fused import MAX_Q, THREADS, Fused, Mirror, tile_size
from gplvm_xp.backend.cuda.pairs import CudaPair, radial_profile

pytestmark = pytest.mark.skipif(
    why_no_emulator() is not None, reason=why_no_emulator() or "the emulator works"
)
STEP = 1e-30
TILE = tile_size(2)


class Reference:
    """Values and derivatives of a tree for one problem."""

    def __init__(self, tree, theta, X, Z):
        self.tree, self.theta, self.X, self.Z = tree, theta, X, Z
        self.Y = X if Z is None else Z
        self.same = np.eye(len(X)) if Z is None else np.zeros((len(X), len(Z)))
        self.K = self.at()
        self.first = np.stack([self.along(dX=e) for e in np.eye(X.shape[1])], -1)
        self.second = np.stack([self.along(dY=e) for e in np.eye(X.shape[1])], -1)
        self.thetas = np.stack([self.along(dtheta=e) for e in np.eye(len(theta))])

    def at(self, dtheta=0.0, dX=0.0, dY=0.0):
        parts = self.X + dX, self.Y + dY, self.theta + dtheta
        return self.tree.f(*parts, self.same)

    def along(self, dtheta=0.0, dX=0.0, dY=0.0):
        step = 1j * STEP
        value = self.at(step * np.asarray(dtheta), step * np.asarray(dX), step * np.asarray(dY))
        return np.imag(value) / STEP * np.ones(self.same.shape)

    def pullback(self, G):
        gX = np.einsum("ij,ija->ia", G, self.first)
        gZ = np.einsum("ij,ija->ja", G, self.second)
        gtheta = np.einsum("ij,pij->p", G, self.thetas)
        return (gtheta, gX + gZ, None) if self.Z is None else (gtheta, gX, gZ)


def problem(tree, q, n, m=None, seed=0, dtype=np.float64):
    """theta, X, Z, G; the numbers are exact in float32 too, so that both dtypes solve the same."""
    rng = np.random.default_rng(seed)
    X, Z = rng.standard_normal((n, q)), None if m is None else rng.standard_normal((m, q))
    theta = rng.uniform(0.5, 1.5, tree.code.parameters) * q**0.25
    G = rng.standard_normal((n, n if m is None else m))
    return [None if a is None else a.astype(np.float32).astype(dtype) for a in (theta, X, Z, G)]


def fused(tree, q, launcher=None, dtype=np.float64, **options):
    return Fused(launcher or EmulatedLauncher(), PoisonedNumpy, tree.code, q, dtype, **options)


def assert_close(seen, expected, rtol=1e-11):
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        if b is None:
            assert a is None
            continue
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (1 + np.abs(b).max(initial=0)))


def check_contractions(f, tree, q, n, m=None, rtol=1e-11):
    theta, X, Z, G = problem(tree, q, n, m)
    ref = Reference(tree, theta, X, Z)
    assert_close([f.gram(theta, X, Z)], [ref.K], rtol)
    assert_close(f.pullback(theta, X, Z, G), ref.pullback(G), rtol)
    if Z is None:
        G = G + G.T
        assert_close(f.pullback(theta, X, Z, G, symmetric=True), ref.pullback(G), rtol)
    return theta, X, Z, ref


# -- every type, everything it can do --------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_types_and_trees(name):
    tree, launcher = TREES[name], EmulatedLauncher()
    f = fused(tree, 3, launcher)
    for m in (None, 33):
        theta, X, Z, ref = check_contractions(f, tree, 3, 40, m)
        assert_close([f.input_jacobian(theta, X, Z)], [ref.first])
        assert_close([f.theta_jacobian(theta, X, Z)], [ref.thetas])
        rng = np.random.default_rng(1)
        dtheta, dX = rng.standard_normal(theta.shape), rng.standard_normal(X.shape)
        dZ = None if Z is None else rng.standard_normal(Z.shape)
        dK = ref.along(dtheta, dX, dX if Z is None else dZ)
        assert_close([f.jvp(theta, X, Z, dtheta, dX, dZ)], [dK])
        assert_close([f.jvp(theta, X, Z, dtheta=dtheta)], [ref.along(dtheta)])
        if Z is not None:
            assert_close([f.jvp(theta, X, Z, dZ=dZ)], [ref.along(dY=dZ)])
    assert launcher.launches == {
        "gplvm_gram": 2, "gplvm_pull_self": 1, "gplvm_pull_symmetric": 1, "gplvm_pull_rows": 1,
        "gplvm_pull_columns": 1, "gplvm_jvp": 5, "gplvm_input_jacobian": 2,
        "gplvm_theta_jacobian": 2,
    }  # fmt: skip


@pytest.mark.parametrize("q", [1, 2, 5, 12, 33, 40])
def test_latent_dimensions(q):
    """Past 32 the unrolled loops and the shared tiles are at their largest."""
    tree = add(add(rbf(q), linear(q)), active(multiply(matern52(1), white()), q - 1))
    check_contractions(fused(tree, q), tree, q, 37, 35)
    check_contractions(fused(tree, q), tree, q, 37)


SIZES = (1, TILE - 1, TILE, TILE + 1, 70)


@pytest.mark.parametrize("blocks", [1, 4096])
def test_sizes(blocks):
    """blocks=1 sends every tile of one side through one block, 4096 each tile through its own."""
    tree = add(rbf(2), white())
    f = fused(tree, 2, blocks=blocks)
    pairs = itertools.product(SIZES, (*SIZES, None))
    for n, m in [*pairs, (THREADS, THREADS + 1), (THREADS + 1, THREADS - 1), (THREADS + 1, None)]:
        check_contractions(f, tree, 2, n, m)


@pytest.mark.parametrize("guard", ["after", "before"])
def test_thread_orders_and_runs_agree_in_every_bit(guard):
    tree = TREES["nested"]
    theta, X, Z, G = problem(tree, 3, THREADS + 5, 70)
    symmetric = X @ X.T
    results = []
    for order in (*ORDERS, "forward"):
        f = fused(tree, 3, EmulatedLauncher(order, guard))
        results.append([
            f.gram(theta, X), f.jvp(theta, X, Z, theta, X, Z), f.theta_jacobian(theta, X),
            *f.pullback(theta, X, Z, G), *f.pullback(theta, X, None, symmetric, symmetric=True)[:2],
            *f.pullback(theta, X, None, symmetric + X[:, :1])[:2], f.mirror(X @ X.T),
        ])  # fmt: skip
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


def test_float32_stays_float32():
    tree = TREES["nested"]
    f = fused(tree, 3, dtype=np.float32)
    theta, X, Z, G = problem(tree, 3, 40, 33)
    ref = Reference(tree, theta, X, Z)
    t, x, z, g = problem(tree, 3, 40, 33, dtype=np.float32)
    seen = [f.gram(t, x, z), *f.pullback(t, x, z, g), f.input_jacobian(t, x, z)]
    assert all(a.dtype == np.float32 for a in seen)
    assert_close(seen, [ref.K, *ref.pullback(G), ref.first], rtol=2e-5)


# -- host code -------------------------------------------------------------------------------------


def test_layouts_and_buffers_of_the_caller():
    tree = TREES["sum"]
    theta, X, Z, G = problem(tree, 3, 40, 33)
    f = fused(tree, 3)
    expected = [f.gram(theta, X, Z), *f.pullback(theta, X, Z, G)]
    before = [a.copy() for a in (theta, X, Z, G)]
    wide = np.repeat(np.asfortranarray(X), 2, axis=0)[::2]
    strided = np.repeat(theta, 2)[::2]
    out = np.full((40, 33), np.nan)
    assert f.gram(strided, wide, np.asfortranarray(Z), out) is out
    assert_close([out, *f.pullback(strided, wide, Z, np.asfortranarray(G))], expected, rtol=0)
    for a in (X, Z, G, theta):
        a.flags.writeable = False
    f.pullback(theta, X, Z, G)
    assert all(np.array_equal(a, b) for a, b in zip(before, (theta, X, Z, G), strict=True))


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0), (0, None)])
def test_nothing_is_launched_for_no_points(n, m):
    tree, launcher = TREES["sum"], EmulatedLauncher()
    f = fused(tree, 3, launcher)
    theta, X, Z, G = problem(tree, 3, n, m)
    columns = n if m is None else m
    gtheta, gX, gZ = f.pullback(theta, X, Z, G)
    assert f.gram(theta, X, Z).shape == f.jvp(theta, X, Z).shape == (n, columns)
    assert f.input_jacobian(theta, X, Z).shape == (n, columns, 3)
    assert f.theta_jacobian(theta, X, Z).shape == (tree.code.parameters, n, columns)
    assert not gtheta.any()
    assert not gX.any()
    assert gX.shape == (n, 3)
    assert gZ is None if m is None else (gZ.shape == (m, 3) and not gZ.any())
    assert not launcher.launches
    assert Mirror(launcher, np.float64)(np.zeros((0, 0))).shape == (0, 0)


def test_errors_say_what_was_seen_and_expected():
    tree = TREES["rbf_ard"]
    theta, X, Z, G = problem(tree, 3, 5, 4)
    f = fused(tree, 3)
    for call, text in [
        (lambda: f.gram(theta[:1], X), r"theta has shape \(1,\)"),
        (lambda: f.gram(theta, X[:, :2]), r"X has shape \(5, 2\).* expected \(5, 3\)"),
        (lambda: f.gram(theta, X, Z.astype("f4")), "Z has shape .* float32; expected .* float64"),
        (lambda: f.gram(theta, X, Z, G.T), r"out has shape \(4, 5\)"),
        (lambda: f.gram(theta, X, Z, np.asfortranarray(G)), "out is not C-contiguous"),
        (lambda: f.pullback(theta, X, Z, G.T), r"G has shape \(4, 5\)"),
        (lambda: f.pullback(theta, X, Z, G, symmetric=True), "symmetric=True was given with Z"),
        (lambda: f.jvp(theta, X, dZ=X), "dZ was given without Z"),
        (lambda: f.jvp(theta, X, dX=Z), r"dX has shape \(4, 3\)"),
        (lambda: f.mirror(np.asfortranarray(G @ G.T)), "K is not C-contiguous"),
        (lambda: f.mirror(G), r"K has shape \(5, 4\)"),
        (lambda: fused(tree, 0), "q = 0"),
        (lambda: fused(tree, MAX_Q + 1), f"q = {MAX_Q + 1} latent dimensions"),
        (lambda: radial_profile("1x", ""), "expected letters"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="float16"):
        fused(tree, 3, dtype=np.float16)


def test_the_compiler_checks_a_type():
    X = np.zeros((2, 3))
    for code, text in [
        (CudaPair("Constant", (), 3), "not the number of parameters of its type"),
        (
            CudaPair("Active<Sum<Linear<1>, Polynomial<2>>, 0, 3>", (), 3),
            "dimension is not below Q",
        ),
        (CudaPair("Periodic<2>", (), 4), "one lengthscale, or one for each"),
        (CudaPair("Hexagonal", (), 4), "two dimensions"),
    ]:
        f = Fused(EmulatedLauncher(), PoisonedNumpy, code, 3, np.float64)
        with pytest.raises(RuntimeError, match=text):
            f.gram(np.ones(code.parameters), X)


def test_real_literals_of_a_snippet_are_cast_to_the_working_type():
    text = radial_profile("p", "k = 0.5 * T(2.0) + 1e-3 - 2. + 3 + x2.5 + a1e5 + e[0];", 1)
    assert "k = T(0.5) * T(T(2.0)) + T(1e-3) - T(2.) + 3 + x2.5 + a1e5 + e[0];" in text


@pytest.mark.parametrize("order", ORDERS)
def test_mirror(order):
    launcher = EmulatedLauncher(order)
    for dtype in (np.float64, np.float32):
        mirror = Mirror(launcher, dtype)
        for n in (1, 31, 32, 33, 100):
            S = np.arange(n * n, dtype=dtype).reshape(n, n)
            K = np.where(np.tri(n, dtype=bool), S, np.nan)
            assert mirror(K) is K
            np.testing.assert_array_equal(K, np.where(np.tri(n, dtype=bool), S, S.T))
    assert launcher.launches == {"gplvm_mirror": 10}


# -- planted faults are noticed --------------------------------------------------------------------


def without(text, which, kernel):
    """Removes one occurrence of a text from the source that has a kernel."""

    def rewrite(source):
        if kernel not in source:
            return source
        parts = source.split(text)
        assert len(parts) > which + 1
        return text.join(parts[: which + 1]) + text.join(parts[which + 1 :])

    return rewrite


def differs(calls, reference):
    """Whether any thread order gives something else than the reference."""
    for order in ORDERS:
        for a, b in zip(calls(order), reference, strict=True):
            if b is not None and not np.allclose(a, b, rtol=1e-9):
                return True
    return False


@pytest.mark.parametrize("kernel", ["gplvm_gram", "gplvm_jvp"])
@pytest.mark.parametrize("which", range(5))
def test_every_barrier_is_needed(kernel, which):
    """The source of each of the two has five: three of the contraction and two of its own."""
    tree = add(rbf(1), white())
    theta, X, Z, G = problem(tree, 1, THREADS + 70, 2 * TILE + 3)
    ref = Reference(tree, theta, X, Z)
    S = X @ X.T
    own = Reference(tree, theta, X, None)
    expected = [ref.K, ref.along(dX=X), *ref.pullback(G), *own.pullback(S)]

    def calls(order):
        launcher = EmulatedLauncher(order, rewrite=without("__syncthreads();", which, kernel))
        f = fused(tree, 1, launcher, blocks=1)
        return [
            f.gram(theta, X, Z), f.jvp(theta, X, Z, dX=X), *f.pullback(theta, X, Z, G),
            *f.pullback(theta, X, None, S, symmetric=True),
        ]  # fmt: skip

    assert differs(calls, expected)


def test_the_barrier_of_mirror_is_needed():
    expected = np.ones((70, 70))

    def calls(order):
        launcher = EmulatedLauncher(order, rewrite=without("__syncthreads();", 0, "gplvm_mirror"))
        return [Mirror(launcher, np.float64)(np.where(np.tri(70), 1.0, -1.0))]

    assert differs(calls, [expected])


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("min(n, start + chunk)", "(start + chunk)"),
        ("if (j < m) load_point", "load_point"),
        ("e < count * Q", "e <= count * Q"),
        ("if (a < na)\n#pragma", "#pragma"),
        ("a0 + r < na && c < count", "c < count"),
    ],
)
def test_a_missing_bound_is_noticed(correct, wrong):
    found = []

    def rewrite(source):
        found.append(correct in source)
        return source.replace(correct, wrong)

    tree = add(rbf(1), white())
    theta, X, Z, G = problem(tree, 1, 40, TILE)
    f = fused(tree, 1, EmulatedLauncher(rewrite=rewrite))
    assert any(found)
    with pytest.raises(EmulationError, match="out of bounds"):
        f.gram(theta, X, Z), f.pullback(theta, X, Z, G)


# -- 64-bit indices --------------------------------------------------------------------------------

N = 50_000  # N * N is past 2^31


def short_index(source):
    long = "return row * columns + column;"
    return source.replace(long, "return int(row) * int(columns) + int(column);").replace(
        "(row + r) * n + column", "int(row + r) * int(n) + column"
    )


def far_end(rewrite=str):
    """Runs the last block only; the 20 GB are addresses, and the blocks left out leave zeros."""
    launcher = EmulatedLauncher(blocks=lambda count: (count - 1, count), rewrite=rewrite)
    xp = type("Virtual", (PoisonedNumpy,), {"empty": staticmethod(launcher.zeros)})
    tree = rbf(1)
    X = np.linspace(0.0, 1.0, N)[:, None].copy()
    f = Fused(launcher, xp, tree.code, 1, np.float64)
    return launcher, f, tree, np.array([1.5, 0.5]), X


def test_gram_far_from_the_origin():
    _, f, tree, theta, X = far_end()
    K = f.gram(theta, X)
    tail = slice(N - 50, N)
    expected = tree.f(X[tail], X[tail], theta, None)
    np.testing.assert_allclose(K[tail, tail], expected, rtol=1e-12)
    np.testing.assert_allclose(f.mirror(K)[-1, -8:], expected[-1, -8:], rtol=1e-12)


@pytest.mark.parametrize("form", ["symmetric", "self", "rows"])
def test_pullback_far_from_the_origin(form):
    launcher, f, tree, theta, X = far_end()
    G = launcher.zeros((N, N), np.float64)
    G[-1, -2] = G[-2, -1] = 1.0
    Z = X if form == "rows" else None
    gtheta, gX, gZ = f.pullback(theta, X, Z, G, symmetric=form == "symmetric")
    ref = Reference(tree, theta, X[-2:], None if Z is None else X[-2:])
    expected = ref.pullback(np.array([[0.0, 1.0], [1.0, 0.0]]))
    seen = [gtheta, gX[-2:], None if Z is None else gZ[-2:]]
    assert_close(seen, expected)
    assert not gX[:-2].any()


def test_jacobians_far_from_the_origin():
    _, f, tree, theta, X = far_end()
    ref = Reference(tree, theta, X[-3:], None)
    first, thetas = f.input_jacobian(theta, X), f.theta_jacobian(theta, X)
    assert_close([first[-1, -3:], thetas[:, -1, -3:]], [ref.first[-1], ref.thetas[:, -1]])


@pytest.mark.parametrize("form", ["gram", "jvp", "symmetric", "self", "rows", "mirror"])
def test_a_32_bit_index_is_noticed(form):
    launcher, f, _, theta, X = far_end(short_index)
    G = launcher.zeros((N, N), np.float64)
    call = {
        "gram": lambda: f.gram(theta, X),
        "jvp": lambda: f.jvp(theta, X),
        "mirror": lambda: f.mirror(G),
        "symmetric": lambda: f.pullback(theta, X, None, G, symmetric=True),
        "self": lambda: f.pullback(theta, X, None, G),
        "rows": lambda: f.pullback(theta, X, X, G),
    }[form]
    with pytest.raises(EmulationError, match="signed integer overflow"):
        call()
