"""Exceptions and warnings that somebody may want to catch by name.

Everything else is a plain ``ValueError`` or ``TypeError`` whose text says what was seen, what was
expected and what to do.
"""

from __future__ import annotations


class BackendUnavailableError(RuntimeError):
    """The backend asked for can't run here; the text gives the reason and the install line."""


class NotPositiveDefiniteError(ValueError):
    """A covariance matrix stayed without a Cholesky factor after the documented jitter schedule."""


class NotEnoughMemoryError(MemoryError):
    """The n × n buffer does not fit; refused before it is allocated."""


class ModelFileError(ValueError):
    """A saved model is damaged, of another kind, or of a version this library does not read."""


class BackendWarning(UserWarning):
    """``backend="auto"`` fell back to the CPU."""


class PrecisionWarning(UserWarning):
    """The working precision is too small for the condition number met."""


__all__ = [
    "BackendUnavailableError",
    "BackendWarning",
    "ModelFileError",
    "NotEnoughMemoryError",
    "NotPositiveDefiniteError",
    "PrecisionWarning",
]
