"""The minibatch bound of latent variable models: exact, sampled, and the search over both."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from conftest import Case
from scipy.spatial.distance import cdist
from scipy.special import ndtri

from gplvm_xp import backend
from gplvm_xp.init import principal_components
from gplvm_xp.kernels import RBF, Linear
from gplvm_xp.likelihoods import (
    BernoulliLogit,
    BernoulliProbit,
    Gaussian,
    NegativeBinomial,
    Poisson,
    StudentT,
)
from gplvm_xp.objectives import minibatch_fit, sampled
from gplvm_xp.objectives.bayesian import inducing_gram, kl
from gplvm_xp.objectives.collapsed import Totals, collapsed, optimum
from gplvm_xp.objectives.minibatch import Whitened, gaussian_bound, inverse_factor, natural_step
from gplvm_xp.objectives.minibatch_fit import fit_minibatch, lower_bound
from gplvm_xp.objectives.minibatch_state import MinibatchState
from gplvm_xp.objectives.rows import Rows, forward
from gplvm_xp.objectives.sampled import Entries, sampled_bound
from gplvm_xp.objectives.stochastic import MinibatchObjective, link_offsets
from gplvm_xp.priors import LogNormal
from gplvm_xp.testing import check_gradient

WHICH = np.array([1, 0, 2, 1, 0])
JITTER = 1e-3
KERNEL = RBF(1.3, (0.8, 1.2))
NAMES = ("theta", "likelihood", "Z", "mu", "S", "mean", "factor")


def problem(seed=0, n=7, M=4, missing=True, counts=False):
    """Parameters by name, host Y with zeros for missing, W (n, r) and what else a bound takes."""
    rng = np.random.default_rng(seed)
    r = 3 if missing else 1
    which = WHICH if missing else np.zeros(5, int)
    W = (rng.random((n, r)) > 0.3).astype(float) if missing else None
    Y = rng.poisson(2.0, (n, 5)).astype(float) if counts else rng.standard_normal((n, 5))
    Y = Y if W is None else Y * W[:, which]
    factor = np.tril(0.3 * rng.standard_normal((r, M, M))) + 0.8 * np.eye(M)
    values = {
        "theta": KERNEL.theta(), "likelihood": np.array([0.7]),
        "Z": rng.standard_normal((M, 2)), "mu": rng.standard_normal((n, 2)),
        "S": rng.uniform(0.1, 0.9, (n, 2)), "mean": rng.standard_normal((M, 5)), "factor": factor,
    }  # fmt: skip
    extra = {"eps": rng.standard_normal((3, n, 2)), "offset": 0.3 * rng.standard_normal(5)}
    extra["exposure"] = rng.uniform(0.5, 2.0, (n, 1))
    return values, Y, W, Totals.of(Y, which, W), extra


def exact(v, Y, W, totals, scale=1.0):
    put = backend.of(v["mu"]).asarray
    rows = Rows(v["mu"], v["S"], put(Y), None if W is None else put(W))
    q = Whitened(v["mean"], v["factor"])
    noise = v["likelihood"][0]
    return gaussian_bound(
        KERNEL, v["theta"], noise, v["Z"], q, rows, totals, scale=scale, jitter=JITTER
    )


def drawn(v, likelihood, Y, W, totals, extra, scale=1.0, kernel=KERNEL, exposed=True):
    put = backend.of(v["mu"]).asarray
    entries = Entries(
        put(Y),
        None if W is None else put(W[:, totals.which]),
        put(extra["exposure"]) if exposed else None,
        put(extra["offset"]),
    )
    return sampled_bound(
        kernel, v["theta"], likelihood, v["likelihood"], v["Z"],
        Whitened(v["mean"], v["factor"]), v["mu"], v["S"], entries, totals, put(extra["eps"]),
        scale=scale, jitter=JITTER,
    )  # fmt: skip


def gradients(bound, v, totals):
    """By name; the factor's from the target of the precision."""
    T = v["factor"]
    back = np.swapaxes(np.linalg.inv(T), 1, 2) - bound.precision @ T
    g = {name: getattr(bound, name) for name in NAMES[:-1]}
    return {**g, "factor": np.tril(totals.outputs[:, None, None] * back)}


def flat_function(function, v, totals):
    """A value-and-gradient of one flat vector; the factor keeps to its triangle."""
    shapes = [v[name].shape for name in NAMES]
    ends = np.cumsum([math.prod(s) for s in shapes])

    def of(x):
        parts = np.split(x, ends[:-1])
        w = {k: p.reshape(s) for k, p, s in zip(NAMES, parts, shapes, strict=True)}
        w["factor"] = np.tril(w["factor"])
        bound = function(w)
        g = gradients(bound, w, totals)
        return bound.value, np.concatenate([g[name].ravel() for name in NAMES])

    return of, np.concatenate([v[name].ravel() for name in NAMES])


# -- Gaussian noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
def test_the_exact_gradient_is_that_of_the_value(missing):
    v, Y, W, totals, _ = problem(missing=missing)
    check_gradient(*flat_function(lambda w: exact(w, Y, W, totals, 2.5), v, totals), rtol=1e-8)


def torch_bound(v, Y, W, which, scale):
    """Unwhitened, by inverses, with n × M × M statistics, and one output after the other."""
    torch = pytest.importorskip("torch")
    t = {k: torch.tensor(a, dtype=torch.float64, requires_grad=True) for k, a in v.items()}
    s2, ell, Z, mu, S = t["theta"][0], t["theta"][1:], t["Z"], t["mu"], t["S"]
    beta = 1.0 / t["likelihood"][0]
    d2 = (((Z[:, None] - Z) / ell) ** 2).sum(-1)
    K = s2 * torch.exp(-0.5 * d2) + JITTER * s2 * torch.eye(len(Z))
    e1, e2 = S / ell**2 + 1, 2 * S / ell**2 + 1
    psi1 = s2 * torch.exp(
        -0.5 * (((mu[:, None] - Z) / ell) ** 2 / e1[:, None] + torch.log(e1)[:, None]).sum(-1)
    )
    middle = 0.5 * (Z[:, None] + Z)
    away = ((mu[:, None, None] - middle) / ell) ** 2 / e2[:, None, None]
    psi2 = s2**2 * torch.exp(-0.25 * d2 - (away + 0.5 * torch.log(e2)[:, None, None]).sum(-1))
    L, Ki = torch.linalg.cholesky(K), torch.linalg.inv(K)
    data, klu = 0.0, 0.0
    for d, k in enumerate(which):
        m = L @ t["mean"][:, d]
        Sd = L @ t["factor"][k] @ t["factor"][k].T @ L.T
        klu = klu + 0.5 * (
            torch.trace(Ki @ Sd) + m @ Ki @ m - len(Z) + torch.logdet(K) - torch.logdet(Sd)
        )
        for n in range(len(mu)):
            if W is not None and W[n, k] == 0:
                continue
            second = m @ Ki @ psi2[n] @ Ki @ m + torch.trace(Ki @ Sd @ Ki @ psi2[n])
            square = Y[n, d] ** 2 - 2 * Y[n, d] * psi1[n] @ Ki @ m + second
            square = square + s2 - torch.trace(Ki @ psi2[n])
            data = data + 0.5 * torch.log(beta / (2 * math.pi)) - 0.5 * beta * square
    klx = 0.5 * (mu**2 + S - torch.log(S) - 1).sum()
    value = scale * (data - klx) - klu
    value.backward()
    return value.item(), {k: a.grad.numpy() for k, a in t.items()}


@pytest.mark.parametrize("missing", [False, True])
def test_the_exact_bound_agrees_with_automatic_differentiation(missing):
    v, Y, W, totals, _ = problem(1, missing=missing)
    want, slopes = torch_bound(v, Y, W, totals.which, 1.7)
    bound = exact(v, Y, W, totals, 1.7)
    np.testing.assert_allclose(bound.value, want, rtol=1e-11)
    for name, g in gradients(bound, v, totals).items():
        want = np.tril(slopes[name]) if name == "factor" else slopes[name]
        np.testing.assert_allclose(g, want, rtol=1e-8, atol=1e-8 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("missing", [False, True])
def test_one_full_step_ends_at_the_collapsed_bound(missing):
    v, Y, W, totals, _ = problem(2, missing=missing)
    noise = v["likelihood"][0]
    T = v["factor"]
    precision = np.linalg.inv(T @ np.swapaxes(T, 1, 2))
    q, _, ok = natural_step(Whitened(v["mean"], T), precision, exact(v, Y, W, totals), totals, 1.0)
    v["mean"], v["factor"] = q
    bound = exact(v, Y, W, totals)
    K, _ = inducing_gram(KERNEL, v["theta"], v["Z"], JITTER)
    sums = forward(KERNEL, v["theta"], v["Z"], Rows(v["mu"], v["S"], Y, W))
    c = collapsed(backend.of(K), K.copy(), noise, sums, totals)
    assert ok
    np.testing.assert_allclose(bound.value, c.value - kl(v["mu"], v["S"]), rtol=1e-12)
    np.testing.assert_allclose(bound.mean, 0.0, atol=1e-12 * np.abs(v["mean"]).max())
    mean, factor, _ = optimum(backend.of(K), K.copy(), noise, sums, totals)
    np.testing.assert_allclose(q.mean, mean, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(
        q.factor @ np.swapaxes(q.factor, 1, 2), factor @ np.swapaxes(factor, 1, 2), rtol=1e-9
    )
    # A second step stays.
    np.testing.assert_allclose(inverse_factor(bound.precision)[0], q.factor, rtol=1e-9, atol=1e-12)


def test_shorter_steps_go_the_same_way_and_climb():
    v, Y, W, totals, _ = problem(3)
    precision = np.linalg.inv(v["factor"] @ np.swapaxes(v["factor"], 1, 2))
    values = [exact(v, Y, W, totals).value]
    for _ in range(12):
        bound = exact(v, Y, W, totals)
        q, precision, _ = natural_step(
            Whitened(v["mean"], v["factor"]), precision, bound, totals, 0.5
        )
        v["mean"], v["factor"] = q
        values.append(exact(v, Y, W, totals).value)
    assert np.all(np.diff(values) > 0.0)
    np.testing.assert_allclose(exact(v, Y, W, totals).mean, 0.0, atol=2e-3)


def test_the_average_over_batches_is_the_bound():
    v, Y, W, totals, extra = problem(4, n=6)
    parts = [np.array([0, 3]), np.array([1, 5]), np.array([2, 4])]
    for kind in ("exact", "sampled"):
        if kind == "exact":
            whole = exact(v, Y, W, totals)
        else:
            whole = drawn(v, Gaussian(), Y, W, totals, extra)
        pieces = []
        for i in parts:
            w = {**v, "mu": v["mu"][i], "S": v["S"][i]}
            some = Totals.of(Y[i], WHICH, W[i])
            if kind == "exact":
                pieces.append(exact(w, Y[i], W[i], some, 3.0))
            else:
                e = {**extra, "eps": extra["eps"][:, i], "exposure": extra["exposure"][i]}
                pieces.append(drawn(w, Gaussian(), Y[i], W[i], some, e, 3.0))
        for name in ("value", "theta", "likelihood", "Z", "mean", "precision"):
            average = np.mean([getattr(p, name) for p in pieces], axis=0)
            np.testing.assert_allclose(average, getattr(whole, name), rtol=1e-11, atol=1e-11)
        for i, piece in zip(parts, pieces, strict=True):
            np.testing.assert_allclose(piece.mu / 3.0, whole.mu[i], rtol=1e-10, atol=1e-11)
            np.testing.assert_allclose(piece.S / 3.0, whole.S[i], rtol=1e-10, atol=1e-11)


def one_dimensional(seed=5, n=3, M=3, D=5, counts=True):
    rng = np.random.default_rng(seed)
    kernel = RBF(0.8, 0.9)
    which, W = WHICH, (rng.random((n, 3)) > 0.3).astype(float)
    W[0, 0] = 0.0
    Y = rng.poisson(2.0, (n, D)).astype(float) if counts else rng.standard_normal((n, D))
    Y = Y * W[:, which]
    v = {
        "theta": kernel.theta(), "likelihood": np.array([0.7]), "Z": rng.standard_normal((M, 1)),
        "mu": rng.standard_normal((n, 1)), "S": rng.uniform(0.05, 0.3, (n, 1)),
        "mean": 0.5 * rng.standard_normal((M, D)),
        "factor": np.tril(0.2 * rng.standard_normal((3, M, M))) + 0.6 * np.eye(M),
    }  # fmt: skip
    extra = {"offset": 0.3 * rng.standard_normal(D), "exposure": rng.uniform(0.5, 2.0, (n, 1))}
    return kernel, v, Y, W, Totals.of(Y, which, W), extra


def nested(kernel, v, Y, W, extra, log_prob, exposed=True):
    """Entry by entry: latents and functions by Gauss-Hermite, nothing shared between entries."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    K, _ = inducing_gram(kernel, v["theta"], v["Z"], JITTER)
    L = np.linalg.cholesky(K)
    total = 0.0
    for n in range(Y.shape[0]):
        X = v["mu"][n] + np.sqrt(v["S"][n]) * x[:, None]
        Kx = v["theta"][0] * np.exp(-0.5 * ((X - v["Z"].T) / v["theta"][1]) ** 2)
        for d in range(Y.shape[1]):
            if W[n, WHICH[d]] == 0:
                continue
            u, T = L @ v["mean"][:, d], L @ v["factor"][WHICH[d]]
            a = np.linalg.solve(K, Kx.T).T
            m = a @ u + extra["offset"][d]
            var = v["theta"][0] - np.sum(a * Kx, axis=1) + np.sum((a @ T) ** 2, axis=1)
            f = m[:, None] + np.sqrt(var)[:, None] * x
            scale = extra["exposure"][n, 0] if exposed else 1.0
            total += w @ log_prob(Y[n, d], f, scale) @ w
    klu = 0.0
    for d in range(Y.shape[1]):
        T = v["factor"][WHICH[d]]
        logs = np.linalg.slogdet(T)[1]
        klu += 0.5 * (np.sum(v["mean"][:, d] ** 2) + np.sum(T * T) - len(T)) - logs
    return total - klu - 0.5 * np.sum(v["mu"] ** 2 + v["S"] - np.log(v["S"]) - 1.0)


def test_missing_entries_are_exact_per_entry():
    kernel, v, Y, W, totals, extra = one_dimensional(counts=False)
    extra["offset"] = np.zeros(5)

    def log_prob(y, f, _):
        return scipy.stats.norm.logpdf(y, f, math.sqrt(0.7))

    rows = Rows(v["mu"], v["S"], Y, W)
    q = Whitened(v["mean"], v["factor"])
    got = gaussian_bound(
        kernel, v["theta"], v["likelihood"][0], v["Z"], q, rows, totals, jitter=JITTER
    )
    want = nested(kernel, v, Y, W, extra, log_prob, exposed=False)
    np.testing.assert_allclose(got.value, want, rtol=1e-11)


# -- other likelihoods -----------------------------------------------------------------------------

LOG_PROBS = {
    "poisson": (Poisson(), lambda y, f, e: scipy.stats.poisson.logpmf(y, e * np.exp(f))),
    "negative_binomial": (
        NegativeBinomial(0.7),
        lambda y, f, e: scipy.stats.nbinom.logpmf(y, 0.7, 0.7 / (0.7 + e * np.exp(f))),
    ),
    "probit": (
        BernoulliProbit(),
        lambda y, f, e: scipy.stats.norm.logcdf((2.0 * y - 1.0) * f),
    ),
    "gaussian": (
        Gaussian(0.7),
        lambda y, f, e: scipy.stats.norm.logpdf(y, f, math.sqrt(0.7)),
    ),
}


@pytest.mark.parametrize("name", list(LOG_PROBS))
def test_the_sampled_bound_agrees_with_nested_quadrature(name):
    likelihood, log_prob = LOG_PROBS[name]
    kernel, v, Y, W, totals, extra = one_dimensional()
    Y = (Y > 1.0) * 1.0 if name == "probit" else Y
    v["likelihood"] = likelihood.theta()
    exposed = name in ("poisson", "negative_binomial")
    # Midpoints of equal probability: a rule whose weights are equal, as those of draws are.
    eps = ndtri((np.arange(4000) + 0.5) / 4000)
    extra["eps"] = np.broadcast_to(eps[:, None, None], (4000, *v["mu"].shape)).copy()
    got = drawn(v, likelihood, Y, W, totals, extra, kernel=kernel, exposed=exposed)
    want = nested(kernel, v, Y, W, extra, log_prob, exposed)
    np.testing.assert_allclose(got.value, want, rtol=3e-5)


LIKELIHOODS = {
    "poisson": Poisson(), "negative_binomial": NegativeBinomial(0.7, nodes=30),
    "probit": BernoulliProbit(nodes=30),
}  # fmt: skip


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_the_sampled_gradient_is_that_of_the_value(name, missing):
    likelihood = LIKELIHOODS[name]
    v, Y, W, totals, extra = problem(6, missing=missing, counts=True)
    Y = (Y > 1.0) * 1.0 if name == "probit" else Y
    v["likelihood"] = likelihood.theta()
    exposed = name != "probit"
    function, x = flat_function(
        lambda w: drawn(w, likelihood, Y, W, totals, extra, 2.5, exposed=exposed), v, totals
    )
    # Small steps: the number of quadrature's forms changes at a variance of 0.05.
    check_gradient(function, x, rtol=1e-7, step=2e-4)


def test_the_sampled_bound_agrees_with_automatic_differentiation():
    torch = pytest.importorskip("torch")
    v, Y, W, totals, extra = problem(7, counts=True)
    v["likelihood"] = np.zeros(0)
    bound = drawn(v, Poisson(), Y, W, totals, extra, 1.7)
    t = {k: torch.tensor(a, dtype=torch.float64, requires_grad=True) for k, a in v.items()}
    s2, ell, Z = t["theta"][0], t["theta"][1:], t["Z"]

    def gram(A, B):
        return s2 * torch.exp(-0.5 * (((A[:, None] - B) / ell) ** 2).sum(-1))

    K = gram(Z, Z) + JITTER * s2 * torch.eye(len(Z))
    L = torch.linalg.cholesky(K)
    y, e, o = (torch.tensor(a) for a in (Y, extra["exposure"], extra["offset"]))
    value = 0.0
    for eps in torch.tensor(extra["eps"]):
        Kx = gram(t["mu"] + torch.sqrt(t["S"]) * eps, Z)
        for d, k in enumerate(WHICH):
            cov = L @ t["factor"][k] @ t["factor"][k].T @ L.T
            a = torch.linalg.solve(K, Kx.T).T
            m = a @ L @ t["mean"][:, d] + o[d]
            var = s2 - (a * Kx).sum(1) + ((a @ cov) * a).sum(1)
            each = y[:, d] * (m + torch.log(e[:, 0])) - e[:, 0] * torch.exp(m + 0.5 * var)
            each = each - torch.lgamma(y[:, d] + 1.0)
            value = value + (torch.tensor(W)[:, k] * each).sum() / len(extra["eps"])
    klx = 0.5 * (t["mu"] ** 2 + t["S"] - torch.log(t["S"]) - 1).sum()
    T = t["factor"]
    logs = torch.logdet(T @ T.transpose(1, 2))
    count = torch.tensor(totals.outputs)
    klu = 0.5 * ((t["mean"] ** 2).sum() + (count * ((T**2).sum((1, 2)) - len(Z) - logs)).sum())
    value = 1.7 * (value - klx) - klu
    value.backward()
    np.testing.assert_allclose(bound.value, value.item(), rtol=1e-11)
    for name, g in gradients(bound, v, totals).items():
        if name == "likelihood":
            continue
        want = t[name].grad.numpy()
        want = np.tril(want) if name == "factor" else want
        np.testing.assert_allclose(g, want, rtol=1e-8, atol=1e-8 * np.abs(want).max(), err_msg=name)


def test_outputs_in_parts_give_the_same(monkeypatch):
    v, Y, W, totals, extra = problem(8, counts=True)
    v["likelihood"] = np.zeros(0)
    whole = drawn(v, Poisson(), Y, W, totals, extra)
    # One group, and one output, at a time.
    monkeypatch.setattr(sampled, "CHUNK_BYTES", 1)
    parts = drawn(v, Poisson(), Y, W, totals, extra)
    for name, a in whole._asdict().items():
        np.testing.assert_allclose(getattr(parts, name), a, rtol=1e-12, atol=1e-12, err_msg=name)


def test_missing_entries_need_no_groups_where_latents_are_sampled():
    v, Y, _, totals, extra = problem(9, missing=False, counts=True)
    v["likelihood"] = np.zeros(0)
    seen = np.random.default_rng(0).random(Y.shape) > 0.4
    by_entry = dataclasses.replace(
        Entries(Y * seen, seen * 1.0, extra["exposure"], extra["offset"])
    )
    q = Whitened(v["mean"], v["factor"])
    got = sampled_bound(
        KERNEL, v["theta"], Poisson(), v["likelihood"], v["Z"], q, v["mu"], v["S"], by_entry,
        totals, extra["eps"], jitter=JITTER,
    )  # fmt: skip
    W = seen.astype(float)
    five = {**v, "factor": np.repeat(v["factor"], 5, axis=0)}
    each = Totals.of(Y * seen, np.arange(5), W)
    want = drawn(five, Poisson(), Y * seen, W, each, extra)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-12)
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got.precision[0], want.precision.mean(axis=0), rtol=1e-12)


def test_negative_curvatures_are_left_out():
    v, Y, W, totals, extra = problem(10)
    likelihood = StudentT(scale=0.1)
    v["likelihood"] = likelihood.theta()
    bound = drawn(v, likelihood, 5.0 * Y, W, totals, extra, exposed=False)
    unclipped = gradients(bound, v, totals)["factor"]
    assert np.all(np.linalg.eigvalsh(bound.precision) >= 1.0 - 1e-12)

    # The gradient in the factor that they would give is another: some were negative.
    def value(T):
        return drawn({**v, "factor": T}, likelihood, 5.0 * Y, W, totals, extra, exposed=False).value

    step = np.zeros_like(v["factor"])
    step[0, 1, 0] = 1e-5
    slope = (value(v["factor"] + step) - value(v["factor"] - step)) / 2e-5
    assert abs(slope - unclipped[0, 1, 0]) > 1e-3 * abs(slope)


# -- every array library ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gaussian", "poisson", "negative_binomial"])
def test_every_array_library(case: Case, name):
    v, Y, W, totals, extra = problem(11, counts=name != "gaussian")
    likelihood = NegativeBinomial(nodes=8) if name == "negative_binomial" else Poisson()
    if name == "poisson":
        v["likelihood"] = np.zeros(0)
    # On the host, at the precision of the case's data.
    w = {k: case.to_numpy(case.asarray(a)) for k, a in v.items()}
    here = {k: case.asarray(a) for k, a in v.items()}
    if name == "gaussian":
        want, got = exact(w, Y, W, totals, 2.0), exact(here, Y, W, totals, 2.0)
    else:
        want, got = (drawn(u, likelihood, Y, W, totals, extra, 2.0) for u in (w, here))
    for field, a in want._asdict().items():
        if a is None:
            assert getattr(got, field) is None
            continue
        result = getattr(got, field)
        assert tuple(result.shape) == a.shape
        if field != "ok":
            assert result.dtype == here["mu"].dtype
        np.testing.assert_allclose(
            case.to_numpy(result), a, rtol=case.tolerance(1e-9, 2e-3),
            atol=case.tolerance(1e-9, 2e-3) * max(np.abs(a).max(initial=0.0), 1.0), err_msg=field,
        )  # fmt: skip


def small(rng, n=12, D=4, likelihood=None, M=4, **options):
    Y = rng.poisson(2.0, (n, D)).astype(float)
    mu, S = rng.standard_normal((n, 2)), np.full((n, 2), 0.2)
    Z = mu[:M] + 0.1
    objective = MinibatchObjective(
        RBF(0.5, (1.0, 1.0)), likelihood or Poisson(), Y, options.pop("put", np.asarray)(Z),
        **options,
    )  # fmt: skip
    return objective, MinibatchState.begin(objective, mu, S)


@pytest.mark.only_backend("strict-device1-f64")
@pytest.mark.parametrize("likelihood", [NegativeBinomial(nodes=8), Gaussian(2.0)])
def test_an_evaluation_never_waits(case: Case, likelihood, monkeypatch):
    objective, state = small(np.random.default_rng(0), likelihood=likelihood, put=case.asarray)
    put = case.asarray
    x, mu, S = put(state.shared[0]), put(state.rows[:5, :2]), put(0.2 * np.ones((5, 2)))
    precision = put(state.precision)
    factor, _ = inverse_factor(precision)
    q, eps = Whitened(put(state.mean), factor), np.ones((2, 5, 2))

    def refuse(*args):
        raise AssertionError("a number was read")

    for name in ("__float__", "__bool__", "__int__", "__index__", "__complex__"):
        monkeypatch.setattr(type(x), name, refuse)
    bound, _ = objective.evaluate(x, q, mu, S, np.arange(5), eps)
    natural_step(q, precision, bound, objective.totals, 0.5)


@pytest.mark.parametrize("likelihood", [Poisson(), Gaussian(2.0)], ids=lambda k: k.name)
def test_the_search_runs_on_every_array_library(case: Case, likelihood):
    options = {"batch_size": 5, "epochs": 2, "warmup": 1}
    results = []
    for put in (np.asarray, case.asarray):
        objective, state = small(np.random.default_rng(0), likelihood=likelihood, put=put)
        results.append(fit_minibatch(objective, state, **options))
    want, got = results
    tolerance = {"rtol": case.tolerance(1e-8, 2e-2), "atol": case.tolerance(1e-8, 2e-2)}
    np.testing.assert_allclose(got.curve, want.curve, **tolerance)
    for name in ("mu", "S"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), **tolerance)
    for name in ("Z", "mean", "factor"):
        result = getattr(got, name)
        np.testing.assert_allclose(case.to_numpy(result), getattr(want, name), **tolerance)
        assert result.dtype == case.asarray(np.zeros(1)).dtype


# -- the search ------------------------------------------------------------------------------------


def test_the_exact_search_climbs_to_the_collapsed_optimum():
    rng = np.random.default_rng(1)
    objective, state = small(rng, n=30, likelihood=Gaussian(2.0), offset=np.full(4, 2.0))
    result = fit_minibatch(objective, state, batch_size=30, epochs=60, rate=lambda step: 1.0)
    assert result.status == "finished"
    assert result.steps == 60
    assert result.undone == 0
    assert result.curve[-1] > result.curve[5] > result.curve[0]
    full = lower_bound(objective, result, batch_size=7)
    noise = result.likelihood.variance
    Y = objective.Y - 2.0
    sums = forward(result.kernel, result.kernel.theta(), result.Z, Rows(result.mu, result.S, Y))
    K, _ = inducing_gram(result.kernel, result.kernel.theta(), result.Z, objective.jitter)
    totals = Totals.of(Y, np.zeros(4, int), None)
    c = collapsed(backend.of(K), K, np.asarray(noise), sums, totals)
    best = c.value - kl(result.mu, result.S)
    assert best - 1e-3 * abs(best) < full <= best + 1e-9 * abs(best)


def test_only_the_rows_of_a_batch_are_read(tmp_path):
    rng = np.random.default_rng(2)
    objective, state = small(rng, n=20)
    table = np.memmap(tmp_path / "Y", dtype=np.float32, mode="w+", shape=(20, 4))
    table[...] = objective.Y
    objective = dataclasses.replace(objective, Y=table)
    first = np.sort(np.random.default_rng((0, 0)).permutation(20)[:5])
    # To read any other row would be an error.
    table[np.setdiff1d(np.arange(20), first)] = -1.0
    table.flush()
    read_only = np.memmap(tmp_path / "Y", dtype=np.float32, mode="r", shape=(20, 4))
    objective = dataclasses.replace(objective, Y=read_only)
    options = {"batch_size": 5, "epochs": 1, "warmup": 0}
    result = fit_minibatch(objective, state, **options, callback=lambda step, value: True)
    assert result.status == "stopped"
    assert result.steps == 1
    moved = np.any(result.state.rows != state.rows, axis=1)
    np.testing.assert_array_equal(np.flatnonzero(moved), first)
    with pytest.raises(ValueError, match="counts"):
        fit_minibatch(objective, state, **options)


def test_sparse_tables_are_read_by_rows():
    import scipy.sparse

    objective, state = small(np.random.default_rng(3))
    sparse = dataclasses.replace(objective, Y=scipy.sparse.csr_array(objective.Y))
    want, got = (fit_minibatch(o, state, batch_size=5, epochs=1) for o in (objective, sparse))
    np.testing.assert_array_equal(got.curve, want.curve)


def test_a_search_resumes_where_it_stopped():
    objective, state = small(np.random.default_rng(4), priors={"rbf.variance": LogNormal()})
    options = {"batch_size": 5, "decay": False, "warmup": 2}
    once = fit_minibatch(objective, state, epochs=4, **options)
    # In the middle of the second epoch.
    part = fit_minibatch(objective, state, epochs=4, **options, callback=lambda k, value: k == 4)
    assert part.state.place == 1
    assert part.status == "stopped"
    rest = fit_minibatch(objective, part.state, epochs=3, **options)
    np.testing.assert_array_equal(np.concatenate([part.curve, rest.curve]), once.curve)
    for field in dataclasses.fields(once.state):
        a, c = getattr(once.state, field.name), getattr(rest.state, field.name)
        np.testing.assert_array_equal(a, c)


def test_rates_rise_at_the_beginning_of_a_call():
    """The first step of Adam is the rate itself, in every direction."""
    objective, state = small(np.random.default_rng(17))
    options = {"batch_size": 12, "epochs": 1, "warmup": 0, "decay": False}
    steep, gentle = (fit_minibatch(objective, state, **options, ramp=k) for k in (0, 9))
    for part in (
        lambda s: s.rows[:, :4],
        lambda s: s.shared[0],
        lambda s: s.precision,
    ):
        full, tenth = (part(r.state) - part(state) for r in (steep, gentle))
        assert np.any(full != 0.0)
        np.testing.assert_allclose(tenth, 0.1 * full, rtol=1e-9, atol=1e-14)
    # Past the ramp all is as ever.
    late = fit_minibatch(objective, steep.state, **options | {"epochs": 12}, ramp=3)
    assert late.steps == 12
    assert late.curve[-1] > late.curve[0]


def test_no_epochs_give_the_state_back():
    objective, state = small(np.random.default_rng(18))
    result = fit_minibatch(objective, state, batch_size=5, epochs=0)
    assert result.steps == 0
    np.testing.assert_array_equal(result.state.rows, state.rows)
    np.testing.assert_array_equal(result.mu, state.rows[:, :2])
    np.testing.assert_allclose(result.state.precision, state.precision)
    assert np.isfinite(lower_bound(objective, result, batch_size=5))


def test_new_rows_join():
    objective, state = small(np.random.default_rng(5))
    result = fit_minibatch(objective, state, batch_size=5, epochs=1)
    longer = dataclasses.replace(objective, Y=np.concatenate([objective.Y, objective.Y[:3]]))
    more = result.state.extended(np.zeros((3, 2)), np.ones((3, 2)))
    again = fit_minibatch(longer, more, batch_size=5, epochs=1)
    assert again.status == "finished"
    assert again.mu.shape == (15, 2)
    assert np.all(again.mu[12:] != 0.0)


def test_held_blocks_stay_and_the_warm_up_moves_only_the_inducing_variables():
    objective, state = small(np.random.default_rng(6), likelihood=Gaussian(2.0))
    result = fit_minibatch(
        objective, state, batch_size=5, epochs=3, warmup=0, held=frozenset({"noise", "Z"})
    )
    assert result.likelihood.variance == pytest.approx(2.0, rel=1e-14)
    np.testing.assert_array_equal(result.Z, objective.inducing)
    assert result.kernel.variance != 0.5
    held = fit_minibatch(objective, state, batch_size=5, epochs=2, warmup=6)
    np.testing.assert_array_equal(held.mu, state.rows[:, :2])
    np.testing.assert_array_equal(held.state.shared, state.shared)
    assert np.any(held.mean != 0.0)
    assert held.curve[-1] > held.curve[0]


def test_ctrl_c_keeps_the_last_good_state():
    objective, state = small(np.random.default_rng(7))

    def interrupt(step, value):
        if step == 3:
            raise KeyboardInterrupt

    result = fit_minibatch(objective, state, batch_size=5, epochs=2, callback=interrupt)
    assert result.status == "interrupted"
    assert result.steps == 3
    want = fit_minibatch(objective, state, batch_size=5, epochs=2, callback=lambda k, v: k == 3)
    np.testing.assert_array_equal(result.state.rows, want.state.rows)
    assert fit_minibatch(objective, state, batch_size=5, time_limit=0.0).status == "time_limit"


def faulty(monkeypatch, bad):
    """Evaluations whose number is in ``bad`` are not finite."""
    calls = []
    evaluate = MinibatchObjective.evaluate

    def wrapped(self, *args):
        bound, gradient = evaluate(self, *args)
        calls.append(bound)
        if len(calls) - 1 in bad:
            bound = bound._replace(value=bound.value * np.nan)
        return bound, gradient

    monkeypatch.setattr(MinibatchObjective, "evaluate", wrapped)


def test_a_step_to_where_nothing_is_finite_is_undone(monkeypatch):
    objective, state = small(np.random.default_rng(8))
    options = {"batch_size": 5, "epochs": 1, "warmup": 0}
    before = fit_minibatch(objective, state, **options, callback=lambda k, v: k == 1)
    faulty(monkeypatch, {2})
    result = fit_minibatch(objective, state, **options)
    # Two steps, of which the second was taken back.
    assert result.undone == 1
    assert result.state.steps == 1
    assert result.state.slowdown == 0.5
    assert result.status == "finished"
    assert "1 steps were undone" in result.message
    np.testing.assert_array_equal(result.state.rows, before.state.rows)
    np.testing.assert_array_equal(result.state.shared, before.state.shared)
    np.testing.assert_array_equal(result.mean, before.mean)


@pytest.mark.parametrize(("bad", "word"), [(range(99), "start"), (range(1, 99), "lower the rates")])
def test_too_many_failures_end_the_search(monkeypatch, bad, word):
    objective, state = small(np.random.default_rng(9))
    faulty(monkeypatch, set(bad))
    result = fit_minibatch(objective, state, batch_size=5, epochs=20, max_failures=4)
    assert result.status == "failed"
    assert word in result.message
    assert np.all(np.isfinite(result.state.rows))
    assert np.all(np.isfinite(result.mean))


def test_overflow_of_counts_is_not_the_end():
    rng = np.random.default_rng(10)
    objective, state = small(rng, n=60, D=5)
    Y = np.where(rng.random((60, 5)) < 0.1, 3000.0, objective.Y[:, :1])
    objective = MinibatchObjective(objective.kernel, Poisson(), Y, objective.inducing)
    result = fit_minibatch(objective, state_of(objective, state), batch_size=20, epochs=10)
    assert result.status == "finished"
    assert np.all(np.isfinite(result.curve))
    assert result.curve[-3:].mean() > result.curve[:3].mean()


def state_of(objective, state):
    return MinibatchState.begin(objective, state.rows[:, :2], np.exp(state.rows[:, 2:4]))


def agreement(X, truth, k=10):
    """Share of the true k nearest neighbours that are among those in X."""
    near = []
    for points in (X, truth):
        distance = cdist(points, points)
        np.fill_diagonal(distance, np.inf)
        near.append(np.argsort(distance, axis=1)[:, :k])
    return np.mean([np.intersect1d(a, c).size / k for a, c in zip(*near, strict=True)])


def test_counts_of_a_two_dimensional_latent_beat_principal_components():
    rng = np.random.default_rng(11)
    n, D = 250, 40
    X = rng.uniform(-1.7, 1.7, (n, 2))
    f = 1.2 * np.sin(0.8 * X @ rng.standard_normal((2, D)) + rng.uniform(0, 6, D)) + 0.5
    size = rng.uniform(0.5, 2.0, n)
    Y = rng.poisson(size[:, None] * np.exp(f)).astype(float)
    start = principal_components(np.log1p(Y / size[:, None]), 2)
    start = start / start[:, 0].std()
    offset = link_offsets(Poisson(), Y.sum(axis=0), np.full(D, size.sum()))
    objective = MinibatchObjective(
        RBF(1.0, (1.0, 1.0)), Poisson(), Y, start[rng.choice(n, 20, replace=False)],
        which=np.zeros(D, int), offset=offset, exposure=size,
    )  # fmt: skip
    state = MinibatchState.begin(objective, start, np.full((n, 2), 0.1))
    result = fit_minibatch(objective, state, batch_size=50, epochs=40)
    assert result.undone == 0
    assert agreement(result.mu, X) > agreement(start, X) + 0.05
    # Reported variances are those of the latents: smaller than the prior's.
    assert 0.0 < result.S.mean() < 0.5


# -- starts and errors -----------------------------------------------------------------------------


def test_link_offsets_are_the_inverse_of_the_mean():
    totals, exposure = np.array([6.0, 40.0, 0.0]), np.array([3.0, 80.0, 50.0])
    got = link_offsets(Poisson(), totals, exposure)
    np.testing.assert_allclose(got, np.log([2.0, 0.5, 0.01]), atol=1e-12)
    share = np.array([0.2, 0.9])
    logit = link_offsets(BernoulliLogit(), 50 * share, np.full(2, 50.0))
    np.testing.assert_allclose(logit, np.log(share / (1 - share)), atol=1e-12)
    probit = link_offsets(BernoulliProbit(), 50 * share, np.full(2, 50.0))
    np.testing.assert_allclose(probit, ndtri(share), atol=1e-12)
    assert np.all(
        np.isfinite(link_offsets(BernoulliLogit(), np.array([0.0, 9.0]), np.full(2, 9.0)))
    )
    np.testing.assert_allclose(link_offsets(StudentT(), np.array([-50.0]), np.ones(1)), -50.0)


def test_groups_of_one_pattern_are_checked():
    objective, state = small(np.random.default_rng(12), likelihood=Gaussian(1.0))
    Y = objective.Y.copy()
    Y[3, 1] = np.nan
    holes = dataclasses.replace(objective, Y=Y)
    with pytest.raises(ValueError, match="different rows"):
        fit_minibatch(holes, state, batch_size=12, epochs=1)
    each = dataclasses.replace(holes, which=np.arange(4))
    result = fit_minibatch(each, state_of(each, state), batch_size=12, epochs=2)
    assert result.factor.shape[0] == 4
    assert np.all(np.isfinite(result.curve))
    Y[3, :] = np.nan
    rows = dataclasses.replace(objective, Y=Y)
    assert np.all(np.isfinite(fit_minibatch(rows, state, batch_size=12, epochs=2).curve))
    poisson = dataclasses.replace(each, likelihood=Poisson())
    assert np.all(np.isfinite(fit_minibatch(poisson, state_of(poisson, state), batch_size=6).curve))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"which": np.array([0, 2, 2, 0])}, "groups"),
        ({"which": np.zeros(3, int)}, "which"),
        ({"offset": np.zeros(3)}, "offset"),
        ({"exposure": np.ones(5)}, "exposure"),
        ({"unit": np.ones(4)}, "unit"),
        ({"samples": 0}, "samples"),
        ({"priors": {"none": LogNormal()}}, "priors"),
        ({"likelihood": Gaussian(), "exposure": np.ones(12)}, "Gaussian"),
    ],
)
def test_what_does_not_fit_is_refused(change, word):
    objective, _ = small(np.random.default_rng(13))
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(objective, **change)


def test_arguments_of_the_search_are_checked():
    objective, state = small(np.random.default_rng(14))
    with pytest.raises(ValueError, match="batch_size"):
        fit_minibatch(objective, state, batch_size=13)
    with pytest.raises(ValueError, match="held"):
        fit_minibatch(objective, state, batch_size=5, held=frozenset({"none"}))
    with pytest.raises(ValueError, match="rate"):
        fit_minibatch(objective, state, batch_size=5, rate=lambda step: 2.0)
    shorter = dataclasses.replace(objective, Y=objective.Y[:5])
    with pytest.raises(ValueError, match="rows"):
        fit_minibatch(shorter, state, batch_size=5)
    mu, S = state.rows[:, :2], np.exp(state.rows[:, 2:4])
    with pytest.raises(ValueError, match="shape"):
        MinibatchState.begin(objective, mu[:5], S)
    with pytest.raises(ValueError, match="S > 0"):
        MinibatchState.begin(objective, mu, 0.0 * S)
    with pytest.raises(ValueError, match="counts"):
        fit_minibatch(dataclasses.replace(objective, Y=-objective.Y - 1.0), state, batch_size=5)


def test_any_kernel_with_psi_statistics():
    rng = np.random.default_rng(15)
    for likelihood in (Gaussian(2.0), Poisson()):
        objective, state = small(rng, likelihood=likelihood)
        objective = dataclasses.replace(objective, kernel=RBF() + Linear(0.1))
        result = fit_minibatch(objective, state_of(objective, state), batch_size=6, epochs=3)
        assert result.status == "finished"
        assert np.all(np.isfinite(result.curve))


def test_the_default_rate_is_a_step_length():
    for likelihood in (Gaussian(), Poisson()):
        objective, _ = small(np.random.default_rng(16), likelihood=likelihood)
        for size in (1, 12):
            rate = minibatch_fit.default_rate(objective, size)
            assert all(0.0 < rate(step) <= 1.0 for step in (0, 1, 10, 10**6))
