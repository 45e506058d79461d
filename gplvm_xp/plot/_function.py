"""Curves and class maps of a function that is seen through a likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from gplvm_xp.plot._parts import COLOURS, axes, bar, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_MARGIN = 0.06


def function(
    model: Any,
    *,
    level: float = 0.9,
    column: int = 0,
    latent: bool = False,
    resolution: int = 300,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The function that was learned over one input: its mean in a credible band, and the data.

    It is drawn as the likelihood sees it: the probability of the second class or of a success, the
    rate at exposure 1, or the function itself. The band holds the posterior of that curve, not new
    observations. Counts are drawn per exposure.

    Parameters
    ----------
    model : VariationalGP
        Fitted to one input column.
    level : float
        Posterior probability of the band at each place.
    column : int
        Of several columns of targets, which.
    latent : bool
        Draw the latent function itself (a logarithm of a rate, a log odds), without data.
    resolution : int
        Points of the curve.
    ax : matplotlib Axes, optional
    title : str, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If the model has several inputs, or an argument is out of range.
    """
    _check(model, 1, resolution)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level!r} was given; expected a number between 0 and 1")
    Y = np.atleast_2d(model.y_train_)
    if not 0 <= column < Y.shape[0]:
        raise ValueError(f"column={column!r} was given; expected 0 to {Y.shape[0] - 1}")
    x, y = model.X_train_[:, 0], Y[column]
    low, high = _limits(x)
    grid = np.linspace(low, high, resolution)
    m, v = (a.reshape(resolution, -1)[:, column] for a in _asked(model.latent, grid[:, None]))
    half = NormalDist().inv_cdf(0.5 + 0.5 * level) * np.sqrt(v)
    curves = [m, m - half, m + half]
    seen = not latent and _has_link(model)
    if seen:
        # Links rise, so quantiles stay quantiles: the middle curve is the median.
        curves = [model.likelihood_.moments(f)[0] for f in curves]
    ax = axes(ax, (7.2, 4.0))
    ax.fill_between(
        grid, curves[1], curves[2], color=COLOURS[0], alpha=0.25, linewidth=0,
        label=f"{level:.0%} credible",
    )  # fmt: skip
    ax.plot(grid, curves[0], color=COLOURS[0], linewidth=1.8, label="median" if seen else "mean")
    if not latent or not _has_link(model):
        e = model.exposure_
        shown = np.ones(y.size, dtype=bool) if e is None else e > 0.0
        values = y[shown] if e is None else y[shown] / e[shown]
        ax.plot(x[shown], values, ".", color="#333333", markersize=4.0, label="data", zorder=3)
    ax.set(xlabel=_names(model)[0], ylabel=_ylabel(model, seen), xlim=(low, high))
    ax.legend(frameon=False, loc="best", fontsize=9)
    tidy(ax)
    ax.set_title(_title(model) if title is None else title)
    return ax


def decision(
    model: Any, *, resolution: int = 120, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """The probability of the second class over two inputs, with contours and the data.

    The bold contour is where both classes are equally likely. Far from the data the probability
    goes back to what the mean of the latent function says.

    Parameters
    ----------
    model : VariationalGP
        A classifier, fitted to two input columns.
    resolution : int
        Points along each side.
    ax : matplotlib Axes, optional
    title : str, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If the model is no classifier or has another number of inputs.
    """
    if model.classes_ is None:
        raise ValueError(
            f"the model's likelihood is {type(model.likelihood_).__name__}; expected a classifier "
            "(likelihood='probit' or 'logit')"
        )
    _check(model, 2, resolution)
    X = model.X_train_
    sides = [np.linspace(*_limits(X[:, a]), resolution) for a in (0, 1)]
    across, up = np.meshgrid(*sides)
    points = np.column_stack([across.ravel(), up.ravel()])
    p = _asked(model.predict_proba, points)[:, 1].reshape(across.shape)
    ax = axes(ax, (6.6, 5.2))
    image = ax.pcolormesh(
        across, up, p, cmap=_pale(), vmin=0.0, vmax=1.0, shading="gouraud", rasterized=True
    )
    lines = ax.contour(
        across, up, p, levels=_LEVELS, colors="#333333",
        linewidths=[1.8 if at == 0.5 else 0.7 for at in _LEVELS],
    ) if p.min() < _LEVELS[-1] and p.max() > _LEVELS[0] else None  # fmt: skip
    if lines is not None:
        ax.clabel(lines, fmt="%g", fontsize=8)
    for k, (marker, colour) in enumerate((("o", COLOURS[6]), ("^", COLOURS[4]))):
        here = model.y_train_ == k
        ax.plot(
            X[here, 0], X[here, 1], marker, color=colour, markersize=4.5, markeredgecolor="white",
            markeredgewidth=0.5, label=str(model.classes_[k]), zorder=3,
        )  # fmt: skip
    names = _names(model)
    ax.set(
        xlabel=names[0], ylabel=names[1], xlim=(sides[0][0], sides[0][-1]),
        ylim=(sides[1][0], sides[1][-1]),
    )  # fmt: skip
    ax.legend(loc="best", fontsize=9)
    bar(ax, image, f"probability of {model.classes_[1]}", 1.02)
    ax.set_title(_title(model) if title is None else title)
    return ax


# -- parts ---------------------------------------------------------------------------------------


def _check(model: Any, columns: int, resolution: int) -> None:
    q = model.n_features_in_
    if q != columns:
        raise ValueError(
            f"the model has {q} input column(s); expected {columns}: fit one with "
            f"{'that column' if columns == 1 else 'two columns'} to draw it"
        )
    if resolution < 2:
        raise ValueError(f"resolution={resolution} was given; expected 2 or more points")


def _asked(question: Callable[[np.ndarray], Any], X: np.ndarray) -> Any:
    """An answer at places that have no column names, whatever the model was fitted with."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        return question(X)


def _pale() -> Any:
    """Violet to orange through white, without the dark ends, on which no point would show."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["PuOr_r"](np.linspace(0.22, 0.78, 256)))


def _has_link(model: Any) -> bool:
    """Whether the mean of an observation is another number than f."""
    here = np.array([-1.0, 1.0])
    mean = model.likelihood_.moments(here)[0]
    return bool(np.all(np.isfinite(mean)) and not np.array_equal(mean, here))


def _limits(x: np.ndarray) -> tuple[float, float]:
    low, high = x.min(), x.max()
    edge = _MARGIN * (high - low) or 1.0
    return low - edge, high + edge


def _names(model: Any) -> tuple[str, ...]:
    named = getattr(model, "feature_names_in_", None)
    if named is not None:
        return tuple(map(str, named))
    return ("x",) if model.n_features_in_ == 1 else ("x1", "x2")


def _ylabel(model: Any, seen: bool) -> str:
    if not seen:
        return "y" if not _has_link(model) else "latent function"
    if model.classes_ is not None:
        return f"probability of {model.classes_[1]}"
    low, high = (model.likelihood_.moments(np.array([f]))[0][0] for f in (-40.0, 40.0))
    return "probability of a success" if high - low <= 1.0 else "rate"


def _title(model: Any) -> str:
    n = model.X_train_.shape[0]
    return f"{type(model).__name__}, {model.likelihood_.name.replace('_', ' ')}: {n} observations"


__all__ = ["decision", "function"]
