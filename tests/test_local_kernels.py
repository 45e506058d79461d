"""Kernels over leading axes: many small Gram matrices at once, against the same one by one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from test_kernels import KERNELS

from gplvm_xp import backend
from gplvm_xp.kernels import RBF, ActiveDims, Linear, Scale, Sum, White

BLOCKS, ROWS, Q = 4, 6, 3


@dataclass(frozen=True)
class Plain(RBF):
    """A stranger's kernel whose methods know two axes only."""

    def takes_blocks(self):
        return False

    def _gram(self, theta, X, Z):
        assert X.ndim == 2
        return super()._gram(theta, X, Z)

    def _gram_pullback(self, theta, X, Z):
        assert X.ndim == 2
        return super()._gram_pullback(theta, X, Z)


STRANGERS = {
    "plain": Plain(1.3, 0.8),
    "plain-in-a-sum": Plain(1.3, 0.8) + Linear(0.5),
    "plain-in-a-tree": 2.0 * (ActiveDims(Plain(0.7, (0.8, 1.3)), (2, 0)) * Linear(0.5)),
}


def points(rng, rows=ROWS):
    X = rng.standard_normal((BLOCKS, rows, Q))
    X[:, -1, :] = X[:, 0, :]
    return X


def close(case, got, want, scale=1.0):
    error = np.max(np.abs(case.to_numpy(got) - want)) / max(np.max(np.abs(want)), 1e-3)
    assert error <= scale * case.tolerance(2e-13, 2e-5), error


@pytest.mark.parametrize("kernel", {**KERNELS, **STRANGERS}.values(), ids={**KERNELS, **STRANGERS})
def test_blocks_are_the_single_matrices(case, kernel):
    rng = np.random.default_rng(1)
    X, theta = case.asarray(points(rng)), case.asarray(kernel.theta())
    G = case.asarray(rng.standard_normal((BLOCKS, ROWS, ROWS)))
    K, pull = kernel.local_gram_pullback(theta, X)
    gtheta, gX = pull(G)
    assert {gtheta.dtype, gX.dtype, K.dtype} == {X.dtype}
    assert (tuple(gX.shape), tuple(K.shape)) == (tuple(X.shape), (BLOCKS, ROWS, ROWS))
    close(case, kernel.local_gram(theta, X), case.to_numpy(K))
    total = 0.0
    for i in range(BLOCKS):
        one, single = kernel.gram_pullback(theta, X[i, ...])
        gt, gx, _ = single(G[i, ...])
        close(case, K[i, ...], case.to_numpy(one))
        close(case, gX[i, ...], case.to_numpy(gx), 30.0)
        total = total + case.to_numpy(gt)
    close(case, gtheta, total, 30.0)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_two_leading_axes_and_other_points(kernel):
    # What blocks against other points, and curvature, build on.
    rng = np.random.default_rng(2)
    X = points(rng).reshape(2, 2, ROWS, Q)
    Z = rng.standard_normal((2, 2, 4, Q))
    dX, dZ = rng.standard_normal(X.shape), rng.standard_normal(Z.shape)
    G, theta = rng.standard_normal((2, 2, ROWS, 4)), kernel.theta()
    dtheta = rng.standard_normal(theta.shape)
    assert kernel.takes_blocks()
    K, pull = kernel._gram_pullback(theta, X, Z)
    gtheta, gX, gZ = pull(G)
    dK = kernel._gram_jvp(theta, X, Z, dtheta, dX, dZ)
    total = 0.0
    for i in np.ndindex(2, 2):
        one, single = kernel.gram_pullback(theta, X[i], Z[i])
        gt, gx, gz = single(G[i])
        dk = kernel.gram_jvp(theta, X[i], Z[i], dtheta=dtheta, dX=dX[i], dZ=dZ[i])
        for got, want in ((K[i], one), (gX[i], gx), (gZ[i], gz), (dK[i], dk)):
            assert np.max(np.abs(got - want)) <= 1e-11 * max(np.max(np.abs(want)), 1e-3)
        total = total + gt
    np.testing.assert_allclose(gtheta, total, rtol=1e-11, atol=1e-11)


def test_every_block_has_its_own_centre():
    # About one centre for all, distances within a block this far away would have no digits left.
    rng = np.random.default_rng(3)
    near = rng.standard_normal((1, 5, 2))
    X = np.concatenate([near, near + 2.0**20])
    for kernel in (RBF(1.0, 0.7), KERNELS["rq"]):
        K = kernel.local_gram(kernel.theta(), X)
        np.testing.assert_allclose(K[1], K[0], rtol=1e-9)


def test_no_block_sees_another(case):
    rng = np.random.default_rng(4)
    X = points(rng)
    kernel = RBF(1.3, (0.8, 1.1, 0.7)) + Linear(0.5) + White(0.2)
    moved = X.copy()
    moved[1] += 0.5
    theta = case.asarray(kernel.theta())
    before, after = (case.to_numpy(kernel.local_gram(theta, case.asarray(a))) for a in (X, moved))
    assert np.array_equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert not np.array_equal(before[1], after[1])


def test_trees_know_whether_their_parts_take_blocks():
    assert Sum.of(RBF(), White()).takes_blocks()
    for kernel in STRANGERS.values():
        assert not kernel.takes_blocks()
    assert not Scale(Plain()).takes_blocks()


def test_shapes_are_refused():
    kernel = RBF()
    theta = kernel.theta()
    for shape in ((4, 2), (0, 4, 2), (2, 2, 4, 2)):
        with pytest.raises(ValueError, match="blocks, points, latent dimensions"):
            kernel.local_gram(theta, np.zeros(shape))
    with pytest.raises(ValueError, match="theta has shape"):
        kernel.local_gram_pullback(np.ones(3), np.zeros((1, 4, 2)))
    ard = dataclasses.replace(kernel, lengthscale=(1.0, 2.0))
    with pytest.raises(ValueError, match="lengthscale"):
        ard.local_gram(ard.theta(), np.zeros((1, 4, 3)))


def test_one_point_a_block(case):
    kernel = RBF(1.3) + Linear(0.5)
    X = case.asarray(np.arange(6.0).reshape(3, 1, 2))
    K, pull = kernel.local_gram_pullback(case.asarray(kernel.theta()), X)
    gtheta, gX = pull(backend.of(X).full((3, 1, 1), 1.0))
    squares = np.sum(np.arange(6.0).reshape(3, 2) ** 2, axis=1)
    np.testing.assert_allclose(case.to_numpy(K).ravel(), 1.3 + 0.5 * squares, rtol=1e-6)
    np.testing.assert_allclose(case.to_numpy(gX).ravel(), np.arange(6.0), atol=1e-5)
    np.testing.assert_allclose(case.to_numpy(gtheta), [3.0, 0.0, squares.sum()], rtol=1e-6)
