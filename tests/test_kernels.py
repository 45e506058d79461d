"""Kernels: the conformance suite everywhere, oracles of other origin, and the suite on trial."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
from conftest import open_case, why_not

from gplvm_xp import backend
from gplvm_xp.kernels import (
    RBF,
    ActiveDims,
    Constant,
    Hexagonal,
    Kernel,
    Linear,
    Matern32,
    Matern52,
    Periodic,
    Polynomial,
    Product,
    Radial,
    RationalQuadratic,
    Scale,
    Sum,
    White,
)
from gplvm_xp.testing import check_kernel

ARD = (0.8, 1.3, 0.6)
LEAVES = {
    "rbf": RBF(1.3, 0.8),
    "rbf-ard": RBF(0.7, ARD),
    "matern32": Matern32(1.1, ARD),
    "matern52": Matern52(0.9, 1.2),
    "rq": RationalQuadratic(1.2, 0.9, alpha=0.7),
    "rq-ard": RationalQuadratic(1.2, ARD, alpha=2.5),
    "linear": Linear(0.6),
    "linear-ard": Linear(ARD),
    "polynomial-1": Polynomial(0.5, 0.7, degree=1),
    "polynomial-3": Polynomial(0.5, 0.7, degree=3),
    "periodic": Periodic(1.1, 0.9, 2.3),
    "periodic-ard": Periodic(1.1, ARD, 2.3),
    "hexagonal": ActiveDims(Hexagonal(1.1, 2.3, -0.4, 1.7), (2, 0)),
    "constant": Constant(0.4),
    "white": White(0.3),
}
TREES = {
    "rbf+linear+bias+white": RBF(1.3, 0.8) + Linear(0.5) + Constant(0.2) + White(0.1),
    "product": RBF(1.0, ARD) * Linear(0.7),
    "three-factors": RBF(1.0, 0.9) * Periodic(1.0, 1.1, 2.0) * Polynomial(0.4, 0.8, 2),
    "scaled": 2.0 * RBF(1.0, 0.9) + 0.5 * Matern52(1.0, 1.1),
    "scaled-sum": Scale(RBF(1.0, 0.9) + Linear(0.5), 1.7),
    "active": ActiveDims(RBF(1.0, (0.7, 1.1)), (2, 0)) + ActiveDims(Linear(0.4), (1,)),
    "active-product": ActiveDims(Matern32(), (0, 2)) * ActiveDims(Periodic(period=1.9), (1,)),
    "deep": 0.8 * (RBF(0.9, 0.7) * (Linear(0.4) + Constant(0.9)) + White(0.2)) + RBF(0.5, 1.5),
}
KERNELS = {**LEAVES, **TREES}


# -- a stranger's kernel ---------------------------------------------------------------------------


@dataclass(frozen=True)
class InverseMultiquadric(Radial):
    """κ = (1 + u)^{−½}, κ′ = −½ (1 + u)^{−3/2}: all that a new radial kernel takes."""

    snippet = "const T s = T(1) / sqrt(T(1) + u); k = s; dk = T(-0.5) * s * s * s;"

    def profile(self, b, u, e):
        return 1.0 / b.xp.sqrt(1.0 + u)

    def profile_slope(self, b, u, e):
        k = self.profile(b, u, e)
        return k, k**3, -0.5


@dataclass(frozen=True)
class GeneralCauchy(Radial):
    """κ = (1 + u)^{−β}, with an extra parameter β."""

    beta: float = 1.0

    extras = ("beta",)
    snippet = (
        "const T l = log(T(1) + u); k = exp(-e[0] * l); dk = -e[0] * k / (T(1) + u); "
        "de[0] = -l * k;"
    )

    def profile(self, b, u, e):
        return b.xp.exp(-e[0] * b.xp.log1p(u))

    def profile_slope(self, b, u, e):
        k = self.profile(b, u, e)
        return k, e[0] * k / (1.0 + u), -1.0

    def extra_slopes(self, b, u, e):
        return (-b.xp.log1p(u) * self.profile(b, u, e),)


STRANGERS = {
    "imq": InverseMultiquadric(1.2, ARD),
    "cauchy": GeneralCauchy(0.8, 1.1, beta=1.6),
    "cauchy-tree": GeneralCauchy(0.8, 1.1, beta=1.6) + InverseMultiquadric() * Linear(),
}


# -- the suite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_conformance(case, name):
    check_kernel(KERNELS[name], 3, make=case.asarray, dtype=case.dtype)


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_conform(case, name):
    check_kernel(STRANGERS[name], 3, make=case.asarray, dtype=case.dtype)


@pytest.mark.parametrize("q", [1, 2, 6])
@pytest.mark.parametrize("kernel", [RBF(), Matern52(), Periodic(), Polynomial(degree=2), Linear()])
def test_conformance_in_other_dimensions(kernel, q):
    check_kernel(kernel, q)


def test_every_exported_kernel_is_in_the_table():
    import gplvm_xp.kernels as module

    def parts(kernel):
        yield type(kernel)
        for child in (*getattr(kernel, "parts", ()), getattr(kernel, "kernel", None)):
            if child is not None:
                yield from parts(child)

    tried = {kind for kernel in KERNELS.values() for kind in parts(kernel)}
    exported = {getattr(module, name) for name in module.__all__} - {Kernel, Radial}
    assert tried == exported


def test_blocks_of_many_points_agree_with_the_whole(case):
    """More points than one block of any backend has, which the suite's few are not."""
    n = 60 if case.id == "emulated" else 300
    kernel = RBF(1.0, 0.9) * Linear(0.7) + White(0.1)
    rng = np.random.default_rng(1)
    X, S = rng.standard_normal((n, 2)), rng.standard_normal((n, n))
    S = S + S.T
    t, x = case.asarray(kernel.theta()), case.asarray(X)
    K, pull = kernel.gram_pullback(t, x)
    want = [case.to_numpy(a) for a in pull(case.asarray(S))[:2]]
    filled = case.to_numpy(kernel.fill_lower(t, x, case.backend.zeros((n, n))))
    got = kernel.symmetric_pullback(t, x, case.backend.asarray(np.tril(S)))
    tight = case.tolerance(1e-12, 1e-4)
    np.testing.assert_allclose(np.tril(filled), np.tril(case.to_numpy(K)), rtol=tight, atol=tight)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(case.to_numpy(a), b, rtol=tight, atol=tight * np.abs(b).max())


# -- oracles ---------------------------------------------------------------------------------------


def explicit(kernel, x, z, same):
    """k(x, z) of one pair in plain Python, from the textbook formula."""
    match kernel:
        case Sum():
            return math.fsum(explicit(k, x, z, same) for k in kernel.parts)
        case Product():
            return math.prod(explicit(k, x, z, same) for k in kernel.parts)
        case Scale():
            return kernel.factor * explicit(kernel.kernel, x, z, same)
        case ActiveDims():
            return explicit(kernel.kernel, x[list(kernel.dims)], z[list(kernel.dims)], same)
        case Constant():
            return kernel.variance
        case White():
            return kernel.variance if same else 0.0
        case Linear():
            w = np.broadcast_to(kernel.variance, x.shape)
            return math.fsum(w[a] * x[a] * z[a] for a in range(x.size))
        case Polynomial():
            dot = math.fsum(x[a] * z[a] for a in range(x.size))
            return kernel.variance * (dot + kernel.bias) ** kernel.degree
        case Hexagonal():
            d = x - z
            number = 4.0 * math.pi / (math.sqrt(3.0) * kernel.period)
            waves = math.fsum(
                math.cos(number * (d[0] * math.cos(a) + d[1] * math.sin(a)))
                for a in (kernel.orientation + j * math.pi / 3.0 for j in range(3))
            )
            return (
                kernel.variance * waves / 3.0
                * math.exp(-0.5 * math.fsum(d**2) / kernel.lengthscale**2)
            )  # fmt: skip
    ell = np.broadcast_to(kernel.lengthscale, x.shape)
    if isinstance(kernel, Periodic):
        total = math.fsum(
            math.sin(math.pi * (x[a] - z[a]) / kernel.period) ** 2 / ell[a] ** 2
            for a in range(x.size)
        )
        return kernel.variance * math.exp(-2.0 * total)
    u = math.fsum(((x[a] - z[a]) / ell[a]) ** 2 for a in range(x.size))
    r = math.sqrt(u)
    match kernel:
        case RBF():
            k = math.exp(-u / 2)
        case Matern32():
            k = (1 + math.sqrt(3) * r) * math.exp(-math.sqrt(3) * r)
        case Matern52():
            k = (1 + math.sqrt(5) * r + 5 * u / 3) * math.exp(-math.sqrt(5) * r)
        case RationalQuadratic():
            k = (1 + u / (2 * kernel.alpha)) ** -kernel.alpha
    return kernel.variance * k


@pytest.mark.parametrize("name", KERNELS)
def test_values_against_explicit_loops(name):
    kernel = KERNELS[name]
    rng = np.random.default_rng(3)
    X, Z = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    theta = kernel.theta()
    want = [[explicit(kernel, x, z, same=False) for z in Z] for x in X]
    np.testing.assert_allclose(kernel.gram(theta, X, Z), want, rtol=1e-13, atol=1e-14)
    want = [[explicit(kernel, X[i], X[j], same=i == j) for j in range(5)] for i in range(5)]
    np.testing.assert_allclose(kernel.gram(theta, X), want, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(kernel.diag(theta, X), np.diag(want), rtol=1e-13)


def test_far_from_the_origin_nothing_cancels():
    """Distances come from a product of inputs; a common offset must not eat their digits."""
    rng = np.random.default_rng(4)
    X = rng.integers(-64, 64, (6, 2)) / 64.0
    kernel = Matern52(1.0, 0.7)
    near, far = kernel.gram(kernel.theta(), X), kernel.gram(kernel.theta(), X + 2.0**20)
    np.testing.assert_allclose(far, near, rtol=1e-12)


def test_a_stray_row_costs_the_others_no_digits():
    rng = np.random.default_rng(5)
    X, Z = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
    for kernel in (RBF(), Matern32(), RationalQuadratic()):
        want = kernel.gram(kernel.theta(), X, Z)
        stray = np.concatenate([X, [[1e7, -1e7]]])
        got = kernel.gram(kernel.theta(), stray, Z)[:6]
        np.testing.assert_allclose(got, want, rtol=1e-13)


def torch_gram(torch, kernel, theta, X, Z):
    """K in torch, written without the package's formulas, so that autograd is an oracle."""

    def walk(kernel, X, Z):
        match kernel:
            case Sum():
                return sum(walk(k, X, Z) for k in kernel.parts)
            case Product():
                out = 1.0
                for part in kernel.parts:
                    out = out * walk(part, X, Z)
                return out
            case Scale():
                own = take(1)[0]
                return own * walk(kernel.kernel, X, Z)
            case ActiveDims():
                dims = list(kernel.dims)
                return walk(kernel.kernel, X[:, dims], Z[:, dims])
            case Constant():
                return take(1)[0] * torch.ones(X.shape[0], Z.shape[0], dtype=X.dtype)
            case White():
                same = torch.eye(X.shape[0], dtype=X.dtype) if X is Z or symmetric else 0.0
                return take(1)[0] * same + torch.zeros(X.shape[0], Z.shape[0], dtype=X.dtype)
            case Linear():
                w = take(np.size(kernel.variance))
                return torch.einsum("ia,ja,a->ij", X, Z, w.expand(X.shape[1]))
            case Polynomial():
                variance, bias = take(2)
                return variance * torch.pow(torch.einsum("ia,ja->ij", X, Z) + bias, kernel.degree)
        difference = X[:, None, :] - Z[None, :, :]
        if isinstance(kernel, Hexagonal):
            variance, period, orientation, ell = take(4)
            waves = 0.0
            for j in range(3):
                a = orientation + j * torch.pi / 3.0
                u = difference[..., 0] * torch.cos(a) + difference[..., 1] * torch.sin(a)
                waves = waves + torch.cos(4.0 * torch.pi / (3.0**0.5 * period) * u)
            return variance * waves / 3.0 * torch.exp(-0.5 * (difference**2).sum(-1) / ell**2)
        if isinstance(kernel, Periodic):
            variance, ell, period = take(1)[0], take(np.size(kernel.lengthscale)), take(1)[0]
            phase = torch.sin(torch.pi * difference / period) / ell
            return variance * torch.exp(-2.0 * (phase**2).sum(-1))
        variance = take(1)[0]
        alpha = take(1)[0] if isinstance(kernel, RationalQuadratic) else None
        u = ((difference / take(np.size(kernel.lengthscale))) ** 2).sum(-1)
        if isinstance(kernel, RBF):
            return variance * torch.exp(-0.5 * u)
        if alpha is not None:
            return variance * (1.0 + u / (2.0 * alpha)) ** (-alpha)
        # The square root has no derivative at 0, though the kernel has: a tiny number helps.
        r = torch.sqrt(u + 1e-300)
        if isinstance(kernel, Matern32):
            return variance * (1.0 + 3.0**0.5 * r) * torch.exp(-(3.0**0.5) * r)
        return variance * (1.0 + 5.0**0.5 * r + 5.0 / 3.0 * u) * torch.exp(-(5.0**0.5) * r)

    symmetric = Z is None
    place = 0

    def take(count):
        nonlocal place
        place += count
        return theta[place - count : place]

    return walk(kernel, X, X if Z is None else Z)


@pytest.mark.parametrize("given", [False, True], ids=["Z-none", "Z-given"])
@pytest.mark.parametrize("name", KERNELS)
def test_pullback_against_autograd(name, given):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kernel = KERNELS[name]
    rng = np.random.default_rng(5)
    X, Z = rng.standard_normal((6, 3)), rng.standard_normal((4, 3)) if given else None
    G = rng.standard_normal((6, 4 if given else 6))
    theta = kernel.theta()
    K, pull = kernel.gram_pullback(theta, X, Z)
    got = [g for g in pull(G) if g is not None]
    leaves = [torch.tensor(a, requires_grad=True) for a in (theta, X, Z) if a is not None]
    value = torch_gram(torch, kernel, leaves[0], leaves[1], leaves[2] if given else None)
    np.testing.assert_allclose(K, value.detach().numpy(), rtol=1e-12, atol=1e-13)
    (value * torch.tensor(G)).sum().backward()
    for a, leaf in zip(got, leaves, strict=True):
        want = np.zeros(a.shape) if leaf.grad is None else leaf.grad.numpy()
        np.testing.assert_allclose(a, want, rtol=1e-11, atol=1e-12 * max(1.0, np.abs(want).max()))


# -- the hexagonal kernel --------------------------------------------------------------------------


def test_hexagonal_in_the_plane(case):
    check_kernel(Hexagonal(0.8, 1.9, 0.3, 1.2), 2, make=case.asarray, dtype=case.dtype)


def test_hexagonal_fields_are_a_period_apart():
    """Without the envelope the kernel is σ² at the points of the triangular grid and less else."""
    kernel = Hexagonal(2.0, 0.7, 0.25, 1e9)
    theta = kernel.theta()
    turn = 0.25 + np.pi / 6.0 + np.pi / 3.0 * np.arange(6)
    neighbours = 0.7 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    k = kernel.gram(theta, np.zeros((1, 2)), neighbours)
    np.testing.assert_allclose(k, 2.0, rtol=1e-12)
    # Nothing nearer comes close: the first ring of maxima is that one.
    radius, angle = np.meshgrid(np.linspace(0.14, 0.63, 60), np.linspace(0.0, 2.0 * np.pi, 180))
    inside = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    assert kernel.gram(theta, np.zeros((1, 2)), inside).max() < 1.75
    # The centres of the triangles are the minima, −½ of the maximum.
    centres = 0.7 / np.sqrt(3.0) * np.stack([np.cos(turn + np.pi / 6), np.sin(turn + np.pi / 6)], 1)
    k = kernel.gram(theta, np.zeros((1, 2)), centres)
    np.testing.assert_allclose(k, -1.0, rtol=1e-12)


def test_hexagonal_repeats_every_sixth_of_a_turn_and_turns_with_its_orientation():
    X = np.random.default_rng(2).standard_normal((7, 2))
    kernel = Hexagonal(1.0, 1.3, 0.2, 2.0)
    K = kernel.gram(kernel.theta(), X)
    for turns in (-1, 1, 5):
        other = dataclasses.replace(kernel, orientation=0.2 + turns * np.pi / 3.0)
        np.testing.assert_allclose(other.gram(other.theta(), X), K, atol=1e-13)
    c, s = np.cos(0.35), np.sin(0.35)
    rotated = X @ np.array([[c, s], [-s, c]])
    other = dataclasses.replace(kernel, orientation=0.55)
    np.testing.assert_allclose(other.gram(other.theta(), rotated), K, atol=1e-13)


def test_hexagonal_keeps_its_digits_far_from_the_origin():
    X = np.random.default_rng(4).integers(-64, 64, (6, 2)) / 64.0
    kernel = Hexagonal(1.0, 0.3, 0.1, 0.7)
    near, far = kernel.gram(kernel.theta(), X), kernel.gram(kernel.theta(), X + 2.0**20)
    np.testing.assert_allclose(far, near, atol=1e-13)


def test_hexagonal_refuses():
    with pytest.raises(ValueError, match=r"takes inputs of 2 dimensions and these have 3.*Active"):
        check_kernel(Hexagonal(), 3)
    with pytest.raises(ValueError, match=r"hexagonal.period starts at -1.0; positive"):
        Hexagonal(period=-1.0)
    with pytest.raises(ValueError, match=r"hexagonal.orientation starts at nan; finite"):
        Hexagonal(orientation=np.nan)
    with pytest.raises(ValueError, match=r"fixed names .'x'.*'orientation'"):
        Hexagonal(fixed=("x",))
    kernel = Hexagonal(orientation=-2.0, fixed=("orientation",))
    assert [(block.transform, block.fixed) for block in kernel.blocks()] == [
        ("log", False), ("log", False), ("identity", True), ("log", False),
    ]  # fmt: skip


# -- the suite catches errors ----------------------------------------------------------------------


def broken(change):
    """An RBF whose pullback is spoilt by ``change(gtheta, gX, gZ, G, pull)``."""

    @dataclass(frozen=True)
    class Broken(RBF):
        snippet = ""

        def _gram_pullback(self, theta, X, Z):
            K, pull = super()._gram_pullback(theta, X, Z)
            return K, lambda G: change(*pull(G), G, pull)

    return Broken(1.2, (0.8, 1.1, 0.9))


PLANTED = {
    "factor 2 in gX": lambda gt, gX, gZ, G, pull: (gt, 2.0 * gX, gZ),
    "rows only in gX": lambda gt, gX, gZ, G, pull: (gt, gX if gZ is not None else 0.5 * gX, gZ),
    "wrong variance gradient": lambda gt, gX, gZ, G, pull: (
        np.concatenate([0.5 * gt[:1], gt[1:]]), gX, gZ,
    ),
    "lengthscales in the wrong order": lambda gt, gX, gZ, G, pull: (
        np.concatenate([gt[:1], gt[:0:-1]]), gX, gZ,
    ),
    "gZ with the wrong sign": lambda gt, gX, gZ, G, pull: (gt, gX, None if gZ is None else -gZ),
    "a part in a million of gX": lambda gt, gX, gZ, G, pull: (gt, (1 + 1e-6) * gX, gZ),
}  # fmt: skip


@pytest.mark.parametrize("error", PLANTED)
def test_suite_fails_on_a_wrong_pullback(error):
    with pytest.raises(AssertionError, match="off by"):
        check_kernel(broken(PLANTED[error]), 3)


def test_suite_fails_on_a_pullback_for_symmetric_cotangents_only():
    """The polynomial kernel with G Z + Gᵀ Z = 2 G Z, which holds for symmetric G only."""

    @dataclass(frozen=True)
    class Broken(Polynomial):
        def _gram_pullback(self, theta, X, Z):
            K, pull = super()._gram_pullback(theta, X, Z)
            s = theta[0] * self.degree * self._base(theta, X, Z) ** (self.degree - 1)

            def pullback(G):
                gtheta, gX, gZ = pull(G)
                return (gtheta, 2.0 * (G * s) @ X, None) if Z is None else (gtheta, gX, gZ)

            return K, pullback

    X = np.random.default_rng(0).standard_normal((4, 2))
    kernel = Broken()
    right = Polynomial().gram_pullback(kernel.theta(), X)[1](np.eye(4))[1]
    np.testing.assert_allclose(kernel.gram_pullback(kernel.theta(), X)[1](np.eye(4))[1], right)
    with pytest.raises(AssertionError, match="gX and tensor"):
        check_kernel(kernel, 2)


def _spoilt(method, change, base=RBF):
    @dataclass(frozen=True)
    class Broken(base):
        snippet = ""

    setattr(Broken, method, lambda self, *a: change(getattr(super(Broken, self), method)(*a)))
    return Broken()


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("_gram", lambda K: K + 1e-6 * np.triu(np.ones_like(K), 1)),
        ("_gram", lambda K: -K),
        ("_gram", lambda K: K.astype(np.float32)),
        ("_input_jacobian", lambda T: 2.0 * T),
        ("_theta_jacobian", lambda P: P * (1.0 + 1e-5)),
        ("_gram_jvp", lambda dK: dK + 1e-6),
        ("diag_pullback", lambda r: (1.001 * r[0], r[1])),
        ("diag_pullback", lambda r: (r[0], lambda g: (0.5 * r[1](g)[0], r[1](g)[1]))),
    ],
    ids=[
        "asymmetric", "negative", "dtype", "input", "theta", "jvp", "diagonal", "diagonal-pullback",
    ],
)  # fmt: skip
def test_suite_fails_on_other_errors(method, change):
    with pytest.raises(AssertionError):
        check_kernel(_spoilt(method, change), 2)


def test_suite_fails_on_blocks_left_of_the_diagonal():
    """Few points make one block: the pullback of a rectangle alone must be tried by itself."""

    @dataclass(frozen=True)
    class Broken(RBF):
        snippet = ""

        def _block_pull(self, theta, X):
            pull, finish = super()._block_pull(theta, X)

            def block(tile, G):
                once, rows, columns = pull(tile, G)
                return once, rows if columns is None else 2.0 * rows, columns

            return block, finish

    with pytest.raises(AssertionError, match="in blocks"):
        check_kernel(Broken(), 2)


def test_suite_fails_where_inputs_are_written_to():
    @dataclass(frozen=True)
    class Broken(RBF):
        snippet = ""

        def _gram(self, theta, X, Z):
            K = super()._gram(theta, X, Z)
            X += 1.0
            return K

    with pytest.raises(AssertionError):
        check_kernel(Broken(), 2)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_pullbacks_never_make_the_tensor(name, monkeypatch):
    """The largest array of a pullback is of the order n m, however many dimensions there are."""
    if why_not("strict-f64"):
        pytest.skip(why_not("strict-f64"))
    import array_api_strict

    kind = type(array_api_strict.asarray(0.0))
    sizes = []
    original = kind.__dict__["_new"].__func__

    def record(cls, x, *args, **kwargs):
        sizes.append(np.size(x))
        return original(cls, x, *args, **kwargs)

    with open_case("strict-f64") as case:
        n, m, q = 24, 20, 3
        kernel = KERNELS[name]
        rng = np.random.default_rng(0)
        t = case.asarray(kernel.theta())
        x, z = case.asarray(rng.standard_normal((n, q))), case.asarray(rng.standard_normal((m, q)))
        G, S = case.asarray(rng.standard_normal((n, m))), case.asarray(np.eye(n))
        monkeypatch.setattr(kind, "_new", classmethod(record))
        kernel.input_jacobian(t, x, z)
        assert max(sizes) >= n * m * q, "the recorder must see the tensor where it is made"
        sizes.clear()
        kernel.gram_pullback(t, x, z)[1](G)
        kernel.symmetric_pullback(t, x, S)
        assert 0 < max(sizes) <= n * n


# -- structure -------------------------------------------------------------------------------------


def test_algebra_flattens_and_names_repeat_with_numbers():
    kernel = RBF() + RBF() + Linear() + 2.0 * RBF()
    assert isinstance(kernel, Sum)
    assert len(kernel.parts) == 4
    names = [block.name for block in kernel.blocks()]
    assert names == [
        "rbf.variance", "rbf.lengthscale", "rbf_2.variance", "rbf_2.lengthscale",
        "linear.variance", "scale.factor", "rbf_3.variance", "rbf_3.lengthscale",
    ]  # fmt: skip
    assert len(((RBF() * Linear()) * Constant()).parts) == 3
    assert (RBF() * 2.0) == (2 * RBF()) == Scale(RBF(), 2.0)
    with pytest.raises(TypeError):
        RBF() + 1.0
    with pytest.raises(TypeError):
        RBF() * "two"


@pytest.mark.parametrize("name", KERNELS)
def test_values_round_trip(name):
    kernel = KERNELS[name]
    moved = kernel.with_theta(kernel.theta() * 1.5)
    np.testing.assert_allclose(moved.theta(), 1.5 * kernel.theta(), rtol=1e-15)
    assert moved.with_theta(kernel.theta()) == kernel
    assert dataclasses.replace(kernel) == kernel
    assert hash(kernel) == hash(dataclasses.replace(kernel))


@pytest.mark.parametrize("name", KERNELS)
def test_scale_blocks_name_what_trades_with_the_inputs(name):
    """Stretching the inputs by c with those blocks changes nothing where there is one scale."""
    kernel = KERNELS[name]
    places = kernel.scale_blocks(3)
    blocks = kernel.blocks()
    assert all(0 <= place < len(blocks) for place, _ in places)
    assert all(dims <= {0, 1, 2} for _, dims in places)
    fields = {blocks[place].name.partition(".")[2] for place, _ in places}
    assert fields <= {"lengthscale", "variance", "period", "bias"}


def test_directional_derivative_needs_z_for_dz():
    kernel, X = RBF(), np.zeros((3, 2))
    with pytest.raises(ValueError, match="dZ was given without Z"):
        kernel.gram_jvp(kernel.theta(), X, dZ=X)
    assert np.all(kernel.gram_jvp(kernel.theta(), X) == 0.0)


def test_emulated_case_runs_the_custom_kernels():
    if why_not("emulated"):
        pytest.skip(why_not("emulated"))
    with open_case("emulated") as case:
        b = case.backend
        for kernel in (*KERNELS.values(), *STRANGERS.values()):
            assert b.fused(kernel.cuda(3), 3) is not None
    with open_case("numpy-f64") as case:
        assert backend.of(case.asarray([1.0])).fused(RBF().cuda(3), 3) is None
