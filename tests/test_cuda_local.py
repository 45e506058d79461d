"""The CUDA kernels of local likelihoods and their host code, on the CPU emulator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emulated import emulated_arrays
from emulator import ORDERS, EmulatedLauncher, EmulationError, PoisonedNumpy, why_no_emulator

from gplvm_xp import backend
from gplvm_xp.backend.cuda import local as cuda_local
from gplvm_xp.backend.cuda.local import MAX_ROWS, FusedLocal, fits
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
    White,
)
from gplvm_xp.objectives.local import conditional, joint
from gplvm_xp.objectives.local_sums import Blocks, summed

pytestmark = pytest.mark.skipif(
    why_no_emulator() is not None, reason=why_no_emulator() or "the emulator works"
)
KERNELS = {
    "rbf": RBF(1.3, (0.7, 1.1)),
    "matern32": Matern32(0.8, 1.2),
    "matern52": Matern52(0.8, 1.2),
    "rq": RationalQuadratic(1.1, 0.9),
    "linear + white": Linear(0.7) + White(0.2),
    "polynomial": 0.5 * Polynomial(0.6, 1.2, degree=2) + Constant(0.3),
    "periodic * rbf": Periodic(0.9, 1.1, 2.0) * RBF(1.0, 2.0),
    "hexagonal": Hexagonal(0.8, 1.5),
    "one dimension": ActiveDims(RBF(), (1,)) + ActiveDims(Linear(), (0,)),
}


def problem(R, D=3, q=2, n=40, B=5, seed=0, fillers=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(n, q)), rng.normal(size=(n, D))
    rows = np.stack([rng.choice(n, R, replace=False) for _ in range(B)]).astype(np.int64)
    mask = None
    if fillers:
        mask = (rng.random((B, R)) < 0.6).astype(dtype)
        mask[:, -1] = 1.0
        mask[0, :-1] = 0.0
    return X.astype(dtype), Y.astype(dtype), rows, mask


def both(kernel, R, *, is_joint, outputs=None, launcher=None, dtype=np.float64, **options):
    """What the kernels say, and what the array-API form does in double precision."""
    X, Y, rows, mask = problem(R, dtype=dtype, **options)
    q = X.shape[1]
    theta, noise = kernel.theta().astype(dtype), np.asarray(0.3, dtype=dtype)
    fused = FusedLocal(launcher or EmulatedLauncher(), PoisonedNumpy, kernel.cuda(q), q, R, dtype)
    D = Y.shape[1] if outputs is None else outputs
    seen = fused.terms(theta, noise, X, Y, rows, mask, D, joint=is_joint)
    term = joint if is_joint else conditional
    X, Y, theta = (a.astype(np.float64) for a in (X, Y, theta))
    given = (kernel, theta, np.asarray(0.3), X[rows], Y[rows], mask, outputs)
    values, ok, pull = term(*given)
    gtheta, gnoise, gX = pull(np.ones_like(values))
    if mask is not None:
        gX = gX * mask[:, :, None]
    assert ok.all()
    return seen, (values, gtheta, gnoise, gX)


def assert_close(seen, wanted, rtol=1e-11):
    for a, b in zip(seen, wanted, strict=True):
        assert a.shape == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=0))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    assert_close(*both(KERNELS[name], 9, is_joint=False))


@pytest.mark.parametrize("name", ["rbf", "linear + white", "periodic * rbf"])
def test_kernels_of_whole_blocks(name):
    assert_close(*both(KERNELS[name], 9, is_joint=True))


@pytest.mark.parametrize("is_joint", [False, True], ids=["conditional", "joint"])
@pytest.mark.parametrize("R", [1, 32, 33])
def test_sizes(R, is_joint):
    for D in (1, 7):
        assert_close(*both(RBF(1.2, 0.8), R, is_joint=is_joint, D=D, n=50, B=3))


@pytest.mark.parametrize("q", [1, 8])
def test_latent_dimensions(q):
    for is_joint in (False, True):
        assert_close(*both(RBF(1.2, 1.5), 12, is_joint=is_joint, q=q))


def test_the_largest_block():
    assert fits(MAX_ROWS, 2, 8, both=False)
    assert not fits(MAX_ROWS, 2, 8, both=True)
    assert not fits(MAX_ROWS + 1, 2, 8, both=False)
    assert_close(*both(RBF(1.2, 0.8), MAX_ROWS, is_joint=False, n=80, B=2))
    X, Y, rows, _ = problem(MAX_ROWS, n=80, B=2)
    fused = FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, MAX_ROWS, np.float64)
    assert not fused.has_joint
    with pytest.raises(ValueError, match="the joint form of 64 rows needs more shared memory"):
        fused.terms(RBF().theta(), np.asarray(0.1), X, Y, rows, None, 3, joint=True)
    with pytest.raises(ValueError, match="blocks of 65 rows"):
        FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, 65, np.float64)


def test_more_columns_than_threads():
    assert_close(*both(RBF(1.2, 0.8), 6, is_joint=False, D=75))
    assert_close(*both(RBF(1.2, 0.8), 6, is_joint=True, D=75))


@pytest.mark.parametrize("is_joint", [False, True], ids=["conditional", "joint"])
def test_fillers_take_no_part(is_joint):
    assert_close(*both(RBF(1.2, 0.8), 11, is_joint=is_joint, fillers=True, B=6))


def test_outputs_of_a_reduced_table():
    for is_joint in (False, True):
        assert_close(*both(RBF(1.2, 0.8), 8, is_joint=is_joint, outputs=20))


def test_no_outputs():
    for is_joint in (False, True):
        values, *gradients = both(RBF(1.2, 0.8), 5, is_joint=is_joint, D=0)[0]
        assert not values.any()
        assert not any(a.any() for a in gradients)


@pytest.mark.parametrize("fillers", [False, True])
def test_more_blocks_than_a_launch_takes(fillers, monkeypatch):
    monkeypatch.setattr(cuda_local, "_LAUNCH", 2)
    launcher = EmulatedLauncher()
    assert_close(*both(RBF(), 5, is_joint=False, fillers=fillers, launcher=launcher))
    assert launcher.launches["gplvm_conditional"] == 3
    assert_close(*both(RBF(), 5, is_joint=True, fillers=fillers, launcher=launcher))
    assert launcher.launches["gplvm_joint"] == 3


def test_an_output_that_is_not_a_number_stays_in_its_blocks():
    X, Y, rows, _ = problem(4)
    Y[rows[2, 1], 0] = np.nan
    hit = (rows == rows[2, 1]).any(axis=1)
    fused = FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, 4, np.float64)
    for is_joint in (False, True):
        given = (RBF().theta(), np.asarray(0.1), X, Y, rows, None, 3)
        values, _, _, gX = fused.terms(*given, joint=is_joint)
        assert np.array_equal(np.isnan(values), hit)
        assert np.array_equal(np.isnan(gX).any(axis=(1, 2)), hit)


def test_float32_stays_float32():
    for is_joint in (False, True):
        seen, wanted = both(RBF(1.2, 0.8), 10, is_joint=is_joint, dtype=np.float32)
        assert all(a.dtype == np.float32 for a in seen)
        assert_close(seen, wanted, rtol=2e-4)


def test_the_same_bits_in_every_order_of_threads():
    for is_joint in (False, True):
        runs = [
            both(RBF(), 33, is_joint=is_joint, B=3, launcher=EmulatedLauncher(order=order))[0]
            for order in ORDERS
        ]
        for run, a in itertools.product(runs[1:], range(4)):
            assert np.array_equal(run[a], runs[0][a])


def test_a_block_that_is_not_positive_definite():
    X, Y, rows, _ = problem(4)
    X[rows[1, 2]] = X[rows[1, 0]]
    for bad, noise in ((1, 0.0), (2, 0.1)):
        there = X.copy()
        if bad == 2:
            there[rows[2, 1]] = np.nan
        fused = FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, 4, np.float64)
        hit = np.array(
            [bool(np.isin(rows[2, 1], r)) if bad == 2 else i == 1 for i, r in enumerate(rows)]
        )
        for is_joint in (False, True):
            given = (RBF().theta(), np.asarray(noise), there, Y, rows, None, 3)
            values, gtheta, gnoise, gX = fused.terms(*given, joint=is_joint)
            if bad == 2:
                assert np.all(np.isneginf(values[hit]))
                assert not gX[hit].any()
            assert np.isneginf(values[bad])
            assert np.all(np.isfinite(values[~hit]))
            assert np.all(np.isfinite(gtheta))
            assert np.isfinite(gnoise)
            assert not gX[bad].any()


@pytest.mark.parametrize("term", [conditional, joint])
@pytest.mark.parametrize("fillers", [False, True])
def test_sums_over_blocks_take_the_kernels(term, fillers, monkeypatch):
    """The sums that objectives use, on the emulated device and on the host."""
    X, Y, index, mask = problem(7, B=30, fillers=fillers)
    if mask is not None:
        index = np.where(mask > 0.0, index, -1)
    kernel, calls, real = KERNELS["linear + white"], [], FusedLocal.terms

    def spy(self, *given, joint):
        calls.append(joint)
        return real(self, *given, joint=joint)

    monkeypatch.setattr(FusedLocal, "terms", spy)

    def sums(b):
        blocks = Blocks.of(b, index, *Y.shape)
        theta, noise = b.asarray(kernel.theta()), b.scalar(0.3)
        found = summed(kernel, theta, noise, b.asarray(X), b.asarray(Y), blocks, term)
        return [b.to_host(a) for a in found]

    with emulated_arrays() as device:
        seen = sums(device)
    assert set(calls) == {term is joint}
    assert_close(seen, sums(backend.get("numpy")))


def test_wrong_shapes_are_refused():
    X, Y, rows, _ = problem(4)
    fused = FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, 4, np.float64)
    good = {"theta": RBF().theta(), "noise": np.asarray(0.1), "X": X, "Y": Y, "rows": rows}
    for name, wrong in (
        ("theta", np.ones(3)),
        ("noise", np.ones(1)),
        ("X", X.astype(np.float32)),
        ("Y", Y[:-1]),
        ("rows", rows[:, :3]),
        ("rows", rows.astype(np.int32)),
    ):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            fused.terms(*(good | {name: wrong}).values(), None, 3, joint=False)
    with pytest.raises(ValueError, match="mask has shape"):
        fused.terms(*good.values(), np.ones((5, 3)), 3, joint=False)
    with pytest.raises(TypeError, match="float64 and float32"):
        FusedLocal(EmulatedLauncher(), PoisonedNumpy, RBF().cuda(2), 2, 4, np.int64)


# -- planted faults are noticed --------------------------------------------------------------------


def without_barrier(which):
    def rewrite(source):
        parts = source.split("__syncthreads();")
        text = "__syncthreads();".join(parts[: which + 1])
        return text + "__syncthreads();".join(parts[which + 1 :])

    return rewrite


SOURCES = ("local.cuh", "local_joint.cuh")
BARRIERS = [cuda_local._text(name).count("__syncthreads();") for name in SOURCES]


@pytest.mark.parametrize("which", range(sum(BARRIERS)))
def test_every_barrier_is_needed(which):
    is_joint = which >= BARRIERS[0]
    options = {"is_joint": is_joint, "D": 70, "B": 2, "fillers": True}

    def noticed(order):
        launcher = EmulatedLauncher(order, rewrite=without_barrier(which))
        try:
            seen, wanted = both(RBF(1.2, 0.8), 33, launcher=launcher, **options)
        except EmulationError:
            return True
        return not all(np.allclose(a, b, rtol=1e-9) for a, b in zip(seen, wanted, strict=True))

    assert any(map(noticed, ORDERS))
