"""Free energies, fixed points and evidence against differences, autodiff and each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from gplvm_xp import backend, datasets, kernels, likelihoods, optim
from gplvm_xp import posteriors as post
from gplvm_xp.operators import (
    Circulant,
    Dense,
    DensePrecision,
    DiagonalPrecision,
    GramPrecision,
    Hartley,
    Identity,
)
from gplvm_xp.testing import check_gradient, check_hvp
from gplvm_xp.variational import (
    Covariance,
    DenseEvidence,
    FreeEnergy,
    GridEvidence,
    Information,
    Observations,
    fixed_point,
    natural_gradient,
)

L, N = 5, 8
RNG = np.random.default_rng(3)
FACTOR = RNG.standard_normal((L, L))
LAMBDA = FACTOR @ FACTOR.T + np.eye(L)
B = RNG.standard_normal((N, L))
OFFSET, WEIGHTS = 0.3 * RNG.standard_normal(N), RNG.uniform(0.5, 2.0, N)
MEAN = RNG.standard_normal(L)
ROTATION = np.linalg.qr(RNG.standard_normal((L, L)))[0]

LIKELIHOODS = {
    "gaussian": (likelihoods.Gaussian(0.5), RNG.standard_normal(N), None),
    "poisson": (likelihoods.Poisson(), RNG.poisson(2.0, N), RNG.uniform(0.5, 2.0, N)),
    "probit": (likelihoods.BernoulliProbit(), RNG.integers(0, 2, N), None),
    "quasi": (likelihoods.ProbitQuasi(), RNG.integers(0, 2, N), None),
    "logit": (likelihoods.BernoulliLogit(), RNG.integers(0, 2, N), None),
    "binomial": (likelihoods.BinomialLogit(), RNG.integers(0, 5, N), np.full(N, 5.0)),
    "negative_binomial": (likelihoods.NegativeBinomial(2.0), RNG.poisson(2.0, N), None),
    "student_t": (likelihoods.StudentT(4.0, 0.5), RNG.standard_normal(N), None),
}
COVARIANCE_A = np.random.default_rng(4).standard_normal((4, L))
COVARIANCES = {
    "full": lambda b: post.Full(),
    "low_rank": lambda b: post.LowRank(3),
    "factor": lambda b: post.LowRank(L),
    "cholesky": lambda b: post.Cholesky(),
    "basis": lambda b: post.BasisDiagonal(b(COVARIANCE_A)),
    "inverse": lambda b: post.InverseDiagonal(Dense(b(B))),
    "subspace": lambda b: post.Subspace(Dense(b(ROTATION))),
    "general": lambda b: post.Subspace(Dense(b(ROTATION)), triangular=False),
}
# The families that contain the best Gaussian.
COMPLETE = ("full", "factor", "cholesky", "inverse", "subspace", "general")


def observations(name, put=np.asarray, lead=()):
    likelihood, y, exposure = LIKELIHOODS[name]
    y, exposure = np.broadcast_to(y, (*lead, N)).astype(float), exposure
    return Observations(
        likelihood, put(y), put(WEIGHTS), None if exposure is None else put(exposure), put(OFFSET)
    )


def problem(covariance, likelihood, put=np.asarray):
    return FreeEnergy(
        DensePrecision(put(LAMBDA)),
        Dense(put(B)),
        COVARIANCES[covariance](put),
        observations(likelihood, put),
        mean=put(MEAN),
    )


def away(free, scale=0.03, seed=0):
    x = free.start()
    return x + scale * np.random.default_rng(seed).standard_normal(x.shape)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gradient_and_hvp_of_the_free_energy(covariance, likelihood):
    free = problem(covariance, likelihood)
    # A covariance itself is soon indefinite.
    scale, step = (1e-4, 1e-5) if covariance == "full" else (0.03, 1e-3)
    x = away(free, scale)
    check_gradient(lambda x: (free.at(x).value, free.at(x).gradient()), x, rtol=1e-7, step=step)
    check_hvp(
        lambda x: free.at(x).gradient(), lambda x, u: free.at(x).hvp(u), x, rtol=1e-7, step=step
    )


def torch_free_energy(covariance, x):
    """𝓕 of a Poisson model written down independently, for autodiff."""
    torch = pytest.importorskip("torch")
    t = torch.as_tensor
    mu, flat = x[:L], x[L:]
    lower = torch.tril_indices(L, L)

    def triangle(v):
        return torch.zeros(L, L, dtype=x.dtype).index_put((lower[0], lower[1]), v)

    Lam, Bt = t(LAMBDA), t(B)
    if covariance == "full":
        T = triangle(flat)
        Sigma = T + T.T - torch.diag(torch.diag(T))
    elif covariance in ("low_rank", "factor"):
        X = flat.reshape(L, -1)
        Sigma = X @ X.T
    elif covariance == "cholesky":
        Sigma = triangle(flat) @ triangle(flat).T
    elif covariance == "basis":
        A = t(COVARIANCE_A)
        Sigma = A.T @ torch.diag(torch.exp(flat)) @ A
    elif covariance == "inverse":
        Sigma = torch.linalg.inv(Lam + Bt.T @ torch.diag(flat) @ Bt)
    else:
        Q = triangle(flat) if covariance == "subspace" else flat.reshape(L, L)
        Sigma = t(ROTATION) @ Q @ Q.T @ t(ROTATION).T
    if covariance == "low_rank":
        logdet = torch.logdet(X.T @ X)
    elif covariance == "basis":
        logdet = torch.sum(flat) + torch.logdet(A @ A.T)
    else:
        logdet = torch.logdet(Sigma)
    delta = mu - t(MEAN)
    kl = 0.5 * (delta @ Lam @ delta + torch.trace(Lam @ Sigma) - logdet - torch.logdet(Lam) - L)
    _, y, exposure = LIKELIHOODS["poisson"]
    y, n = t(y.astype(float)), t(exposure)
    m = Bt @ mu + t(OFFSET)
    v = torch.diag(Bt @ Sigma @ Bt.T)
    ell = y * (m + torch.log(n)) - n * torch.exp(m + 0.5 * v) - torch.lgamma(y + 1.0)
    return kl - torch.sum(t(WEIGHTS) * ell)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_free_energy_against_autodiff(covariance):
    torch = pytest.importorskip("torch")
    free = problem(covariance, "poisson")
    x = away(free, 1e-4 if covariance == "full" else 0.03)
    u = np.random.default_rng(1).standard_normal(x.shape)
    point = free.at(x)

    def function(z):
        return torch_free_energy(covariance, z)

    z = torch.tensor(x, requires_grad=True)
    want = function(z)
    (gradient,) = torch.autograd.grad(want, z, create_graph=True)
    (hvp,) = torch.autograd.grad(gradient @ torch.as_tensor(u), z)
    np.testing.assert_allclose(point.value, want.item(), rtol=1e-12)
    for got, oracle in ((point.gradient(), gradient.detach()), (point.hvp(u), hvp)):
        error = np.linalg.norm(got - oracle.numpy()) / np.linalg.norm(oracle.numpy())
        assert error < 1e-11


def test_the_problem_runs_on_every_library(case):
    for covariance in COVARIANCES:
        here = problem(covariance, "poisson", case.asarray)
        there = problem(covariance, "poisson")
        x = away(there, 1e-4)
        u = np.random.default_rng(1).standard_normal(x.shape)
        got, want = here.at(case.asarray(x)), there.at(x)
        rtol = case.tolerance(1e-9, 3e-2)
        np.testing.assert_allclose(case.to_numpy(got.value), want.value, rtol=rtol)
        for a, c in (
            (got.gradient(), want.gradient()),
            (got.hvp(case.asarray(u)), want.hvp(u)),
            (got.precondition(case.asarray(u)), want.precondition(u)),
        ):
            scale = np.abs(c).max()
            np.testing.assert_allclose(case.to_numpy(a), c, rtol=rtol, atol=rtol * scale)


# -- all reach the same optimum --------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_complete_family_and_solver_has_one_optimum(likelihood):
    data = observations(likelihood)
    prior = DensePrecision(LAMBDA)
    best = fixed_point(Information(prior, Dense(B), B, MEAN), data, tol=1e-11)
    assert best.status == "converged"
    for covariance in COMPLETE:
        free = problem(covariance, likelihood)
        found = optim.newton_krylov(free.at, free.start(), gtol=1e-9)
        assert found.status in ("converged", "precision"), (covariance, found.message)
        np.testing.assert_allclose(found.value, best.free_energy, rtol=1e-11)
        np.testing.assert_allclose(free.at(found.x).m, best.m, atol=1e-6)
    # p = s at the optimum (Opper & Archambeau).
    np.testing.assert_allclose(best.p, best.terms.s, rtol=1e-7, atol=1e-8)
    whole = natural_gradient(
        prior, Dense(B), data, batch_size=N, epochs=200, rate=lambda step: 0.7, mean=MEAN
    )
    np.testing.assert_allclose(whole.free_energy, best.free_energy, rtol=1e-9)
    # A diagonal in some other basis is a restriction, and does worse.
    free = FreeEnergy(prior, Dense(B), post.BasisDiagonal(ROTATION), data, mean=MEAN)
    poor = optim.newton_krylov(free.at, free.start())
    assert poor.status in ("converged", "precision")
    assert poor.value > best.free_energy + 1e-3


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_covariance_and_precision_engines_agree(likelihood):
    rng = np.random.default_rng(5)
    A = rng.standard_normal((N, N))
    K = A @ A.T + 0.5 * np.eye(N)
    data = observations(likelihood)
    mean = rng.standard_normal(N)
    dense = fixed_point(Covariance(K, mean), data, tol=1e-11)
    other = fixed_point(Information(GramPrecision(K), Identity(N), K, mean), data, tol=1e-11)
    assert other.status == "converged"
    if likelihood == "student_t" and np.any(other.p < 0.0):
        # The covariance form holds sites at 0 or above.
        assert dense.free_energy >= other.free_energy - 1e-9
        return
    np.testing.assert_allclose(dense.free_energy, other.free_energy, rtol=1e-10)
    np.testing.assert_allclose(dense.m, other.m, atol=1e-7)
    np.testing.assert_allclose(dense.v, other.v, rtol=1e-7)


def test_gaussian_free_energy_is_minus_the_evidence():
    likelihood, y, _ = LIKELIHOODS["gaussian"]
    found = fixed_point(
        Information(DensePrecision(LAMBDA), Dense(B), B, MEAN),
        Observations(likelihood, y, offset=OFFSET),
    )
    C = B @ np.linalg.inv(LAMBDA) @ B.T + likelihood.variance * np.eye(N)
    want = stats.multivariate_normal(B @ MEAN + OFFSET, C).logpdf(y)
    np.testing.assert_allclose(-found.free_energy, want, rtol=1e-12)


@pytest.mark.parametrize("likelihood", [k for k in LIKELIHOODS if k != "quasi"])
def test_the_free_energy_bounds_the_evidence(likelihood):
    model, y, exposure = LIKELIHOODS[likelihood]
    y = y[:1].astype(float)
    n = None if exposure is None else exposure[:1]
    found = fixed_point(
        Information(DiagonalPrecision(np.array([0.5])), Identity(1), y),
        Observations(model, y, exposure=n),
    )
    evidence = integrate.quad(
        lambda f: np.exp(
            model.log_prob(y, np.array([f]), exposure=n)[0] + stats.norm(0, np.sqrt(2.0)).logpdf(f)
        ),
        -15.0, 15.0, points=[0.0, y[0]], limit=400, epsabs=1e-13,
    )[0]  # fmt: skip
    gap = np.log(evidence) + found.free_energy
    assert gap >= -1e-9
    assert gap < 0.2


# -- hyperparameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_envelope_gradient_of_the_dense_evidence(likelihood):
    rng = np.random.default_rng(6)
    data = observations(likelihood)
    X = rng.standard_normal((N, 2))
    kernel = kernels.Matern52(1.0, (1.0, 2.0)) + kernels.Constant(0.3)
    evidence = DenseEvidence(kernel, X, data, mean=0.2, fit_mean=True, tol=1e-13)
    check_gradient(evidence.value_and_grad, evidence.start(), rtol=1e-7)


@pytest.mark.parametrize("periods", [(6,), (4, 5), (3, 4, 2)])
def test_envelope_gradient_of_the_grid_evidence(periods):
    rng = np.random.default_rng(7)
    n = int(np.prod(periods))
    data = Observations(
        likelihoods.NegativeBinomial(3.0),
        rng.poisson(2.0, (2, n)).astype(float),
        weights=(rng.uniform(size=n) > 0.2).astype(float),
        exposure=rng.uniform(0.5, 2.0, n),
    )
    kernel = kernels.RBF(0.8, 1.2) + kernels.Matern52(0.3, 0.9)
    evidence = GridEvidence(
        kernel, periods, (1.0,) * len(periods), data, mean=np.array([0.1, -0.2]), threshold=0.0,
        tol=1e-13,
    )  # fmt: skip
    check_gradient(evidence.value_and_grad, evidence.start(), rtol=1e-7)


# -- the Hartley fit -------------------------------------------------------------------------------


def test_worked_rate_map_to_nine_digits():
    """The published example with its transposed variances put right; data is not shipped."""
    try:
        reference = datasets.load_grid_reference()
    except OSError as error:
        pytest.skip(f"no reference data: {error}")
    z = {**reference.extra}
    n, k = z["visits"].astype(float), z["counts"].astype(float)
    # Rows of that example are cos − sin: ours at the opposite frequencies.
    basis = Hartley(n.shape, -np.asarray(z["basis_index"], dtype=int))
    seen = n.ravel() > 0.0
    data = Observations(
        likelihoods.Poisson(), np.where(seen, k.ravel(), 0.0), seen.astype(float), n.ravel(),
        np.asarray(z["prior_mean"], dtype=float).ravel(),
    )  # fmt: skip
    found = fixed_point(
        Information(DiagonalPrecision(1.0 / np.asarray(z["prior_variance"])), basis, n), data
    )
    assert found.status == "converged"
    # The reference leaves out Σ [k ln n − ln k!].
    from scipy.special import gammaln

    dropped = np.sum((k * np.log(np.where(n > 0, n, 1.0)) - gammaln(k + 1.0))[n > 0])
    np.testing.assert_allclose(-found.free_energy - dropped, float(z["elbo"]), rtol=1e-9)
    np.testing.assert_allclose(found.mu, z["post_u"], atol=1e-6)
    np.testing.assert_allclose(found.v.reshape(n.shape), z["post_var"], rtol=2e-5)


def grid_problem(rng, shape=(6, 8), count=9, constant=1e3, factor=1.0):
    basis = Hartley.of_spectrum(_bumps(shape), 0.02)
    s = _bumps(shape).ravel()[basis.places]
    s = np.where(basis.places == 0, constant, s)
    truth = basis.apply(np.sqrt(np.minimum(s, 1.0)) * rng.standard_normal(basis.cols))
    y = rng.poisson(factor * np.exp(truth)).astype(float)
    return DiagonalPrecision(1.0 / s), basis, Observations(likelihoods.Poisson(), y)


def _bumps(shape):
    grid = np.meshgrid(*[np.minimum(np.arange(n), n - np.arange(n)) for n in shape], indexing="ij")
    return 4.0 * np.exp(-0.5 * sum(g.astype(float) ** 2 for g in grid))


def test_hartley_fit_by_newton_and_by_sites():
    prior, basis, data = grid_problem(np.random.default_rng(8))
    found = fixed_point(Information(prior, basis, data.y), data, tol=1e-11)
    for covariance in (post.Cholesky(), post.InverseDiagonal(basis), post.Full()):
        free = FreeEnergy(prior, basis, covariance, data)
        result = optim.newton_krylov(free.at, free.start(), gtol=1e-8)
        np.testing.assert_allclose(result.value, found.free_energy, rtol=1e-10)
    explicit = fixed_point(Information(prior, Dense(basis.basis().T), data.y), data, tol=1e-11)
    np.testing.assert_allclose(explicit.free_energy, found.free_energy, rtol=1e-12)


def test_the_natural_metric_saves_cg_steps():
    """A nearly free constant and forty-fold counts, on a ring of 48 cells with 15 frequencies."""
    rng = np.random.default_rng(5)
    k = np.fft.fftfreq(48, 1.0 / 48)
    s = 6.0 * np.exp(-0.5 * (k / 3.0) ** 2) + 1e-3
    keep = np.flatnonzero(np.abs(k) <= 7)
    basis = Hartley((48,), keep[:, None])
    truth = basis.apply(np.sqrt(s[keep]) * rng.standard_normal(15))
    visits = 40.0 * rng.integers(0, 6, 48) * (rng.uniform(size=48) < 0.7)
    y = rng.poisson(visits * np.exp(0.3 * truth + 0.2)).astype(float)
    s[0] = 1e3
    data = Observations(
        likelihoods.Poisson(), y, (visits > 0).astype(float), visits, np.full(48, 0.2)
    )
    prior = DiagonalPrecision(1.0 / s[keep])
    free = FreeEnergy(prior, basis, post.Cholesky(), data)
    start = free.start(np.zeros(15), np.diag((1.0 / s[keep] + np.mean(visits)) ** -0.5))
    hvps, values = {}, []
    for on in (True, False):
        result = optim.newton_krylov(
            free.at, start, gtol=1e-6, preconditioned=on, max_cg=2000, max_steps=300
        )
        hvps[on] = int(result.hvps)
        values.append(result.value)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)
    assert 4 * hvps[True] <= hvps[False], hvps


def test_families_without_a_matrix_on_a_grid():
    """A blurred diagonal and a low-rank factor under a circulant prior: nothing of L × L."""
    rng = np.random.default_rng(15)
    shape = (12, 16)
    s = _bumps(shape)
    prior = Circulant(shape, s)
    data = Observations(likelihoods.Poisson(), rng.poisson(1.5, 192).astype(float))
    blur = (0.25 * s) ** 0.2
    for covariance in (post.Convolutional(shape, blur), post.LowRank(6)):
        free = FreeEnergy(prior, Identity(192), covariance, data, metric="circulant")
        other = FreeEnergy(prior, Identity(192), covariance, data)
        found = optim.newton_krylov(free.at, free.start(), gtol=1e-7)
        dense = optim.newton_krylov(other.at, free.start(), gtol=1e-7)
        assert found.status in ("converged", "precision")
        np.testing.assert_allclose(found.value, dense.value, rtol=1e-9)
        plain = optim.newton_krylov(free.at, free.start(), gtol=1e-7, preconditioned=False)
        assert found.hvps < 0.5 * plain.hvps
    with pytest.raises(ValueError, match="circulant"):
        FreeEnergy(
            DensePrecision(np.eye(192)), Identity(192), post.Full(), data, metric="circulant"
        )


def _wrong(**changes):
    given = {"y": np.ones(4), "weights": None, "exposure": None, "offset": None} | changes
    return lambda: Observations(likelihoods.Poisson(), **given)


ENGINE = Information(DiagonalPrecision(np.ones(4)), Identity(4), np.ones(4))
WRONG = {
    "weights": (_wrong(weights=np.ones(3)), ValueError, "weights has shape"),
    "exposure": (_wrong(exposure=np.ones((2, 4))), ValueError, "exposure has shape"),
    "integers": (_wrong(y=np.ones(4, dtype=int)), TypeError, "real floating"),
    "list": (_wrong(y=[1.0, 2.0]), TypeError, "array"),
    "short": (
        lambda: fixed_point(ENGINE, Observations(likelihoods.Poisson(), np.ones(1))),
        ValueError, "each",
    ),
    "map": (
        lambda: Information(DiagonalPrecision(np.ones(3)), Identity(4), np.ones(4)),
        ValueError, "order 3",
    ),
    "free": (
        lambda: FreeEnergy(
            DiagonalPrecision(np.ones(4)), Identity(4), post.Cholesky(),
            Observations(likelihoods.Poisson(), np.ones(1)),
        ),
        ValueError, "order",
    ),
    "rate": (
        lambda: natural_gradient(
            DiagonalPrecision(np.ones(4)), Dense(np.eye(4)),
            Observations(likelihoods.Poisson(), np.ones(4)), batch_size=2, rate=lambda k: np.nan,
        ),
        ValueError, "step length",
    ),
    "no matrix": (
        lambda: natural_gradient(
            DiagonalPrecision(np.ones(4)), Identity(4),
            Observations(likelihoods.Poisson(), np.ones(4)), batch_size=2,
        ),
        TypeError, "Dense",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name):
    call, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        call()


def test_an_indefinite_prior_is_no_prior():
    Lam = np.diag([1.0, 1.0, -3.0])
    with np.errstate(invalid="ignore"):
        prior = DensePrecision(Lam)
        thetas = {
            post.Cholesky(): np.eye(3), post.Full(): np.eye(3), post.LowRank(2): np.eye(3)[:, :2],
            post.InverseDiagonal(Identity(3)): np.full(3, 4.0),
        }  # fmt: skip
        for covariance, theta in thetas.items():
            assert covariance.at(theta, prior).kl() == np.inf


# -- batches, ends, hard cases ---------------------------------------------------------------------


def test_a_batch_is_its_members_one_by_one():
    rng = np.random.default_rng(10)
    Y = rng.poisson(2.0, (3, N)).astype(float)
    prior = DensePrecision(LAMBDA)

    def run(y):
        data = Observations(likelihoods.Poisson(), y, WEIGHTS, offset=OFFSET)
        return fixed_point(Information(prior, Dense(B), B, MEAN), data)

    together = run(Y)
    for k in range(3):
        alone = run(Y[k])
        np.testing.assert_allclose(together.free_energy[k], alone.free_energy, rtol=1e-12)
        np.testing.assert_allclose(together.v[k], alone.v, rtol=1e-9)
        assert together.steps[k] == alone.steps
    data = Observations(likelihoods.Poisson(), Y, WEIGHTS, offset=OFFSET)
    free = FreeEnergy(prior, Dense(B), post.Cholesky(), data, mean=MEAN)
    result = optim.newton_krylov(free.at, free.start())
    np.testing.assert_allclose(result.value, together.free_energy, rtol=1e-11)


def test_a_large_batch_is_cut_without_a_trace(monkeypatch):
    rng = np.random.default_rng(13)
    Y = rng.poisson(2.0, (7, 12)).astype(float)
    seen = (rng.uniform(size=(7, 12)) > 0.2).astype(float)
    data = Observations(likelihoods.Poisson(), Y, seen, offset=rng.standard_normal((7, 1)))
    mean = np.linspace(-0.5, 0.5, 7)

    def run(step, callback=None):
        monkeypatch.setattr(
            type(backend.of(Y)), "batches",
            lambda self, n, size: [slice(i, min(i + step, n)) for i in range(0, n, step)],
        )  # fmt: skip
        grid = GridEvidence(kernels.RBF(1.0, 1.5), (3, 4), (1.0, 1.0), data, mean=mean)
        grid.callback = callback
        dense = DenseEvidence(
            kernels.RBF(1.0, 1.5), rng2.standard_normal((12, 2)), data, mean=mean, fit_mean=True
        )
        dense.callback = callback
        return [(e.value_and_grad(e.start()), e.result) for e in (grid, dense)]

    rng2 = np.random.default_rng(14)
    whole = run(7)
    rng2 = np.random.default_rng(14)
    for (value, result), (want, known) in zip(run(3), whole, strict=True):
        np.testing.assert_allclose(value[0], want[0], rtol=1e-12)
        np.testing.assert_allclose(value[1], want[1], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(result.m, known.m, atol=1e-8)
        assert result.steps.tolist() == known.steps.tolist()
        assert result.converged.all()
    rng2 = np.random.default_rng(14)
    for value, result in run(3, lambda progress: progress.step == 2):
        assert result.status == "stopped"
        assert np.isfinite(value[0])
        assert 0 < result.steps[:3].max() <= 2
        assert not result.steps[3:].any()


def test_sites_on_every_library(case):
    want = fixed_point(
        Information(DensePrecision(LAMBDA), Dense(B), B, MEAN), observations("poisson")
    )
    put = case.asarray
    got = fixed_point(
        Information(DensePrecision(put(LAMBDA)), Dense(put(B)), put(B), put(MEAN)),
        observations("poisson", put),
        tol=case.tolerance(1e-8, 1e-3),
    )
    assert got.converged.all()
    rtol = case.tolerance(1e-9, 1e-3)
    np.testing.assert_allclose(got.free_energy, want.free_energy, rtol=rtol)
    np.testing.assert_allclose(case.to_numpy(got.v), want.v, rtol=10 * rtol)


def test_survives_a_start_that_overflows():
    data = Observations(likelihoods.Poisson(), np.array([0.0, 5.0, 800.0]))
    prior = DiagonalPrecision(np.full(3, 1e-2))
    found = fixed_point(Information(prior, Identity(3), data.y), data)
    assert found.status == "converged"
    assert found.rejected > 0
    np.testing.assert_allclose(np.exp(found.m[1:] + 0.5 * found.v[1:]), [5.0, 800.0], rtol=1e-2)
    free = FreeEnergy(prior, Identity(3), post.Cholesky(), data)
    far = free.start(np.array([-30.0, 30.0, -30.0]), 3.0 * np.eye(3))
    result = optim.newton_krylov(free.at, far, max_steps=300)
    np.testing.assert_allclose(result.value, found.free_energy, rtol=1e-9)


def test_newton_goes_on_where_the_fixed_point_gives_up():
    """A wide prior with empty cells makes the full step swing; few steps stand in for failure."""
    rng = np.random.default_rng(16)
    X = rng.uniform(-3.0, 3.0, (25, 1))
    y = rng.poisson(np.exp(np.sin(X[:, 0]))).astype(float)
    for likelihood in (likelihoods.Poisson(), likelihoods.StudentT(3.0, 0.5)):
        data = Observations(likelihood, y, offset=np.full(25, 0.1))
        kernel = kernels.RBF(25.0, 1.0)
        few = DenseEvidence(kernel, X, data, mean=0.3, jitter=1e-8, max_steps=4)
        many = DenseEvidence(kernel, X, data, mean=0.3, jitter=1e-8, max_steps=2000)
        got, polished = few.solve(few.start())
        want, known = many.solve(many.start())
        assert "Newton-Krylov" in polished.message
        assert known.converged.all()
        np.testing.assert_allclose(polished.free_energy, known.free_energy, rtol=1e-8)
        np.testing.assert_allclose(got.moments(X)[0], want.moments(X)[0], atol=1e-4)


def test_outliers_of_a_heavy_tailed_likelihood():
    rng = np.random.default_rng(11)
    X = np.linspace(0.0, 5.0, 30)[:, None]
    y = np.sin(X[:, 0]) + 0.05 * rng.standard_normal(30)
    y[[7, 20]] += 8.0
    evidence = DenseEvidence(
        kernels.RBF(1.0, 1.0), X, Observations(likelihoods.StudentT(3.0, 0.1), y)
    )
    posterior, result = evidence.solve(evidence.start())
    assert result.converged.all()
    assert result.p[7] < 0.05 * np.max(result.p)
    clean = np.delete(np.arange(30), [7, 20])
    assert np.abs(posterior.moments(X)[0] - np.sin(X[:, 0]))[clean].max() < 0.2


def test_masked_observations_say_nothing():
    y = np.array([1.0, np.nan, 3.0, 2.0])
    seen = np.array([1.0, 0.0, 1.0, 1.0])
    A = RNG.standard_normal((4, L))
    prior = DensePrecision(LAMBDA)
    masked = fixed_point(
        Information(prior, Dense(A), A),
        Observations(
            likelihoods.Poisson(), np.where(seen > 0, y, 0.0), seen, np.array([1.0, 0.0, 1, 1])
        ),
    )
    without = fixed_point(
        Information(prior, Dense(A[seen > 0]), A), Observations(likelihoods.Poisson(), y[seen > 0])
    )
    np.testing.assert_allclose(masked.free_energy, without.free_energy, rtol=1e-11)


def test_how_a_fixed_point_ends():
    engine = Information(DensePrecision(LAMBDA), Dense(B), B, MEAN)
    data = observations("poisson")
    told = []

    def stop(progress):
        told.append(progress)
        return progress.step == 2

    assert fixed_point(engine, data, callback=stop).status == "stopped"
    assert [p.step for p in told] == [0, 1, 2]
    assert fixed_point(engine, data, max_steps=1).status == "max_steps"
    assert fixed_point(engine, data, time_limit=0.0).status == "time_limit"

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    cut = fixed_point(engine, data, callback=interrupt)
    assert cut.status == "interrupted"
    assert cut.free_energy < cut.free_energies[0]
    whole = fixed_point(engine, data, sites=(cut.p, cut.y))
    assert whole.status == "converged"
    assert np.all(np.diff(whole.free_energies) <= 1e-9)
    with pytest.raises(ValueError, match="step_length"):
        fixed_point(engine, data, step_length=1.5)


def test_minibatches_come_close():
    rng = np.random.default_rng(12)
    A = rng.standard_normal((600, L)) / np.sqrt(L)
    y = rng.poisson(np.exp(A @ rng.standard_normal(L))).astype(float)
    prior, data = DensePrecision(LAMBDA), Observations(likelihoods.Poisson(), y)
    best = fixed_point(Information(prior, Dense(A), A), data)
    found = natural_gradient(prior, Dense(A), data, batch_size=50, epochs=30)
    assert found.status == "finished"
    assert 0.0 <= found.free_energy - best.free_energy < 0.5
    again = natural_gradient(prior, Dense(A), data, batch_size=50, epochs=30)
    assert found.free_energy == again.free_energy
    with pytest.raises(ValueError, match="batch_size"):
        natural_gradient(prior, Dense(A), data, batch_size=0)
    with pytest.raises(ValueError, match="shape"):
        natural_gradient(prior, Dense(A[:5]), data, batch_size=2)
