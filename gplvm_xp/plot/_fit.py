"""Bars and curves that judge a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplvm_xp.plot._parts import COLOURS, axes, host, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def relevance(model: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Bars of how much each latent dimension matters (``model.relevance()``, the largest 1).

    Parameters
    ----------
    model : GPLVM
        Fitted.
    ax : matplotlib Axes, optional
    title : str, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    values = host(model.relevance())
    ax = axes(ax, (0.6 * max(values.size, 4) + 2.0, 3.4))
    places = np.arange(1, values.size + 1)
    bars = ax.bar(places, values, width=0.7, color=COLOURS[0], zorder=2)
    ax.bar_label(bars, labels=[f"{v:.2g}" for v in values], padding=2, fontsize=9)
    ax.set(
        xlabel="latent dimension",
        ylabel="relevance (largest = 1)",
        xlim=(0.4, values.size + 0.6),
        ylim=(0.0, 1.12 * max(float(values.max()), 1e-12)),
    )
    ax.set_xticks(places)
    tidy(ax)
    ax.set_title("Relevance of each latent dimension" if title is None else title)
    return ax


def loss(
    model: Any, *, ax: Axes | None = None, log: bool = False, title: str | None = None
) -> Axes:
    """The objective after each accepted step of the fit.

    Parameters
    ----------
    model : estimator
        Fitted.
    ax : matplotlib Axes, optional
    log : bool
        Draw the distance to the lowest value on a logarithmic axis, which shows the slow end.
    title : str, optional

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    values = host(model.loss_curve_)
    ax = axes(ax, (5.6, 3.6))
    steps = np.arange(values.size)
    best = float(np.nanmin(values))
    word = "free energy" if hasattr(model, "free_energy_") else "negative log posterior"
    if log:
        above = values - best
        keep = above > 0
        ax.semilogy(steps[keep], above[keep], color=COLOURS[0], linewidth=1.8)
        ax.set_ylabel(f"{word} above its lowest (nats)")
    else:
        ax.plot(steps, values, color=COLOURS[0], linewidth=1.8)
        ax.set_ylabel(f"{word} (nats)")
    ax.plot([], [], " ", label=f"lowest: {best:.6g}")
    ax.legend(frameon=False, loc="upper right", handlelength=0)
    ax.set_xlabel("optimiser step")
    ax.locator_params(axis="x", integer=True)
    tidy(ax)
    ended = str(getattr(model, "status_", "")).replace("_", " ")
    ax.set_title((f"Fit of the model ({ended})" if ended else "Fit") if title is None else title)
    return ax


__all__ = ["loss", "relevance"]
