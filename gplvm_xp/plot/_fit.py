"""Bars and curves that judge a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplvm_xp.plot._parts import COLOURS, axes, host, relevances, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OFF = "#b9b9b9"


def relevance(model: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Bars of how much each latent dimension matters, the largest 1.

    Where the model has switched dimensions off (``n_active_``, models with inducing inputs), those
    that are on are coloured and the others are grey.

    Parameters
    ----------
    model : estimator
        Fitted, with ``relevance_`` or ``relevance()``.
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
    values = relevances(model)
    q = values.size
    n_active = getattr(model, "n_active_", None)
    on = np.ones(q, dtype=bool)
    if n_active is not None:
        on[np.argsort(-values, kind="stable")[n_active:]] = False
    ax = axes(ax, (0.55 * max(q, 5) + 1.8, 3.4))
    places = np.arange(1, q + 1)
    for mine, colour, name in ((on, COLOURS[0], "on"), (~on, _OFF, "off")):
        if mine.any():
            bars = ax.bar(places[mine], values[mine], width=0.7, color=colour, zorder=2, label=name)
            texts = [f"{v:.2g}" if v >= 0.01 else "" for v in values[mine]]
            ax.bar_label(bars, labels=texts, padding=2, fontsize=8, color="#333333")
    ax.set(
        xlabel="latent dimension",
        ylabel="relevance (largest = 1)",
        xlim=(0.4, q + 0.6),
        ylim=(0.0, 1.12),
    )
    ax.set_xticks(places)
    tidy(ax)
    if n_active is not None:
        # Beside the bars: any of them may be as high as the axes.
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, handlelength=1.0)
        text = f"Relevance: {n_active} of {q} latent dimensions on"
    else:
        text = "Relevance of each latent dimension"
    ax.set_title(text if title is None else title)
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
    word = "negative log posterior"
    for attribute, name in (("free_energy_", "free energy"), ("lower_bound_", "negative bound")):
        word = name if hasattr(model, attribute) else word
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
