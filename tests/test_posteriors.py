"""Posterior covariances: the conformance suite on every library, and independent oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from gplvm_xp import kl
from gplvm_xp.operators import (
    Circulant,
    Dense,
    DensePrecision,
    DiagonalPrecision,
    GramPrecision,
    Hartley,
    Identity,
    eigenvalues_of,
)
from gplvm_xp.posteriors import (
    BasisDiagonal,
    Cholesky,
    Convolutional,
    Full,
    InverseDiagonal,
    LowRank,
    Subspace,
)
from gplvm_xp.testing import check_posterior

L = 6
GRID = (2, 3)


def definite(rng, n=L, *lead):
    A = rng.standard_normal((*lead, n, n + 2))
    return A @ np.swapaxes(A, -1, -2) / n + 0.5 * np.eye(n)


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def frequencies(grid, count, rng):
    return np.argwhere(np.ones(grid, dtype=bool))[rng.permutation(int(np.prod(grid)))[:count]]


def circulant_spectrum(rng, grid):
    """Real, symmetric and nowhere 0."""
    axes = tuple(range(len(grid)))
    row = rng.standard_normal(grid)
    row = row + np.roll(np.flip(row, axes), 1, axes)
    return 1.0 + 0.3 * np.real(np.fft.fftn(row))


@dataclass(frozen=True)
class Family:
    """A parameterisation with its oracle's Σ(θ), ln pdet Σ(θ)."""

    build: Callable
    # (torch, θ, Λ, covariance) → X with Σ = X Xᵀ, or Σ itself where square.
    root: Callable | None = None
    sigma: Callable | None = None


def dense_map(B):
    return B.matrix(np.zeros(1))


def inverse(torch, p, Lam, c):
    B = torch.as_tensor(dense_map(c.B))
    return torch.linalg.inv(Lam + B.T @ (p[:, None] * B))


def rows_root(torch, v, Lam, c):
    return torch.as_tensor(c.A).T * torch.sqrt(v)


def conv_root(torch, v, Lam, c):
    return torch.as_tensor(c.convolve(np.eye(L))) * torch.sqrt(v)


def subspace_root(torch, Q, Lam, c):
    Q = torch.tril(Q) if c.triangular else Q
    return torch.as_tensor(dense_map(c.basis)) @ Q


FAMILIES = {
    "full": Family(
        lambda put, rng: Full(), sigma=lambda torch, S, Lam, c: (S + S.T) / 2
    ),
    "cholesky": Family(lambda put, rng: Cholesky(), root=lambda torch, X, Lam, c: torch.tril(X)),
    "lowrank-3": Family(lambda put, rng: LowRank(3), root=lambda torch, X, Lam, c: X),
    "lowrank-1": Family(lambda put, rng: LowRank(1), root=lambda torch, X, Lam, c: X),
    "lowrank-all": Family(lambda put, rng: LowRank(L), root=lambda torch, X, Lam, c: X),
    "basis-wide": Family(
        lambda put, rng: BasisDiagonal(put(rng.standard_normal((4, L)))), root=rows_root
    ),
    "basis-square": Family(
        lambda put, rng: BasisDiagonal(put(orthonormal(rng, L, L) + 0.1)), root=rows_root
    ),
    "basis-tall": Family(
        lambda put, rng: BasisDiagonal(put(rng.standard_normal((L + 3, L)))),
        sigma=lambda torch, v, Lam, c: torch.as_tensor(c.A).T @ (v[:, None] * torch.as_tensor(c.A)),
    ),
    "convolutional": Family(
        lambda put, rng: Convolutional(GRID, put(circulant_spectrum(rng, GRID))), root=conv_root
    ),
    "inverse-identity": Family(lambda put, rng: InverseDiagonal(Identity(L)), sigma=inverse),
    "inverse-dense": Family(
        lambda put, rng: InverseDiagonal(Dense(put(rng.standard_normal((4, L)))), "dense"),
        sigma=inverse,
    ),
    "inverse-dense-tall": Family(
        lambda put, rng: InverseDiagonal(Dense(put(rng.standard_normal((L + 2, L)))), "dense"),
        sigma=inverse,
    ),
    "inverse-factored": Family(
        lambda put, rng: InverseDiagonal(Dense(put(rng.standard_normal((L + 2, L))))),
        sigma=inverse,
    ),
    "inverse-hartley": Family(
        lambda put, rng: InverseDiagonal(Hartley((3, 4), frequencies((3, 4), L, rng))),
        sigma=inverse,
    ),
    "subspace": Family(
        lambda put, rng: Subspace(Dense(put(orthonormal(rng, L, 4)))), root=subspace_root
    ),
    "subspace-general": Family(
        lambda put, rng: Subspace(Dense(put(orthonormal(rng, L, 4))), False), root=subspace_root
    ),
    "subspace-hartley": Family(
        lambda put, rng: Subspace(Hartley(GRID, frequencies(GRID, 4, rng))), root=subspace_root
    ),
}  # fmt: skip
names = pytest.mark.parametrize("name", FAMILIES)


def host(a):
    return np.asarray(a, dtype=np.float64)


def build(name, seed=0):
    rng = np.random.default_rng(seed)
    covariance = FAMILIES[name].build(host, rng)
    prior = DensePrecision(definite(rng))
    start = covariance.start(prior, Identity(L), rng.uniform(0.2, 2.0, L))
    noise = 0.2 * rng.standard_normal(start.shape)
    if covariance.form == "positive":
        return covariance, prior, start * np.exp(noise), rng
    if covariance.form == "symmetric":
        S = np.eye(L) + noise
        return covariance, prior, S @ start @ S.T, rng
    theta = start + np.sqrt(np.mean(start**2)) * noise
    return covariance, prior, np.tril(theta) if covariance.form == "lower" else theta, rng


def allowed(covariance, M):
    if covariance.form == "lower":
        return np.tril(M)
    return M + M.T if covariance.form == "symmetric" else M


def error(got, want):
    return np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want)


# -- the contract ----------------------------------------------------------------------------------


@names
def test_conformance(case, name):
    covariance = FAMILIES[name].build(case.asarray, np.random.default_rng(3))
    check_posterior(covariance, L, make=case.asarray, dtype=case.dtype, seed=1)


@pytest.mark.parametrize("grid", [(7,), (8,), (3, 4), (2, 3, 2)])
def test_convolution_on_grids_of_any_dimension(grid):
    rng = np.random.default_rng(0)
    check_posterior(Convolutional(grid, circulant_spectrum(rng, grid)), int(np.prod(grid)))


@dataclass(frozen=True)
class Spoiled(LowRank):
    """A LowRank with one mistake."""

    mistake: ClassVar[str] = ""

    def at(self, theta, prior):
        state = super().at(theta, prior)

        class Wrong(type(state)):
            pass

        good = type(state)
        changes = {
            "value": ("part", lambda s: 1.01 * good.part(s)),
            "constant": ("constant", lambda s: good.constant(s) + np.sum(s.X)),
            "gradient": ("gradient", lambda s: good.gradient(s) + 1e-6 * s.X),
            # The printed HVP, in the only shape that it has.
            "hvp": ("hvp", lambda s, M: good.hvp(s, M) + s.prior.columns(M.T - M)),
            "matvec": ("matvec", lambda s, z: 2 * good.matvec(s, z)),
            "root": ("root", lambda s, xi: good.root(s, xi[..., ::-1] * np.linspace(1, 2, s.rank))),
            "natural": ("natural", lambda s, G, solve=None: -G),
        }
        if self.mistake in changes:
            setattr(Wrong, *changes[self.mistake])
        if self.mistake in ("variances", "jvp", "pullback", "second"):

            def variances(s, B):
                v = good.variances(s, B)
                field = "value" if self.mistake == "variances" else self.mistake
                wrong = 1.001 * v.value
                if field != "value":
                    wrong = lambda *args: 1.001 * getattr(v, field)(*args)  # noqa: E731
                if field == "second":
                    wrong = lambda s: lambda M: 1.001 * v.second(s)(M)  # noqa: E731
                return dataclasses.replace(v, **{field: wrong})

            Wrong.variances = variances
        return Wrong(**{f.name: getattr(state, f.name) for f in dataclasses.fields(state)})


MISTAKES = [
    "value", "constant", "gradient", "hvp", "matvec", "root", "natural",
    "variances", "jvp", "pullback", "second",
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_suite_sees_mistakes(mistake):
    kind = type("Mistaken", (Spoiled,), {"mistake": mistake})
    check_posterior(Spoiled(L), L)
    with pytest.raises(AssertionError):
        check_posterior(kind(L), L)


# -- an independent oracle: automatic differentiation ----------------------------------------------


def oracle(torch, name, covariance, Lambda):
    family, Lam = FAMILIES[name], torch.as_tensor(Lambda)

    def sigma(theta):
        if family.sigma:
            return family.sigma(torch, theta, Lam, covariance)
        X = family.root(torch, theta, Lam, covariance)
        return X @ X.T

    def objective(theta):
        S = sigma(theta)
        if family.sigma:
            logs = torch.logdet(S)
        else:
            X = family.root(torch, theta, Lam, covariance)
            logs = torch.logdet(X.T @ X)
        return 0.5 * (torch.sum(Lam * S) - logs)

    return sigma, objective


@names
def test_derivatives_against_automatic_ones(name):
    torch = pytest.importorskip("torch")
    for seed in range(3):
        covariance, prior, theta, rng = build(name, seed)
        sigma, objective = oracle(torch, name, covariance, prior.Lambda)
        state = covariance.at(theta, prior)
        M = allowed(covariance, rng.standard_normal(theta.shape))
        t = torch.tensor(theta, requires_grad=True)
        J = objective(t)
        logdet, rank = np.linalg.slogdet(prior.Lambda)[1], L
        if isinstance(covariance, Subspace):
            basis = dense_map(covariance.basis)
            logdet, rank = np.linalg.slogdet(basis.T @ prior.Lambda @ basis)[1], 4
        assert abs(state.kl() - (J.item() - 0.5 * (logdet + rank))) < 1e-12 * abs(J.item())
        (g,) = torch.autograd.grad(J, t, create_graph=True)
        assert error(state.gradient(), g.detach().numpy()) < 1e-12
        (H,) = torch.autograd.grad(torch.sum(g * torch.as_tensor(M)), t)
        assert error(state.hvp(M), H.numpy()) < 1e-12

        B = rng.standard_normal((L + 2, L))
        s = rng.standard_normal(L + 2)
        v = state.variances(Dense(B))
        rows = torch.as_tensor(B)
        want = torch.sum((rows @ sigma(t)) * rows, dim=1)
        assert error(v.value, want.detach().numpy()) < 1e-12
        (back,) = torch.autograd.grad(torch.as_tensor(s) @ want, t, create_graph=True)
        assert error(v.pullback(s), back.detach().numpy()) < 1e-12
        assert abs(s @ v.jvp(M) - np.sum(back.detach().numpy() * M)) < 1e-12 * np.linalg.norm(M) * (
            np.linalg.norm(back.detach().numpy())
        )
        if back.requires_grad:
            (two,) = torch.autograd.grad(torch.sum(back * torch.as_tensor(M)), t, allow_unused=True)
            two = np.zeros(theta.shape) if two is None else two.numpy()
            scale = np.linalg.norm(back.detach().numpy()) * np.linalg.norm(M)
            assert np.linalg.norm(v.second(s)(M) - two) < 1e-12 * scale


# -- what the source misprints ---------------------------------------------------------------------


def test_hvp_of_a_factor_has_lambda_m_not_its_transpose():
    """Equations 11, 12 and 22 print ΛMᵀ: wrong but for symmetric M, impossible for R < L."""
    rng = np.random.default_rng(0)
    X, M = rng.standard_normal((2, L, L)) + 2 * np.eye(L)
    prior = DensePrecision(definite(rng))
    plus = np.linalg.pinv(X)
    rest = plus.T @ M.T @ plus.T - (np.eye(L) - X @ plus) @ M @ np.linalg.inv(X.T @ X)
    state = LowRank(L).at(X, prior)
    assert error(prior.Lambda @ M.T + rest, state.hvp(M)) > 0.05
    assert error(prior.Lambda @ M + rest, state.hvp(M)) < 1e-11
    S = M + M.T
    rest = plus.T @ S @ plus.T
    assert error(prior.Lambda @ S.T + rest, state.hvp(S)) < 1e-11
    thin, D = rng.standard_normal((2, L, 3))
    plus, gamma = np.linalg.pinv(thin), np.linalg.inv(thin.T @ thin)
    with pytest.raises(ValueError, match="mismatch"):
        prior.Lambda @ D.T
    want = prior.Lambda @ D + plus.T @ D.T @ plus.T - (np.eye(L) - thin @ plus) @ D @ gamma
    assert error(LowRank(3).at(thin, prior).hvp(D), want) < 1e-12


def test_hvp_in_a_subspace_has_m_not_its_transpose():
    """Equations 20 and 25."""
    covariance, prior, Q, rng = build("subspace-general")
    M = rng.standard_normal(Q.shape)
    basis = dense_map(covariance.basis)
    inner, back = basis.T @ prior.Lambda @ basis, np.linalg.inv(Q).T
    got = covariance.at(Q, prior).hvp(M)
    assert error(inner @ M + back @ M.T @ back, got) < 1e-12
    assert error(inner @ M.T + back @ M.T @ back, got) > 0.05


def test_a_triangle_needs_its_projection():
    """Section 0.2.1 takes (6) and (11) over unprojected."""
    covariance, prior, X, rng = build("cholesky")
    M = np.tril(rng.standard_normal(X.shape))
    state, back = covariance.at(X, prior), np.linalg.inv(X).T
    general = prior.Lambda @ X - back
    assert error(general, state.gradient()) > 0.05
    assert error(np.tril(general), state.gradient()) < 1e-12
    general = prior.Lambda @ M + back @ M.T @ back
    assert error(general, state.hvp(M)) > 0.05
    assert error(np.tril(general), state.hvp(M)) < 1e-12
    assert error(np.tril(prior.Lambda @ M.T + back @ M.T @ back), state.hvp(M)) > 0.05


def test_more_weights_than_dimensions_need_the_general_formula():
    """Equations 13 and 14 hold for N ≤ L only, and (23) is no inner product."""
    covariance, prior, v, rng = build("basis-tall")
    u, state = rng.standard_normal(v.shape), covariance.at(v, prior)
    a = np.diag(covariance.A @ prior.Lambda @ covariance.A.T)
    assert error(0.5 * (a - 1 / v), state.gradient()) > 0.05
    assert error(0.5 * u / v**2, state.hvp(u)) > 0.05
    covariance, prior, v, rng = build("basis-wide")
    u = rng.standard_normal(v.shape)
    assert error(covariance.at(v, prior).hvp(u), 0.5 * u / v**2) < 1e-15


def test_gradient_of_the_full_covariance_has_its_half():
    """Equation 2's first line lacks it."""
    covariance, prior, S, rng = build("full")
    g = covariance.at(S, prior).gradient()
    assert error(g, 0.5 * (prior.Lambda - np.linalg.inv(S))) < 1e-12
    M = rng.standard_normal(S.shape)
    half = np.linalg.inv(S)
    assert error(covariance.at(S, prior).hvp(M), 0.25 * half @ (M + M.T) @ half) < 1e-11


def test_second_derivative_of_the_map_belongs_to_the_chain_rule():
    """H[M] of Σ = XXᵀ from Σ's own derivatives; leaving 2 G M out is a later slip."""
    covariance, prior, X, rng = build("lowrank-all")
    M = rng.standard_normal(X.shape)
    full = Full().at(X @ X.T, prior)
    first = 2 * full.hvp(M @ X.T + X @ M.T) @ X
    got = covariance.at(X, prior).hvp(M)
    assert error(first + 2 * full.gradient() @ M, got) < 1e-10
    assert error(first, got) > 0.05


def test_variances_of_a_factor_are_row_sums():
    covariance, prior, Q, _ = build("subspace")
    X = dense_map(covariance.basis) @ Q
    got = covariance.at(Q, prior).variances(Identity(L)).value
    np.testing.assert_allclose(got, np.sum(X**2, axis=1), rtol=1e-13)


def test_draws_use_the_transposed_inverse_factor():
    """With P = CCᵀ the covariance P⁻¹ is C⁻ᵀC⁻¹; C⁻¹C⁻ᵀ is another matrix."""
    covariance, prior, p, _ = build("inverse-factored")
    state = covariance.at(p, prior)
    S = state.root(np.eye(L)).T
    assert error(S @ S.T, state.dense()) < 1e-14
    assert error(S.T @ S, state.dense()) > 0.05


# -- numerics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("condition", "tolerance"), [(1e2, 1e-13), (1e5, 1e-10), (1e7, 1e-8)])
def test_ill_conditioned_factor(condition, tolerance):
    mp = pytest.importorskip("mpmath")
    rng = np.random.default_rng(0)
    rows, R = 12, 4
    scales = np.logspace(0, -np.log10(condition), R)
    X = (orthonormal(rng, rows, R) * scales) @ orthonormal(rng, R, R).T
    M = rng.standard_normal((rows, R))
    prior = DiagonalPrecision(np.full(rows, 1e-200))
    with mp.workdps(60):
        x, m = mp.matrix(X.tolist()), mp.matrix(M.tolist())
        gamma = (x.T * x) ** -1
        C = gamma * (x.T * m) * gamma
        g = np.array((-x * gamma).tolist(), dtype=float)
        H = np.array((-m * gamma + x * (C + C.T)).tolist(), dtype=float)
        value = float(-mp.log(mp.det(x.T * x)) / 2)
    state = LowRank(R).at(X, prior)
    assert state.ok
    assert error(state.gradient(), g) < tolerance
    assert error(state.hvp(M), H) < tolerance
    assert abs(state.part() - value) < 1e-14 * condition * abs(value)
    if condition > 1e3:
        assert error(-X @ np.linalg.inv(X.T @ X), g) > 10 * error(state.gradient(), g)


@pytest.mark.parametrize("compute", ["dense", "factored"])
def test_ill_conditioned_prior(compute):
    """A smooth kernel's Gram matrix: its inverse alone would cost ten digits."""
    mp = pytest.importorskip("mpmath")
    rng = np.random.default_rng(0)
    n = 14
    x = np.linspace(0, 1, n)
    K = np.exp(-0.5 * (x[:, None] - x) ** 2 / 0.3**2) + 1e-11 * np.eye(n)
    assert np.linalg.cond(K) > 1e11
    p = rng.uniform(-0.01, 5, n)
    with mp.workdps(50):
        Lam = mp.matrix(K.tolist()) ** -1
        S = (Lam + mp.diag(p.tolist())) ** -1
        trace = sum((Lam * S)[i, i] for i in range(n))
        want = float((trace - mp.log(mp.det(S)) - mp.log(mp.det(Lam)) - n) / 2)
        Sigma = np.array(S.tolist(), dtype=float)
    state = InverseDiagonal(Identity(n), compute).at(p, GramPrecision(K))
    assert error(state.dense(), Sigma) < 1e-14
    assert abs(state.kl() - want) < 1e-13 * want
    assert error(state.gradient(), 0.5 * Sigma**2 @ p) < 1e-13
    naive = np.linalg.inv(np.linalg.inv(K) + np.diag(p))
    assert error(naive, Sigma) > 1e-9


def test_horizontal_directions():
    covariance, prior, X, rng = build("lowrank-3")
    state = covariance.at(X, prior)
    M = rng.standard_normal(X.shape)
    H = state.horizontal(M)
    assert error(X.T @ H, H.T @ X) < 1e-12
    assert error(H @ X.T + X @ H.T, M @ X.T + X @ M.T) < 1e-12
    assert error(state.horizontal(H), H) < 1e-12
    skew = rng.standard_normal((3, 3))
    vertical = X @ (skew - skew.T)
    assert np.linalg.norm(state.horizontal(vertical)) < 1e-12 * np.linalg.norm(vertical)
    assert abs(np.sum(state.gradient() * vertical)) < 1e-12 * np.linalg.norm(vertical)
    gamma, lift = X.T @ X, M - H
    omega = np.linalg.solve(gamma, X.T @ lift)
    assert error(gamma @ omega + omega @ gamma, X.T @ M - M.T @ X) < 1e-11


def test_horizontal_on_every_library(case):
    rng = np.random.default_rng(1)
    X, M = rng.standard_normal((2, 2, L, 3))
    state = LowRank(3).at(case.asarray(X), DensePrecision(case.asarray(definite(rng))))
    H = case.to_numpy(state.horizontal(case.asarray(M)))
    twist = np.swapaxes(X, -1, -2) @ H
    assert error(twist, np.swapaxes(twist, -1, -2)) < case.tolerance(1e-12, 1e-4)
    change = H @ np.swapaxes(X, -1, -2)
    want = M @ np.swapaxes(X, -1, -2)
    assert error(
        change + np.swapaxes(change, -1, -2), want + np.swapaxes(want, -1, -2)
    ) < case.tolerance(1e-12, 1e-4)


# -- where the point is not sound ------------------------------------------------------------------


def test_unsound_points_are_values_not_errors(case):
    """One member of the batch fails; nothing is raised or said, and the other is untouched."""
    rng = np.random.default_rng(2)
    put = case.asarray
    prior = DensePrecision(put(definite(rng)))
    bad_X = rng.standard_normal((L, 3))
    bad_X[:, 2] = bad_X[:, 0] - 2 * bad_X[:, 1]
    good = np.linalg.cholesky(definite(rng))
    flipped = good.copy()
    flipped[2, 2] *= -1
    zero, missing = good.copy(), good.copy()
    zero[1, 1], missing[3, 0] = 0.0, np.nan
    ones = np.ones(L)
    negative, none = ones.copy(), ones.copy()
    negative[1], none[0] = -0.1, 0.0
    spectrum = put(circulant_spectrum(rng, GRID))
    tall = put(rng.standard_normal((L + 2, L)))
    cases = [
        (Full(), good @ good.T, good @ good.T - 5 * np.eye(L)),
        (Full(), good @ good.T, np.full((L, L), np.nan)),
        (LowRank(3), good[:, :3], bad_X),
        (LowRank(3), good[:, :3], good[:, :3] * np.array([1.0, 0.0, 1.0])),
        (LowRank(3), good[:, :3], good[:, :3] * np.array([1.0, np.nan, 1.0])),
        (Cholesky(), good, flipped),
        (Cholesky(), good, zero),
        (BasisDiagonal(put(np.eye(L))), ones, negative),
        (BasisDiagonal(tall), np.ones(L + 2), np.append(negative, [1.0, 1.0])),
        (BasisDiagonal(put(np.eye(L))), ones, none),
        (BasisDiagonal(put(np.eye(L))), ones, np.full(L, np.inf)),
        (Convolutional(GRID, spectrum), ones, negative),
        (InverseDiagonal(Identity(L), "dense"), ones, -20.0 * ones),
        (InverseDiagonal(Identity(L), "factored"), ones, -20.0 * ones),
        (InverseDiagonal(Identity(L)), ones, np.full(L, np.nan)),
        (Subspace(Dense(put(np.eye(L)))), good, flipped),
    ]
    for covariance, sound, unsound in cases:
        state = covariance.at(put(np.stack([sound, unsound])), prior)
        alone = covariance.at(put(sound), prior)
        what = f"{type(covariance).__name__} {unsound[:3]}"
        assert list(case.to_numpy(state.ok)) == [1.0, 0.0], what
        values = case.to_numpy(state.kl())
        assert values[1] == np.inf, what
        tolerance = case.tolerance(1e-12, 1e-4)
        np.testing.assert_allclose(values[0], case.to_numpy(alone.kl()), rtol=tolerance)
        for many, one in (
            (state.gradient(), alone.gradient()),
            (state.hvp(put(np.stack([sound, sound]))), alone.hvp(put(sound))),
            (state.variances(Identity(L)).value, alone.variances(Identity(L)).value),
        ):
            got = case.to_numpy(many)[0]
            assert error(got, case.to_numpy(one)) < case.tolerance(1e-11, 1e-4), what


def test_negative_site_precisions_are_admissible():
    rng = np.random.default_rng(3)
    prior = DensePrecision(definite(rng))
    least = np.linalg.eigvalsh(prior.Lambda)[0]
    p = rng.uniform(-0.9, 1.0, L) * least
    assert p.min() < 0
    for compute in ("dense", "factored"):
        state = InverseDiagonal(Identity(L), compute).at(p, prior)
        assert state.ok
        zero = np.zeros(L)
        want = kl.gaussian(zero, np.linalg.inv(prior.Lambda + np.diag(p)), zero, prior.Lambda)
        assert abs(state.kl() - want) < 1e-13
        assert not InverseDiagonal(Identity(L), compute).at(p - 20, prior).ok


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_rank_is_judged_without_regard_to_scale(scale):
    rng = np.random.default_rng(4)
    X = rng.standard_normal((L, 3)) * np.array([1.0, scale, 1.0])
    prior = DiagonalPrecision(np.ones(L))
    assert LowRank(3).at(X, prior).ok
    X[:, 2] = X[:, 0] * 3
    assert not LowRank(3).at(X, prior).ok


def test_structure_that_does_not_fit():
    prior = DiagonalPrecision(np.ones(L))
    with pytest.raises(ValueError, match=r"rank is 9.*length 6 has at most 6"):
        LowRank(9).shape(L)
    with pytest.raises(ValueError, match="rank is 9"):
        LowRank(9).at(np.ones((L, 9)), prior)
    with pytest.raises(ValueError, match="at least 1"):
        LowRank(0)
    with pytest.raises(ValueError, match=r"has shape \(6, 5\).*\(\.\.\., 6, 6\)"):
        Full().at(np.ones((L, 5)), prior)
    with pytest.raises(ValueError, match=r"has shape \(6,\)"):
        Cholesky().at(np.ones(L), prior)
    with pytest.raises(ValueError, match=r"length 5.*length 6"):
        BasisDiagonal(np.ones((3, 5))).shape(L)
    with pytest.raises(ValueError, match=r"one row for each weight"):
        BasisDiagonal(np.ones(3))
    with pytest.raises(ValueError, match=r"length 5.*length 6"):
        InverseDiagonal(Identity(5)).shape(L)
    with pytest.raises(ValueError, match="'quick'"):
        InverseDiagonal(Identity(5), "quick")
    with pytest.raises(ValueError, match=r"length 12.*length 6"):
        Convolutional((3, 4), np.ones((3, 4))).shape(L)
    with pytest.raises(ValueError, match=r"spectrum has shape \(4, 3\)"):
        Convolutional((3, 4), np.ones((4, 3)))
    with pytest.raises(ValueError, match="basis is for a latent vector of length 12"):
        Subspace(Hartley((3, 4), np.array([[0, 0]]))).shape(L)


# -- relations between them ------------------------------------------------------------------------


def test_one_covariance_in_every_parameterisation():
    rng = np.random.default_rng(5)
    prior = DensePrecision(definite(rng))
    p, B = rng.uniform(0.1, 2.0, L), rng.standard_normal((L + 2, L))
    inverse_state = InverseDiagonal(Identity(L)).at(p, prior)
    Sigma = inverse_state.dense()
    X = np.linalg.cholesky(Sigma)
    v, A = np.linalg.eigh(Sigma)
    states = {
        "full": Full().at(Sigma, prior),
        "cholesky": Cholesky().at(X, prior),
        "low rank": LowRank(L).at(X, prior),
        "basis": BasisDiagonal(A.T).at(v, prior),
        "frame": BasisDiagonal(np.concatenate([A.T, A.T])).at(np.append(v, v) / 2, prior),
        "subspace": Subspace(Identity(L)).at(X, prior),
    }
    for name, state in states.items():
        assert abs(state.kl() - inverse_state.kl()) < 1e-12, name
        for B_map in (Identity(L), Dense(B)):
            got, want = state.variances(B_map).value, inverse_state.variances(B_map).value
            assert error(got, want) < 1e-12, name


@pytest.mark.parametrize("N", [3, 9])
def test_dense_and_factored_sites_give_the_same_numbers(N):
    rng = np.random.default_rng(6)
    prior, B = DensePrecision(definite(rng)), Dense(rng.standard_normal((N, L)))
    p, u, s = rng.uniform(-0.05, 2.0, (3, N))
    one, two = (InverseDiagonal(B, way).at(p, prior) for way in ("dense", "factored"))
    assert abs(one.kl() - two.kl()) < 1e-14
    assert error(one.gradient(), two.gradient()) < 1e-13
    assert error(one.hvp(u), two.hvp(u)) < 1e-12
    other = Dense(rng.standard_normal((5, L)))
    w = rng.standard_normal(5)
    for B_map, weights in ((B, s), (other, w)):
        v, z = one.variances(B_map), two.variances(B_map)
        assert error(v.jvp(u), z.jvp(u)) < 1e-12
        assert error(v.pullback(weights), z.pullback(weights)) < 1e-12
        assert error(v.second(weights)(u), z.second(weights)(u)) < 1e-12


def test_hvp_of_sites_is_the_formula_that_the_source_leaves_out():
    covariance, prior, p, rng = build("inverse-factored")
    u = rng.standard_normal(p.shape)
    B = covariance.B.B
    S = B @ covariance.at(p, prior).dense() @ B.T
    want = 0.5 * S**2 @ u - (S * (S @ np.diag(p) @ S)) @ u
    assert error(covariance.at(p, prior).hvp(u), want) < 1e-12


def test_degenerate_factor_is_the_limit_without_its_divergence():
    covariance, prior, X, _ = build("lowrank-3")
    want, zero = covariance.at(X, prior).kl(), np.zeros(L)
    gaps = []
    for eps in (1e-3, 1e-5):
        exact = kl.gaussian(zero, X @ X.T + eps * np.eye(L), zero, prior.Lambda)
        gaps.append(abs(exact + 0.5 * (L - 3) * np.log(eps) - want))
    assert gaps[0] < 0.1
    assert gaps[1] < 1.1e-2 * gaps[0]


def test_subspace_kl_is_exact_for_either_reading():
    """The truncated prior's, and the whole one's where the posterior is the prior elsewhere."""
    rng = np.random.default_rng(7)
    Lambda = definite(rng)
    values, vectors = np.linalg.eigh(Lambda)
    F, lam = vectors[:, :3], values[:3]
    Q = np.tril(rng.standard_normal((3, 3)))
    Q[np.arange(3), np.arange(3)] = rng.uniform(0.3, 1.0, 3)
    state = Subspace(Dense(F)).at(Q, DensePrecision(Lambda))
    zero = np.zeros(L)
    assert abs(state.kl() - kl.gaussian(zero[:3], Q @ Q.T, zero[:3], np.diag(lam))) < 1e-12
    rest = vectors[:, 3:] / values[3:] @ vectors[:, 3:].T
    whole = kl.gaussian(zero, state.dense() + rest, zero, Lambda)
    assert abs(state.kl() - whole) < 1e-12


def circulant(case_put, rng, grid):
    covariance_row = np.exp(-np.sum(np.indices(grid) ** 2, axis=0) / 2.0)
    axes = tuple(range(len(grid)))
    row = covariance_row + np.roll(np.flip(covariance_row, axes), 1, axes)
    return Circulant(grid, case_put(np.abs(eigenvalues_of(row, len(grid))) + 0.1))


def test_hartley_subspace_of_a_circulant_prior_is_diagonal(case):
    """λ is picked, not computed: a product with Λ would leave rounding off the diagonal."""
    rng = np.random.default_rng(8)
    grid, put = (3, 4), case.asarray
    prior = circulant(put, rng, grid)
    basis = Hartley(grid, frequencies(grid, 5, rng))
    inner = basis.restrict(prior)
    assert isinstance(inner, DiagonalPrecision)
    F = basis.matrix(put(np.zeros(1)))
    want = case.to_numpy(F).T @ case.to_numpy(prior.dense()) @ case.to_numpy(F)
    assert error(case.to_numpy(inner.dense()), want) < case.tolerance(1e-12, 1e-4)
    Q = put(np.tril(rng.standard_normal((5, 5)), -1) + np.diag(rng.uniform(0.5, 1.0, 5)))
    M = put(rng.standard_normal((5, 5)))
    got = Subspace(basis).at(Q, prior)
    dense = Subspace(Dense(F)).at(Q, DensePrecision(prior.dense()))
    close = case.tolerance(1e-11, 1e-3)
    assert abs(case.to_numpy(got.kl()) - case.to_numpy(dense.kl())) < 10 * close
    for one, two in (
        (got.gradient(), dense.gradient()),
        (got.hvp(M), dense.hvp(M)),
        (got.variances(Identity(12)).value, dense.variances(Identity(12)).value),
    ):
        assert error(case.to_numpy(one), case.to_numpy(two)) < close


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)])
def test_convolution_knows_a_circulant_prior(case, grid):
    rng = np.random.default_rng(9)
    put, N = case.asarray, int(np.prod(grid))
    prior, spectrum = circulant(put, rng, grid), put(circulant_spectrum(rng, grid))
    covariance = Convolutional(grid, spectrum)
    v, u, s = (put(x) for x in rng.uniform(0.5, 2.0, (3, N)))
    got = covariance.at(v, prior)
    assert tuple(got.a.shape) == (1,)
    general = covariance.at(v, DensePrecision(prior.dense()))
    A = covariance.convolve(case.backend.eye(N))
    basis = BasisDiagonal(A).at(v, DensePrecision(prior.dense()))
    close = case.tolerance(1e-11, 1e-3)
    for other in (general, basis):
        assert abs(case.to_numpy(got.kl()) - case.to_numpy(other.kl())) < 10 * close
        assert error(case.to_numpy(got.gradient()), case.to_numpy(other.gradient())) < close
        assert error(case.to_numpy(got.hvp(u)), case.to_numpy(other.hvp(u))) < close
        for one, two in zip(
            (got.variances(Identity(N)).value, got.variances(Identity(N)).pullback(s)),
            (other.variances(Identity(N)).value, other.variances(Identity(N)).pullback(s)),
            strict=True,
        ):
            assert error(case.to_numpy(one), case.to_numpy(two)) < close


# -- starting points and metrics -------------------------------------------------------------------


# Not those of a frame (no closed form) and of few columns (stationary in their subspace only).
STATIONARY = [n for n in FAMILIES if n not in ("basis-tall", "lowrank-3", "lowrank-1")]


@pytest.mark.parametrize("name", STATIONARY)
def test_start_is_stationary_for_its_curvature(name):
    """If the data's curvature stayed s, the gradient ∂KL + ½ pullback(s) would vanish there."""
    rng = np.random.default_rng(10)
    covariance = FAMILIES[name].build(host, rng)
    prior = DensePrecision(definite(rng))
    B = covariance.B if name.startswith("inverse") else Dense(rng.standard_normal((L + 3, L)))
    s = rng.uniform(0.1, 3.0, B.rows)
    state = covariance.at(covariance.start(prior, B, s), prior)
    KL, data = state.gradient(), 0.5 * state.variances(B).pullback(s)
    assert np.linalg.norm(KL + data) < 1e-11 * np.linalg.norm(KL)


@pytest.mark.parametrize("R", [2, L])
def test_start_of_a_low_rank_factor(R):
    rng = np.random.default_rng(11)
    prior, B = DensePrecision(definite(rng)), Dense(rng.standard_normal((L + 3, L)))
    s = rng.uniform(0.1, 3.0, L + 3)
    X = LowRank(R).start(prior, B, s)
    P = prior.Lambda + B.B.T @ (s[:, None] * B.B)
    assert error(X.T @ P @ X, np.eye(R)) < 1e-12
    leading = np.linalg.eigh(prior.Lambda)[1][:, :R]
    lost = X - leading @ (leading.T @ X)
    assert np.linalg.norm(lost) < 0.2 * np.linalg.norm(X)


def test_start_of_sites_for_a_map_of_its_own():
    prior = DiagonalPrecision(np.ones(L))
    p = InverseDiagonal(Identity(L)).start(prior, Dense(np.ones((2, L))), np.array([[1.0, 3.0]]))
    np.testing.assert_array_equal(p, np.full((1, L), 2.0))


def test_natural_metrics():
    """P⁻¹ undoes the Fisher metric, where that is known in closed form."""
    rng = np.random.default_rng(12)
    covariance, prior, S, _ = build("full")
    state, M = covariance.at(S, prior), definite(rng)
    assert error(state.natural(state.hvp(M)), M) < 1e-12
    covariance, prior, X, _ = build("cholesky")
    state, T = covariance.at(X, prior), np.tril(rng.standard_normal((L, L)))
    images = [state.natural(E.reshape(L, L)).ravel() for E in np.eye(L * L)]
    step = (X @ T).ravel()
    lower = np.tril(np.ones((L, L))).ravel() > 0
    metric = np.linalg.inv(np.stack(images)[np.ix_(lower, lower)])
    want = 2 * np.sum(np.diag(T) ** 2) + np.sum(np.tril(T, -1) ** 2)
    assert abs(step[lower] @ metric @ step[lower] - want) < 1e-10 * want
    for name in ("basis-wide", "convolutional"):
        covariance, prior, v, _ = build(name)
        state, u = covariance.at(v, prior), rng.standard_normal(v.shape)
        assert error(state.natural(state.hvp(u)), u) < 1e-12
    covariance, prior, p, _ = build("inverse-dense")
    state, u = covariance.at(p, prior), rng.standard_normal(p.shape)
    Sy = covariance.B.B @ state.dense() @ covariance.B.B.T
    assert error(state.natural(0.5 * Sy**2 @ u), u) < 1e-5
    covariance, prior, X, _ = build("lowrank-3")
    state, G = covariance.at(X, prior), rng.standard_normal(X.shape)
    assert error(state.natural(G), np.linalg.solve(prior.Lambda, G)) < 1e-12
    assert error(state.natural(G, lambda V: 2.0 * V), 2.0 * G) < 1e-15
