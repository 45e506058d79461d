"""Back-constraints: latents as a function of the data."""

from __future__ import annotations

from typing import Any

from gplvm_xp.encoders.base import Encoder


def encoder_of(given: Any) -> Encoder | None:
    """The encoder that ``back_constraint`` names.

    Raises
    ------
    ValueError
        If it names none.
    """
    if given is None or isinstance(given, Encoder):
        return given
    raise ValueError(
        f"back_constraint={given!r} was given; expected None, 'kernel', 'mlp' or an Encoder of "
        "gplvm_xp.encoders"
    )


__all__ = ["Encoder", "encoder_of"]
