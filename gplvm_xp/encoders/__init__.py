"""Back-constraints: latents as a function of the data."""

from __future__ import annotations

from typing import Any

from gplvm_xp.encoders.base import Encoder
from gplvm_xp.encoders.kernel import KernelEncoder
from gplvm_xp.encoders.mlp import MLPEncoder


def encoder_of(given: Any, parameter: str = "back_constraint") -> Encoder | None:
    """The encoder that a parameter of an estimator names.

    Raises
    ------
    ValueError
        If it names none.
    """
    if given is None or isinstance(given, Encoder):
        return given
    if isinstance(given, str) and given == "kernel":
        return KernelEncoder()
    if isinstance(given, str) and given == "mlp":
        return MLPEncoder()
    raise ValueError(
        f"{parameter}={given!r} was given; expected None, 'kernel', 'mlp' or an Encoder of "
        "gplvm_xp.encoders"
    )


__all__ = ["Encoder", "KernelEncoder", "MLPEncoder", "encoder_of"]
