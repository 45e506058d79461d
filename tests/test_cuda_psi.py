"""The CUDA kernels of the RBF kernel's psi statistics and their host code, on the CPU emulator.

The kernels are compared with sums over an explicit E, and the statistics with their formulas
written out; derivatives of the latter are complex steps, so that no formula for a derivative is
shared with the code under test.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emulated import EmuRuntime, emulated_arrays, emulated_backend
from emulator import ORDERS, EmulatedLauncher, EmulationError, PoisonedNumpy, why_no_emulator

from gplvm_xp.backend.cuda.fused import MAX_Q, THREADS
from gplvm_xp.backend.cuda.psi import TILE, FusedPsi
from gplvm_xp.kernels.psi import RBFPsi

pytestmark = pytest.mark.skipif(
    why_no_emulator() is not None, reason=why_no_emulator() or "the emulator works"
)
STEP = 1e-30


def sides(n, pairs, q, seed=0, dtype=np.float64):
    """rows, columns, g; exact in float32 too, so that both dtypes solve the same problem."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(size=(n, 2 * q + 2)), rng.normal(size=(pairs, q + 1))
    rows[:, 2::2] = rng.uniform(0.1, 1.0, (n, q)) / q**0.5
    rows[:, 3::2] /= q**0.5
    g = rng.normal(size=pairs)
    return [a.astype(np.float32).astype(dtype) for a in (rows, columns, g)]


def expected(rows, columns, g):
    """Every result of the kernels from E and u written out, n × P × q."""
    rows, columns, g = (np.asarray(a, dtype=np.float64) for a in (rows, columns, g))
    a, w, s, m = rows[:, 0], rows[:, 1], rows[:, 2::2], rows[:, 3::2]
    u = m[:, None, :] - s[:, None, :] * columns[None, :, 1:]
    E = np.exp(a[:, None] + columns[None, :, 0] - np.sum(u * u, axis=-1))
    sums = w @ E
    moved = np.einsum("n,np,nd,npd->pd", w, E, s, u)
    once, twice = (np.einsum("p,np,npd->nd", g, E, u**k) for k in (1, 2))
    by_row = np.concatenate([(E @ g)[:, None], once, twice], axis=1)
    return [sums, np.concatenate([sums[:, None], moved], axis=1), by_row]


def fused(q, launcher=None, dtype=np.float64, **options):
    return FusedPsi(launcher or EmulatedLauncher(), PoisonedNumpy, q, dtype, **options)


def everything(f, rows, columns, g):
    return [f.sums(rows, columns), f.column_sums(rows, columns), f.row_sums(rows, columns, g)]


def assert_close(seen, wanted, rtol=1e-12):
    for a, b in zip(seen, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0))


# -- the sums --------------------------------------------------------------------------------------

SIZES = (1, TILE - 1, TILE, TILE + 1, 70)


@pytest.mark.parametrize("blocks", [1, 4096])
def test_sizes(blocks):
    """blocks=1 sends every tile of one side through one block, 4096 each tile through its own."""
    launcher = EmulatedLauncher()
    f = fused(2, launcher, blocks=blocks)
    over = [(THREADS, THREADS + 1), (THREADS + 1, THREADS - 1), (3, 2 * THREADS + 1)]
    for n, pairs in [*itertools.product(SIZES, SIZES), *over]:
        problem = sides(n, pairs, 2)
        assert_close(everything(f, *problem), expected(*problem))
    assert set(launcher.launches.values()) == {len(SIZES) ** 2 + len(over)}


@pytest.mark.parametrize("q", [1, 2, 3, 4, 5, 7, 8, 10, 11, 16, 24, 33, MAX_Q - 1, MAX_Q])
def test_latent_dimensions(q):
    problem = sides(37, 35, q)
    assert_close(everything(fused(q), *problem), expected(*problem))


def test_float32_stays_float32():
    for q in (1, 5):
        seen = everything(fused(q, dtype=np.float32), *sides(300, 45, q, dtype=np.float32))
        assert all(a.dtype == np.float32 for a in seen)
        assert_close(seen, expected(*sides(300, 45, q)), rtol=1e-5)


@pytest.mark.parametrize("guard", ["after", "before"])
def test_thread_orders_and_runs_agree_in_every_bit(guard):
    problem = sides(THREADS + 70, THREADS + 5, 3)
    results = [
        everything(fused(3, EmulatedLauncher(order, guard)), *problem)
        for order in (*ORDERS, "forward")
    ]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layouts_of_the_caller():
    f, problem = fused(3), sides(40, 33, 3)
    wanted = everything(f, *problem)
    kept = [a.copy() for a in problem]
    for a in problem:
        a.flags.writeable = False
    rows, columns, g = problem
    strided = (np.asfortranarray(rows), np.repeat(columns, 2, axis=0)[::2], np.repeat(g, 2)[::2])
    assert_close(everything(f, *strided), wanted, rtol=0)
    assert_close(everything(f, *problem), wanted, rtol=0)
    assert all(np.array_equal(a, b) for a, b in zip(kept, problem, strict=True))


@pytest.mark.parametrize(("n", "pairs"), [(0, 3), (3, 0)])
def test_nothing_is_launched_for_nothing(n, pairs):
    launcher = EmulatedLauncher()
    seen = everything(fused(2, launcher), *sides(n, pairs, 2))
    assert [a.shape for a in seen] == [(pairs,), (pairs, 3), (n, 5)]
    assert not any(a.any() for a in seen)
    assert not launcher.launches


def test_errors_say_what_was_seen_and_expected():
    f = fused(3)
    rows, columns, g = sides(5, 4, 3)
    for call, text in [
        (lambda: f.sums(rows[:, :7], columns), r"rows has shape \(5, 7\).* expected \(5, 8\)"),
        (lambda: f.sums(rows, columns.astype("f4")), "columns has .* float32; expected .* float64"),
        (lambda: f.row_sums(rows, columns, g[:3]), r"g has shape \(3,\)"),
        (lambda: fused(0), "q = 0"),
        (lambda: fused(MAX_Q + 1), f"q = {MAX_Q + 1} latent dimensions"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="float16"):
        fused(3, dtype=np.float16)


def allocated(n, M, q):
    """The sizes of the arrays that the host code asks for; nothing runs."""
    seen = []

    class Measured(PoisonedNumpy):
        @staticmethod
        def empty(shape, dtype):
            seen.append(int(np.prod(shape, dtype=object)))
            return np.broadcast_to(np.float64(0.0), shape)

        @staticmethod
        def sum(a, axis):
            return a[0]

    class Idle:
        def raw(self, source, name, options):
            return lambda grid, block, args: None

    f = FusedPsi(Idle(), Measured, q, np.float64)
    rows, columns = (np.broadcast_to(0.0, s) for s in ((n, 2 * q + 2), (M * (M + 1) // 2, q + 1)))
    Measured.ascontiguousarray = staticmethod(lambda a: a)
    everything(f, rows, columns, columns[:, 0])
    return seen


@pytest.mark.parametrize(("n", "M", "q"), [(10**6, 100, 10), (10**7, 10, 2), (50, 1000, 20)])
def test_nothing_of_size_n_by_pairs_is_made(n, M, q):
    """Results are O(n q) or O(M² q); partial results beyond one of each are 2²² numbers at most."""
    pairs = M * (M + 1) // 2
    for size, result in zip(
        allocated(n, M, q), (pairs, pairs * (q + 1), n * (2 * q + 1)), strict=True
    ):
        assert size == result or size <= 2**22


# -- the statistics --------------------------------------------------------------------------------


def statistics_problem(n, M, q, *, one_length=False, weighted=True, seed=0):
    rng = np.random.default_rng(seed)
    ell = rng.uniform(0.7, 1.6, 1 if one_length else q) * q**0.5
    theta = np.concatenate([[1.3], ell])
    mu, Z = rng.normal(size=(n, q)) + 0.4, rng.normal(size=(M, q)) + 0.5
    S, W = rng.uniform(0.01, 1.0, (n, q)), rng.uniform(-0.5, 1.5, (n, 1)) if weighted else None
    g = rng.normal(size=n), rng.normal(size=(n, M)), rng.normal(size=(1, M, M))
    return [a if a is None else a.astype("f4").astype("f8") for a in (theta, mu, S, Z, *g, W)]


def terms(theta, mu, S, Z, g0, G1, G2, W):
    """T_n from the formulas of ψ0, Ψ1 and Ψ2, for real or complex arguments."""
    variance, l2 = theta[0], theta[1:] ** 2 * np.ones(mu.shape[1])
    d = mu[:, None, :] - Z
    e1, e2 = S / l2 + 1.0, 2.0 * S / l2 + 1.0
    psi1 = variance * np.exp(-0.5 * np.sum(d * d / (l2 * e1[:, None, :]), -1))
    psi1 = psi1 / np.sqrt(np.prod(e1, -1))[:, None]
    gap, middle = Z[:, None, :] - Z, 0.5 * (Z[:, None, :] + Z)
    d = mu[:, None, None, :] - middle
    psi2 = np.exp(-0.25 * np.sum(gap * gap / l2, -1) - np.sum(d * d / (l2 * e2[:, None, None]), -1))
    psi2 = variance**2 * psi2 / np.sqrt(np.prod(e2, -1))[:, None, None]
    w = np.ones(len(mu)) if W is None else W[:, 0]
    return (
        g0 * variance + np.sum(G1 * psi1, 1) + w * np.sum(G2[0] * psi2, (1, 2)),
        [variance * np.ones(len(mu)), psi1, np.sum(w[:, None, None] * psi2, 0)[None]],
    )


def reference(problem):
    """T_n, and the gradients of its sum in theta, mu, S and Z, by complex steps."""
    out = [terms(*problem)[0]]
    for k in range(4):
        out.append(np.empty(problem[k].shape))
        for index in np.ndindex(*problem[k].shape):
            moved = [*problem]
            moved[k] = problem[k].astype(complex)
            moved[k][index] += 1j * STEP
            out[-1][index] = np.sum(terms(*moved)[0]).imag / STEP
    return out


def on_device(b, problem):
    theta, mu, S, Z, g0, G1, G2, W = (None if a is None else b.asarray(a) for a in problem)
    forward = RBFPsi().forward(theta, mu, S, Z, W)
    return forward, RBFPsi().contract(theta, mu, S, Z, g0, G1, G2, W)


def counted(monkeypatch):
    """Launches of the psi kernels from here on."""
    launched = []
    for name in ("sums", "column_sums", "row_sums"):
        method = getattr(FusedPsi, name)

        def counting(self, *args, name=name, method=method):
            launched.append(name)
            return method(self, *args)

        monkeypatch.setattr(FusedPsi, name, counting)
    return launched


@pytest.mark.parametrize("one_length", [False, True], ids=["ard", "one"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("part", ["all", "psi2"])
def test_statistics_and_gradients(one_length, weighted, part, monkeypatch):
    launched, runtime = counted(monkeypatch), EmuRuntime()
    problem = statistics_problem(9, 4, 3, one_length=one_length, weighted=weighted)
    if part == "psi2":
        problem[4], problem[5] = 0.0 * problem[4], 0.0 * problem[5]
    with emulated_arrays(runtime) as b:
        forward, contracted = on_device(b, problem)
        assert runtime.waits == 0
        assert_close([b.to_host(a) for a in forward], terms(*problem)[1])
        assert_close([b.to_host(a) for a in contracted], reference(problem), 1e-11)
    assert sorted(launched) == ["column_sums", "row_sums", "sums"]


@pytest.mark.parametrize(("n", "M", "q"), [(1, 1, 1), (3, 17, 2), (300, 9, 10), (33, 12, 20)])
def test_the_array_form_agrees(n, M, q):
    """The products of thin matrices that other backends use are another way to the same numbers."""
    problem = statistics_problem(n, M, q)
    only_psi2 = [*problem[:5], 0.0 * problem[5], *problem[6:]]
    for given, tolerance in ((problem, 1e-12), (only_psi2, 1e-11)):
        wanted = [*RBFPsi().forward(*given[:4], given[7]), *RBFPsi().contract(*given)]
        with emulated_arrays() as b:
            forward, contracted = on_device(b, given)
            seen = [b.to_host(a) for a in (*forward, *contracted)]
        for a, c in zip(seen, wanted, strict=True):
            assert a.shape == c.shape
            assert np.linalg.norm(a - c) <= tolerance * np.linalg.norm(c)


def test_certain_latents_and_far_ones():
    """S = 0 divides by nothing; a row out of every pair's reach contributes zeros, not NaN."""
    problem = statistics_problem(6, 5, 2)
    problem[1][2] += 1e3
    problem[2][:3] = 0.0
    with emulated_arrays() as b:
        forward, contracted = on_device(b, problem)
        assert_close([b.to_host(a) for a in forward], terms(*problem)[1])
        # the derivative at S = 0 from the right; complex steps do not mind
        assert_close([b.to_host(a) for a in contracted], reference(problem), 1e-10)


def test_float32_statistics():
    problem = statistics_problem(24, 7, 3)
    with emulated_arrays():
        b = emulated_backend(np.float32)
        forward, contracted = on_device(b, problem)
        assert all(a.dtype == np.float32 for a in (*forward, *contracted))
        seen = [b.to_host(a).astype(float) for a in (*forward, *contracted)]
    for a, c in zip(seen, [*terms(*problem)[1], *reference(problem)], strict=True):
        assert np.linalg.norm(a - c) <= 2e-5 * np.linalg.norm(c)


def test_several_groups_and_many_dimensions_take_the_array_form(monkeypatch):
    launched = counted(monkeypatch)
    theta, mu, S, Z, g0, G1, G2, _ = statistics_problem(7, 3, 2)
    W = np.random.default_rng(1).integers(0, 2, (7, 2)).astype(float)
    several = [theta, mu, S, Z, g0, G1, np.concatenate([G2, 2.0 * G2]), W]
    for problem in (several, statistics_problem(3, 2, MAX_Q + 1)):
        host = [np.asarray(a) for a in problem]
        wanted = [*RBFPsi().forward(*host[:4], host[7]), *RBFPsi().contract(*host)]
        with emulated_arrays() as b:
            seen = [b.to_host(a) for part in on_device(b, problem) for a in part]
        assert_close(seen, wanted, 1e-11)
    assert not launched


# -- planted faults are noticed --------------------------------------------------------------------


def without(text, which):
    """Removes one occurrence of a text from the source."""

    def rewrite(source):
        parts = source.split(text)
        assert len(parts) > which + 1
        return text.join(parts[: which + 1]) + text.join(parts[which + 1 :])

    return rewrite


@pytest.mark.parametrize("which", range(4))
def test_every_barrier_is_needed(which):
    problem = sides(THREADS + 70, THREADS + 75, 1)
    wanted, differs = expected(*problem), False
    for order in ORDERS:
        launcher = EmulatedLauncher(order, rewrite=without("__syncthreads();", which))
        seen = everything(fused(1, launcher, blocks=1), *problem)
        close = (np.allclose(a, b, rtol=1e-9) for a, b in zip(seen, wanted, strict=True))
        differs = differs or not all(close)
    assert differs


@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("min(n, start + chunk)", "(start + chunk)"),
        ("min(pairs, start + chunk)", "(start + chunk)"),
        ("if (p < pairs) {\n    b", "{\n    b"),
        ("if (p < pairs) {\n    T* own", "{\n    T* own"),
        ("if (i < n) {\n    const T* own", "{\n    const T* own"),
        ("if (i < n) {\n    T* own", "{\n    T* own"),
        ("e < count * (Q + 1); e += THREADS) {", "e <= count * (Q + 1); e += THREADS) {"),
        ("e < count * (Q + 1); e += THREADS) tile", "e <= count * (Q + 1); e += THREADS) tile"),
        ("e < count; e += THREADS) weights", "e <= count; e += THREADS) weights"),
    ],
)
def test_a_missing_bound_is_noticed(correct, wrong):
    def rewrite(source):
        assert correct in source
        return source.replace(correct, wrong)

    f = fused(1, EmulatedLauncher(rewrite=rewrite))
    with pytest.raises(EmulationError, match="out of bounds"):
        everything(f, *sides(40, TILE, 1)), everything(f, *sides(TILE, 40, 1))


# -- 64-bit indices --------------------------------------------------------------------------------

N = 600_000_000  # 4 N is past 2^31


def far_end(rewrite=str):
    """Runs the last block only; 19 GB of rows are addresses, and what is left out leaves zeros."""
    launcher = EmulatedLauncher(blocks=lambda count: (count - 1, count), rewrite=rewrite)
    xp = type("Virtual", (PoisonedNumpy,), {"empty": staticmethod(launcher.zeros)})
    rows, (last, columns, g) = launcher.zeros((N, 4), np.float64), sides(8, 3, 1)
    rows[-8:] = last
    return FusedPsi(launcher, xp, 1, np.float64, blocks=65535), rows, columns, g, last


def test_rows_far_from_the_origin():
    f, rows, columns, g, last = far_end()
    seen, wanted = f.row_sums(rows, columns, g)[-8:], expected(last, columns, g)
    assert_close([seen], wanted[2:])
    # the other rows of the last part have no weight
    assert_close([f.column_sums(rows, columns)], wanted[1:2])


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("rows + i * (2 * Q + 2)", "rows + int(i) * (2 * Q + 2)"),
        ("2 * (n0 * (Q + 1) + e)", "2 * (int(n0) * (Q + 1) + e)"),
    ],
)
def test_a_32_bit_index_is_noticed(long, short):
    f, rows, columns, g, _ = far_end(lambda source: source.replace(long, short))
    with pytest.raises(EmulationError, match="signed integer overflow"):
        f.column_sums(rows, columns), f.row_sums(rows, columns, g)
