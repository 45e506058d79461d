"""The progress bar of a fit, on the callback that an optimiser offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gplvm_xp.optim import Progress

Callback = Callable[[Progress], bool | None]


@contextmanager
def watched(
    show: bool, total: int, restart: int, callback: Callback | None, model: str = "GPLVM"
) -> Iterator[Callback | None]:
    """The user's callback, with a bar of the objective and the gradient norm where asked for."""
    if not show:
        yield callback
        return
    from tqdm.auto import tqdm

    name = model if restart == 0 else f"{model}, restart {restart}"
    with tqdm(total=total, desc=name, unit="step") as bar:

        def step(progress: Progress) -> bool | None:
            bar.update(progress.step - bar.n)
            words: dict[str, Any] = {"objective": f"{progress.value:.6g}"}
            # A search by batches never sees the whole gradient.
            if not math.isnan(progress.grad_norm):
                words["|g|"] = f"{progress.grad_norm:.2e}"
            bar.set_postfix(words)
            return None if callback is None else callback(progress)

        yield step


__all__ = ["watched"]
