"""A CPU emulator of CUDA launches, for tests without a GPU."""

from __future__ import annotations

from .emulator import (
    ORDERS,
    EmulatedLauncher,
    EmulationError,
    PoisonedNumpy,
    why_no_emulator,
)

__all__ = ["ORDERS", "EmulatedLauncher", "EmulationError", "PoisonedNumpy", "why_no_emulator"]
