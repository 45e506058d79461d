"""Ranges of rows for work that goes chunk by chunk."""

from __future__ import annotations


def chunks(n: int, step: int) -> list[slice]:
    """Ranges of n rows, at most ``step`` each and of one size, so that the last is no crumb."""
    step = -(-n // -(-n // max(step, 1))) if n else 1
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


__all__ = ["chunks"]
