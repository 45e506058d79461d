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


class WorkerLostError(RuntimeError):
    """A worker that held a shard of the rows is gone.

    Attributes
    ----------
    shard : int
        Which one, counted from 0.
    reason : str
        What was seen of it.
    checkpoint : str or None
        The file to resume from; None where none was written.
    """

    def __init__(self, shard: int, reason: str, checkpoint: str | None = None) -> None:
        super().__init__(shard, reason, checkpoint)
        self.shard, self.reason, self.checkpoint = shard, reason, checkpoint

    def __str__(self) -> str:
        after = (
            f"the last checkpoint is {self.checkpoint!r}: resume from it"
            if self.checkpoint
            else "no checkpoint was written: start again, and give a checkpoint path next time"
        )
        return f"the worker of shard {self.shard} was lost ({self.reason}); {after}"


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
    "WorkerLostError",
]
