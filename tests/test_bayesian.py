"""The collapsed bound: against textbook forms, other software, differences and its limits."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from gplvm_xp import backend
from gplvm_xp.errors import NotEnoughMemoryError
from gplvm_xp.kernels import RBF, Constant, Linear, Matern52, White
from gplvm_xp.objectives import ExactObjective, groups_of, rows
from gplvm_xp.objectives.bayesian import BayesianObjective, Observed, inducing_gram, kl
from gplvm_xp.objectives.collapsed import Totals, collapsed, optimum
from gplvm_xp.objectives.rows import Rows, backward, chunks, forward
from gplvm_xp.priors import Gamma, Gaussian, LogNormal
from gplvm_xp.testing import check_gradient

KERNELS = {
    "rbf": RBF(1.3, 0.8),
    "rbf-ard": RBF(1.2, (0.9, 1.4)),
    "rbf+linear": RBF(1.2, (0.9, 1.4)) + Linear((0.5, 0.9)),
    "all": 1.7 * RBF(1.2, 1.1) + Linear(0.4) + Constant(0.5) + White(0.2),
}
NOISE = 0.3
# Complete; one pattern for each of some columns; every column its own; a row that no one saw.
HOLES = ("none", "some", "each", "empty row", "wide")
# Point latents with the trace term (VFE) and without (DTC), and uncertain ones.
KINDS = {"bayesian": (True, True), "vfe": (False, True), "dtc": (False, False)}


def problem(n=9, D=5, M=4, q=2, seed=0, holes="none"):
    """μ, S, Z and a table with NaN for missing."""
    rng = np.random.default_rng(seed)
    mu, Z = rng.standard_normal((n, q)), 1.3 * rng.standard_normal((M, q))
    S = np.exp(0.7 * rng.standard_normal((n, q)) - 1.0)
    Y = rng.standard_normal((n, 23 if holes == "wide" else D))
    if holes == "some":
        Y[1, 0] = Y[4, 0] = Y[1, 2] = Y[4, 2] = np.nan
        Y[6:, 3] = np.nan
    if holes == "each":
        for d in range(D):
            Y[d % n, d] = Y[(2 * d + 3) % n, d] = np.nan
    if holes == "empty row":
        Y[3] = np.nan
    return mu, S, Z, Y


def objective(b, kernel, mu, S, Z, Y, *, reduce=False, noise=NOISE, **options):
    return BayesianObjective(kernel, Observed.of(b, Y, reduce=reduce), mu, S, Z, noise, **options)


def posed(kind, kernel, b=None, jitter=1e-3, reduce=False, **shape):
    """The objective of a kind on a problem."""
    mu, S, Z, Y = problem(**shape)
    uncertain, trace = KINDS[kind]
    return objective(
        b or backend.get("numpy"), kernel, mu, S if uncertain else None, Z, Y,
        reduce=reduce, jitter=jitter, trace=trace,
    )  # fmt: skip


# -- the textbook's form, column by column ---------------------------------------------------------


def rbf_statistics(variance, ell, mu, S, Z):
    """ψ0 (n,), Ψ1 (n, M), Ψ2 (n, M, M) by their printed formulas."""
    a = 1.0 / ell**2
    d = mu[:, None, :] - Z[None, :, :]
    e = a * S[:, None, :] + 1.0
    psi1 = variance * np.prod(e**-0.5 * np.exp(-0.5 * a * d * d / e), axis=2)
    mid = 0.5 * (Z[:, None, :] + Z[None, :, :])
    gap = Z[:, None, :] - Z[None, :, :]
    d, e = mu[:, None, None, :] - mid, 2.0 * a * S[:, None, None, :] + 1.0
    psi2 = np.prod(e**-0.5 * np.exp(-0.25 * a * gap * gap - a * d * d / e), axis=3)
    return np.full(len(mu), variance), psi1, variance**2 * psi2


def textbook(K, psi, Y, noise, trace=True):
    """Titsias & Lawrence (2010), eq. 14, in the unstable form and a column at a time."""
    beta, total = 1.0 / noise, 0.0
    for y in Y.T:
        seen = ~np.isnan(y)
        y, psi0, psi1, psi2 = y[seen], psi[0][seen].sum(), psi[1][seen], psi[2][seen].sum(axis=0)
        A = beta * psi2 + K
        total += 0.5 * y.size * math.log(beta / (2.0 * math.pi))
        total += 0.5 * (np.linalg.slogdet(K)[1] - np.linalg.slogdet(A)[1])
        W = beta * np.eye(y.size) - beta**2 * psi1 @ np.linalg.solve(A, psi1.T)
        total -= 0.5 * y @ W @ y
        if trace:
            total -= 0.5 * beta * (psi0 - np.trace(np.linalg.solve(K, psi2)))
    return total


def dense(kind, kernel, jitter, noise=NOISE, **shape):
    """The bound of an RBF, all of it in NumPy."""
    mu, S, Z, Y = problem(**shape)
    uncertain, trace = KINDS[kind]
    variance, ell = kernel.theta()[0], kernel.theta()[1:]
    psi = rbf_statistics(variance, ell, mu, S if uncertain else 0.0 * S, Z)
    gap = (Z[:, None, :] - Z[None, :, :]) / ell
    K = variance * (np.exp(-0.5 * np.sum(gap**2, axis=2)) + jitter * np.eye(len(Z)))
    value = textbook(K, psi, Y, noise, trace)
    return value - 0.5 * np.sum(mu**2 + S - np.log(S) - 1.0) if uncertain else value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", HOLES)
def test_value_against_the_textbook(case, holes, kind):
    kernel = KERNELS["rbf-ard"]
    fun = posed(kind, kernel, case.backend, holes=holes)
    f, g = fun.value_and_grad(fun.start())
    want = dense(kind, kernel, 1e-3, holes=holes)
    np.testing.assert_allclose(case.to_numpy(f), -want, rtol=case.tolerance(1e-11, 1e-4))
    assert f.shape == ()
    assert f.dtype == g.dtype == case.backend.dtype
    assert g.shape == (fun.layout.size,)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_on_every_library(case, kind):
    there = posed(kind, KERNELS["all"], case.backend, holes="some")
    here = posed(kind, KERNELS["all"], holes="some")
    got, want = (fun.value_and_grad(fun.start())[1] for fun in (there, here))
    tight = case.tolerance(1e-10, 2e-3)
    np.testing.assert_allclose(
        case.to_numpy(got), want, rtol=tight, atol=tight * np.abs(want).max()
    )


def test_value_and_slopes_to_forty_digits():
    """mpmath shares no line with NumPy; q = 1, three rows, one of them half missing."""
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")
    mu, S, Z, Y = problem(n=3, D=2, M=2, q=1)
    Y[1, 0] = np.nan
    fun = objective(backend.get("numpy"), RBF(1.3, 0.8), mu, S, Z, Y, noise=0.05, jitter=1e-6)
    f, g = fun.value_and_grad(fun.start())

    def bound(*x):
        v, ell, noise = (mpmath.exp(a) for a in x[:3])
        z, m, s = x[3:5], x[5:8], [mpmath.exp(a) for a in x[8:]]
        a, beta, total = 1 / ell**2, 1 / noise, mpmath.mpf(0)
        K = mpmath.matrix(2, 2)
        for i in range(2):
            for j in range(2):
                K[i, j] = v * mpmath.exp(-a * (z[i] - z[j]) ** 2 / 2)
        K += mpmath.mpf(1e-6) * v * mpmath.eye(2)
        for d in range(2):
            seen = [n for n in range(3) if not np.isnan(Y[n, d])]
            psi1, psi2 = mpmath.matrix(len(seen), 2), mpmath.matrix(2, 2)
            y = mpmath.matrix([mpmath.mpf(Y[n, d]) for n in seen])
            for row, n in enumerate(seen):
                e1, e2 = a * s[n] + 1, 2 * a * s[n] + 1
                for i in range(2):
                    psi1[row, i] = (
                        v / mpmath.sqrt(e1) * mpmath.exp(-a * (m[n] - z[i]) ** 2 / e1 / 2)
                    )
                    for j in range(2):
                        middle = a * (m[n] - (z[i] + z[j]) / 2) ** 2 / e2
                        apart = a * (z[i] - z[j]) ** 2 / 4
                        psi2[i, j] += v**2 / mpmath.sqrt(e2) * mpmath.exp(-apart - middle)
            A, N = K + beta * psi2, len(seen)
            right = psi1.T * y
            total += N * mpmath.log(beta / (2 * mpmath.pi)) / 2
            total += mpmath.log(mpmath.det(K) / mpmath.det(A)) / 2
            total += (beta**2 * (right.T * mpmath.lu_solve(A, right))[0] - beta * (y.T * y)[0]) / 2
            inner = mpmath.inverse(K) * psi2
            total -= beta * (N * v - inner[0, 0] - inner[1, 1]) / 2
        return total - sum(m[n] ** 2 + s[n] - mpmath.log(s[n]) - 1 for n in range(3)) / 2

    with mpmath.workdps(40):
        x = [mpmath.mpf(float(a)) for a in fun.start()]
        want, h = bound(*x), mpmath.mpf(10) ** -12
        slopes = []
        for k in range(len(x)):
            up, down = ([a + (k == i) * s * h for i, a in enumerate(x)] for s in (1, -1))
            slopes.append(float((bound(*up) - bound(*down)) / (2 * h)))
    np.testing.assert_allclose(f, -float(want), rtol=1e-13)
    np.testing.assert_allclose(g, -np.array(slopes), rtol=1e-10, atol=1e-10)


# -- gradients -------------------------------------------------------------------------------------


def grid(q, side=61, reach=8.0):
    """A rectangle rule for N(0, I): for smooth integrands exact to rounding."""
    x = np.linspace(-reach, reach, side)
    w = np.exp(-0.5 * x * x) / np.exp(-0.5 * x * x).sum()
    places = np.stack(np.meshgrid(*[x] * q, indexing="ij"), axis=-1).reshape(-1, q)
    return places, np.prod(np.stack(np.meshgrid(*[w] * q, indexing="ij"), -1).reshape(-1, q), 1)


def in_torch(torch, name, t):
    """The kernels again: k(x (J, q), z (M, q)) without white noise, and the variance of that."""

    def rbf(variance, ell):
        def k(x, z):
            return variance * torch.exp(-0.5 * ((x[:, None] - z[None]) / ell).square().sum(-1))

        return k

    if name.startswith("rbf") and "linear" not in name:
        return rbf(t[0], t[1:]), 0.0
    if name == "rbf+linear":
        return lambda x, z: rbf(t[0], t[1:3])(x, z) + (x * t[3:]) @ z.T, 0.0
    return lambda x, z: t[0] * rbf(t[1], t[2])(x, z) + t[3] * x @ z.T + t[4], t[5]


def torch_bound(torch, kind, name, fun, Y, jitter):
    """−F and its gradient in the flat vector, by reverse differentiation.

    Statistics are sums of a kernel in torch over a dense grid; K_uu is solved as it is.
    """
    uncertain, trace = KINDS[kind]
    n, q = fun.mu.shape
    x = torch.tensor(fun.start(), requires_grad=True)
    p, z = fun.kernel.size, fun.Z.size
    cut = np.cumsum([p, 1, z, n * q])
    theta, noise = torch.exp(x[:p]), torch.exp(x[p])
    Z, mu = x[cut[1] : cut[2]].reshape(fun.Z.shape), x[cut[2] : cut[3]].reshape(n, q)
    S = torch.exp(x[cut[3] :]).reshape(n, q) if uncertain else torch.zeros(n, q).double()
    k, white = in_torch(torch, name, theta)
    rule = grid(q) if uncertain else (np.zeros((1, q)), np.ones(1))
    xi, w = (torch.tensor(a) for a in rule)

    def own(X):
        return torch.stack([k(row[None], row[None])[0, 0] for row in X]) + white

    psi0, psi1, psi2 = [], [], []
    for i in range(n):
        X = mu[i] + (torch.sqrt(S[i]) * xi if uncertain else 0.0 * xi)
        G = k(X, Z)
        # k(x, x) is at most a polynomial of second order here: its mean at two places is exact.
        root = torch.sqrt(S[i]) if uncertain else torch.zeros(q).double()
        pair = torch.stack([mu[i] + root, mu[i] - root])
        psi0.append(own(pair).mean())
        psi1.append((w[:, None] * G).sum(0))
        psi2.append(G.T @ (w[:, None] * G))
    psi0, psi1, psi2 = torch.stack(psi0), torch.stack(psi1), torch.stack(psi2)
    M = Z.shape[0]
    K = k(Z, Z) + (white + jitter * own(Z).mean()) * torch.eye(M).double()
    beta, total = 1.0 / noise, 0.0
    for column in Y.T:
        seen = torch.tensor(np.flatnonzero(~np.isnan(column)))
        y = torch.tensor(column)[seen]
        P0, P1, P2 = psi0[seen].sum(), psi1[seen], psi2[seen].sum(0)
        A, right = beta * P2 + K, P1.T @ y
        total = total + 0.5 * len(seen) * torch.log(beta / (2.0 * math.pi))
        total = total + 0.5 * (torch.logdet(K) - torch.logdet(A)) - 0.5 * beta * y @ y
        total = total + 0.5 * beta**2 * right @ torch.linalg.solve(A, right)
        if trace:
            total = total - 0.5 * beta * (P0 - torch.trace(torch.linalg.solve(K, P2)))
    if uncertain:
        total = total - 0.5 * (mu**2 + S - torch.log(S) - 1.0).sum()
    (-total).backward()
    return -total.item(), x.grad.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", ["none", "some", "each", "wide"])
@pytest.mark.parametrize("name", KERNELS)
def test_value_and_gradient_against_autograd(name, holes, kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    fun = posed(kind, KERNELS[name], holes=holes, jitter=0.03)
    f, g = fun.value_and_grad(fun.start())
    want_f, want_g = torch_bound(torch, kind, name, fun, problem(holes=holes)[3], 0.03)
    np.testing.assert_allclose(f, want_f, rtol=1e-11)
    for block, where in fun.layout.slices().items():
        want = want_g[where]
        scale = max(np.abs(want).max(), 1e-2)
        np.testing.assert_allclose(g[where], want, rtol=0, atol=1e-9 * scale, err_msg=block)


PRIORS = {"rbf.lengthscale": LogNormal(0.1, 0.6), "noise": Gamma(2.0, 3.0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "holes"), [(k, "none") for k in KERNELS] + [("rbf-ard", h) for h in HOLES[1:]]
)
def test_gradient_against_differences(name, holes, kind):
    fun = posed(kind, KERNELS[name], holes=holes, jitter=1e-4)
    check_gradient(fun.value_and_grad, fun.start(), rtol=1e-7, step=2e-3)


def test_gradient_of_a_quadrature_kernel_of_priors_and_of_held_blocks():
    mu, S, Z, Y = problem(holes="some")
    b = backend.get("numpy")
    fun = objective(b, Matern52(0.9, 1.2), mu, S, Z, Y, jitter=1e-3)
    check_gradient(fun.value_and_grad, fun.start(), rtol=1e-7, step=2e-3)
    kernel = RBF(1.2, (0.9, 1.4))
    fun = objective(b, kernel, mu, None, Z, Y, priors=PRIORS, latent_prior=Gaussian(0.2, 1.5))
    check_gradient(fun.value_and_grad, fun.start(), rtol=1e-7, step=2e-3)
    held = frozenset({"noise", "Z", "mu", "rbf.variance"})
    fun = objective(b, kernel, mu, S, Z, Y, held=held)
    assert [block.name for block in fun.layout.blocks] == ["rbf.lengthscale", "S"]
    check_gradient(fun.value_and_grad, fun.start(), rtol=1e-7, step=2e-3)


def test_priors_are_densities_in_natural_space():
    mu, _, Z, Y = problem()
    b, kernel = backend.get("numpy"), RBF(1.2, (0.9, 1.4))
    plain = objective(b, kernel, mu, None, Z, Y)
    fun = objective(b, kernel, mu, None, Z, Y, priors=PRIORS, latent_prior=Gaussian(0.2, 1.5))
    x = fun.start()
    want = stats.lognorm(0.6, scale=math.exp(0.1)).logpdf([0.9, 1.4]).sum()
    want += stats.gamma(2.0, scale=1 / 3).logpdf(NOISE) + stats.norm(0.2, 1.5).logpdf(mu).sum()
    np.testing.assert_allclose(plain.value_and_grad(x)[0] - fun.value_and_grad(x)[0], want)
    for given in ({"priors": {"sigma": Gamma()}}, {"held": frozenset({"sigma"})}):
        with pytest.raises(ValueError, match=r"sigma.*the parameters are.*noise"):
            objective(b, kernel, mu, None, Z, Y, **given)


def test_float32_gradient_against_float64():
    single = posed("bayesian", KERNELS["rbf-ard"], backend.get("numpy", None, "float32"), n=60)
    double = posed("bayesian", KERNELS["rbf-ard"], n=60)
    g32, g64 = (fun.value_and_grad(fun.start())[1] for fun in (single, double))
    assert g32.dtype == np.float32
    np.testing.assert_allclose(g32, g64, atol=2e-4 * np.abs(g64).max())


# -- another implementation ------------------------------------------------------------------------

# GPy 1.15.0, which adds 1e-8 to the diagonal of K_uu, on the table of `the_peer`:
#   k = GPy.kern.RBF(2, variance=1.3, lengthscale=[0.9, 1.4], ARD=True)
#   m = GPy.models.BayesianGPLVM(Y, 2, X=mu, X_variance=S, Z=Z, num_inducing=4, kernel=k,
#                                likelihood=GPy.likelihoods.Gaussian(variance=0.3))
#   m.log_likelihood(), k.variance.gradient, k.lengthscale.gradient, m.likelihood.variance.gradient,
#   m.Z.gradient, m.X.mean.gradient, m.X.variance.gradient
PEER = {
    "value": -84.31081803445699,
    "variance": -23.00655128473416,
    "lengthscale": [21.49327629927436, 8.572247978723663],
    "noise": 147.82336157156325,
    "Z": [[3.318292422989418, -0.5368784845638378], [3.707493337488748, -1.5042500672718349],
          [-1.57364524895618, -0.5418489413018601], [1.4707513353203223, 0.8141103126276733]],
    "mu": [[-1.3573899188846712, 1.6910189796075032], [0.16493089147211723, 2.6486050813233315],
           [-4.840725767647621, 1.018977246235926], [0.7282332894023773, -1.4983037052422736],
           [1.1531482195863703, -0.26986682315557264], [0.48034883441716736, 2.4343134486332563],
           [3.5191062939983917, -2.7700260313722294], [-3.4805436891864376, 0.5941489844799182]],
    "S": [[-1.5836049919708546, -0.228073111633964], [-1.1644046555446943, -0.18430489910428827],
          [0.9613902298317742, 0.19378287508539457], [-0.20855358221073728, 0.06988993842699756],
          [-0.22975848204180627, 3.534785773478706], [-0.20957973365081095, 0.18745557123004902],
          [-0.162176693336826, -0.6126929688720929], [0.5112794500809723, 0.02679627386091202]],
}  # fmt: skip


def the_peer():
    rng = np.random.RandomState(7)
    Y, mu = np.round(rng.randn(8, 3), 2), np.round(rng.randn(8, 2), 2)
    S, Z = np.round(0.1 + rng.rand(8, 2), 2), np.round(1.5 * rng.randn(4, 2), 2)
    return Y, mu, S, Z


def test_gpy():
    Y, mu, S, Z = the_peer()
    b, share = backend.get("numpy"), 1e-8 / 1.3
    fun = objective(b, RBF(1.3, (0.9, 1.4)), mu, S, Z, Y, noise=0.3, jitter=share)
    v = fun.values(fun.start())
    value, ok, g = fun.bound(v)
    assert ok
    tight = {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(value, PEER["value"], **tight)
    # Our jitter grows with the kernel's variance, and theirs does not.
    sums = forward(fun.kernel, v.theta, v.Z, Rows(v.mu, v.S, b.asarray(Y)))
    K = inducing_gram(fun.kernel, v.theta, v.Z, share)[0]
    moved = share * np.trace(collapsed(b, K, v.noise, sums, fun.data.totals).K)
    np.testing.assert_allclose(g.theta[0] - moved, PEER["variance"], **tight)
    np.testing.assert_allclose(g.theta[1:], PEER["lengthscale"], **tight)
    for name in ("noise", "Z", "mu", "S"):
        np.testing.assert_allclose(getattr(g, name), PEER[name], **tight, err_msg=name)


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [True, False])
def test_every_row_an_inducing_input_gives_the_exact_process(trace):
    mu, _, _, Y = problem(n=10, holes="some")
    b, kernel = backend.get("numpy"), RBF(1.3, 0.4)
    exact = ExactObjective(kernel, groups_of(b, Y), mu, NOISE)
    x = exact.start()
    f, g = exact.value_and_grad(x)
    gX = exact.layout.slices()["X"] if "X" in exact.layout.slices() else slice(-mu.size, None)
    fun = objective(b, kernel, mu, None, mu, Y, trace=trace)
    want, got = (f, g), fun.value_and_grad(fun.start())
    where = fun.layout.slices()
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got[1][:3], want[1][:3], rtol=1e-9)
    both = got[1][where["mu"]] + got[1][where["Z"]]
    np.testing.assert_allclose(both, want[1][gX], rtol=1e-8, atol=1e-9)
    if trace:
        # No other Z gives a higher bound.
        np.testing.assert_allclose(got[1][where["Z"]], 0.0, atol=1e-8)


def test_certain_latents_give_the_exact_process():
    mu, _, _, Y = problem(n=10)
    b, kernel = backend.get("numpy"), RBF(1.3, 0.4)
    S = np.full(mu.shape, 1e-11)
    fun = objective(b, kernel, mu, S, mu, Y)
    v = fun.values(fun.start())
    value = fun.bound(v).value + kl(v.mu, v.S)
    K = kernel.gram(kernel.theta(), mu) + NOISE * np.eye(10)
    want = stats.multivariate_normal(np.zeros(10), K).logpdf(Y.T).sum()
    np.testing.assert_allclose(value, want, rtol=1e-8)


@pytest.mark.parametrize("holes", ["none", "some"])
def test_the_bounds_are_in_order(holes):
    """VFE is below the exact likelihood for any Z, and rises with every inducing input."""
    mu, _, _, Y = problem(n=12, holes=holes)
    b, kernel = backend.get("numpy"), RBF(1.3, 0.8)
    exact = ExactObjective(kernel, groups_of(b, Y), mu, NOISE)
    best = -exact.value_and_grad(exact.start())[0]
    values = []
    for M in (1, 3, 6, 9):
        fun = objective(b, kernel, mu, None, mu[:M], Y)
        values.append(-fun.value_and_grad(fun.start())[0])
    assert np.all(np.diff([*values, best]) > 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_more_columns_than_rows_are_reduced(kind):
    for reduce in (False, True):
        fun = posed(kind, KERNELS["rbf-ard"], holes="wide", reduce=reduce)
        assert fun.data.Y.shape == ((9, 9) if reduce else (9, 23))
        assert fun.data.totals.outputs.tolist() == [23.0]
    plain = posed(kind, KERNELS["rbf-ard"], holes="wide")
    (f, g), (f0, g0) = (o.value_and_grad(o.start()) for o in (fun, plain))
    np.testing.assert_allclose(f, f0, rtol=1e-12)
    np.testing.assert_allclose(g, g0, rtol=1e-9, atol=1e-10 * np.abs(g0).max())


def test_groups_are_columns_that_share_their_rows():
    _, _, _, Y = problem(holes="some")
    data = Observed.of(backend.get("numpy"), Y)
    assert data.W.shape == (9, 3)
    assert data.totals.which[0] == data.totals.which[2]
    assert data.totals.which[1] == data.totals.which[4]
    assert sorted(data.totals.outputs) == [1.0, 2.0, 2.0]
    np.testing.assert_array_equal(data.W[:, data.totals.which], ~np.isnan(Y))
    np.testing.assert_array_equal(data.totals.entries.sum(), np.sum(~np.isnan(Y)))
    np.testing.assert_allclose(data.totals.squares.sum(), np.nansum(Y * Y))


def test_a_row_that_no_one_saw_has_its_prior():
    """Its latents get the gradient of the KL alone."""
    mu, S, _, _ = problem()
    fun = posed("bayesian", KERNELS["rbf-ard"], holes="empty row")
    g = fun.bound(fun.values(fun.start())).gradients
    np.testing.assert_allclose(g.mu[3], -mu[3], rtol=1e-12)
    np.testing.assert_allclose(g.S[3], 0.5 / S[3] - 0.5, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_the_data_do_not_matter(kind):
    """A table in other units, with variances in theirs, has the same bound but for the units.

    With a jitter that is not relative it would not.
    """
    mu, S, Z, Y = problem()
    uncertain, trace = KINDS[kind]
    values = []
    for unit in (1.0, 1e3):
        fun = objective(
            backend.get("numpy"), RBF(1.3 * unit**2, 0.9), mu, S if uncertain else None, Z,
            unit * Y, noise=NOISE * unit**2, jitter=1e-2, trace=trace,
        )  # fmt: skip
        values.append(-fun.value_and_grad(fun.start())[0] + Y.size * math.log(unit))
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_the_jitter_is_in_value_and_gradient():
    """A large one, where the diagonal of K_uu depends on Z."""
    kernel = Linear((0.5, 0.9)) + RBF(0.3, 1.0)
    fun, none = (posed("bayesian", kernel, jitter=eps) for eps in (0.5, 0.0))
    assert abs(fun.value_and_grad(fun.start())[0] - none.value_and_grad(none.start())[0]) > 0.1
    check_gradient(fun.value_and_grad, fun.start(), rtol=1e-7, step=2e-3)


def test_the_best_q_of_u_gives_the_textbooks_predictions():
    mu, S, Z, Y = problem(holes="some")
    b, kernel = backend.get("numpy"), KERNELS["rbf-ard"]
    fun = objective(b, kernel, mu, S, Z, Y, jitter=1e-3)
    v = fun.values(fun.start())
    mean, factor, ok = fun.optimal(v)
    assert ok
    K = inducing_gram(kernel, v.theta, Z, 1e-3)[0]
    L = np.linalg.cholesky(K)
    _, psi1, psi2 = rbf_statistics(1.2, np.array([0.9, 1.4]), mu, S, Z)
    for d, y in enumerate(Y.T):
        seen = ~np.isnan(y)
        A = K + psi2[seen].sum(axis=0) / NOISE
        want = K @ np.linalg.solve(A, psi1[seen].T @ y[seen]) / NOISE
        np.testing.assert_allclose(L @ mean[:, d], want, rtol=1e-9, atol=1e-10)
        T = L @ factor[fun.data.totals.which[d]]
        np.testing.assert_allclose(T @ T.T, K @ np.linalg.solve(A, K), rtol=1e-9, atol=1e-10)


# -- chunks, threads, memory -----------------------------------------------------------------------


@pytest.mark.parametrize("holes", ["none", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_but_rounding(monkeypatch, kind, holes):
    fun = posed(kind, KERNELS["all"], n=23, holes=holes)
    f, g = fun.value_and_grad(fun.start())
    for row_bytes in (1, 8 * 4 * 3, 8 * 4 * 11):
        monkeypatch.setattr(rows, "ROWS_BYTES", row_bytes)
        again = fun.value_and_grad(fun.start())
        np.testing.assert_allclose(again[0], f, rtol=1e-12)
        np.testing.assert_allclose(again[1], g, rtol=1e-9, atol=1e-11 * np.abs(g).max())


@pytest.mark.parametrize("holes", ["none", "some"])
def test_the_bits_do_not_depend_on_threads(monkeypatch, holes):
    fun = posed("bayesian", KERNELS["rbf+linear"], n=200, M=7, holes=holes)
    monkeypatch.setattr(rows, "ROWS_BYTES", 8 * 7 * 17)
    results = []
    for threads in (1, 1, 2, 5):
        monkeypatch.setattr(
            "gplvm_xp.backend._numpy._free_cores", lambda least=4, threads=threads: threads
        )
        results.append(fun.value_and_grad(fun.start()))
    for f, g in results[1:]:
        assert f == results[0][0]
        np.testing.assert_array_equal(g, results[0][1])


def test_ranges_cover_the_rows_evenly():
    for n, step in ((0, 3), (1, 5), (10, 3), (10, 10), (11, 10), (7, 0)):
        parts = chunks(n, step)
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        sizes = [part.stop - part.start for part in parts]
        assert not sizes or max(sizes) <= max(step, 1)
        assert not sizes or max(sizes) - min(sizes) < max(len(sizes), 2)


@pytest.mark.parametrize("holes", ["none", "some"])
def test_no_array_of_rows_times_pairs(holes):
    n, M = 20_000, 40
    fun = posed("bayesian", KERNELS["rbf-ard"], n=n, M=M, holes=holes)
    x = fun.start()
    small = posed("bayesian", KERNELS["rbf-ard"])
    small.value_and_grad(small.start())
    tracemalloc.start()
    try:
        fun.value_and_grad(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.15 * 8 * n * M * M


@pytest.mark.parametrize(("bytes_left", "enough"), [(1000, False), (2**30, True), (None, True)])
def test_too_little_memory_is_said_before_anything_is_computed(monkeypatch, bytes_left, enough):
    monkeypatch.setattr(type(backend.get("numpy")), "memory_available", lambda self: bytes_left)
    if enough:
        posed("bayesian", KERNELS["rbf-ard"]).start()
        return
    with pytest.raises(NotEnoughMemoryError, match=r"9 rows.*4 inducing.*3 group.*n_inducing"):
        posed("bayesian", KERNELS["rbf-ard"], holes="some").start()


def test_what_is_asked_for_is_what_an_evaluation_takes():
    """The estimate is above the peak, and not by an order of magnitude."""
    for kind, shape in (
        ("bayesian", {"n": 3000, "M": 60}),
        ("vfe", {"n": 3000, "M": 60}),
        ("bayesian", {"n": 500, "D": 40, "M": 100, "holes": "each"}),
    ):
        fun = posed(kind, KERNELS["rbf-ard"], **shape)
        x = fun.start()
        fun.value_and_grad(x)
        tracemalloc.start()
        try:
            fun.value_and_grad(x)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < fun.memory() < 10 * peak, (kind, shape, peak, fun.memory())


# -- where it is not defined -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bayesian", "dtc"])
@pytest.mark.parametrize(
    ("block", "value"), [("rbf.variance", 800.0), ("noise", -2000.0), ("Z", np.nan), ("mu", np.nan)]
)
def test_failure_is_an_infinite_value(case, block, value, kind):
    fun = posed(kind, KERNELS["rbf-ard"], case.backend)
    x = case.to_numpy(fun.start())
    x[fun.layout.slices()[block].start] = value
    f, _ = fun.value_and_grad(case.asarray(x))
    assert case.to_numpy(f) == np.inf


def test_a_prior_that_is_nowhere(monkeypatch):
    """Whatever is not finite is a failure, also where all factors exist."""
    for wrong in (np.nan, np.inf, -np.inf):
        monkeypatch.setattr(Gamma, "log_density", lambda self, x, wrong=wrong: (x + wrong, x))
        fun = posed("bayesian", KERNELS["rbf-ard"])
        assert np.isfinite(fun.value_and_grad(fun.start())[0])
        mu, S, Z, Y = problem()
        fun = objective(
            backend.get("numpy"), KERNELS["rbf-ard"], mu, S, Z, Y, priors={"noise": Gamma()}
        )
        assert fun.value_and_grad(fun.start())[0] == np.inf


def test_coincident_inducing_inputs():
    mu, S, Z, Y = problem()
    Z[2] = Z[0]
    b = backend.get("numpy")
    fun = objective(b, RBF(1.0, 1.0), mu, S, Z, Y)
    assert fun.value_and_grad(fun.start())[0] == np.inf
    # With jitter two in one place are as one.
    fun, apart = (
        objective(b, RBF(1.0, 1.0), mu, S, at, Y, jitter=1e-9) for at in (Z, Z[[0, 1, 3]])
    )
    np.testing.assert_allclose(
        fun.value_and_grad(fun.start())[0], apart.value_and_grad(apart.start())[0], rtol=1e-6
    )


def test_a_bound_that_rounding_made_is_refused():
    """tr(K_uu⁻¹ Ψ2) above ψ0 is no bound: the trace term would reward it."""
    mu, S, Z, Y = problem()
    b, kernel = backend.get("numpy"), KERNELS["rbf-ard"]
    theta = kernel.theta()
    data = Observed.of(b, Y)
    sums = forward(kernel, theta, Z, Rows(mu, S, data.Y))
    K, noise = inducing_gram(kernel, theta, Z, 1e-6)[0], b.scalar(NOISE)
    spoilt = sums._replace(psi0=0.5 * sums.psi0)
    assert collapsed(b, K, noise, sums, data.totals).ok
    assert not collapsed(b, K, noise, spoilt, data.totals).ok
    # The DTC likelihood has no such term.
    assert collapsed(b, K, noise, spoilt, data.totals, trace=False).ok


def test_no_climb_by_rounding():
    """The kernel's variance and lengthscale grow without end, as in a fit that has gone astray:
    the bound falls, or is refused, but never rises above that of the sane."""
    mu, _, _, Y = problem(n=30, M=12)
    Y, b = 1e-2 * Y, backend.get("numpy")
    values = []
    for power in range(0, 24, 2):
        kernel = RBF(10.0**power, 3.0 * 10.0 ** (power / 4))
        fun = objective(b, kernel, mu, 0.1 + 0.0 * mu, mu[:12], Y, noise=1e-4, jitter=1e-6)
        values.append(-fun.value_and_grad(fun.start())[0])
    exact = stats.norm(0.0, np.sqrt(np.mean(Y**2))).logpdf(Y).sum()
    assert max(values) < exact + 100.0
    assert np.all(np.array(values[4:]) < values[0])


def test_gradients_of_sums_have_the_shapes_of_what_they_are_of():
    mu, S, Z, Y = problem(holes="some")
    b, kernel = backend.get("numpy"), KERNELS["rbf-ard"]
    data = Observed.of(b, Y)
    table = Rows(mu, S, data.Y, data.W)
    sums = forward(kernel, kernel.theta(), Z, table)
    assert [a.shape for a in sums] == [(3,), (4, 5), (3, 4, 4)]
    g = backward(kernel, kernel.theta(), Z, table, sums)
    assert [a.shape for a in g] == [(3,), Z.shape, mu.shape, S.shape]
    points = Rows(mu, None, data.Y, data.W)
    assert backward(kernel, kernel.theta(), Z, points, sums).S is None


def test_sums_over_shards_add():
    mu, S, Z, Y = problem(n=20, holes="some")
    b, kernel = backend.get("numpy"), KERNELS["all"]
    data = Observed.of(b, Y)
    table = Rows(mu, S, data.Y, data.W)
    whole = forward(kernel, kernel.theta(), Z, table)
    shards = [table.part(where) for where in (slice(0, 7), slice(7, 20))]
    parts = [forward(kernel, kernel.theta(), Z, part) for part in shards]
    for a, *others in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(sum(others), a, rtol=1e-12)
    totals = Totals.of(np.nan_to_num(Y), data.totals.which, data.W)
    K = inducing_gram(kernel, kernel.theta(), Z, 1e-6)[0]
    mean, factor, ok = optimum(b, K, b.scalar(NOISE), whole, totals)
    assert ok
    assert mean.shape == (4, 5)
    assert factor.shape == (3, 4, 4)
