"""What the writer and the reader of model files agree on."""

from __future__ import annotations

from typing import Any

FORMAT = "gplvm_xp model"
FORMAT_VERSION = 1

AGAIN = "Save the model again with gplvm_xp.io.save, or load another file"
HEADER = "header"


def estimators() -> dict[str, Any]:
    """The classes that model files hold, by name."""
    # Imported here: reading a header needs no estimator, and the estimators import scikit-learn.
    from gplvm_xp import estimators

    return {name: getattr(estimators, name) for name in estimators.__all__}


__all__ = ["AGAIN", "FORMAT", "FORMAT_VERSION", "HEADER", "estimators"]
