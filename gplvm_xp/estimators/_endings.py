"""What is said of a fit that ended early."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from sklearn.exceptions import ConvergenceWarning


class Outcome(Protocol):
    """How a search ended, as in :class:`gplvm_xp.optim.OptResult`."""

    @property
    def status(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def grad_norm(self) -> float: ...


def say_early_end(model: Any, result: Outcome, *, depth: int = 3) -> None:
    """Warn, ``depth`` calls up, of a fit that ended early."""
    if result.status in ("interrupted", "time_limit", "failed"):
        warnings.warn(
            f"the fit ended early ({result.message}); the best state of {result.steps} steps is "
            "kept",
            ConvergenceWarning,
            stacklevel=depth,
        )
    elif result.status == "max_steps":
        on = ", or call partial_fit" if hasattr(model, "partial_fit") else ""
        warnings.warn(
            f"max_iter={model.max_iter} steps were taken and the largest gradient entry is "
            f"{result.grad_norm:.3g}; raise max_iter{on} to go on",
            ConvergenceWarning,
            stacklevel=depth,
        )


__all__ = ["Outcome", "say_early_end"]
