"""A fit at one glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from gplvm_xp.plot._fit import relevance
from gplvm_xp.plot._latent import latent
from gplvm_xp.plot._parts import new_figure, relevances

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def overview(model: Any, labels: ArrayLike | None = None, *, resolution: int = 100) -> Axes:
    """The map of the latents beside the relevance of each latent dimension, on a figure of its own.

    Parameters
    ----------
    model : GPLVM, BayesianGPLVM or SparseGPLVM
        Fitted.
    labels : array_like (n,), optional
        As for :func:`latent`.
    resolution : int
        As for :func:`latent`.

    Returns
    -------
    matplotlib Axes
        Those of the map.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    ValueError
        If the labels do not match the rows, or ``resolution`` is out of range.
    """
    bars = 0.35 * max(relevances(model).size, 6) + 1.2
    figure = new_figure((7.2 + bars, 5.4))
    figure.get_layout_engine().set(wspace=0.05)
    left: Axes
    left, right = figure.subplots(1, 2, width_ratios=(7.2, bars))
    latent(model, labels, ax=left, resolution=resolution)
    relevance(model, ax=right, title="relevance")
    return left


__all__ = ["overview"]
