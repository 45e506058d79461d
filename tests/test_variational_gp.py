"""VariationalGP: what it computes against independent answers, and what it refuses."""

from __future__ import annotations

import pickle
import re
import warnings

import numpy as np
import pytest
from conftest import open_case, why_not
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process import kernels as theirs
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gplvm_xp
from gplvm_xp import VariationalGP, backend, datasets
from gplvm_xp.errors import ModelFileError, NotEnoughMemoryError, NotPositiveDefiniteError
from gplvm_xp.kernels import RBF, ActiveDims, Constant, Linear, Matern52, Periodic, White
from gplvm_xp.likelihoods import (
    BernoulliLogit,
    BernoulliProbit,
    BinomialLogit,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ProbitQuasi,
    StudentT,
)

# Every likelihood by name, with an object that is not the default.
LIKELIHOODS = {
    "gaussian": Gaussian(0.05),
    "student_t": StudentT(3.0, 0.2),
    "probit": BernoulliProbit(60),
    "logit": BernoulliLogit(60),
    "probit_quasi": ProbitQuasi(),
    "poisson": Poisson(),
    "negative_binomial": NegativeBinomial(4.0),
    "binomial": BinomialLogit(60),
}
CLASSIFIERS = ("probit", "logit", "probit_quasi")
KERNEL = RBF(1.2, 0.9)


def inputs(n=30, q=2, seed=0):
    return np.random.default_rng(seed).uniform(-2.0, 2.0, (n, q))


def function(X):
    return np.sin(1.5 * X[:, 0]) + 0.5 * X[:, -1]


def observed(name, X, seed=1):
    """Targets of a kind for these inputs, and the exposure where it has one."""
    rng, f = np.random.default_rng(seed), function(X)
    n = f.size
    if name in CLASSIFIERS:
        return np.where(f + 0.4 * rng.standard_normal(n) > 0.0, "yes", "no"), None
    if name == "gaussian":
        return f + 0.2 * rng.standard_normal(n), None
    if name == "student_t":
        return f + 0.2 * rng.standard_t(3.0, n), None
    e = rng.integers(1, 6, n).astype(float)
    if name == "binomial":
        return rng.binomial(e.astype(int), 1.0 / (1.0 + np.exp(-f))).astype(float), e
    if name == "poisson":
        return rng.poisson(e * np.exp(f)).astype(float), e
    return rng.poisson(e * np.exp(f) * rng.gamma(4.0, 0.25, n)).astype(float), e


def fixed(name, **options):
    """A model whose hyperparameters stay where they start."""
    return VariationalGP(KERNEL, LIKELIHOODS[name], **{"optimize": False, **options})


def fitted(name, **options):
    X = inputs()
    y, e = observed(name, X)
    return fixed(name, **options).fit(X, y, exposure=e)


def says(words):
    """A pattern that wants all the words, in any order."""
    return "".join(rf"(?=[\s\S]*{re.escape(word)})" for word in words)


# -- a Gaussian likelihood is the exact Gaussian process -------------------------------------------


@pytest.mark.parametrize("noise", [0.3, 1e-3, 1e-7])
@pytest.mark.parametrize("mean", [0.0, None])
def test_gaussian_is_the_exact_gaussian_process(noise, mean):
    """Two independent answers: dense formulas, and scikit-learn's regressor."""
    X, Z = inputs(40), inputs(25, seed=5)
    y = observed("gaussian", X)[0] + (3.0 if mean is None else 0.0)
    model = VariationalGP(
        RBF(1.3, 1.1), Gaussian(noise), optimize=False, fit_mean=mean is None, jitter=0.0
    ).fit(X, y)
    centre = y.mean() if mean is None else 0.0
    assert np.isclose(model.mean_, centre, rtol=1e-14)

    def k(A, B):
        return 1.3 * np.exp(-0.5 * np.sum((A[:, None] - B[None]) ** 2, axis=-1) / 1.1**2)

    K = k(X, X) + noise * np.eye(40)
    solved = np.linalg.solve(K, np.column_stack([y - centre, k(X, Z)]))
    m, v = model.latent(Z)
    assert np.allclose(m, centre + k(Z, X) @ solved[:, 0], atol=1e-8)
    assert np.allclose(v, 1.3 - np.sum(k(X, Z) * solved[:, 1:], axis=0), atol=1e-8)
    log = stats.multivariate_normal(np.full(40, centre), K).logpdf(y)
    assert np.isclose(-model.free_energy_, log, rtol=1e-8)

    exact = GaussianProcessRegressor(
        theirs.ConstantKernel(1.3) * theirs.RBF(1.1), alpha=noise, optimizer=None
    ).fit(X, y - centre)
    other, sd = exact.predict(Z, return_std=True)
    assert np.allclose(m, centre + other, atol=1e-8)
    assert np.allclose(v, sd**2, atol=1e-8)
    assert np.isclose(-model.free_energy_, exact.log_marginal_likelihood_value_, rtol=1e-8)

    mean_, variance = model.predict(Z, return_var=True)
    assert np.allclose(mean_, m, atol=1e-13)
    assert np.allclose(variance, v + noise, atol=1e-13)


def test_gaussian_learns_what_the_exact_evidence_likes_best():
    """The optimum of the marginal likelihood by another optimiser on another formula."""
    from scipy.optimize import minimize

    X = inputs(40)
    y = observed("gaussian", X)[0] + 2.0
    model = VariationalGP(jitter=0.0, tol=1e-6).fit(X, y)

    def lost(t):
        r2 = np.sum((X[:, None] - X[None]) ** 2, axis=-1)
        K = np.exp(t[0] - 0.5 * r2 * np.exp(-2.0 * t[1])) + np.exp(t[2]) * np.eye(40)
        return -stats.multivariate_normal(np.full(40, t[3]), K).logpdf(y)

    found = minimize(lost, [0.0, 0.0, -2.0, 2.0], method="L-BFGS-B", options={"ftol": 1e-14})
    learnt = [
        np.log(model.kernel_.variance), np.log(model.kernel_.lengthscale),
        np.log(model.likelihood_.variance), model.mean_,
    ]  # fmt: skip
    assert np.isclose(model.free_energy_, found.fun, atol=1e-6)
    assert np.allclose(learnt, found.x, atol=3e-3)


# -- against scikit-learn's Laplace classifier -----------------------------------------------------


def _compared(A, a, B, b, **options):
    """Held-out log loss: ours, and Laplace's with an isotropic RBF as well."""
    start = theirs.ConstantKernel(1.0, (1e-5, 1e6)) * theirs.RBF(
        np.sqrt(2.0 * A.shape[1]), (1e-3, 1e5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        laplace = GaussianProcessClassifier(start).fit(A, a)
    model = VariationalGP(**options).fit(A, a)
    assert model.status_ == "converged"
    p = model.predict_proba(B)
    assert np.isclose(model.log_score(B, b), -log_loss(b, p), atol=1e-10)
    return log_loss(b, p), log_loss(b, laplace.predict_proba(B))


@pytest.mark.parametrize("likelihood", ["probit", "logit"])
def test_breast_cancer_beats_laplace(likelihood):
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    train = np.random.default_rng(0).permutation(y.size) < 150
    ours, laplace = _compared(
        X[train], y[train], X[~train], y[~train], likelihood=likelihood, tol=1e-2
    )
    assert ours < laplace


@pytest.mark.parametrize("likelihood", ["probit", "logit"])
@pytest.mark.parametrize("name", ["ripley", "pima"])
def test_published_splits_beat_laplace(name, likelihood):
    try:
        data = datasets.load_binary(name, download=False)
    except FileNotFoundError as error:
        pytest.skip(f"the table is not here: {str(error).splitlines()[0]}")
    scaler = StandardScaler().fit(data.Y)
    ours, laplace = _compared(
        scaler.transform(data.Y), data.labels,
        scaler.transform(data.extra["Y_test"]), data.extra["labels_test"],
        likelihood=likelihood, tol=1e-2,
    )  # fmt: skip
    assert ours < laplace


# -- counts, outliers, trials ----------------------------------------------------------------------


def test_poisson_recovers_the_rate():
    rng = np.random.default_rng(3)
    X = rng.uniform(0.0, 6.0, (150, 1))
    e = rng.uniform(0.5, 4.0, 150)
    f = 1.0 + np.sin(X[:, 0])
    model = VariationalGP(likelihood="poisson").fit(X, rng.poisson(e * np.exp(f)), exposure=e)
    assert model.status_ == "converged"
    Z = np.linspace(0.2, 5.8, 60)[:, None]
    m, v = model.latent(Z)
    z = (m - 1.0 - np.sin(Z[:, 0])) / np.sqrt(v)
    assert np.sqrt(np.mean(z**2)) < 1.5
    assert np.sqrt(np.mean((m - 1.0 - np.sin(Z[:, 0])) ** 2)) < 0.15
    rate, spread = model.predict(Z, return_var=True)
    assert np.allclose(rate, np.exp(m + 0.5 * v), rtol=1e-12)
    assert np.allclose(spread, rate + rate**2 * np.expm1(v), rtol=1e-10)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_exposure_is_a_unit_of_the_rate(name):
    """Twice the exposure and the same counts are half the rate, and nothing else."""
    X = inputs()
    y, e = observed(name, X)
    one = fixed(name).fit(X, y, exposure=e)
    two = fixed(name).fit(X, y, exposure=2.0 * e)
    Z = inputs(9, seed=2)
    assert np.isclose(two.mean_, one.mean_ - np.log(2.0), atol=1e-14)
    assert np.allclose(two.latent(Z)[0], one.latent(Z)[0] - np.log(2.0), atol=1e-9)
    assert np.allclose(two.latent(Z)[1], one.latent(Z)[1], atol=1e-9)
    assert np.isclose(two.free_energy_, one.free_energy_, rtol=1e-10)
    assert np.allclose(two.predict(Z, exposure=2.0), one.predict(Z), rtol=1e-9)
    new = np.arange(9.0)
    assert np.allclose(one.predict(Z, exposure=new), new * one.predict(Z), rtol=1e-12)
    assert np.isclose(one.log_score(X, y, exposure=e), two.log_score(X, y, exposure=2.0 * e))
    assert one.score(X, y, exposure=e) > one.score(X, y)
    # One number stands for every row.
    assert fixed(name).fit(X, y, exposure=3.0).free_energy_ == pytest.approx(
        fixed(name).fit(X, y, exposure=np.full(30, 3.0)).free_energy_, rel=1e-14
    )


def test_rows_of_no_exposure_say_nothing():
    X = inputs()
    y, e = observed("poisson", X)
    y[:7] = e[:7] = 0.0
    all_rows, rest = (fixed("poisson").fit(X[i:], y[i:], exposure=e[i:]) for i in (0, 7))
    for a, b in zip(all_rows.latent(X), rest.latent(X), strict=True):
        assert np.allclose(a, b, atol=1e-8)
    assert np.isclose(all_rows.free_energy_, rest.free_energy_, rtol=1e-9)


def test_negative_binomial_beats_poisson_on_overdispersed_counts():
    rng = np.random.default_rng(4)
    X = rng.uniform(-2.0, 2.0, (200, 1))
    y = rng.poisson(np.exp(1.5 + np.sin(2.0 * X[:, 0])) * rng.gamma(1.0, 1.0, 200))
    scores = {}
    for name in ("poisson", "negative_binomial"):
        model = VariationalGP(likelihood=name, tol=1e-2).fit(X[:120], y[:120])
        scores[name] = model.log_score(X[120:], y[120:])
    assert scores["negative_binomial"] > scores["poisson"] + 0.05
    assert 0.5 < model.likelihood_.size < 2.0


def test_student_t_ignores_outliers():
    rng = np.random.default_rng(5)
    X = np.sort(rng.uniform(-2.0, 2.0, (60, 1)), axis=0)
    f = np.sin(2.0 * X[:, 0])
    y = f + 0.1 * rng.standard_normal(60)
    y[::10] += rng.choice([-5.0, 5.0], 6)
    error = {}
    for name in ("gaussian", "student_t"):
        model = VariationalGP(likelihood=name).fit(X, y)
        assert model.status_ == "converged"
        error[name] = np.sqrt(np.mean((model.latent(X, return_var=False) - f) ** 2))
    assert error["student_t"] < 0.1 < 0.5 * error["gaussian"]
    assert model.likelihood_.df < 3.0


def test_student_without_moments_predicts_the_median():
    model = fitted("student_t")
    Z = inputs(7, seed=3)
    for df, finite in ((0.7, False), (1.5, False), (2.5, True)):
        model.likelihood_ = StudentT(df, 0.2)
        mean, variance = model.predict(Z, return_var=True)
        assert np.array_equal(mean, model.latent(Z, return_var=False))
        assert np.isfinite(variance).all() == finite
        assert not np.isnan(variance).any()


def test_binomial_counts_are_so_many_labels():
    X = inputs(20)
    y, trials = observed("binomial", X)
    counts = fixed("binomial").fit(X, y, exposure=trials)
    labels = VariationalGP(KERNEL, BernoulliLogit(60), optimize=False).fit(
        np.repeat(X, 2, axis=0), np.tile([1, 0], 20),
        sample_weight=np.column_stack([y, trials - y]).ravel(),
    )  # fmt: skip
    for a, b in zip(counts.latent(X), labels.latent(X), strict=True):
        assert np.allclose(a, b, atol=1e-8)
    ways = -stats.binom(trials, 0.5).logpmf(y) - trials * np.log(2.0)
    assert np.isclose(counts.free_energy_ - ways.sum(), labels.free_energy_, rtol=1e-9)
    p = counts.predict(X)
    assert np.allclose(p, labels.predict_proba(X)[:, 1], atol=1e-8)
    assert np.allclose(counts.predict(X, exposure=7.0), 7.0 * p, rtol=1e-12)


# -- weights and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_weights_are_repetitions_and_zero_is_removal(name):
    X = inputs(20)
    y, e = observed(name, X)
    w = np.random.default_rng(6).integers(0, 4, 20)
    many = np.repeat(np.arange(20), w)
    weighted = fixed(name).fit(X, y, sample_weight=w, exposure=e)
    repeated = fixed(name).fit(X[many], y[many], exposure=None if e is None else e[many])
    assert weighted.X_train_.shape[0] == np.count_nonzero(w)
    assert np.isclose(weighted.mean_, repeated.mean_, atol=1e-13)
    assert np.isclose(weighted.free_energy_, repeated.free_energy_, rtol=1e-8)
    for a, b in zip(weighted.latent(X), repeated.latent(X), strict=True):
        assert np.allclose(a, b, atol=2e-7)


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - set(CLASSIFIERS)))
def test_columns_are_so_many_models(name):
    X, Z = inputs(), inputs(8, seed=3)
    e = observed(name, X)[1]
    Y = np.column_stack([observed(name, X, seed)[0] for seed in (1, 2, 3)])
    if e is not None:
        e, Y = 5.0 * np.ones_like(e), np.minimum(Y, 5.0)
    together = fixed(name, fit_mean=False).fit(X, Y, exposure=e)
    assert together.mean_.shape == together.free_energy_.shape == (3,)
    assert together.predict(Z).shape == (8, 3)
    assert together.sample(Z, 4, random_state=0).shape == (4, 8, 3)
    assert np.isfinite(together.score(X, Y, exposure=e))
    apart = [fixed(name, fit_mean=False).fit(X, Y[:, t], exposure=e) for t in range(3)]
    for t, one in enumerate(apart):
        assert np.isclose(together.free_energy_[t], one.free_energy_, rtol=1e-8)
        for a, b in zip(together.latent(Z), one.latent(Z), strict=True):
            assert np.allclose(a[:, t], b, atol=1e-7)
    mean = np.mean([one.log_score(X, Y[:, t], exposure=e) for t, one in enumerate(apart)])
    assert np.isclose(together.log_score(X, Y, exposure=e), mean, atol=1e-7)


def test_columns_have_their_own_means_and_learn_one_kernel():
    X = inputs(25)
    Y = np.column_stack([observed("gaussian", X, seed)[0] + 10.0 * seed for seed in (1, 2)])
    model = VariationalGP(tol=1e-2).fit(X, Y)
    assert np.allclose(model.mean_, [10.0, 20.0], atol=1.5)
    assert model.status_ == "converged"
    assert np.isclose(model.loss_curve_[-1], model.free_energy_.sum(), rtol=1e-6)


# -- predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_are_probabilities(name):
    model, Z = fitted(name), 3.0 * inputs(50, seed=7)
    p, log = model.predict_proba(Z), model.predict_log_proba(Z)
    assert p.shape == (50, 2)
    assert np.allclose(p.sum(axis=1), 1.0, atol=1e-15)
    assert np.allclose(np.exp(log), p, atol=1e-12)
    assert list(model.classes_) == ["no", "yes"]
    assert np.array_equal(model.predict(Z), model.classes_[np.argmax(p, axis=1)])
    assert np.allclose(model.decision_function(Z), log[:, 1] - log[:, 0])
    mean, _ = model.likelihood_.predict(*model.latent(Z))
    assert np.allclose(p[:, 1], mean, atol=1e-8)
    y = observed(name, Z)[0]
    assert np.isclose(model.log_score(Z, y), -log_loss(y, p, labels=["no", "yes"]), atol=1e-10)
    assert np.isclose(model.score(Z, y), np.mean(model.predict(Z) == y))


def test_log_score_is_that_of_the_predictive_density():
    model, Z = fitted("gaussian"), inputs(20, seed=8)
    y = observed("gaussian", Z)[0]
    m, v = model.predict(Z, return_var=True)
    assert np.isclose(model.log_score(Z, y), stats.norm(m, np.sqrt(v)).logpdf(y).mean(), atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson"])
def test_draws_have_the_moments_of_the_posterior(name):
    model, Z = fitted(name), inputs(5, seed=9)
    draws = model.sample(Z, 20000, random_state=0)
    m, v = model.latent(Z)
    assert draws.shape == (20000, 5)
    assert np.all(np.abs(draws.mean(axis=0) - m) < 5.0 * np.sqrt(v / 20000))
    assert np.allclose(draws.var(axis=0), v, rtol=5.0 * np.sqrt(2.0 / 20000))
    # A covariance, from variances: those of sums of two points need none of it.
    C = np.cov(draws.T)
    one, theta = model._post(), model._post().theta
    cross = KERNEL.gram(theta, one.X, Z)
    dense = KERNEL.gram(theta, Z) - cross.T @ one.inner @ cross
    assert np.allclose(C, dense, atol=0.06 * v.max())
    assert np.array_equal(draws, model.sample(Z, 20000, random_state=0))


def test_draws_at_equal_and_at_training_points():
    X = inputs(30)
    model = VariationalGP(KERNEL, Gaussian(1e-9), optimize=False, jitter=0.0).fit(X, function(X))
    draws = model.sample(np.concatenate([X, X]), 2000, random_state=0)
    assert np.allclose(draws[:, :30], draws[:, 30:], atol=1e-5)
    m, v = model.latent(X)
    assert v.max() < 1.1e-9
    joint = model._post().joint(X)[1]
    assert np.allclose(np.diag(joint), v, atol=1e-12)
    assert np.allclose(draws[:, :30].var(axis=0), v, rtol=0.2)
    assert np.allclose(draws[:, :30], m, atol=6.0 * np.sqrt(v.max()))


# -- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_from_end_to_end(name):
    X = inputs(40)
    y, e = observed(name, X)
    model = VariationalGP(likelihood=name, max_iter=200).fit(X, y, exposure=e)
    assert model.status_ == "converged"
    assert model.n_iter_ == model.loss_curve_.size - 1
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert np.all(np.diff(model.loss_curve_) < 1e-6)
    assert np.isclose(model.loss_curve_[-1], model.free_energy_, atol=1e-6)
    assert model.score(X, y, exposure=e) > 0.3
    start = VariationalGP(likelihood=name, optimize=False).fit(X, y, exposure=e)
    assert model.free_energy_ < start.free_energy_
    assert start.loss_curve_.tolist() == [start.free_energy_]


@pytest.mark.parametrize("name", ["student_t", "probit", "negative_binomial"])
def test_the_optimum_is_one(name):
    """Nearby hyperparameters, fitted anew without a search, are worse."""
    X = inputs(40)
    y, e = observed(name, X)
    model = VariationalGP(likelihood=name, fit_mean=False).fit(X, y, exposure=e)
    parts = (model.kernel_.theta(), model.likelihood_.theta())
    for part, place in [(k, i) for k in (0, 1) for i in range(parts[k].size)]:
        for factor in (0.9, 1.1):
            theta = [p.copy() for p in parts]
            theta[part][place] *= factor
            near = VariationalGP(
                model.kernel_.with_theta(theta[0]), model.likelihood_.with_theta(theta[1]),
                optimize=False, fit_mean=False,
            ).fit(X, y, exposure=e)  # fmt: skip
            assert near.free_energy_ > model.free_energy_ - 1e-7


def test_the_mean_is_the_best_constant():
    X = inputs(40)
    y, e = observed("poisson", X)
    model = VariationalGP(likelihood="poisson").fit(X, y, exposure=e)
    held = VariationalGP(model.kernel_, Poisson(), optimize=False, fit_mean=False)
    at = [
        held.fit(X, y, exposure=e * np.exp(model.mean_ + shift)).free_energy_.item()
        for shift in (-0.05, 0.0, 0.05)
    ]
    assert np.isclose(at[1], model.free_energy_, rtol=1e-9)
    assert min(at) == at[1]


@pytest.mark.parametrize("power", [3, 8, 20, 160])
def test_a_free_energy_of_labels_is_never_negative(power):
    """KL and −ln p are not, however badly the kernel's size is chosen."""
    X = inputs(40)
    labels = np.arange(40) % 2
    model = VariationalGP(RBF(10.0**power, 1.0), "probit", optimize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, labels)
    assert model.free_energy_ > 0.0


def test_fixed_parameters_stay():
    X = inputs(30)
    y = observed("gaussian", X)[0]
    model = VariationalGP(
        RBF(1.5, 0.8, fixed=("lengthscale",)), Gaussian(0.04, fixed=("variance",)), fit_mean=False
    ).fit(X, y)
    assert model.kernel_.lengthscale == 0.8
    assert model.likelihood_.variance == 0.04
    assert model.mean_ == 0.0
    assert model.kernel_.variance != 1.5
    held = VariationalGP(
        RBF(1.5, 0.8, fixed=("lengthscale", "variance")),
        Gaussian(0.04, fixed=("variance",)),
        fit_mean=False,
    ).fit(X, y)
    assert (held.n_iter_, held.status_) == (0, "converged")


KERNELS = {
    "sum": RBF(1.0, 1.0) + Linear(0.3) + Constant(0.5),
    "two of a kind": RBF(1.0, 0.5) + RBF(1.0, 3.0),
    "product": Matern52(1.0, 1.0) * Periodic(1.0, 1.0, 3.0),
    "dimensions": ActiveDims(Periodic(1.0, 1.0, 4.0), (0,)) + ActiveDims(Linear(0.5), (1,)),
    "relevance": RBF(1.0, (1.0, 1.0)),
    "scaled": 0.5 * RBF(1.0, 1.0) + White(0.01),
    "linear": Linear(1.0),
}


@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_compose(kernel, name, tmp_path):
    X, Z = inputs(25), inputs(6, seed=4)
    y, e = observed(name, X)
    model = VariationalGP(KERNELS[kernel], name, max_iter=3, tol=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y, exposure=e)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    # With two degrees of freedom or fewer Student's variance is infinite, rightly.
    assert np.isfinite(model.predict(Z, return_var=name != "student_t")).all()
    model.save(tmp_path / "model.npz")
    again = gplvm_xp.load(tmp_path / "model.npz")
    assert np.array_equal(again.predict(Z), model.predict(Z))
    assert again.kernel_ == model.kernel_


@pytest.mark.parametrize("name", ["gaussian", "student_t"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e6), (1e3, -1e7)])
def test_units_of_the_targets_do_not_matter(name, scale, shift):
    X = inputs(30)
    y = observed(name, X)[0]
    one = VariationalGP(likelihood=name).fit(X, y)
    two = VariationalGP(likelihood=name).fit(X, shift + scale * y)
    assert one.status_ == two.status_ == "converged"
    assert np.isclose(two.free_energy_, one.free_energy_ + 30 * np.log(scale), atol=1e-5)
    Z = inputs(7, seed=1)
    m, v = one.latent(Z)
    assert np.allclose((two.latent(Z)[0] - shift) / scale, m, atol=1e-3)
    assert np.allclose(two.latent(Z)[1] / scale**2, v, atol=1e-4)
    later = two.log_score(X, shift + scale * y) + np.log(scale)
    assert np.isclose(one.log_score(X, y), later, atol=1e-4)


def test_noise_that_vanishes_ends_the_search():
    """Of exact values the likelihood has no maximum; the fit says so, and interpolates."""
    X = np.linspace(-2.0, 2.0, 40)[:, None]
    Z = np.linspace(-1.9, 1.9, 11)[:, None]
    for name, error in (("gaussian", 1e-4), ("student_t", 1e-2)):
        with pytest.warns(ConvergenceWarning) as caught:
            model = VariationalGP(likelihood=name).fit(X, np.sin(2.0 * X[:, 0]))
        # Another may say that the posterior of so little noise is rough.
        assert re.search(says([name, "without noise", "fixed="]), str(caught[0].message))
        assert model.status_ == "failed"
        assert np.allclose(model.predict(Z), np.sin(2.0 * Z[:, 0]), atol=error)
        # No step jumps far below, where the free energy is rounding.
        values = model.likelihood_.theta()
        assert values[-1] > (1e-11 if name == "gaussian" else 1e-4) * np.var(np.sin(2.0 * X))
    held = VariationalGP(likelihood=Gaussian(1e-8, fixed=("variance",)), tol=1e-2)
    held.fit(X, np.sin(2.0 * X[:, 0]))
    assert held.status_ == "converged"
    assert np.allclose(held.predict(Z), np.sin(2.0 * Z[:, 0]), atol=1e-4)


def test_constant_targets_keep_the_start():
    X = inputs(12)
    for name in ("gaussian", "student_t"):
        for rows in (slice(None), slice(1)):
            with pytest.warns(ConvergenceWarning, match="constant"):
                model = VariationalGP(likelihood=name).fit(X[rows], np.full(12, 0.1)[rows])
            assert np.allclose(model.predict(X), 0.1, atol=1e-12)
            assert model.status_ == "failed"
    # Counts can be constant: their noise is no parameter.
    model = VariationalGP(likelihood="poisson").fit(X, np.zeros(12))
    assert model.predict(X).max() < 0.01


# -- ends of a fit ---------------------------------------------------------------------------------


def _usable(model, X, y):
    assert np.isfinite(model.free_energy_).all()
    assert np.isfinite(model.predict(X, return_var=True)).all()
    assert model.score(X, y) > 0.0


def test_a_callback_is_told_and_stops_without_a_warning():
    X = inputs()
    y = observed("gaussian", X)[0]
    seen = []
    model = VariationalGP(callback=lambda p: seen.append(p) or p.step >= 3).fit(X, y)
    assert (model.status_, model.n_iter_) == ("stopped", 3)
    assert [p.step for p in seen] == [0, 1, 2, 3]
    assert [p.value for p in seen] == list(model.loss_curve_)
    _usable(model, X, y)


def test_time_and_steps_run_out_with_a_warning():
    X = inputs()
    y = observed("gaussian", X)[0]
    for options, status, words in (
        ({"time_limit": 0.0}, "time_limit", "time_limit=0 s"),
        ({"max_iter": 2}, "max_steps", "raise max_iter=2"),
        ({"max_iter": 0}, "max_steps", "after 0 steps"),
    ):
        with pytest.warns(ConvergenceWarning, match=words):
            model = VariationalGP(**options).fit(X, y)
        assert model.status_ == status
        _usable(model, X, y)


def test_ctrl_c_keeps_the_best_state():
    X = inputs()
    y = observed("gaussian", X)[0]

    def interrupt(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match=says(["keyboard", "4 steps"])):
        model = VariationalGP(callback=interrupt).fit(X, y)
    assert (model.status_, model.n_iter_) == ("interrupted", 4)
    assert np.isclose(model.free_energy_, model.loss_curve_.min(), atol=1e-6)
    _usable(model, X, y)


@pytest.mark.parametrize("call", [1, 3, 60])
def test_ctrl_c_inside_an_evaluation(call, monkeypatch):
    """It reaches the outer search through the inner one."""
    X = inputs()
    y, e = observed("poisson", X)
    calls, expected = [], Poisson.expected_varying

    def counted(self, *args):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return expected(self, *args)

    monkeypatch.setattr(Poisson, "expected_varying", counted)
    with pytest.warns(ConvergenceWarning, match="keyboard"):
        model = VariationalGP(likelihood="poisson").fit(X, y, exposure=e)
    assert model.status_ == "interrupted"
    assert np.isfinite(model.predict(X)).all()


def test_progress_bar(capsys):
    X = inputs(15)
    VariationalGP(progress=True, tol=0.5).fit(X, observed("gaussian", X)[0])
    shown = capsys.readouterr().err
    assert "VariationalGP" in shown
    assert "objective=" in shown


def test_a_refused_fit_leaves_the_last_one():
    model, Z = fitted("poisson"), inputs(5, seed=2)
    before = model.predict(Z)
    with pytest.raises(ValueError, match="counts"):
        model.fit(inputs(10), np.full(10, 0.5))
    assert np.array_equal(model.predict(Z), before)


# -- files, copies, containers ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_files_and_pickles_give_the_same_bits(name, tmp_path):
    X, Z = inputs(25), inputs(7, seed=11)
    y, e = observed(name, X)
    w = np.random.default_rng(0).integers(0, 3, 25)
    model = VariationalGP(KERNEL, LIKELIHOODS[name], max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y, sample_weight=w, exposure=e)
    path = tmp_path / "model.npz"
    model.save(path)
    for again in (gplvm_xp.load(path), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(again.predict(Z), model.predict(Z))
        for a, b in zip(again.latent(Z), model.latent(Z), strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(
            again.sample(Z, 2, random_state=0), model.sample(Z, 2, random_state=0)
        )
        assert again.log_score(X, y, exposure=e) == model.log_score(X, y, exposure=e)
        assert (again.kernel_, again.likelihood_) == (model.kernel_, model.likelihood_)
        assert (again.status_, again.n_iter_) == (model.status_, model.n_iter_)
        assert np.array_equal(again.loss_curve_, model.loss_curve_)
        if name in CLASSIFIERS:
            assert list(again.classes_) == ["no", "yes"]
            assert np.array_equal(again.predict_log_proba(Z), model.predict_log_proba(Z))
    assert len(pickle.dumps(model)) < 8 * 25 * 25


@pytest.mark.parametrize("labels", [[False, True], [-3, 12], [0.5, 1.5], ["a", "ß"]])
def test_labels_survive(labels, tmp_path):
    X = inputs(20)
    y = np.array(labels)[(function(X) > 0.0).astype(int)]
    if np.array(labels).dtype.kind == "f":
        with pytest.raises(ValueError, match="continuous"):
            fixed("probit").fit(X, y)
        return
    model = fixed("probit").fit(X, list(y))
    model.save(tmp_path / "m.npz")
    for one in (model, gplvm_xp.load(tmp_path / "m.npz")):
        assert one.classes_.tolist() == labels
        assert np.mean(one.predict(X) == y) > 0.8


def test_columns_in_a_file(tmp_path):
    X = inputs(15)
    Y = np.column_stack([observed("student_t", X, seed)[0] for seed in (1, 2)])
    model = fixed("student_t").fit(X, Y)
    model.save(tmp_path / "m.npz")
    assert np.array_equal(gplvm_xp.load(tmp_path / "m.npz").predict(X), model.predict(X))


SPOILT = {
    "sites": ({"sites_": lambda a: a[:1]}, ["sites_", "(2, 30)"]),
    "sites of fewer rows": ({"sites_": lambda a: a[:, :9]}, ["sites_", "30"]),
    "mean": ({"mean_": lambda a: np.zeros(3)}, ["mean_", "()"]),
    "columns": ({"X_train_": lambda a: a[:, :1]}, ["n_features_in_", "2"]),
    "labels": ({"classes_": lambda a: a[:1]}, ["classes_", "two"]),
    "no labels": ({"classes_": None}, ["classes_", "two"]),
    "targets": ({"y_train_": lambda a: a + 0.5}, ["y[0]", "labels 0 and 1"]),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_file_whose_parts_do_not_fit_is_refused(name, tmp_path):
    changes, words = SPOILT[name]
    fitted("probit").save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        arrays = dict(file)
    for key, change in changes.items():
        if change is None:
            del arrays[key]
        else:
            arrays[key] = change(arrays[key])
    np.savez(tmp_path / "spoilt.npz", **arrays)
    with pytest.raises(ModelFileError, match=says([*words, "Save the model again"])):
        gplvm_xp.load(tmp_path / "spoilt.npz")


def test_clones_pipelines_and_cross_validation():
    X = 100.0 * inputs(40)
    y = observed("probit", X / 100.0)[0]
    model = VariationalGP(likelihood="probit", tol=0.1)
    assert clone(model).get_params() == model.get_params()
    scores = cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=3)
    assert scores.mean() > 0.75
    losses = cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=3,
                             scoring="neg_log_loss")  # fmt: skip
    assert losses.mean() > np.log(0.5)


def test_data_frames():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, Z = inputs(20), inputs(5, seed=2)
    y = observed("probit", X)[0]
    frame = pandas.DataFrame(X, columns=["a", "b"], index=range(100, 120))
    labels = pandas.Series(y, index=range(100, 120), dtype="category")
    model = fixed("probit").fit(frame, labels)
    assert list(model.feature_names_in_) == ["a", "b"]
    other = fixed("probit").fit(X, y)
    new = pandas.DataFrame(Z, columns=["a", "b"])
    assert np.array_equal(model.predict_proba(new), other.predict_proba(Z))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(new[["b", "a"]])


# -- array libraries and dtypes --------------------------------------------------------------------

LIBRARIES = ["strict-device1-f64", "strict-f32", "torch-cpu", "emulated", "cupy"]


@pytest.mark.parametrize("name", ["gaussian", "student_t", "probit", "poisson"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_of_any_library(library, name):
    reason = why_not(library)
    if reason is not None:
        pytest.skip(f"{library}: {reason}")
    X, Z = inputs(16), inputs(6, seed=2)
    y, e = observed(name, X)
    if name == "probit":
        y = (y == "yes").astype(float)
    plain = fixed(name).fit(X, y, exposure=e)
    with open_case(library) as case:
        make = case.asarray
        model = fixed(name, dtype=case.dtype).fit(
            make(X), make(y), exposure=None if e is None else make(e)
        )
        out = model.latent(make(Z))
        assert all(type(a) is type(make(Z)) for a in out)
        got = [case.to_numpy(a) for a in out]
        more = model.predict_proba(make(Z)) if name == "probit" else model.predict(make(Z))
        assert type(more) is type(make(Z))
        score = model.score(make(X), make(y), exposure=None if e is None else make(e))
        log = model.log_score(make(X), make(y), exposure=None if e is None else make(e))
    tolerance = case.tolerance(1e-7, 5e-3)
    for a, b in zip(got, plain.latent(Z), strict=True):
        assert np.allclose(a, b, atol=tolerance)
    assert np.isclose(model.free_energy_, plain.free_energy_, atol=tolerance, rtol=tolerance)
    assert np.isclose(score, plain.score(X, y, exposure=e), atol=tolerance)
    assert np.isclose(log, plain.log_score(X, y, exposure=e), atol=tolerance)


def test_the_torch_backend_searches_to_the_same_end():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    X = inputs(25)
    y = observed("probit", X)[0]
    here, there = (
        VariationalGP(likelihood="probit", backend=name, tol=1e-5).fit(X, y)
        for name in ("numpy", "torch")
    )
    assert here.status_ == there.status_ == "converged"
    assert np.isclose(there.free_energy_, here.free_energy_, rtol=1e-8)
    assert np.allclose(there.predict_proba(X), here.predict_proba(X), atol=1e-4)
    assert isinstance(there.predict_proba(X), np.ndarray)


@pytest.mark.parametrize(
    ("name", "shift"),
    [("gaussian", 1e6), ("student_t", 0.0), ("student_t", 1e6), ("probit", 0.0), ("poisson", 0.0)],
)
def test_float32(name, shift):
    X = inputs(40)
    y, e = observed(name, X)
    y = y if name == "probit" else y + shift
    double, single = (
        VariationalGP(likelihood=name, dtype=dtype) for dtype in ("float64", "float32")
    )
    double.fit(X, y, exposure=e)
    with warnings.catch_warnings():
        # Rounding may hide the last decrease.
        warnings.simplefilter("ignore", ConvergenceWarning)
        single.fit(X, y, exposure=e)
    assert np.isclose(single.free_energy_, double.free_energy_, atol=0.1)
    assert np.allclose(single.latent(X)[0], double.latent(X)[0], atol=0.15)


@pytest.mark.parametrize("seed", [3, 6, 11])
def test_float32_where_a_line_search_collapses_to_a_point(seed):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2.0, 2.0, (40, 2))
    y = function(X) + 0.1 * rng.standard_normal(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        single = VariationalGP(dtype="float32").fit(X, y)
    assert np.isclose(single.free_energy_, VariationalGP().fit(X, y).free_energy_, atol=0.01)


# -- bad input -------------------------------------------------------------------------------------


def spoiled(a, value, place):
    a = np.array(a, dtype=float)
    a[place] = value
    return a


BAD_FITS = {
    "NaN in X": ("gaussian", {"X": spoiled(inputs(), np.nan, (3, 1))}, ["X contains NaN"]),
    "inf in X": ("gaussian", {"X": spoiled(inputs(), np.inf, (3, 1))}, ["X contains infinity"]),
    "one axis": ("gaussian", {"X": inputs()[:, 0]}, ["Expected 2D array"]),
    "three axes": ("gaussian", {"X": inputs()[None]}, ["dim 3"]),
    "no rows": ("gaussian", {"X": inputs()[:0], "y": []}, ["0 sample(s)"]),
    "NaN in y": ("gaussian", {"y": spoiled(np.ones(30), np.nan, 4)}, ["y contains NaN"]),
    "inf in y": ("poisson", {"y": spoiled(np.ones(30), np.inf, 4)}, ["y contains infinity"]),
    "no y": ("gaussian", {"y": None}, ["requires y"]),
    "few y": ("gaussian", {"y": np.ones(29)}, ["30", "29"]),
    "deep y": ("gaussian", {"y": np.ones((30, 2, 2))}, ["dim 3"]),
    "words": ("gaussian", {"y": ["a", "b"] * 15}, ["y can't be read as numbers", "probit"]),
    "three classes": ("probit", {"y": np.arange(30) % 3}, ["3 labels", "OneVsRestClassifier"]),
    "one class": ("logit", {"y": ["a"] * 30}, ["one class, 'a'", "two classes"]),
    "real labels": ("probit", {"y": function(inputs())}, ["continuous"]),
    "mixed labels": ("probit", {"y": np.array(["a", 1] * 15, dtype=object)}, ["y"]),
    "label columns": ("probit", {"y": np.ones((30, 2))}, ["1d array", "(30, 2)"]),
    "NaN label": ("probit", {"y": spoiled(np.arange(30) % 2, np.nan, 4)}, ["y contains NaN"]),
    "negative": ("poisson", {"y": spoiled(np.ones(30), -2.0, 4)}, ["y[4] = -2", "counts"]),
    "fraction": (
        "negative_binomial", {"y": spoiled(np.ones(30), 0.5, 4)}, ["y[4] = 0.5", "counts"],
    ),
    "negative in a column": (
        "poisson", {"y": spoiled(np.ones((30, 2)), -1.0, (4, 1))}, ["y[4, 1] = -1"],
    ),
    "counts without exposure": (
        "poisson", {"y": np.ones(30), "exposure": spoiled(np.ones(30), 0.0, 4)},
        ["y[4] = 1", "exposure is 0"],
    ),
    "no exposure": (
        "poisson", {"y": np.zeros(30), "exposure": np.zeros(30)}, ["exposure is 0 everywhere"],
    ),
    "no exposure that counts": (
        "poisson",
        {"y": np.zeros(30), "exposure": np.arange(30) % 2, "sample_weight": np.arange(1, 31) % 2},
        ["exposure is 0 in every row of positive sample_weight"],
    ),
    "negative exposure": (
        "poisson", {"y": np.ones(30), "exposure": -1.0}, ["exposure[0] is -1.0"],
    ),
    "NaN exposure": (
        "poisson", {"y": np.ones(30), "exposure": np.full(30, np.nan)}, ["exposure[0] is nan"],
    ),
    "few exposures": (
        "poisson", {"y": np.ones(30), "exposure": np.ones(3)}, ["exposure has shape (3,)", "(30,)"],
    ),
    "exposure of labels": (
        "probit", {"y": np.arange(30) % 2, "exposure": 2.0}, ["exposure", "BernoulliProbit"],
    ),
    "exposure of numbers": ("gaussian", {"exposure": 2.0}, ["exposure", "Gaussian"]),
    "successes": (
        "binomial", {"y": np.full(30, 3.0), "exposure": 2.0}, ["y[0] = 3", "no more successes"],
    ),
    "part of a trial": (
        "binomial", {"y": np.ones(30), "exposure": 2.5}, ["exposure[0] = 2.5", "whole"],
    ),
    "negative weight": (
        "gaussian", {"sample_weight": spoiled(np.ones(30), -1.0, 2)}, ["sample_weight[2] is -1.0"],
    ),
    "NaN weight": (
        "gaussian", {"sample_weight": np.full(30, np.nan)}, ["sample_weight[0] is nan"],
    ),
    "no weight": ("gaussian", {"sample_weight": np.zeros(30)}, ["every sample_weight is zero"]),
    "few weights": ("gaussian", {"sample_weight": np.ones(3)}, ["sample_weight", "(3,)", "(30,)"]),
    "word weights": (
        "gaussian", {"sample_weight": ["a"] * 30}, ["sample_weight can't be read as numbers"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_data_is_refused(name):
    likelihood, changes, words = BAD_FITS[name]
    given_ = {"X": inputs(), "y": observed("gaussian", inputs())[0], **changes}
    with pytest.raises(ValueError, match=says(words)):
        VariationalGP(likelihood=likelihood, max_iter=2).fit(**given_)


BAD_PARAMETERS = {
    "likelihood": ({"likelihood": "nope"}, ValueError, ["'nope'", "gaussian", "probit"]),
    "likelihood type": ({"likelihood": 3}, TypeError, ["int", "'poisson'"]),
    "kernel": ({"kernel": "rbf"}, TypeError, ["kernel='rbf'", "RBF()"]),
    "kernel class": ({"kernel": RBF}, TypeError, ["class", "RBF()"]),
    "kernel size": ({"kernel": RBF(1.0, (1.0, 1.0, 1.0))}, ValueError, ["3 values", "2 dim"]),
    "max_iter": ({"max_iter": -1}, ValueError, ["max_iter=-1", "integer"]),
    "part of a step": ({"max_iter": 2.5}, ValueError, ["max_iter=2.5", "integer"]),
    "tol": ({"tol": -1.0}, ValueError, ["tol=-1.0"]),
    "no tol": ({"tol": np.nan}, ValueError, ["tol=nan"]),
    "jitter": ({"jitter": -1.0}, ValueError, ["jitter=-1.0"]),
    "time_limit": ({"time_limit": "1 h"}, ValueError, ["time_limit='1 h'"]),
    "dtype": ({"dtype": "float16"}, ValueError, ["dtype='float16'"]),
    "backend": ({"backend": "tensorflow"}, ValueError, ["backend='tensorflow'"]),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters_are_refused(name):
    options, kind, words = BAD_PARAMETERS[name]
    model = VariationalGP(**options)
    with pytest.raises(kind, match=says(words)):
        model.fit(inputs(), function(inputs()))
    assert not hasattr(VariationalGP(likelihood=options.get("likelihood", "x")), "predict_proba")


def test_bad_questions_are_refused():
    model, labels, X = fitted("poisson"), fitted("probit"), inputs()
    y, e = observed("poisson", X)
    for ask, words in (
        (lambda: labels.predict(X, return_var=True), ["return_var", "predict_proba"]),
        (lambda: labels.predict(X, exposure=2.0), ["exposure", "BernoulliProbit"]),
        (lambda: fitted("gaussian").log_score(X, y, exposure=e), ["exposure", "Gaussian"]),
        (lambda: model.predict(X, exposure=e[:4]), ["exposure", "(4,)", "(30,)"]),
        (lambda: model.predict(X, exposure=-1.0), ["exposure[0] is -1.0"]),
        (lambda: model.predict(X[:, :1]), ["1 features", "2 features"]),
        (lambda: model.latent(spoiled(X, np.nan, (0, 0))), ["NaN"]),
        (lambda: model.sample(X, 0), ["n_samples=0", "integer"]),
        (lambda: model.sample(X, 1.5), ["n_samples=1.5", "integer"]),
        (lambda: model.log_score(X, y[:, None]), ["(30, 1)", "(30,)"]),
        (lambda: model.log_score(X, y[:5]), ["(5,)", "(30,)"]),
        (lambda: model.log_score(X, y - 100.0), ["counts"]),
        (lambda: model.log_score(X, spoiled(y, np.nan, 3)), ["y[3] is nan"]),
        (lambda: labels.log_score(X, ["perhaps"] * 30), ["perhaps", "no and yes"]),
        (lambda: labels.log_score(X, ["yes"] * 4), ["(4,)", "(30,)"]),
    ):
        with pytest.raises(ValueError, match=says(words)):
            ask()
    for name in ("predict", "latent", "predict_proba", "sample", "log_score"):
        arguments = (X, y) if name == "log_score" else (X,)
        with pytest.raises(NotFittedError):
            getattr(VariationalGP(likelihood="probit"), name)(*arguments)
    with pytest.raises(AttributeError):
        VariationalGP(likelihood="poisson").predict_proba(X)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_duplicates_and_kernels_without_a_factor(name):
    """Equal rows, and a kernel that is a constant to working precision."""
    X = np.repeat(inputs(8), 3, axis=0)
    y, e = observed(name, X)
    for kernel in (KERNEL, RBF(1.0, 1e5), Constant(1.0), 1e4 * RBF(1.0, 50.0)):
        model = VariationalGP(kernel, LIKELIHOODS[name], optimize=False).fit(X, y, exposure=e)
        m, v = model.latent(X)
        assert np.isfinite(m).all()
        assert np.all(v >= 0.0)
        assert np.allclose(m[::3], m[1::3], atol=1e-6 * (1.0 + np.abs(m).max()))
        assert np.isfinite(model.sample(X, random_state=0)).all()


def test_the_jitter_is_raised_where_the_start_has_no_factor(monkeypatch):
    X = np.repeat(inputs(8), 3, axis=0)
    y = observed("student_t", X)[0]
    model = VariationalGP(RBF(1.0, 50.0), StudentT(), optimize=False, jitter=0.0, dtype="float32")
    model.fit(X, y)
    assert model.jitter_ >= 24 * np.finfo(np.float32).eps
    # Where the kernel is wrong there is no way out.
    monkeypatch.setattr(RBF, "_gram", lambda self, theta, X, Z: np.full((24, 24), np.nan))
    words = ["starting values", "jitter of up to 0.0001"]
    for likelihood in (StudentT(), Poisson(), Gaussian()):
        with pytest.raises(NotPositiveDefiniteError, match=says(words)):
            VariationalGP(RBF(), likelihood).fit(X, np.round(np.abs(y)))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_kernels_without_size(name):
    X = inputs(12)
    y, e = observed(name, X)
    with pytest.raises(ValueError, match=says(["variance at the inputs is inf", "scale X"])):
        VariationalGP(Linear(1.0), LIKELIHOODS[name]).fit(1e200 * X, y, exposure=e)
    # A function that is 0 everywhere: only the mean is left.
    model = VariationalGP(Linear(1.0), LIKELIHOODS[name], optimize=False)
    model.fit(0.0 * X, y, exposure=e)
    assert np.allclose(model.latent(0.0 * X)[0], model.mean_, atol=1e-6)


def test_memory_is_asked_for_first(monkeypatch):
    kind = type(backend.get("numpy"))
    monkeypatch.setattr(kind, "memory_available", lambda self: 5 * 8 * 30 * 30)
    X = inputs()
    with pytest.raises(NotEnoughMemoryError, match=says(["30 points", "GiB", "fewer points"])):
        VariationalGP().fit(X, function(X))
    with pytest.raises(NotEnoughMemoryError, match="30 points and 4 functions"):
        VariationalGP().fit(X, np.tile(function(X)[:, None], 4))


# -- laws ------------------------------------------------------------------------------------------

quick = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@quick
@given(st.sampled_from(sorted(LIKELIHOODS)), st.integers(0, 10**6), st.integers(2, 20))
def test_the_order_of_rows_means_nothing(name, seed, n):
    X, Z = inputs(n, seed=seed), inputs(5, seed=seed + 1)
    y, e = observed(name, X, seed)
    if name in CLASSIFIERS:
        y[:2] = "no", "yes"
    order = np.random.default_rng(seed).permutation(n)
    one = fixed(name).fit(X, y, exposure=e)
    two = fixed(name).fit(X[order], y[order], exposure=None if e is None else e[order])
    assert np.isclose(one.free_energy_, two.free_energy_, rtol=1e-7, atol=1e-7)
    for a, b in zip(one.latent(Z), two.latent(Z), strict=True):
        assert np.allclose(a, b, atol=1e-6)


@quick
@given(
    st.sampled_from(sorted(set(LIKELIHOODS) - {"student_t"})),
    st.floats(-3.0, 3.0),
    st.floats(-2.0, 2.0),
    st.integers(0, 10**6),
)
def test_data_never_add_variance_under_a_concave_likelihood(name, log_variance, log_width, seed):
    X, Z = inputs(15, seed=seed), 2.0 * inputs(10, seed=seed + 1)
    y, e = observed(name, X, seed)
    if name in CLASSIFIERS:
        y[:2] = "no", "yes"
    variance = np.exp(log_variance)
    kernel = RBF(variance, np.exp(log_width))
    model = VariationalGP(kernel, LIKELIHOODS[name], optimize=False).fit(X, y, exposure=e)
    for points in (X, Z):
        m, v = model.latent(points)
        assert np.isfinite(m).all()
        assert np.all(v >= 0.0)
        assert np.all(v <= variance * (1.0 + 1e-12))
