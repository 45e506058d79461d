"""Back-constraints: kernel regression and the network, their pullbacks, and the exact model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, open_case
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from gplvm_xp import GPLVM, backend, cli, datasets, init, load
from gplvm_xp.encoders import Encoder, KernelEncoder, MLPEncoder, encoder_of
from gplvm_xp.encoders import base as encoders_base
from gplvm_xp.errors import ModelFileError
from gplvm_xp.estimators import _fitted
from gplvm_xp.kernels import RBF, Linear, Matern32, White
from gplvm_xp.latents import Latents
from gplvm_xp.metrics import nearest_neighbour_errors
from gplvm_xp.objectives import ExactObjective, groups_of
from gplvm_xp.params import Block, Layout
from gplvm_xp.priors import Gaussian
from gplvm_xp.row_priors import Discriminative, Dynamics
from gplvm_xp.testing import check_gradient

ENCODERS: dict[str, Encoder] = {
    "kernel": KernelEncoder(tolerance=1e-3),
    "few centres": KernelEncoder(Matern32(1.3, 2.0) + White(0.5), n_centres=6, seed=3),
    "mlp": MLPEncoder((4,)),
    "deep": MLPEncoder((3, 5), seed=1),
}


def table(n: int = 14, D: int = 5, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n, 2))
    Y = np.sin(Z @ rng.standard_normal((2, D))) + noise * rng.standard_normal((n, D))
    return Y - Y.mean(axis=0)


def bound(name: str, case: Case, k: int = 2) -> tuple[Latents, np.ndarray]:
    """Latents of a small table, and the table."""
    Y = table()
    start = np.random.default_rng(1).standard_normal((Y.shape[0], k))
    encoder = ENCODERS[name].settled(Y)
    return encoder.bind(case.backend, Y, start), Y


def fitted(Y: np.ndarray, back_constraint: Any, **parameters: Any) -> GPLVM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GPLVM(2, back_constraint=back_constraint, **{"max_iter": 15, **parameters}).fit(Y)


# -- the map and its pullback ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_positions_and_pullback_on_every_library(case: Case, name: str) -> None:
    """Against the same on NumPy, whose pullback the next tests hold to differences and torch."""
    latents, _ = bound(name, case, k=3)
    with open_case("numpy-f64") as plain:
        reference, _ = bound(name, plain, k=3)
    G = np.random.default_rng(2).standard_normal(reference.shape)
    start = {block.name: block.value for block in reference.blocks()}
    assert [block.name for block in latents.blocks()] == [*start]
    X, pull = latents.positions({k: case.asarray(v) for k, v in start.items()})
    want, pull_want = reference.positions(start)
    assert latents.shape == reference.shape == X.shape == (14, 3)
    assert X.dtype == case.backend.dtype
    tight = case.tolerance(1e-11, 2e-3)
    np.testing.assert_allclose(case.to_numpy(X), want, rtol=tight, atol=tight)
    got, expected = pull(case.asarray(G)), pull_want(G)
    assert {*got} == {*start}
    for key, g in expected.items():
        assert got[key].dtype == case.backend.dtype
        np.testing.assert_allclose(case.to_numpy(got[key]), g, rtol=tight, atol=10 * tight)


@pytest.mark.parametrize("name", ENCODERS)
def test_pullback_against_differences(name: str) -> None:
    """Of a function that is not linear in X, so that its cotangent changes on the way."""
    with open_case("numpy-f64") as case:
        latents, _ = bound(name, case, k=3)
    layout = Layout(latents.blocks())
    G = np.random.default_rng(2).standard_normal(latents.shape)

    def fun(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, to_gradient = layout.unpack(x)
        X, pull = latents.positions(values)
        return np.sum(G * np.sin(X)), to_gradient(pull(G * np.cos(X)))

    move = 0.1 * np.random.default_rng(3).standard_normal(layout.size)
    check_gradient(fun, layout.start() + move, rtol=1e-9)


def test_the_networks_pullback_against_autograd() -> None:
    torch = pytest.importorskip("torch")
    with open_case("numpy-f64") as case:
        latents, Y = bound("deep", case, k=3)
    encoder: Any = latents.encoder  # type: ignore[attr-defined]
    W = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in encoder.weights]
    H = (torch.tensor(Y, dtype=torch.float64) - torch.tensor(encoder.offset)) / encoder.unit
    for i in range(2):
        H = torch.nn.functional.linear(H, W[2 * i].T, W[2 * i + 1]).tanh()
    X = torch.nn.functional.linear(H, W[4].T, W[5])
    G = np.random.default_rng(2).standard_normal(latents.shape)
    (X * torch.tensor(G)).sum().backward()
    got, pull = latents.positions({block.name: block.value for block in latents.blocks()})
    np.testing.assert_allclose(got, X.detach().numpy(), rtol=1e-12, atol=1e-13)
    gradients = pull(G)
    for block, w in zip(latents.blocks(), W, strict=True):
        np.testing.assert_allclose(gradients[block.name], w.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_exact_objective_in_the_weights(case: Case, name: str) -> None:
    """Value and gradient on every library; on NumPy against differences."""
    latents, Y = bound(name, case)
    kernel = RBF(1.3, (0.8, 1.1))
    fun = ExactObjective(kernel, groups_of(case.backend, Y), latents, 0.2, Gaussian())
    f, g = fun.value_and_grad(fun.start())
    with open_case("numpy-f64") as plain:
        other, _ = bound(name, plain)
        reference = ExactObjective(kernel, groups_of(plain.backend, Y), other, 0.2, Gaussian())
    f_want, g_want = reference.value_and_grad(reference.start())
    np.testing.assert_allclose(case.to_numpy(f), f_want, rtol=case.tolerance(1e-11, 1e-3))
    scale = np.abs(g_want).max()
    np.testing.assert_allclose(
        case.to_numpy(g), g_want, rtol=0, atol=scale * case.tolerance(1e-9, 5e-3)
    )
    if case.id == "numpy-f64":
        check_gradient(fun.value_and_grad, fun.start(), rtol=2e-7)


@pytest.mark.only_backend("strict-device1-f64")
@pytest.mark.parametrize("name", ENCODERS)
def test_an_evaluation_never_waits(case: Case, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, _ = bound(name, case)
    values = {block.name: case.asarray(block.value) for block in latents.blocks()}

    def refuse(*_: Any) -> None:
        raise AssertionError("a number was read")

    for method in ("__float__", "__bool__", "__int__", "__index__", "__complex__"):
        monkeypatch.setattr(type(case.asarray(np.zeros(1))), method, refuse)
    X, pull = latents.positions(values)
    assert {*pull(X)} == {*values}


def test_the_exact_objective_against_autograd() -> None:
    """The whole chain, from the weights to the log posterior, by torch's own derivatives."""
    torch = pytest.importorskip("torch")
    with open_case("numpy-f64") as case:
        latents, Y = bound("mlp", case)
        fun = ExactObjective(
            RBF(1.3, 0.9), groups_of(case.backend, Y), latents, 0.2, Gaussian(0.1, 1.4)
        )
    encoder: Any = latents.encoder  # type: ignore[attr-defined]
    x = fun.start()
    _, g = fun.value_and_grad(x)
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    variance, ell, noise = t[:3].exp()
    shapes, at, W = [w.shape for w in encoder.weights], 3, []
    for shape in shapes:
        W.append(t[at : at + int(np.prod(shape))].reshape(shape))
        at += int(np.prod(shape))
    H = torch.tensor(Y) / encoder.unit - torch.tensor(encoder.offset) / encoder.unit
    X = torch.tanh(H @ W[0] + W[1]) @ W[2] + W[3]
    r2 = ((X[:, None, :] - X[None, :, :]) ** 2).sum(-1) / ell**2
    K = variance * torch.exp(-0.5 * r2) + noise * torch.eye(len(Y), dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(Y), dtype=torch.float64), K)
    prior = (-0.5 * ((X - 0.1) / 1.4) ** 2 - np.log(1.4 * np.sqrt(2.0 * np.pi))).sum()
    (-(normal.log_prob(torch.tensor(Y).T).sum() + prior)).backward()
    np.testing.assert_allclose(g, t.grad.numpy(), rtol=1e-9, atol=1e-9)


# -- what is taken from the data -------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_are_encoded_alike_alone_and_together(name: str, monkeypatch: Any) -> None:
    Y, b = table(), backend.get("numpy")
    encoder = ENCODERS[name].settled(Y).started(Y, init.principal_components(Y, 2))
    whole = encoder.encode(b, Y)
    monkeypatch.setattr(encoders_base, "_PART", 4)
    np.testing.assert_allclose(encoder.encode(b, Y), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(encoder.encode(b, Y[3:4]), whole[3:4], rtol=1e-10, atol=1e-12)
    values = {block.name: block.value for block in encoder.blocks()}
    np.testing.assert_array_equal(encoder.latents(b, Y).positions(values)[0][:2], whole[:2])
    assert encoder.with_values(values) == encoder
    assert encoder.dimensions == 2


@pytest.mark.parametrize("name", ENCODERS)
def test_a_shift_of_the_data_changes_nothing(name: str) -> None:
    Y, b = table(), backend.get("numpy")
    start = init.principal_components(Y, 2)
    here = ENCODERS[name].settled(Y).started(Y, start)
    there = ENCODERS[name].settled(Y + 7.0).started(Y + 7.0, start)
    np.testing.assert_allclose(there.encode(b, Y + 7.0), here.encode(b, Y), atol=1e-6)


def test_all_centres_without_truncation_reach_any_start() -> None:
    Y, b = table(), backend.get("numpy")
    start = np.random.default_rng(1).standard_normal((Y.shape[0], 2))
    encoder = KernelEncoder(RBF(1.0, 1.0), tolerance=1e-12).settled(Y)
    features = encoder.features(b, Y)
    assert features.shape == (14, 14)
    exact = encoder.with_values({"encoder.weights": np.linalg.solve(features, start)})
    np.testing.assert_allclose(exact.encode(b, Y), start, atol=1e-8)


@pytest.mark.parametrize(("encoder", "most"), [(KernelEncoder(), 0.05), (MLPEncoder(), 0.1)])
def test_starts_are_near_what_was_asked_for(encoder: Encoder, most: float) -> None:
    Y = table(60, 8, seed=2)
    start = init.latents("pca", Y, 2, np.random.default_rng(0))
    got = encoder.settled(Y).started(Y, start).encode(backend.get("numpy"), Y)
    assert np.sqrt(np.mean((got - start) ** 2)) < most  # the start has unit deviation


def test_few_of_many_rows_make_the_start(monkeypatch: Any) -> None:
    Y = table(90, 6, seed=4)
    start = init.latents("pca", Y, 2, np.random.default_rng(0))
    monkeypatch.setattr(encoders_base, "_START_ROWS", 50)
    for encoder in (KernelEncoder(n_centres=20), MLPEncoder((8,))):
        got = encoder.settled(Y).started(Y, start).encode(backend.get("numpy"), Y)
        assert np.sqrt(np.mean((got - start) ** 2)) < 0.25


def test_a_larger_tolerance_leaves_fewer_functions() -> None:
    Y = table(40)
    ranks = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        encoder = KernelEncoder(tolerance=tolerance).settled(Y)
        assert encoder.basis is not None
        assert encoder.centres is not None
        ranks.append(encoder.basis.shape[1])
        # The features of the centres are orthogonal, with the eigenvalues as squared norms.
        F = encoder.features(backend.get("numpy"), encoder.centres + encoder.offset)
        np.testing.assert_allclose(F.T @ F, np.diag(np.diag(F.T @ F)), atol=1e-9)
        assert np.diag(F.T @ F).min() > tolerance * np.diag(F.T @ F).max() * (1 - 1e-9)
    assert ranks == sorted(set(ranks))


def test_centres_are_rows_and_chosen_by_the_seed() -> None:
    Y = table(30)
    one, two = (KernelEncoder(n_centres=7, seed=s).settled(Y) for s in (0, 1))
    again = KernelEncoder(n_centres=7).settled(Y)
    assert one.centres is not None
    assert two.centres is not None
    assert one.centres.shape == (7, 5)
    for row in one.centres + one.offset:
        assert np.abs(Y - row).sum(axis=1).min() < 1e-12
    np.testing.assert_array_equal(one.centres, again.centres)
    assert not np.array_equal(one.centres, two.centres)
    many = KernelEncoder(n_centres=100).settled(Y).centres
    assert many is not None
    assert many.shape == Y.shape


def test_the_median_distance_is_the_default_lengthscale() -> None:
    rows = np.array([[0.0], [0.0], [1.0], [4.0]])
    kernel = KernelEncoder().settled(rows).kernel
    assert isinstance(kernel, RBF)
    assert kernel.lengthscale == 3.0  # of 1, 1, 3, 4, 4 and, between equal rows, none


def test_near_rows_move_no_further_than_the_bound_of_the_page() -> None:
    """|x_a − x′_a| ≤ |w_a| |y − y′|/ℓ: the functions have unit norm in the kernel's space."""
    Y, rng = table(30), np.random.default_rng(9)
    encoder = KernelEncoder().settled(Y).started(Y, rng.standard_normal((30, 2)))
    assert encoder.weights is not None
    assert isinstance(encoder.kernel, RBF)
    ell: Any = encoder.kernel.lengthscale
    closest = 0.0
    for step in (1e-3, 0.1, 1.0):
        other = Y + step * rng.standard_normal(Y.shape)
        b = backend.get("numpy")
        moved = np.abs(encoder.encode(b, Y) - encoder.encode(b, other))
        far = np.linalg.norm(Y - other, axis=1)[:, None] / ell
        limit = far * np.linalg.norm(encoder.weights, axis=0)
        assert np.all(moved <= limit)
        closest = max(closest, float(np.max(moved / limit)))
    assert closest > 0.02


def test_far_from_the_data_a_kernel_encodes_the_priors_mean() -> None:
    Y = table()
    encoder = KernelEncoder().settled(Y).started(Y, init.principal_components(Y, 2))
    far = encoder.encode(backend.get("numpy"), 1e3 * np.ones((1, 5)))
    np.testing.assert_array_equal(far, np.zeros((1, 2)))


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_training_rows_and_new_rows_by_one_function(name: str) -> None:
    Y = table(40, 6) + 3.0
    model = fitted(Y[:30], name, scale=True)
    encoder, b = model.encoder_, backend.get("numpy")
    assert encoder is not None
    np.testing.assert_array_equal(model.transform(Y[:30]), model.embedding_)
    centred = (Y - model.mean_) / model.scale_
    np.testing.assert_allclose(encoder.encode(b, centred)[:30], model.embedding_, atol=1e-12)
    Z, C = model.transform(Y, return_cov=True)
    np.testing.assert_allclose(Z[30:], encoder.encode(b, centred[30:]), atol=1e-12)
    assert C.shape == (40, 2, 2)
    assert np.all(np.linalg.eigvalsh(C) > 0.0)
    np.testing.assert_allclose(model.predict(Y), model.predict(Z))
    # The objective that was minimised is the exact one at the latents the encoder gives.
    kernel, noise = model.kernel_, model.noise_variance_
    fun = ExactObjective(
        kernel,
        groups_of(b, centred[:30]),
        model.embedding_,
        noise,
        Gaussian(),
        jitter=model.jitter_,
    )
    f, _ = fun.value_and_grad(fun.start())
    np.testing.assert_allclose(f, model.loss_curve_[-1], rtol=1e-9)


def test_complete_rows_are_not_searched_for(monkeypatch: Any) -> None:
    """What makes transform fast; rows with gaps get the mode, as without an encoder."""
    Y = table(40, 6)
    model = fitted(Y[:30], "kernel")
    gap = Y[30:].copy()
    gap[1, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        Z = model.transform(gap)
        encoder, model.encoder_ = model.encoder_, None
        modes = model.transform(gap)
        scores = model.score_samples(Y[30:])
        model.encoder_ = encoder
        np.testing.assert_array_equal(model.score_samples(Y[30:]), scores)
    np.testing.assert_allclose(Z[1], modes[1], atol=1e-5)
    assert np.abs(Z[0] - modes[0]).max() > 1e-6

    def refuse(*_: Any) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr(_fitted, "modes", refuse)
    model.transform(Y)
    with pytest.raises(AssertionError, match="a search"):
        model.transform(gap)


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_a_fit_on_every_library(case: Case, name: str) -> None:
    Y = table(20)
    rows = case.asarray(Y)
    model = fitted(rows, name, max_iter=3, dtype=case.dtype)
    assert backend.of(model.embedding_).name == backend.of(rows).name
    np.testing.assert_array_equal(
        case.to_numpy(model.transform(rows)), case.to_numpy(model.embedding_)
    )
    new = case.to_numpy(model.transform(case.asarray(Y[:4] + 0.01)))
    plain = fitted(Y, name, max_iter=3)
    if not case.single:
        np.testing.assert_allclose(case.to_numpy(model.embedding_), plain.embedding_, atol=1e-6)
        np.testing.assert_allclose(new, plain.transform(Y[:4] + 0.01), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["scipy", "lbfgs", "adam"])
def test_every_optimiser_goes_down(optimizer: str) -> None:
    model = fitted(table(25), "mlp", optimizer=optimizer)
    assert model.loss_curve_[-1] < model.loss_curve_[0] - 1.0


def test_restarts_keep_the_best() -> None:
    Y = table(25)
    one = fitted(Y, "kernel", random_state=0)
    more = fitted(Y, "kernel", random_state=0, n_restarts=3)
    assert more.loss_curve_[-1] <= one.loss_curve_[-1]
    assert more.encoder_ is not None
    got = more.encoder_.encode(backend.get("numpy"), Y - more.mean_)
    np.testing.assert_allclose(got, more.embedding_, atol=1e-12)


def test_jitter_is_raised_where_rows_are_equal() -> None:
    """Equal rows have equal latents whatever the weights: only noise parts them."""
    Y = np.repeat(table(8), 2, axis=0)
    model = fitted(Y, "kernel", jitter=0.0, noise_variance=1e-18, max_iter=3)
    assert model.jitter_ > 0.0
    assert np.isfinite(model.log_likelihood_)
    np.testing.assert_array_equal(model.embedding_[::2], model.embedding_[1::2])


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_near_rows_stay_near(name: str) -> None:
    """Rows come in pairs a thousandth apart. A free fit from a random start leaves pairs apart."""
    rng = np.random.default_rng(5)
    Y = np.repeat(table(20, 6, seed=5), 2, axis=0)
    Y = Y + 1e-3 * rng.standard_normal(Y.shape)

    def apart(model: GPLVM) -> float:
        Z = model.embedding_
        return float(np.max(np.linalg.norm(Z[::2] - Z[1::2], axis=1)) / Z.std())

    free = fitted(Y, None, init="random", random_state=0, max_iter=100)
    tied = fitted(Y, name, init="random", random_state=0, max_iter=100)
    assert apart(free) > 1.0
    assert apart(tied) < 0.1


def test_digits_embed_as_well_as_freely() -> None:
    data = datasets.load_digits()
    train, new = data.Y[:200], data.Y[200:300]
    free = nearest_neighbour_errors(fitted(train, None, max_iter=60).embedding_, data.labels[:200])
    model = fitted(train, "kernel", max_iter=60)
    assert nearest_neighbour_errors(model.embedding_, data.labels[:200]) <= free + 10
    joined = np.concatenate([model.embedding_, model.transform(new)])
    pca = init.latents("pca", data.Y[:300] - data.Y[:300].mean(0), 2, np.random.default_rng(0))
    labels = data.labels[:300]
    assert nearest_neighbour_errors(joined, labels) < nearest_neighbour_errors(pca, labels) - 20


@pytest.mark.parametrize("prior", [Discriminative(), Dynamics()], ids=lambda p: type(p).__name__)
def test_beside_a_prior_that_ties_rows(prior: Any, tmp_path: Path) -> None:
    Y = table(20)
    model = fitted(Y, None).set_params(back_constraint="mlp", latent_prior=prior)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(Y, (Y[:, 0] > 0).astype(int))
    assert model.loss_curve_[-1] < model.loss_curve_[0] - 1.0
    np.testing.assert_allclose(model._encoded(Y - model.mean_), model.embedding_, atol=1e-12)
    model.save(tmp_path / "m.npz")
    new = Y + 0.01
    np.testing.assert_array_equal(load(tmp_path / "m.npz").transform(new), model.transform(new))


def test_a_second_order_search_is_refused() -> None:
    with pytest.raises(ValueError, match="expected free latents"):
        GPLVM(2, back_constraint="mlp", optimizer="newton").fit(table())


@dataclass(frozen=True)
class Flat(Encoder):
    """X = (Y − mean) W: an encoder of a user's own."""

    mean: Any = None
    W: Any = None

    def settled(self, data: np.ndarray) -> Flat:
        encoders_base.require_complete(data)
        return Flat(data.mean(axis=0))

    def started(self, data: np.ndarray, start: np.ndarray) -> Flat:
        return replace(self, W=np.linalg.lstsq(data - self.mean, start, rcond=None)[0])

    def blocks(self) -> tuple[Block, ...]:
        return (Block("encoder.W", self.W, "identity"),)

    def with_values(self, values: Mapping[str, np.ndarray]) -> Flat:
        return replace(self, W=values["encoder.W"])

    @property
    def dimensions(self) -> int:
        return int(self.W.shape[1])

    def check(self, columns: int, dimensions: int) -> None:
        encoders_base.check_arrays((self.mean, self.W), ((columns,), (columns, dimensions)))

    def _features(self, b: Any, data: np.ndarray) -> Any:
        return b.asarray(data - self.mean)

    def _forward(self, values: Any, features: Any) -> tuple[Any, Any]:
        X = features @ values["encoder.W"]
        return X, lambda gX: {"encoder.W": backend.of(gX).xp.matrix_transpose(features) @ gX}


def test_an_encoder_of_a_users_own(tmp_path: Path) -> None:
    Y = table(30)
    model = fitted(Y[:20], Flat())
    np.testing.assert_allclose(
        model.transform(Y[20:]), (Y[20:] - model.mean_) @ model.encoder_.W, atol=1e-12
    )
    model.save(tmp_path / "m.npz")
    with pytest.raises(ModelFileError, match=r"(?s)'Flat'.*expected one of .*MLPEncoder"):
        load(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz", kernels=(Flat,))
    np.testing.assert_array_equal(back.transform(Y[20:]), model.transform(Y[20:]))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_come_back(name: str, tmp_path: Path) -> None:
    Y = table(30)
    model = fitted(Y[:20], ENCODERS[name])
    model.save(tmp_path / "m.npz")
    back = load(tmp_path / "m.npz")
    assert back.back_constraint == ENCODERS[name]
    assert back.encoder_ == model.encoder_
    np.testing.assert_array_equal(back.transform(Y), model.transform(Y))
    again = clone(back)
    assert again.back_constraint == ENCODERS[name]
    plain = fitted(Y[:20], None)
    plain.save(tmp_path / "p.npz")
    assert load(tmp_path / "p.npz").encoder_ is None


def rewritten(path: Path, change: Any) -> Path:
    """A model file with another header."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    change(header, arrays)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    out = path.with_name("changed.npz")
    np.savez(out, **arrays)
    return out


def test_a_file_from_before_there_were_encoders(tmp_path: Path) -> None:
    fitted(table(), None).save(tmp_path / "m.npz")
    path = rewritten(tmp_path / "m.npz", lambda header, _: header.pop("encoder_"))
    assert load(path).encoder_ is None


@pytest.mark.parametrize("name", ["kernel", "mlp"])
@pytest.mark.parametrize("damage", ["shape", "text", "nan", "kind", "setting", "absent"])
def test_damaged_encoders_are_refused(name: str, damage: str, tmp_path: Path) -> None:
    fitted(table(), name).save(tmp_path / "m.npz")

    def change(header: Any, arrays: Any) -> None:
        fields = header["encoder_"]["fields"]
        key = fields["offset"]["$array"]
        if damage == "shape":
            arrays[key] = arrays[key][:-1]
        elif damage == "text":
            arrays[key] = arrays[key].astype(str)
        elif damage == "nan":
            arrays[key] = np.nan * arrays[key]
        elif damage == "kind":
            header["encoder_"] = header["kernel_"]
        elif damage == "setting":
            fields["tolerance" if name == "kernel" else "hidden"] = -1
        else:
            fields["weights"] = None

    with pytest.raises(ModelFileError):
        load(rewritten(tmp_path / "m.npz", change))


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "kind"),
    [
        ("exact", "kernel", KernelEncoder),
        ("bayesian", "mlp", MLPEncoder),
        ("minibatch", "mlp", MLPEncoder),
    ],
)
def test_embed_takes_a_back_constraint(
    model: str, name: str, kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--epochs", "1"] if model == "minibatch" else ["--max-iter", "3"]
    words = [
        "embed", "--dataset", "digits", "--rows", "40", "--model", model, *steps, "-q", "2",
        "--back-constraint", name, "--no-plot", "--quiet", "--out", str(tmp_path / "m"),
    ]  # fmt: skip
    assert cli.main(words) == 0, capsys.readouterr().err
    assert type(load(tmp_path / "m.npz").encoder_) is kind


def test_embed_says_which_models_take_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", "--dataset", "digits", "--model", "sparse", "--back-constraint", "mlp"]
    assert cli.main(words) == 2
    assert "--back-constraint was given with --model sparse" in capsys.readouterr().err


# -- what is refused -------------------------------------------------------------------------------


def test_bad_settings() -> None:
    assert encoder_of(None) is None
    for given in ("rbf", 3, KernelEncoder):
        with pytest.raises(ValueError, match="expected None, 'kernel', 'mlp' or an Encoder"):
            encoder_of(given)
    with pytest.raises(ValueError, match="back_constraint='rbf' was given"):
        GPLVM(2, back_constraint="rbf").fit(table())
    for settings in ({"n_centres": 0}, {"n_centres": 2.5}, {"n_centres": True}):
        with pytest.raises(ValueError, match=r"n_centres=.* expected an integer of 1 or more"):
            KernelEncoder(**settings)
    for tolerance in (0.0, 1.0, -1.0, float("nan"), "small"):
        with pytest.raises(ValueError, match="expected a number between 0 and 1"):
            KernelEncoder(tolerance=tolerance)
    with pytest.raises(ValueError, match=r"expected one of gplvm_xp\.kernels"):
        KernelEncoder(kernel="rbf")  # type: ignore[arg-type]
    for hidden in ((), (0,), (True,), 8, "8"):
        with pytest.raises(ValueError, match="expected units of each hidden layer"):
            MLPEncoder(hidden)  # type: ignore[arg-type]


def test_a_kernel_that_does_not_fit_the_columns() -> None:
    with pytest.raises(ValueError, match=r"(?s)the encoder's kernel can't take the 5 columns"):
        GPLVM(2, back_constraint=KernelEncoder(RBF(1.0, (1.0, 2.0)))).fit(table())
    with pytest.raises(ValueError, match="is 0 between all 14 centres"):
        KernelEncoder(White()).settled(table())


@pytest.mark.parametrize("name", ["kernel", "mlp"])
def test_missing_entries_are_refused(name: str) -> None:
    Y = table()
    Y[3, 1] = Y[4, 4] = np.nan
    with pytest.raises(ValueError, match=r"row 3 has NaN in column 1 \(2 such entries\)"):
        GPLVM(2, back_constraint=name).fit(Y)
    encoder = encoder_of(name)
    assert encoder is not None
    ready = encoder.settled(table()).started(table(), table()[:, :2])
    with pytest.raises(ValueError, match="row 3 has NaN"):
        ready.encode(backend.get("numpy"), Y)


@pytest.mark.parametrize("encoder", [KernelEncoder(), MLPEncoder()])
def test_an_encoder_without_weights_says_so(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="the encoder has no weights; expected a fitted one"):
        encoder.encode(backend.get("numpy"), table())
    with pytest.raises(ValueError, match="the encoder has no weights"):
        encoder.settled(table()).blocks()


def test_a_linear_kernel_is_a_linear_map() -> None:
    Y = table(30)
    model = fitted(Y, KernelEncoder(Linear(1.0)))
    assert model.encoder_.weights.shape == (5, 2)  # type: ignore[union-attr]
    design = np.c_[Y - Y.mean(0), np.ones(30)]
    rest = np.linalg.lstsq(design, model.embedding_, rcond=None)[1]
    assert np.all(rest < 1e-18)


# -- scikit-learn ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:n_components=2 and X has 2 features:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [GPLVM(back_constraint="kernel", max_iter=3), GPLVM(back_constraint="mlp", max_iter=3)],
    # fit refuses NaN, but the check wants transform to refuse it too.
    expected_failed_checks=lambda _: {"check_estimators_nan_inf": "transform takes rows with gaps"},
)
def test_conformance(estimator: Any, check: Any) -> None:
    check(estimator)
