"""Pictures: what is on the axes, that nothing warns, and that Matplotlib is optional."""

from __future__ import annotations

import builtins
import copy
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import EllipseCollection, PathCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from gplvm_xp import GPLVM, LogGaussianCoxProcess, plot  # noqa: E402
from gplvm_xp.kernels import RBF  # noqa: E402


def table(n: int = 40, D: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2))
    return np.sin(z @ rng.normal(size=(2, D))) + 0.1 * rng.normal(size=(n, D))


def fitted(q: int) -> GPLVM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GPLVM(q, max_iter=15).fit(table())


@pytest.fixture(scope="module")
def model() -> GPLVM:
    return fitted(2)


@pytest.fixture(scope="module")
def wide() -> GPLVM:
    return fitted(4)


def drawn(ax: Axes) -> Axes:
    """The axes after a real drawing, where Matplotlib's own warnings would appear."""
    file = io.BytesIO()
    ax.figure.savefig(file, format="png", dpi=50)
    assert file.getvalue().startswith(b"\x89PNG")
    return ax


def scatters(ax: Axes) -> list[PathCollection]:
    return [c for c in ax.collections if isinstance(c, PathCollection)]


def legend_texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_points_by_label_over_the_uncertainty(model: GPLVM) -> None:
    labels = np.repeat(["b", "a", "c", "b"], 10)
    ax = drawn(plot.latent(model, labels, resolution=20))
    assert isinstance(ax.figure, Figure)
    assert legend_texts(ax) == ["a", "b", "c"]
    offsets = np.concatenate([np.asarray(s.get_offsets()) for s in scatters(ax)])
    np.testing.assert_array_equal(np.sort(offsets, axis=0), np.sort(model.embedding_, axis=0))
    colours = {tuple(s.get_facecolor()[0]) for s in scatters(ax)}
    assert len(colours) == 3
    assert ax.get_xlabel() == "latent dimension 1"
    assert "40 rows of 5 columns in 2 latent dimensions" in ax.get_title()
    (bar,) = ax.child_axes
    assert "standard deviation" in bar.get_ylabel()


def test_the_image_is_the_predictive_standard_deviation(model: GPLVM) -> None:
    ax = plot.latent(model, resolution=25)
    (image,) = ax.images
    sd = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    assert max(sd.shape) == 25
    assert (left, right) == ax.get_xlim()
    i, j = 3, 7
    x = left + (j + 0.5) * (right - left) / sd.shape[1]
    y = bottom + (i + 0.5) * (top - bottom) / sd.shape[0]
    _, variance = model.predict(np.array([[x, y]]), return_var=True, noise=False)
    np.testing.assert_allclose(sd[i, j], np.sqrt(variance.mean()), rtol=0.02)
    # White is certain: darkest far from the data.
    assert image.get_clim()[0] == 0.0
    assert image.cmap(0.0)[0] > image.cmap(1.0)[0]


def test_every_training_point_is_inside(model: GPLVM) -> None:
    ax = plot.latent(model, uncertainty=False)
    assert not ax.images
    assert np.all(model.embedding_[:, 0] > ax.get_xlim()[0])
    assert np.all(model.embedding_[:, 1] < ax.get_ylim()[1])


def test_ten_classes_have_different_colours_and_markers(model: GPLVM) -> None:
    ax = plot.latent(model, np.arange(40) % 10, uncertainty=False)
    looks = {
        (tuple(s.get_facecolor()[0]), s.get_paths()[0].vertices.tobytes()) for s in scatters(ax)
    }
    assert len({colour for colour, _ in looks}) == 10
    assert len({marker for _, marker in looks}) == 10


def test_missing_labels_and_many_classes(model: GPLVM) -> None:
    ax = drawn(plot.latent(model, np.array(["", "x"] * 20), resolution=8))
    assert legend_texts(ax) == ["no label", "x"]
    ax = drawn(plot.latent(model, np.arange(40) % 25, resolution=8))
    assert len(legend_texts(ax)) == 25


def test_a_number_per_row_is_a_colour_scale(model: GPLVM) -> None:
    ax = drawn(plot.latent(model, np.linspace(0.0, 1.0, 40), resolution=8))
    assert ax.get_legend() is None
    assert [a.get_ylabel() for a in ax.child_axes][1] == "label"


def test_two_of_more_dimensions(wide: GPLVM) -> None:
    ax = drawn(plot.latent(wide, dims=(3, 1), resolution=8))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension 4", "latent dimension 2")
    np.testing.assert_array_equal(
        np.asarray(scatters(ax)[0].get_offsets()), wide.embedding_[:, [3, 1]]
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_one_dimension_shows_curves_with_bands(labelled: bool) -> None:
    model = fitted(1)
    labels = np.repeat(["u", "v"], 20) if labelled else None
    ax = drawn(plot.latent(model, labels, outputs=2))
    curves = [line for line in ax.lines if line.get_label().startswith("column")]
    assert len(curves) == 2
    largest = np.argsort(-np.var(model.training_data_, axis=0))[:2]
    assert {c.get_label() for c in curves} == {f"column {d}" for d in largest}
    at = curves[0].get_xdata()[:, None]
    np.testing.assert_allclose(curves[0].get_ydata(), model.predict(at)[:, largest[0]])
    assert ax.get_title().endswith("1 latent dimension")
    assert len(scatters(ax)) == (2 if labelled else 0)


def test_relevance_bars(wide: GPLVM) -> None:
    ax = drawn(plot.relevance(wide))
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], wide.relevance())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension", "relevance (largest = 1)")


@pytest.fixture(scope="module")
def uncertain(wide: GPLVM) -> GPLVM:
    """The exact model with what a Bayesian one has beside it."""
    model = copy.copy(wide)
    model.embedding_variance_ = np.random.default_rng(0).uniform(0.001, 0.1, (40, 4))
    model.relevance_ = np.array([0.002, 4.0, 1.0, 0.0])
    model.n_active_ = 2
    return model


def ellipses(ax: Axes) -> list[EllipseCollection]:
    return [c for c in ax.collections if isinstance(c, EllipseCollection)]


def test_relevance_tells_dimensions_that_are_off(uncertain: GPLVM) -> None:
    ax = drawn(plot.relevance(uncertain))
    heights = {round(bar.get_x() + 0.35): bar.get_height() for bar in ax.patches}
    assert heights == {1: 0.0005, 2: 1.0, 3: 0.25, 4: 0.0}
    colours = {round(bar.get_x() + 0.35): bar.get_facecolor() for bar in ax.patches}
    assert colours[2] == colours[3] != colours[1] == colours[4]
    assert legend_texts(ax) == ["on", "off"]
    assert "2 of 4 latent dimensions on" in ax.get_title()
    everything = copy.copy(uncertain)
    everything.n_active_ = 4
    assert legend_texts(plot.relevance(everything)) == ["on"]
    everything.relevance_ = np.zeros(4)
    drawn(plot.relevance(everything))


def test_the_most_relevant_dimensions_are_shown(uncertain: GPLVM, wide: GPLVM) -> None:
    ax = plot.latent(uncertain, resolution=8)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension 2", "latent dimension 3")
    best = sorted(np.argsort(-wide.relevance())[:2] + 1)
    ax = plot.latent(wide, uncertainty=False)
    assert [ax.get_xlabel()[-1], ax.get_ylabel()[-1]] == [str(a) for a in best]


@pytest.mark.parametrize("labels", [None, np.arange(40) % 3, np.linspace(0.0, 1.0, 40)])
def test_uncertain_latents_have_ellipses_of_one_standard_deviation(
    uncertain: GPLVM, labels: np.ndarray | None
) -> None:
    ax = drawn(plot.latent(uncertain, labels, resolution=8))
    sd = np.sqrt(uncertain.embedding_variance_[:, 1:3])
    found = {}
    for group in ellipses(ax):
        half = np.diagonal(group.get_transforms(), axis1=1, axis2=2)[:, :2]
        found |= {tuple(at): axes for at, axes in zip(group.get_offsets(), half, strict=True)}
    assert len(ellipses(ax)) == (3 if labels is not None and labels.max() == 2 else 1)
    for place, half in zip(uncertain.embedding_[:, 1:3], sd, strict=True):
        np.testing.assert_allclose(found[tuple(place)], half)
    # In the colour of their points.
    for group, dots in zip(ellipses(ax), scatters(ax), strict=True):
        if labels is None or labels.max() == 2:
            np.testing.assert_array_equal(group.get_facecolor()[0][:3], dots.get_facecolor()[0][:3])
    assert not ellipses(plot.latent(uncertain, spread=False, resolution=8))


def test_an_overview_has_the_map_and_the_bars(uncertain: GPLVM) -> None:
    ax = drawn(plot.overview(uncertain, np.arange(40) % 3, resolution=8))
    left, right = (a for a in ax.figure.axes if a.get_subplotspec())
    assert left is ax
    assert len(ellipses(left)) == 3
    assert right.get_xlabel() == "latent dimension"
    assert len(right.patches) == 4


def test_loss_curve(model: GPLVM) -> None:
    ax = drawn(plot.loss(model))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), model.loss_curve_)
    assert ax.get_ylabel() == "negative log posterior (nats)"
    assert "max steps" in ax.get_title()
    ax = drawn(plot.loss(model, log=True, title="fit"))
    assert (ax.get_yscale(), ax.get_title()) == ("log", "fit")


def test_given_axes_are_used_and_returned(model: GPLVM) -> None:
    axes = Figure(figsize=(9, 3), layout="constrained").subplots(1, 3)
    assert plot.latent(model, np.arange(40) % 2, ax=axes[0], resolution=6) is axes[0]
    assert plot.relevance(model, ax=axes[1]) is axes[1]
    assert plot.loss(model, ax=axes[2]) is axes[2]
    drawn(axes[0])


def test_pyplot_is_never_imported(model: GPLVM) -> None:
    before = "matplotlib.pyplot" in sys.modules
    drawn(plot.latent(model, resolution=5))
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_file_is_written(model: GPLVM, tmp_path: Path) -> None:
    plot.latent(model, resolution=5).figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"labels": [1, 2]}, r"labels have shape \(2,\); expected \(40,\)"),
        ({"dims": (0, 0)}, r"dims=\(0, 0\) was given; expected two different"),
        ({"dims": (0, 2)}, "0 to 1"),
        ({"resolution": 1}, "resolution=1 was given; expected 2 or more"),
    ],
)
def test_bad_arguments(model: GPLVM, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plot.latent(model, **arguments)


def test_without_matplotlib_the_error_says_how_to_install_it(
    model: GPLVM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    for draw in (plot.latent, plot.relevance, plot.loss):
        with pytest.raises(ImportError, match=r"pip install 'gplvm-xp\[plot\]'"):
            draw(model)
    for d in (1, 2, 3):
        with pytest.raises(ImportError, match=r"pip install 'gplvm-xp\[plot\]'"):
            plot.rate_map(process(d))


# -- rate maps -------------------------------------------------------------------------------------


def process(d: int, fields: tuple[int, ...] = ()) -> LogGaussianCoxProcess:
    shape = (9, 7, 8)[:d]
    rng = np.random.default_rng(d)
    exposure = rng.gamma(2.0, 1.0, shape)
    exposure[(0,) * d] = 0.0
    counts = rng.poisson(2.0, (*fields, *shape)) * (exposure > 0.0)
    counts = counts.astype(np.float64)
    counts[(..., *(1,) * d)] = np.nan
    model = LogGaussianCoxProcess(shape, kernel=RBF(0.5, 2.0), optimize=False, fit_mean=False)
    return model.fit_counts(counts, exposure)


def mesh(ax: Axes) -> np.ma.MaskedArray:
    (found,) = [c for c in ax.collections if hasattr(c, "get_coordinates")]
    return np.ma.MaskedArray(found.get_array())


def test_a_rate_map_shows_the_rate_beside_its_interval() -> None:
    model = process(2)
    ax = drawn(plot.rate_map(model, level=0.8, events=[[0.5, 0.5], [3.0, 2.0]]))
    panels = [a for a in ax.figure.axes if hasattr(a, "get_subplotspec") and a.get_subplotspec()]
    assert panels[0] is ax
    titles = [a.get_title() for a in panels]
    assert titles == ["rate", "lower end (80%)", "upper end (80%)", "width (80%)"]
    lower, upper = model.interval(0.8)
    for panel, values in zip(panels, (model.rate_, lower, upper, upper - lower), strict=True):
        shown = mesh(panel).reshape(7, 9)
        # Column 0 of the places goes to the right; unobserved and masked cells are grey.
        blank = np.zeros((9, 7), dtype=bool)
        blank[0, 0] = blank[1, 1] = True
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), blank.T)
        np.testing.assert_array_equal(shown.filled(0.0), np.where(blank, 0.0, values).T)
    # The ends have the rate's colours.
    limits = [panel.collections[0].get_clim() for panel in panels]
    assert limits[0] == limits[1] == limits[2]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    (dots,) = ax.lines
    np.testing.assert_array_equal(dots.get_xdata(), [0.5, 3.0])
    everywhere = plot.rate_map(model, quantity="rate", unobserved=True)
    assert not np.ma.getmaskarray(mesh(everywhere)).any()


def test_one_axis_shows_a_curve_in_its_interval() -> None:
    model = process(1)
    model.feature_names_in_ = np.array(["time"], dtype=object)
    ax = drawn(plot.rate_map(model, events=[1.0, 2.0], title="here"))
    (curve,) = [line for line in ax.lines if line.get_label() == "rate"]
    np.testing.assert_array_equal(curve.get_xdata(), model.centers_[0])
    shown = np.asarray(curve.get_ydata())
    np.testing.assert_array_equal(shown[2:], model.rate_[2:])
    assert np.isnan(shown[:2]).all()
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("time", "rate", "here")
    assert set(legend_texts(ax)) == {"observed", "90% interval", "rate", "events"}


def test_three_axes_are_shown_in_slices() -> None:
    model = process(3)
    ax = drawn(plot.rate_map(model, quantity="upper", events=[[1.0, 1.0, 0.5]]))
    panels = [a for a in ax.figure.axes if a.get_title().startswith("z ")]
    assert len(panels) == 6
    np.testing.assert_array_equal(
        mesh(panels[-1]).reshape(7, 9), model.interval(0.9)[1][:, :, -1].T
    )


def test_one_field_of_a_batch_on_given_axes() -> None:
    model = process(2, (2, 3))
    axes = Figure().subplots(1, 2)
    for ax, field in zip(axes, ((1, 2), (0, -1)), strict=True):
        assert plot.rate_map(model, field=field, unobserved=True, ax=ax) is ax
        np.testing.assert_array_equal(mesh(ax).reshape(7, 9), model.rate_[field].T)
    assert "field (0, 0)" in plot.rate_map(model).figure.get_suptitle()
    drawn(axes[0])


def test_the_loss_of_a_process_is_its_free_energy() -> None:
    events = np.random.default_rng(0).beta(2.0, 3.0, 60)
    model = LogGaussianCoxProcess(12, kernel=RBF(0.5, 0.2)).fit(events)
    assert plot.loss(model).get_ylabel() == "free energy (nats)"


@pytest.mark.parametrize(
    ("d", "arguments", "text"),
    [
        (2, {"quantity": "median"}, "quantity='median' was given; expected one of 'rate'"),
        (2, {"level": 0.0}, "level=0.0"),
        (2, {"field": 1}, r"field=1 was given and the fields of the model have shape \(\)"),
        (2, {"events": [1.0, 2.0]}, r"expected \(n, 2\)"),
        (3, {"ax": Figure().subplots()}, "three axes"),
    ],
)
def test_bad_arguments_of_a_rate_map(d: int, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plot.rate_map(process(d), **arguments)
