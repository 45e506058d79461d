"""What every picture is made of: axes, colours, scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplvm_xp import backend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours (without yellow, which is lost on white) and three dark ones of Tol's
# "muted" scheme: told apart with any colour vision, more so with the markers.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#D55E00",
    "#56B4E9",
    "#332288",
    "#999933",
    "#882255",
    "#111111",
)


def axes(ax: Axes | None, size: tuple[float, float] = (6.4, 5.6)) -> Axes:
    """The axes that were given, or those of a figure of its own.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    if ax is not None:
        return ax
    figure: Axes = new_figure(size).subplots()
    return figure


def new_figure(size: tuple[float, float]) -> Any:
    """A figure without pyplot's global state.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"plots need Matplotlib, which can't be imported ({error}); install it with "
            "pip install 'gplvm-xp[plot]'"
        ) from error
    return Figure(figsize=size, dpi=150, layout="constrained")


def host(a: Any) -> np.ndarray:
    """An array of any library as float64 on the host."""
    return np.asarray(backend.of(a).to_host(a), dtype=np.float64)


def relevances(model: Any) -> np.ndarray:
    """How much each latent dimension matters, (q,), the largest 1 (or all 0)."""
    learned = getattr(model, "relevance_", None)
    values = host(model.relevance() if learned is None else learned)
    top = values.max()
    return values / top if top > 0.0 else values


def most_relevant(model: Any) -> tuple[int, int]:
    """The two latent dimensions that matter most, in their own order."""
    first, second = sorted(np.argsort(-relevances(model), kind="stable")[:2].tolist())
    return first, second


def bar(ax: Axes, image: Any, text: str, left: float, *, cut: bool = False) -> None:
    """A colour bar beside the axes, with a pointed end where values above it are ``cut``."""
    # An inset has the height of the axes, which equal scales make shorter than their cell.
    cax = ax.inset_axes((left, 0.0, 0.035, 1.0))
    bar = ax.figure.colorbar(image, cax=cax, label=text, extend="max" if cut else "neither")
    bar.outline.set_linewidth(0.6)


def tidy(ax: Axes) -> None:
    """Fewer lines: no upper and right spine, a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)


__all__ = [
    "COLOURS",
    "axes",
    "bar",
    "host",
    "most_relevant",
    "new_figure",
    "relevances",
    "tidy",
]
