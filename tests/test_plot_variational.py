"""Pictures of a VariationalGP: what is on the axes, and that nothing warns."""

from __future__ import annotations

import io

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.collections import QuadMesh  # noqa: E402

from gplvm_xp import VariationalGP, plot  # noqa: E402
from gplvm_xp.kernels import RBF  # noqa: E402


def drawn(ax):
    """The axes after a real drawing, where Matplotlib's own warnings would appear."""
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=50)
    assert file.getvalue().startswith(b"\x89PNG")
    return ax


def fitted(likelihood, y, X=None, **options):
    X = np.linspace(0.0, 6.0, 30)[:, None] if X is None else X
    model = VariationalGP(RBF(1.0, 1.0), likelihood, optimize=False)
    return model.fit(X, y, **options)


def line(ax, label):
    (found,) = [one for one in ax.lines if one.get_label() == label]
    return np.array(found.get_data())


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


X = np.linspace(0.0, 6.0, 30)[:, None]
f = np.sin(X[:, 0])


def test_a_regression_with_its_band():
    model = fitted("gaussian", f + 3.0)
    ax = drawn(plot.function(model, level=0.95, resolution=50))
    x, curve = line(ax, "mean")
    m, v = model.latent(x[:, None])
    assert np.allclose(curve, m)
    band = ax.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), (m + 1.959964 * np.sqrt(v)).max(), atol=1e-5)
    assert np.isclose(band[:, 1].min(), (m - 1.959964 * np.sqrt(v)).min(), atol=1e-5)
    assert np.array_equal(line(ax, "data"), [X[:, 0], f + 3.0])
    assert texts(ax) == ["95% credible", "mean", "data"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.get_title() == "VariationalGP, gaussian: 30 observations"
    assert x[0] < 0.0 < 6.0 < x[-1]


def test_student_has_a_curve_whatever_its_moments():
    model = fitted("student_t", f)
    model.likelihood_ = model.likelihood_.with_theta(np.array([0.5, 0.1]))
    ax = drawn(plot.function(model, resolution=20))
    assert np.isfinite(line(ax, "mean")).all()
    assert "data" in texts(ax)


def test_counts_are_drawn_per_exposure_and_as_rates():
    exposure = np.tile([0.0, 2.0, 4.0], 10)
    y = np.round(exposure * np.exp(f))
    model = fitted("poisson", y, exposure=exposure)
    ax = drawn(plot.function(model, resolution=40))
    x, curve = line(ax, "median")
    assert np.allclose(curve, np.exp(model.latent(x[:, None])[0]))
    places, values = line(ax, "data")
    assert places.size == 20
    assert np.allclose(values, (y / np.where(exposure > 0.0, exposure, 1.0))[exposure > 0.0])
    assert ax.get_ylabel() == "rate"
    below = plot.function(model, latent=True)
    assert below.get_ylabel() == "latent function"
    assert "data" not in texts(below)


@pytest.mark.parametrize("likelihood", ["probit", "logit"])
def test_probabilities_along_a_line(likelihood):
    model = fitted(likelihood, np.where(f > 0.0, "up", "down"))
    ax = drawn(plot.function(model))
    _, curve = line(ax, "median")
    assert 0.0 < curve.min() < 0.5 < curve.max() < 1.0
    assert ax.get_ylabel() == "probability of up"
    assert set(line(ax, "data")[1]) == {0.0, 1.0}


def test_trials_and_columns():
    model = fitted("binomial", np.arange(30) % 4, exposure=4.0)
    assert plot.function(model).get_ylabel() == "probability of a success"
    model = fitted("gaussian", np.column_stack([f, f + 10.0]))
    ax = drawn(plot.function(model, column=1))
    assert line(ax, "data")[1].min() > 8.0
    with pytest.raises(ValueError, match="column=2 was given; expected 0 to 1"):
        plot.function(model, column=2)


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(0)
    places = rng.uniform(-2.0, 2.0, (60, 2))
    labels = np.where(np.sum(places**2, axis=1) < 2.0, "in", "out")
    return fitted("probit", labels, places)


def test_classes_over_two_inputs(classifier):
    ax = drawn(plot.decision(classifier, resolution=30))
    (image,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    corners = np.asarray(image.get_coordinates()).reshape(-1, 2)
    assert np.allclose(
        np.asarray(image.get_array()).ravel(), classifier.predict_proba(corners)[:, 1]
    )
    assert texts(ax) == ["in", "out"]
    assert line(ax, "in").shape[1] == np.sum(classifier.y_train_ == 0)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x1", "x2")
    (colours,) = ax.child_axes
    assert colours.get_ylabel() == "probability of out"
    own = matplotlib.figure.Figure().subplots()
    assert plot.decision(classifier, ax=own, title="T", resolution=5) is own
    assert own.get_title() == "T"


def test_names_of_columns():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"dose": X[:, 0]})
    ax = plot.function(fitted("gaussian", f, frame), title="mine")
    assert ax.get_xlabel() == "dose"
    assert ax.get_title() == "mine"


def test_what_can_not_be_drawn_is_refused(classifier):
    curve = fitted("gaussian", f)
    for draw, words in (
        (lambda: plot.function(classifier), "2 input column"),
        (lambda: plot.decision(fitted("probit", f > 0.0)), "1 input column"),
        (lambda: plot.decision(curve), "Gaussian; expected a classifier"),
        (lambda: plot.function(curve, level=1.0), "level=1.0"),
        (lambda: plot.function(curve, resolution=1), "resolution=1"),
    ):
        with pytest.raises(ValueError, match=words):
            draw()


def test_the_curve_of_a_fit():
    """Also of one that searched nothing."""
    drawn(plot.loss(fitted("gaussian", f)))
