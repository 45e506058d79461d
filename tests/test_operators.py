"""Maps and precisions against explicit matrices, on every array library."""

from __future__ import annotations

import dataclasses
import time

import mpmath
import numpy as np
import pytest

from gplvm_xp import backend
from gplvm_xp.errors import NotPositiveDefiniteError
from gplvm_xp.kernels import RBF
from gplvm_xp.operators import (
    Circulant,
    Dense,
    DensePrecision,
    DiagonalPrecision,
    GramPrecision,
    Hartley,
    Identity,
    LinearMap,
    Precision,
    Toeplitz,
    eigenvalues_of,
    eigenvalues_pullback,
    lags,
    padded,
)

NUMPY = pytest.mark.only_backend("numpy-f64")
T = np.swapaxes


def rng(seed=0):
    return np.random.default_rng(seed)


def relative(got, expected):
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-300)


def vectors(A, z):
    return (A @ z[..., None])[..., 0]


# -- maps ------------------------------------------------------------------------------------------

GRIDS = {
    "1": (1,), "2": (2,), "odd": (7,), "even": (8,), "odd-even": (5, 8), "even-odd": (6, 9),
    "even-even": (4, 6), "thin": (6, 1), "cube": (3, 4, 5), "even-cube": (4, 2, 6),
}  # fmt: skip


def frequencies(shape, fraction=0.4, seed=0):
    """Some frequencies of a grid, in no order, with negative and positive representatives."""
    r, N = rng(seed), int(np.prod(shape))
    R = max(1, int(fraction * N))
    k = np.array(np.unravel_index(r.permutation(N)[:R], shape)).T
    return k - np.array(shape) * r.integers(0, 2, size=k.shape)


def hartley_rows(shape, keep):
    """cas(2π k·x/N)/√N, one row and one cell at a time."""
    cells = list(np.ndindex(*shape))
    F = np.empty((len(keep), len(cells)))
    for i, k in enumerate(keep):
        for j, x in enumerate(cells):
            t = 2.0 * np.pi * sum(a * c / n for a, c, n in zip(k, x, shape, strict=True))
            F[i, j] = np.cos(t) + np.sin(t)
    return F / np.sqrt(len(cells))


def check_map(case, B, dense, lead, tight=1e-13):
    """Every method against a matrix (..., N, L), for vectors with leading axes ``lead``."""
    tolerance = case.tolerance(tight, 2e-5)
    r = rng(1)
    N, L = dense.shape[-2:]
    assert (B.rows, B.cols) == (N, L)
    z, y, p = (r.normal(size=(*lead, n)) for n in (L, N, N))
    C, X, Z = (r.normal(size=(*lead, n, m)) for n, m in ((L, L), (L, 3), (N, 3)))
    quad = np.einsum("...nk,...kl,...nl->...n", dense, C, dense)
    here = [case.asarray(a) for a in (z, y, p, C, X, Z)]
    z_, y_, p_, C_, X_, Z_ = here
    results = {
        "apply": (B.apply(z_), vectors(dense, z)),
        "adjoint": (B.adjoint(y_), vectors(T(dense, -1, -2), y)),
        "gram": (B.gram(p_), T(dense, -1, -2) @ (p[..., None] * dense)),
        "quad": (B.quad(C_), quad),
        "columns": (B.columns(X_), dense @ X),
        "columns_adjoint": (B.columns_adjoint(Z_), T(dense, -1, -2) @ Z),
        "matrix": (B.matrix(z_), dense),
    }
    for name, (got, expected) in results.items():
        assert got.dtype == z_.dtype, name
        host = case.to_numpy(got)
        assert host.shape == expected.shape, name
        assert relative(host, expected) < tolerance, name
    for got, given in zip(here, (z, y, p, C, X, Z), strict=True):
        np.testing.assert_array_equal(case.to_numpy(got), case.to_numpy(case.asarray(given)))
    # The pair that variational inference relies on: <p, quad(C)> = <gram(p), C> for any C.
    left = np.sum(p * case.to_numpy(results["quad"][0]))
    right = np.sum(C * case.to_numpy(results["gram"][0]))
    scale = np.sum(np.abs(p * quad)) + 1e-300
    assert abs(left - right) < case.tolerance(1e-12, 1e-4) * scale
    half = case.asarray(0.5 * (C + T(C, -1, -2)))
    assert relative(case.to_numpy(B.quad(half)), quad) < tolerance


@pytest.mark.parametrize("lead", [(), (3,), (2, 1)], ids=str)
def test_identity(case, lead):
    B = Identity(4)
    assert B.identity
    assert not B.gathers
    check_map(case, B, np.eye(4), lead)


@pytest.mark.parametrize(("own", "lead"), [((), ()), ((), (3,)), ((3,), (3,)), ((2, 1), (2, 1))])
def test_dense(case, own, lead):
    dense = rng(2).normal(size=(*own, 7, 4))
    check_map(case, Dense(case.asarray(dense)), dense, lead)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 1)], ids=str)
def test_hartley(case, grid, lead):
    shape = GRIDS[grid]
    keep = frequencies(shape)
    B = Hartley(shape, keep)
    F = hartley_rows(shape, keep)
    np.testing.assert_allclose(B.basis(), F, atol=1e-13)
    np.testing.assert_allclose(F @ F.T, np.eye(len(keep)), atol=1e-13)
    check_map(case, B, F.T, lead)


@NUMPY
@pytest.mark.parametrize("grid", GRIDS)
def test_every_frequency_together_is_orthogonal(case, grid):
    """All N of them, so that every sum of two wraps around and every plane of the half is met."""
    shape = GRIDS[grid]
    B = Hartley(shape, frequencies(shape, 1.0))
    assert B.rows == B.cols
    check_map(case, B, hartley_rows(shape, B.keep).T, ())
    ones = B.gram(np.ones(B.rows))
    np.testing.assert_allclose(ones, np.eye(B.cols), atol=1e-13)


def test_gram_is_symmetric_to_the_last_bit(case):
    B = Hartley((6, 8), frequencies((6, 8), 0.7))
    A = case.to_numpy(B.gram(case.asarray(rng(4).normal(size=(2, 48)))))
    np.testing.assert_array_equal(A, T(A, -1, -2))


def test_same_bits_every_time(case):
    B = Hartley((6, 8), frequencies((6, 8), 0.7))
    C = case.asarray(rng(4).normal(size=(2, B.cols, B.cols)))
    first = case.to_numpy(B.quad(C))
    for _ in range(3):
        np.testing.assert_array_equal(case.to_numpy(B.quad(C)), first)


@NUMPY
def test_hartley_against_extended_precision(case):
    """The entries themselves, in 40 digits: the trigonometric identities are not trusted twice."""
    shape, keep = (4, 3), np.array([[1, 2], [3, 1], [2, 0]])
    p, C = rng(5).normal(size=12), rng(6).normal(size=(3, 3))
    with mpmath.workdps(40):
        N = mpmath.mpf(12)

        def cas(k, x):
            t = 2 * mpmath.pi * (mpmath.mpf(k[0] * x[0]) / 4 + mpmath.mpf(k[1] * x[1]) / 3)
            return (mpmath.cos(t) + mpmath.sin(t)) / mpmath.sqrt(N)

        F = [[cas(k, x) for x in np.ndindex(4, 3)] for k in keep.tolist()]
        gram = [[float(mpmath.fsum(F[i][x] * mpmath.mpf(p[x]) * F[j][x] for x in range(12)))
                 for j in range(3)] for i in range(3)]  # fmt: skip
        quad = [float(mpmath.fsum(F[i][x] * mpmath.mpf(C[i, j]) * F[j][x]
                for i in range(3) for j in range(3))) for x in range(12)]  # fmt: skip
    B = Hartley(shape, keep)
    np.testing.assert_allclose(B.gram(p), gram, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(B.quad(C), quad, rtol=1e-14, atol=1e-15)


def disc(shape, radius):
    k = np.stack(np.meshgrid(*(np.fft.fftfreq(n) * n for n in shape), indexing="ij"), -1)
    return np.exp(-0.5 * np.sum((k / radius) ** 2, axis=-1))


@NUMPY
def test_kept_frequencies_are_pairs_with_the_constant(case):
    shape = (12, 9)
    s = disc(shape, 2.5)
    s[0, 0] = 0.0
    # Rounding at the threshold must not separate a pair.
    edge = np.sort(s[s > 0.3])[0]
    s[s == edge] *= 1.0 + 1e-15 * np.arange(np.sum(s == edge))
    B = Hartley.of_spectrum(s, edge / np.max(s))
    kept = {tuple(k) for k in B.keep.tolist()}
    assert (0, 0) in kept
    assert all(tuple(np.mod(np.negative(k), shape)) in kept for k in kept)
    assert kept == {(0, 0)} | {tuple(k) for k in np.argwhere(s >= 0.999 * edge).tolist()}
    np.testing.assert_array_equal(B.places, np.ravel_multi_index(tuple(B.keep.T), shape))
    # The constant's own eigenvalue is no measure of the others.
    s[0, 0] = 1e6
    assert Hartley.of_spectrum(s, edge / np.max(disc(shape, 2.5)[1:])).cols == B.cols
    assert Hartley.of_spectrum(np.ones((1,)), 0.1).cols == 1


def test_hartley_of_one_plan_serves_many_calls(case):
    """Also where a device has no hash, as CuPy's."""
    from gplvm_xp.operators import hartley

    B = Hartley((5, 4), frequencies((5, 4)))
    B.gram(case.asarray(np.ones(20)))
    made = hartley._plan.cache_info().misses
    B.gram(case.asarray(np.ones((2, 20))))
    assert hartley._plan.cache_info().misses == made


def test_restrict_is_the_projected_precision(case):
    shape = (4, 6)
    row = stationary(shape)
    B = Hartley(shape, frequencies(shape))
    F = hartley_rows(shape, B.keep)
    b = case.backend
    prior = Circulant.of(b, row)
    Lambda = case.to_numpy(prior.dense())
    small = B.restrict(prior)
    assert isinstance(small, DiagonalPrecision)
    tolerance = case.tolerance(1e-12, 1e-4)
    assert relative(case.to_numpy(small.dense()), F @ Lambda @ F.T) < tolerance
    other = B.restrict(DensePrecision(b.asarray(Lambda)))
    assert isinstance(other, DensePrecision)
    assert relative(case.to_numpy(other.dense()), F @ Lambda @ F.T) < tolerance
    moved = Circulant((6, 4), b.asarray(np.ones((6, 4))))
    assert isinstance(B.restrict(moved), DensePrecision)


@pytest.mark.parametrize(
    ("shape", "keep", "match"),
    [
        ((4, 4), np.zeros((0, 2), int), "expected"),
        ((4, 4), np.zeros((3, 1), int), r"\(R, 2\)"),
        ((4, 4), np.array([[0.0, 1.0]]), "integers"),
        ((4, 4), np.array([[0, 1], [4, -3]]), "twice"),
        ((0, 4), np.array([[0, 1]]), "positive integers"),
        ((), np.array([[]], int), "positive integers"),
        ((2.0, 4), np.array([[0, 1]]), "positive integers"),
    ],
)
def test_hartley_refuses(shape, keep, match):
    with pytest.raises(ValueError, match=match):
        Hartley(shape, keep)


def test_maps_refuse():
    with pytest.raises(ValueError, match="0 or more"):
        Identity(-1)
    with pytest.raises(ValueError, match="expected"):
        Dense(np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        Hartley.of_spectrum(np.array([1.0, np.nan]), 0.1)
    with pytest.raises(ValueError, match="fraction"):
        Hartley.of_spectrum(np.ones(4), 1.5)


# -- precisions ------------------------------------------------------------------------------------


def spd(lead, n, seed=3):
    A = rng(seed).normal(size=(*lead, n, n))
    return A @ T(A, -1, -2) + n * np.eye(n)


def check_precision(case, prior, Lambda, tight=1e-12):
    """Every method against a dense matrix (..., L, L), whose leading axes the vectors share."""
    tolerance = case.tolerance(tight, 3e-4)
    lead, L = Lambda.shape[:-2], Lambda.shape[-1]
    assert prior.size == L
    r = rng(7)
    z, X, C = (r.normal(size=(*lead, *s)) for s in ((L,), (L, 3), (L, L)))
    z_, X_, C_ = (case.asarray(a) for a in (z, X, C))
    K = np.linalg.inv(Lambda)
    root = case.to_numpy(prior.root_columns(case.backend.eye(L)))
    results = {
        "apply": (prior.apply(z_), vectors(Lambda, z)),
        "covariance": (prior.covariance(z_), vectors(K, z)),
        "logdet": (prior.logdet(), np.linalg.slogdet(Lambda)[1]),
        "diagonal": (prior.diagonal(), np.diagonal(Lambda, axis1=-2, axis2=-1)),
        "dense": (prior.dense(), Lambda),
        "columns": (prior.columns(X_), Lambda @ X),
        "covariance_columns": (prior.covariance_columns(X_), K @ X),
        "root_columns": (prior.root_columns(X_), root @ X),
        "plus": (prior.plus(C_), Lambda + C),
        "trace_product": (prior.trace_product(C_), np.trace(Lambda @ C, axis1=-2, axis2=-1)),
    }
    for name, (got, expected) in results.items():
        assert got.dtype == z_.dtype, name
        host = case.to_numpy(got)
        assert host.shape == np.shape(expected), name
        assert relative(host, expected) < tolerance, name
    assert relative(root @ T(root, -1, -2), K) < tolerance
    np.testing.assert_array_equal(case.to_numpy(C_), case.to_numpy(case.asarray(C)))


@pytest.mark.parametrize("lead", [(), (3,), (2, 1)], ids=str)
def test_dense_precision(case, lead):
    Lambda = spd(lead, 5)
    check_precision(case, DensePrecision(case.asarray(Lambda)), Lambda)
    made = DensePrecision.of(case.backend, Lambda)
    assert relative(case.to_numpy(made.dense()), Lambda) < 1e-6


@pytest.mark.parametrize("lead", [(), (3,), (2, 1)], ids=str)
def test_gram_precision(case, lead):
    K = spd(lead, 5)
    prior = GramPrecision.of(case.backend, K)
    check_precision(case, prior, np.linalg.inv(K))
    z = rng(8).normal(size=(*lead, 5))
    # K z is a product, not a solve.
    exact = case.to_numpy(prior.covariance(case.asarray(z)))
    assert relative(exact, vectors(K, z)) < case.tolerance(1e-15, 1e-6)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1)], ids=str)
def test_diagonal_precision(case, lead):
    lam = 0.5 + rng(9).random(size=(*lead, 5))
    prior = DiagonalPrecision.of(case.backend, lam)
    check_precision(case, prior, lam[..., None] * np.eye(5))
    big = DiagonalPrecision(case.asarray(np.full((*lead, 5), 1e30)))
    C = rng(10).normal(size=(*lead, 5, 5))
    off = case.to_numpy(big.plus(case.asarray(C))) * (1.0 - np.eye(5))
    np.testing.assert_array_equal(off, case.to_numpy(case.asarray(C * (1.0 - np.eye(5)))))


def test_shared_precision_meets_a_batch(case):
    z = case.asarray(rng(11).normal(size=(4, 5)))
    b, K = case.backend, spd((), 5)
    kinds = ((DensePrecision, K), (GramPrecision, K), (DiagonalPrecision, np.arange(1.0, 6.0)))
    for kind, values in kinds:
        prior = kind.of(b, values)
        for method in (prior.apply, prior.covariance):
            whole = case.to_numpy(method(z))
            assert whole.shape == (4, 5)
            for i in range(4):
                one = case.to_numpy(method(z[i, ...]))
                np.testing.assert_allclose(whole[i], one, rtol=case.tolerance(1e-13, 1e-5))


def test_not_positive_definite_is_nan_until_it_is_asked_for(case):
    K = np.stack([spd((), 4), -np.eye(4), spd((), 4, seed=5)])
    for kind in (DensePrecision, GramPrecision):
        logdet = case.to_numpy(kind(case.asarray(K)).logdet())
        np.testing.assert_array_equal(np.isnan(logdet), [False, True, False])
        with pytest.raises(NotPositiveDefiniteError, match="number 1 of the batch"):
            kind.of(case.backend, K)


BAD = {
    "square": (np.ones((2, 3)), ValueError, "square"),
    "axes": (np.ones(3), ValueError, "square"),
    "nan": (np.array([[1.0, np.nan], [np.nan, 1.0]]), ValueError, "NaN"),
    "symmetric": (np.array([[2.0, 1.0], [0.5, 2.0]]), ValueError, "not symmetric"),
    "indefinite": (np.array([[1.0, 2.0], [2.0, 1.0]]), NotPositiveDefiniteError, "identity"),
    "singular": (np.zeros((2, 2)), NotPositiveDefiniteError, "identity"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", [DensePrecision, GramPrecision])
def test_bad_matrices(kind, bad):
    matrix, error, match = BAD[bad]
    with pytest.raises(error, match=match):
        kind.of(backend.get("numpy"), matrix)


def test_bad_shapes_and_diagonals():
    b = backend.get("numpy")
    for kind in (DensePrecision, GramPrecision):
        with pytest.raises(ValueError, match="a square"):
            kind(np.ones((2, 3)))
    with pytest.raises(ValueError, match="one per entry"):
        DiagonalPrecision(np.asarray(1.0))
    with pytest.raises(ValueError, match="NaN"):
        DiagonalPrecision.of(b, np.array([1.0, np.inf]))
    for value in (0.0, -1.0):
        with pytest.raises(NotPositiveDefiniteError, match="positive"):
            DiagonalPrecision.of(b, np.array([1.0, value]))


# -- stationary priors on a grid -------------------------------------------------------------------


def delta(shape):
    out = np.zeros(shape)
    out[(0,) * len(shape)] = 1.0
    return out


def stationary(shape, spacing=1.0):
    """A kernel that is no product over the axes, wrapped around until it is periodic."""
    ndim = len(shape)
    M = np.eye(ndim) + 0.4 * (np.eye(ndim, k=1) + np.eye(ndim, k=-1))
    at, width = lags(shape, spacing), np.array(shape) * spacing
    row = np.zeros(len(at))
    for turn in np.ndindex(*(11,) * ndim):
        moved = at + (np.array(turn) - 5) * width
        row += np.exp(-np.einsum("ni,ij,nj->n", moved, M, moved))
    return row.reshape(shape) + 0.05 * delta(shape)


def circulant_matrix(row):
    """K_xy = row[(x − y) mod N], one entry at a time."""
    cells = list(np.ndindex(*row.shape))
    return np.array([
        [row[tuple(np.mod(np.subtract(x, y), row.shape))] for y in cells] for x in cells
    ])  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
def test_circulant(case, grid):
    shape = GRIDS[grid]
    row = stationary(shape)
    K = circulant_matrix(row)
    np.testing.assert_allclose(K, K.T, atol=1e-14)
    prior = Circulant.of(case.backend, row)
    check_precision(case, prior, np.linalg.inv(K))
    s = eigenvalues_of(case.asarray(row), row.ndim)
    np.testing.assert_allclose(
        np.sort(case.to_numpy(s).ravel()), np.linalg.eigvalsh(K), rtol=case.tolerance(1e-12, 1e-4)
    )
    flat = case.to_numpy(prior.spectrum(shape))
    np.testing.assert_allclose(flat * case.to_numpy(s), 1.0, rtol=case.tolerance(1e-13, 1e-5))
    assert prior.spectrum((*shape, 1)) is None


@pytest.mark.parametrize("lead", [(3,), (2, 1)], ids=str)
def test_circulant_batch(case, lead):
    shape = (3, 4)
    rows = stationary(shape) * np.exp(rng(12).normal(size=(*lead, 1, 1)))
    K = np.stack([circulant_matrix(r) for r in rows.reshape(-1, *shape)]).reshape(*lead, 12, 12)
    s = eigenvalues_of(case.asarray(rows), 2)
    check_precision(case, Circulant(shape, s), np.linalg.inv(K))


def test_spectrum_is_clipped_where_rounding_is(case):
    row = np.exp(-0.5 * (lags((40,)) ** 2).sum(-1) / 9.0)
    prior = Circulant.of(case.backend, row)
    s = case.to_numpy(prior.eigenvalues)
    eps = case.backend.eps
    assert s.min() == pytest.approx(eps * s.max(), rel=1e-6)
    assert np.isfinite(case.to_numpy(prior.logdet()))
    exact = case.to_numpy(eigenvalues_of(case.asarray(row), 1))
    assert np.abs(s - np.maximum(exact, eps * exact.max())).max() < 8.0 * eps * exact.max()


@NUMPY
def test_eigenvalues_and_their_pullback_are_adjoint(case):
    r, shape = rng(13), (4, 5, 2)
    row, gs = r.normal(size=(2, *shape)), r.normal(size=(2, *shape))
    left = np.sum(gs * eigenvalues_of(row, 3))
    right = np.sum(eigenvalues_pullback(gs, 3) * row)
    assert left == pytest.approx(right, rel=1e-12)
    # The derivative of a sum of powers of the spectrum, entry by entry of the row.
    step, got = 1e-6, eigenvalues_pullback(2.0 * eigenvalues_of(row, 3), 3)[1, 2, 3, 1]
    moved = row.copy()
    values = []
    for sign in (1.0, -1.0):
        moved[1, 2, 3, 1] = row[1, 2, 3, 1] + sign * step
        values.append(np.sum(eigenvalues_of(moved, 3) ** 2))
    assert got == pytest.approx((values[0] - values[1]) / (2.0 * step), rel=1e-7)


def test_the_hartley_basis_diagonalises_a_stationary_prior(case):
    shape = (6, 5)
    row = stationary(shape)
    B = Hartley.of_spectrum(eigenvalues_of(row, 2), 0.05)
    F, K = hartley_rows(shape, B.keep), circulant_matrix(row)
    s = eigenvalues_of(row, 2).ravel()[B.places]
    np.testing.assert_allclose(F @ K @ F.T, np.diag(s), atol=1e-13)


@NUMPY
def test_lags_go_the_short_way_round(case):
    np.testing.assert_array_equal(lags((5,))[:, 0], [0, 1, 2, -2, -1])
    np.testing.assert_array_equal(lags((4,), 0.5)[:, 0], [0, 0.5, 1.0, -0.5])
    two = lags((2, 3), (1.0, 10.0))
    np.testing.assert_array_equal(two, [[0, 0], [0, 10], [0, -10], [1, 0], [1, 10], [1, -10]])


@NUMPY
def test_a_padded_grid_holds_the_kernel_of_the_line(case):
    n, ell, spacing = 13, 0.4, 0.25
    (N,) = padded((n,), 8.0 * ell, spacing)
    assert n + 8.0 * ell / spacing <= N < 2.0 * (n + 8.0 * ell / spacing)
    kernel = RBF(1.3, ell)
    theta, at = kernel.theta(), lags((N,), spacing)
    row = kernel.gram(theta, np.zeros((1, 1)), at)[0]
    corner = circulant_matrix(row)[:n, :n]
    x = spacing * np.arange(n)[:, None]
    np.testing.assert_allclose(corner, kernel.gram(theta, x), atol=1e-13)
    assert padded((7, 11), (0.0, 3.0)) == (8, 15)
    Circulant.of(backend.get("numpy"), row)


TOEPLITZ = {"odd": (5,), "even": (6,), "two": (4, 5), "three": (2, 3, 4)}


@pytest.mark.parametrize("grid", TOEPLITZ)
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_toeplitz(case, grid, lead):
    """A kernel that is no product, on a grid that is not periodic; the free lags hold NaN."""
    shape = TOEPLITZ[grid]
    ndim = len(shape)
    M = np.eye(ndim) + 0.6 * (np.eye(ndim, k=1) + np.eye(ndim, k=-1))

    def k(lag):
        return np.exp(-0.3 * np.einsum("...i,ij,...j->...", lag, M, lag)) * (1.0 + lag[..., 0] ** 2)

    double = tuple(2 * n for n in shape)
    at = lags(double)
    values = np.where(np.any(at == np.array(shape), axis=-1), 123.0, k(at)).reshape(double)
    cells = np.indices(shape).reshape(ndim, -1).T
    K = k(cells[:, None, :].astype(float) - cells[None])
    z = rng(14).normal(size=(*lead, len(cells)))
    made = Toeplitz(shape, case.asarray(values))
    got = made.apply(case.asarray(z))
    assert got.dtype == case.asarray(z).dtype
    assert made.size == len(cells)
    assert relative(case.to_numpy(got), vectors(K, z)) < case.tolerance(1e-13, 2e-5)


def test_grids_refuse():
    b = backend.get("numpy")
    with pytest.raises(ValueError, match="one for each cell"):
        Circulant((4, 3), np.ones((3, 4)))
    with pytest.raises(ValueError, match="one for each cell"):
        Toeplitz((4, 3), np.ones((4, 3)))
    with pytest.raises(ValueError, match="NaN"):
        Circulant.of(b, np.array([1.0, np.nan]))
    # A box as long as the period: its transform changes sign.
    with pytest.raises(NotPositiveDefiniteError, match="pad the grid"):
        Circulant.of(b, (np.abs(lags((16,))[:, 0]) < 4).astype(float))
    with pytest.raises(NotPositiveDefiniteError, match="positive"):
        Circulant.of(b, np.zeros(4))
    for call in (lambda: lags((4,), 0.0), lambda: lags((4, 4), (1.0, 2.0, 3.0))):
        with pytest.raises(ValueError, match="spacing"):
            call()
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="support"):
            padded((4,), value)
    with pytest.raises(ValueError, match="positive integers"):
        lags((0,))


# -- the contracts ---------------------------------------------------------------------------------


def test_every_operator_is_final_and_frozen():
    for kind in (Identity, Dense, Hartley, DensePrecision, DiagonalPrecision, GramPrecision,
                 Circulant, Toeplitz):  # fmt: skip
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen
        assert not [k for k in kind.__subclasses__() if k.__module__ == kind.__module__]
        if kind is not Toeplitz:
            assert issubclass(kind, LinearMap | Precision)


@NUMPY
@pytest.mark.slow
def test_gather_and_scatter_beat_the_products(case):
    """On 128 × 128 cells the explicit products take a hundred times longer; five is asked for."""
    B = Hartley.of_spectrum(disc((128, 128), 3.0), 0.01)
    F = B.basis()
    p, C = rng(15).random(B.rows), rng(16).normal(size=(B.cols, B.cols))

    def best(call):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            out = call()
            times.append(time.perf_counter() - start)
        return min(times), out

    for fast, slow in (
        (lambda: B.gram(p), lambda: (F * p) @ F.T),
        (lambda: B.quad(C), lambda: np.sum((C @ F) * F, axis=0)),
    ):
        (quick, got), (long, expected) = best(fast), best(slow)
        assert relative(got, expected) < 1e-12
        assert long > 5.0 * quick
