"""Maps of the latents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from gplvm_xp.geometry import Geodesic, log_volume
from gplvm_xp.plot._parts import COLOURS, axes, bar, host, most_relevant, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_LINES = ("-", "--", ":", "-.")
_NO_LABEL = "#8a8a8a"
# More classes than this are drawn by a continuous scale if they are numbers.
_MOST_CLASSES = 30
_BATCH_NUMBERS = 2**22


def latent(
    model: Any,
    labels: ArrayLike | None = None,
    *,
    dims: tuple[int, int] | None = None,
    ax: Axes | None = None,
    resolution: int = 100,
    uncertainty: bool = True,
    background: Literal["uncertainty", "magnification"] = "uncertainty",
    curves: Sequence[Geodesic | ArrayLike] = (),
    spread: bool = True,
    outputs: int = 3,
    title: str | None = None,
) -> Axes:
    """Training latents by label over the predictive uncertainty, or over the magnification factor.

    The grey image is the standard deviation of the noiseless function, averaged over the outputs
    (root mean square): white where the data pin the mapping down. Or it is the magnification of
    areas of the map by the expected metric, on a logarithmic scale: white where it is least, so
    that a dark line is a border that few curves should cross. Other latent dimensions stay at their
    mean over the training rows. With one latent dimension the outputs are drawn against it: mean
    curves with bands of two standard deviations.

    Frames that follow one another under a latent prior over sequences are joined by a thin line.
    Where the latents have a posterior of their own (``embedding_variance_``), a pale ellipse around
    each point has one standard deviation as its half axes; points that are known to less than their
    own size show none.

    Parameters
    ----------
    model : GPLVM, BayesianGPLVM or SparseGPLVM
        Fitted.
    labels : array_like (n,), optional
        Classes (text, integers, booleans), or a number per row to colour by.
    dims : (int, int), optional
        Latent dimensions on the two axes; default the two of largest relevance.
    ax : matplotlib Axes, optional
    resolution : int
        Grid points along the longer side.
    uncertainty : bool
        Whether to draw the grey image (one prediction for each grid point, in batches).
    background : {"uncertainty", "magnification"}
        What the image shows.
    curves : sequence of Geodesic or array (T, q)
        Curves through the latents, drawn over the points: solid what ``model.geodesic`` gives,
        dotted any other, such as ``numpy.linspace(start, end)``.
    spread : bool
        Whether to draw the ellipses.
    outputs : int
        With one latent dimension: how many outputs to draw, those of largest variance.
    title : str, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If the labels do not match the rows, ``dims`` or ``resolution`` are out of range, or the
        background or a curve is not one.
    """
    Z = host(model.embedding_)
    n, q = Z.shape
    classes = None if labels is None else np.asarray(labels)
    if classes is not None and classes.shape != (n,):
        raise ValueError(
            f"labels have shape {classes.shape}; expected ({n},): one for each training row"
        )
    if resolution < 2:
        raise ValueError(f"resolution={resolution} was given; expected 2 or more grid points")
    if background not in _IMAGES:
        raise ValueError(
            f"background={background!r} was given; expected one of {', '.join(map(repr, _IMAGES))}"
        )
    paths = [_path(curve, q) for curve in curves]
    if q == 1:
        return _line(model, Z, classes, axes(ax), resolution, outputs, title)
    if dims is None:
        dims = (0, 1) if q == 2 else most_relevant(model)
    if len(dims) != 2 or dims[0] == dims[1] or not all(0 <= d < q for d in dims):
        raise ValueError(
            f"dims={dims} was given; expected two different latent dimensions of 0 to {q - 1}"
        )
    points = Z[:, list(dims)]
    variance = getattr(model, "embedding_variance_", None)
    sd = None if variance is None or not spread else np.sqrt(host(variance)[:, list(dims)])
    low, high = _frame(points)
    # Equal scales fill the figure where it has the shape of the data.
    width, height = 5.0 * (high - low) / (high - low).max()
    ax = axes(ax, (width + 2.3, height + 1.3))
    if uncertainty:
        _image(model, background, Z, dims, low, high, resolution, ax)
    for part in _sequences(model, n):
        ax.plot(*points[part].T, color=_NO_LABEL, linewidth=0.7, zorder=2)
    _scatter(ax, points[:, 0], points[:, 1], classes, sd)
    for path, curve in zip(paths, curves, strict=True):
        _curve(ax, path[:, list(dims)], "-" if isinstance(curve, Geodesic) else ":")
    ax.set(
        xlim=(low[0], high[0]),
        ylim=(low[1], high[1]),
        aspect="equal",
        xlabel=f"latent dimension {dims[0] + 1}",
        ylabel=f"latent dimension {dims[1] + 1}",
    )
    ax.set_title(_title(model, n, q) if title is None else title, wrap=True)
    return ax


# -- parts ---------------------------------------------------------------------------------------


def _title(model: Any, n: int, q: int) -> str:
    D = model.training_data_.shape[1]
    dimensions = "dimension" if q == 1 else "dimensions"
    return f"{type(model).__name__}: {n} rows of {D} columns in {q} latent {dimensions}"


def _sequences(model: Any, n: int) -> list[slice]:
    """Rows that form trajectories, where the model knows of any."""
    prior = getattr(model, "latent_prior_", None)
    if prior is None or "sequences" not in prior.uses:
        return []
    lengths = [n] if model.sequences_ is None else model.sequences_
    return [slice(a, z) for a, z in itertools.pairwise([0, *np.cumsum(lengths)])]


def _frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits with a margin; the shorter side is at least 0.6 of the longer one."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle, half = 0.5 * (low + high), 0.54 * (high - low)
    half = np.maximum(half, 0.6 * half.max())
    half = np.where(half > 0, half, 1.0)
    return middle - half, middle + half


def _image(
    model: Any,
    background: str,
    Z: np.ndarray,
    dims: tuple[int, int],
    low: np.ndarray,
    high: np.ndarray,
    resolution: int,
    ax: Axes,
) -> None:
    step = (high - low).max() / resolution
    sides = [low[a] + (np.arange(round((high - low)[a] / step)) + 0.5) * step for a in (0, 1)]
    across, up = np.meshgrid(*sides)
    grid = np.broadcast_to(Z.mean(axis=0), (across.size, Z.shape[1])).copy()
    grid[:, dims[0]], grid[:, dims[1]] = across.ravel(), up.ravel()
    values, least, text = _IMAGES[background](model, grid, dims)
    image = ax.imshow(
        values.reshape(across.shape),
        origin="lower",
        extent=(low[0], high[0], low[1], high[1]),
        cmap=_greys(),
        vmin=least,
        interpolation="bilinear",
        zorder=0,
    )
    bar(ax, image, text, 1.02)


def _uncertainty(
    model: Any, grid: np.ndarray, dims: tuple[int, int]
) -> tuple[np.ndarray, float | None, str]:
    sd = np.concatenate([np.sqrt(v.mean(axis=1)) for _, v in _predictions(model, grid)])
    if getattr(model, "likelihood_", None) is None:
        return sd, 0.0, "predictive standard deviation (units of the data)"
    return sd, 0.0, "standard deviation of the latent functions"


def _magnification(
    model: Any, grid: np.ndarray, dims: tuple[int, int]
) -> tuple[np.ndarray, float | None, str]:
    """Of areas in the plane of the map, whatever other dimensions there are."""
    if not hasattr(model, "metric_tensor"):
        raise ValueError(
            f"background='magnification' needs a model with a metric, and {type(model).__name__} "
            "has none; use background='uncertainty'"
        )
    plane = host(model.metric_tensor(grid))[:, list(dims)][:, :, list(dims)]
    values = log_volume(plane) / np.log(10.0)
    # Where the metric is singular the image has a hole and the scale has no end.
    return np.where(np.isfinite(values), values, np.nan), None, "log₁₀ of the magnification factor"


_IMAGES = {"uncertainty": _uncertainty, "magnification": _magnification}


def _path(curve: Any, q: int) -> np.ndarray:
    path = host(curve.path if isinstance(curve, Geodesic) else np.asarray(curve))
    if path.ndim != 2 or path.shape[1] != q:
        raise ValueError(f"a curve has shape {path.shape}; expected latents (T, {q})")
    return path


def _curve(ax: Axes, path: np.ndarray, style: str) -> None:
    """A line with a white edge, so that it shows over points of any colour."""
    from matplotlib import patheffects

    edge = [patheffects.Stroke(linewidth=3.4, foreground="white"), patheffects.Normal()]
    ax.plot(
        path[:, 0], path[:, 1], style, color="black", linewidth=1.6, zorder=4, path_effects=edge
    )


def _greys() -> Any:
    """White to a grey on which every colour of the palette still stands out."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("uncertainty", ["#ffffff", "#8f8f8f"])


def _predictions(model: Any, latents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    step = max(1, _BATCH_NUMBERS // model.training_data_.shape[1])
    for i in range(0, latents.shape[0], step):
        yield model.predict(latents[i : i + step], return_var=True, noise=False)


def _scatter(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    labels: np.ndarray | None,
    sd: np.ndarray | None = None,
) -> None:
    size = float(np.clip(12000.0 / x.size, 10.0, 42.0))
    edge: dict[str, Any] = {
        "edgecolors": "white",
        "linewidths": 0.4 if x.size < 1000 else 0.2,
        "zorder": 3,
    }
    everyone = np.ones(x.size, dtype=bool)
    if labels is None:
        _ellipses(ax, x, y, sd, everyone, COLOURS[0])
        ax.scatter(x, y, s=size, color=COLOURS[0], **edge)
        return
    names = np.unique(labels)
    if names.size > _MOST_CLASSES and labels.dtype.kind in "iuf":
        _ellipses(ax, x, y, sd, everyone, _NO_LABEL)
        dots = ax.scatter(x, y, s=size, c=labels, cmap="viridis", **edge)
        bar(ax, dots, "label", 1.02 if not ax.child_axes else 1.22)
        return
    # Classes drawn one after another hide each other; the largest first hides the fewest points.
    sizes = {name: int(np.count_nonzero(labels == name)) for name in names}
    for k in np.argsort([-sizes[name] for name in names], kind="stable"):
        mine = labels == names[k]
        blank = str(names[k]) == ""
        marker = _MARKERS[(k + k // len(COLOURS)) % len(_MARKERS)]
        colour = _NO_LABEL if blank else COLOURS[k % len(COLOURS)]
        _ellipses(ax, x, y, sd, mine, colour)
        ax.scatter(
            x[mine],
            y[mine],
            s=size * (1.5 if marker in "PX" else 1.0),
            color=colour,
            marker=marker,
            label="no label" if blank else str(names[k]),
            **edge,
        )
    _legend(ax, [str(name) or "no label" for name in names])


def _ellipses(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    sd: np.ndarray | None,
    mine: np.ndarray,
    colour: str,
) -> None:
    """One standard deviation around each point, paler the more points there are."""
    if sd is None:
        return
    from matplotlib.collections import EllipseCollection

    ax.add_collection(
        EllipseCollection(
            2.0 * sd[mine, 0],
            2.0 * sd[mine, 1],
            np.zeros(int(mine.sum())),
            units="xy",
            offsets=np.stack([x[mine], y[mine]], axis=1),
            offset_transform=ax.transData,
            facecolors=colour,
            edgecolors="none",
            alpha=float(np.clip(30.0 / x.size, 0.06, 0.25)),
            zorder=2,
        )
    )


def _legend(ax: Axes, names: list[str]) -> None:
    """One entry a class below the axes, in the order of ``names``."""
    from matplotlib.collections import PathCollection
    from matplotlib.legend_handler import HandlerPathCollection

    drawn = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    count, longest = len(names), max(len(name) for name in names)
    ax.legend(
        [drawn[name] for name in names],
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.11),
        ncols=min(count, max(2, 50 // (longest + 4)), 10 if count > 12 else 5),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.0,
        handler_map={PathCollection: HandlerPathCollection(sizes=[40.0])},
    )


def _line(
    model: Any,
    Z: np.ndarray,
    labels: np.ndarray | None,
    ax: Axes,
    resolution: int,
    outputs: int,
    title: str | None,
) -> Axes:
    Y = model.training_data_
    shown = np.argsort(-np.nanvar(Y, axis=0), kind="stable")[: max(1, outputs)]
    low, high = Z.min(), Z.max()
    margin = 0.06 * (high - low) or 1.0
    grid = np.linspace(low - margin, high + margin, max(resolution, 200))[:, None]
    mean, variance = model.predict(grid, return_var=True, noise=True)
    names = getattr(model, "feature_names_in_", None)
    for k, d in enumerate(shown):
        # Beside labels, which take the colours, the outputs are told apart by their lines.
        colour = COLOURS[k % len(COLOURS)] if labels is None else "#333333"
        style = "-" if labels is None else _LINES[k % len(_LINES)]
        sd = np.sqrt(variance[:, d])
        band = (mean[:, d] - 2.0 * sd, mean[:, d] + 2.0 * sd)
        ax.fill_between(grid[:, 0], *band, color=colour, alpha=0.15, linewidth=0)
        name = f"column {d}" if names is None else str(names[d])
        ax.plot(grid[:, 0], mean[:, d], style, color=colour, linewidth=1.8, label=name)
        ax.plot(Z[:, 0], Y[:, d], ".", color=colour, markersize=4, alpha=0.6)
    ax.set(
        xlabel="latent dimension 1",
        ylabel="data (mean and ± 2 standard deviations)",
        xlim=(grid[0, 0], grid[-1, 0]),
    )
    first = ax.legend(frameon=False, loc="upper left")
    if labels is not None:
        _, row = np.unique(labels, return_inverse=True)
        row = row if row.max() < _MOST_CLASSES else np.zeros_like(row)
        bottom, top = ax.get_ylim()
        space = 0.035 * (top - bottom)
        _scatter(ax, Z[:, 0], bottom - space * row, labels)
        ax.set_ylim(bottom - space * (row.max() + 1), top)
        ax.add_artist(first)
    tidy(ax)
    ax.set_title(_title(model, *Z.shape) if title is None else title)
    return ax


__all__ = ["latent"]
