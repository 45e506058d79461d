"""Maps and curves of a rate with its credible interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gplvm_xp.plot._parts import COLOURS, axes, bar, host, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = ("rate", "lower", "upper", "width")
_UNOBSERVED = "#b4b4b4"
_MOST_SLICES = 6
# Axes of one unit are drawn to scale; a box longer than this has other units.
_LONGEST_BOX = 5.0


def rate_map(
    model: Any,
    *,
    quantity: str | None = None,
    level: float = 0.9,
    field: int | tuple[int, ...] | None = None,
    unobserved: bool = False,
    events: ArrayLike | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """The rate of a fitted point process with its credible interval.

    One axis: the rate as a curve in its interval, over the observed counts per exposure. Two axes:
    maps of the rate, of the ends of its interval, in the same colours, and of the interval's
    width. Three axes: maps of one quantity in slices along the last axis.

    Parameters
    ----------
    model : LogGaussianCoxProcess
        Fitted.
    quantity : {"rate", "lower", "upper", "width"}, optional
        Draw only this one, on maps. Default: all four for two axes, the rate for three or where
        ``ax`` is given.
    level : float
        Posterior probability of the interval.
    field : int or tuple of int, optional
        Which field of a batch; default the first.
    unobserved : bool
        Whether to draw cells without exposure, or masked ones, like the others; else they are
        grey.
    events : array (n, d), optional
        Places to mark.
    ax : matplotlib Axes, optional
        Not for three axes, which need a figure of their own.
    title : str, optional

    Returns
    -------
    matplotlib Axes
        The first of the figure.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If an argument doesn't fit the model.
    """
    if quantity is not None and quantity not in QUANTITIES:
        raise ValueError(
            f"quantity={quantity!r} was given; expected one of {', '.join(map(repr, QUANTITIES))}"
        )
    m = _Map.of(model, level, field, unobserved)
    places = None if events is None else _places(events, m)
    if m.ndim == 1:
        return _curve(m, level, places, ax, m.title if title is None else title)
    if m.ndim == 3:
        if ax is not None:
            raise ValueError(
                "ax was given for three axes, which are drawn as several maps; omit it"
            )
        return _slices(m, quantity or "rate", places, m.title if title is None else title)
    if ax is not None or quantity is not None:
        ax = axes(ax, _size(m, 1))
        _panel(ax, m, quantity or "rate", level, places)
        if title is not None:
            ax.set_title(title)
        return ax
    figure = new_figure(_size(m, len(QUANTITIES)))
    panels = figure.subplots(1, len(QUANTITIES), sharex=True, sharey=True)
    for panel, name in zip(panels, QUANTITIES, strict=True):
        _panel(panel, m, name, level, places if name == "rate" else None)
        panel.label_outer()
    figure.suptitle(m.title if title is None else title, fontsize=11)
    first: Axes = panels[0]
    return first


@dataclass(frozen=True)
class _Map:
    """One field on the host: quantities by name, NaN where nothing was observed."""

    values: dict[str, np.ndarray]
    counts: np.ndarray
    exposure: np.ndarray
    edges: list[np.ndarray]
    names: tuple[str, ...]
    title: str

    @property
    def ndim(self) -> int:
        return len(self.edges)

    @classmethod
    def of(
        cls, model: Any, level: float, field: int | tuple[int, ...] | None, unobserved: bool
    ) -> _Map:
        edges = model.edges_
        lead = np.shape(model.counts_)[: np.ndim(model.counts_) - len(edges)]
        chosen = (0,) * len(lead) if field is None else np.atleast_1d(field).tolist()
        where = tuple(chosen)
        if len(where) != len(lead) or any(
            not -n <= i < n for i, n in zip(where, lead, strict=True)
        ):
            raise ValueError(
                f"field={field!r} was given and the fields of the model have shape {lead}; "
                "expected an index into it, or None for the first"
            )
        lower, upper = (host(a)[where] for a in model.interval(level))
        values = {"rate": host(model.rate_)[where], "lower": lower, "upper": upper}
        values["width"] = upper - lower
        counts, exposure = model.counts_[where], model.exposure_[where]
        seen = (exposure > 0.0) & ~np.isnan(counts)
        if not unobserved:
            values = {name: np.where(seen, a, np.nan) for name, a in values.items()}
        named = getattr(model, "feature_names_in_", None)
        names = ("x", "y", "z")[: len(edges)] if named is None else tuple(map(str, named))
        text = f"{np.nansum(np.where(seen, counts, 0.0)):g} events"
        text += "" if not lead else f", field {where[0] if len(where) == 1 else where}"
        return cls(values, counts, exposure, edges, names, text)


def _places(events: ArrayLike, m: _Map) -> np.ndarray:
    places = np.asarray(events, dtype=np.float64)
    places = places[:, None] if places.ndim == 1 else places
    if places.ndim != 2 or places.shape[1] != m.ndim:
        raise ValueError(
            f"events have shape {np.shape(events)}; expected (n, {m.ndim}), a place in each row"
        )
    return places


def _curve(m: _Map, level: float, places: np.ndarray | None, ax: Axes | None, title: str) -> Axes:
    ax = axes(ax, (7.2, 3.8))
    edges, x = m.edges[0], 0.5 * (m.edges[0][1:] + m.edges[0][:-1])
    seen = m.exposure > 0.0
    observed = np.where(seen, m.counts, np.nan) / np.where(seen, m.exposure, 1.0)
    ax.stairs(np.nan_to_num(observed), edges, fill=True, color="#d9d9d9", label="observed")
    band = (m.values["lower"], m.values["upper"])
    ax.fill_between(
        x, *band, color=COLOURS[0], alpha=0.25, linewidth=0, label=f"{level:.0%} interval"
    )
    ax.plot(x, m.values["rate"], color=COLOURS[0], linewidth=1.8, label="rate")
    if places is not None:
        ax.plot(
            places[:, 0], np.zeros(places.shape[0]), "|", color="#333333", markersize=9,
            clip_on=False, label="events",
        )  # fmt: skip
    # A cell of little exposure may show a spike far above every rate.
    top = 1.15 * np.nanmax(m.values["upper"])
    ax.set(xlabel=m.names[0], ylabel="rate", xlim=(edges[0], edges[-1]), ylim=(0.0, top))
    ax.legend(frameon=False, loc="best", fontsize=9)
    tidy(ax)
    ax.set_title(title)
    return ax


def _panel(ax: Axes, m: _Map, name: str, level: float, places: np.ndarray | None) -> None:
    top = _top(m, name)
    image = _image(ax, m, m.values[name], top)
    if places is not None:
        ax.plot(places[:, 0], places[:, 1], ".", color="#ff5a36", markersize=2.0)
    ends = {"lower": "lower end", "upper": "upper end", "width": "width"}
    ax.set_title("rate" if name == "rate" else f"{ends[name]} ({level:.0%})", fontsize=10)
    ax.set(xlabel=m.names[0], ylabel=m.names[1])
    bar(ax, image, "", 1.02, cut=bool(np.nanmax(m.values[name]) > top))


def _image(ax: Axes, m: _Map, values: np.ndarray, top: float) -> Any:
    from matplotlib import colormaps

    colours = colormaps["viridis"].with_extremes(bad=_UNOBSERVED)
    image = ax.pcolormesh(
        m.edges[0], m.edges[1], np.ma.masked_invalid(values.T), cmap=colours, vmin=0.0, vmax=top,
        rasterized=True,
    )  # fmt: skip
    ax.set_facecolor(_UNOBSERVED)
    ax.set_aspect("equal" if _to_scale(m) else "auto")
    return image


def _top(m: _Map, name: str) -> float:
    """The upper end of the colour scale: the rate's, so that the ends can be compared with it."""
    values = m.values["width" if name == "width" else "rate"]
    return max(float(np.nanmax(values)), 1e-300)


def _slices(m: _Map, name: str, places: np.ndarray | None, title: str) -> Axes:
    depth = m.edges[2].size - 1
    shown = np.unique(np.linspace(0, depth - 1, min(depth, _MOST_SLICES)).round().astype(int))
    figure = new_figure(_size(m, shown.size))
    panels = np.atleast_1d(figure.subplots(1, shown.size, sharex=True, sharey=True))
    for panel, k in zip(panels, shown, strict=True):
        low, high = m.edges[2][k], m.edges[2][k + 1]
        image = _image(panel, m, m.values[name][:, :, k], _top(m, name))
        if places is not None:
            here = places[(places[:, 2] >= low) & (places[:, 2] <= high)]
            panel.plot(here[:, 0], here[:, 1], ".", color="#ff5a36", markersize=2.0)
        panel.set_title(f"{m.names[2]} {low:.3g} to {high:.3g}", fontsize=9)
        panel.set_xlabel(m.names[0])
    panels[0].set_ylabel(m.names[1])
    bar(panels[-1], image, name, 1.03)
    figure.suptitle(title, fontsize=11)
    first: Axes = panels[0]
    return first


def _to_scale(m: _Map) -> bool:
    width, height = np.ptp(m.edges[0]), np.ptp(m.edges[1])
    return bool(max(width, height) <= _LONGEST_BOX * min(width, height))


def _size(m: _Map, panels: int) -> tuple[float, float]:
    """Of a figure with the maps side by side."""
    ratio = float(np.ptp(m.edges[1]) / np.ptp(m.edges[0])) if _to_scale(m) else 1.0
    width = 4.6 if panels == 1 else 3.1
    return panels * width + 0.4, min(max(ratio * (width - 0.9), 1.6), 8.0) + 1.0


__all__ = ["QUANTITIES", "rate_map"]
