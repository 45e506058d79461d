"""Fixed places for averages over N(0, I): the same for all rows, so that objectives are smooth."""

from __future__ import annotations

import math

from gplvm_xp.kernels.psi.rules import Rule, gauss_hermite, quasi_monte_carlo

# Up to this many dimensions, tensor rules.
_TENSOR = 2


def nodes(q: int, count: int) -> Rule:
    """About ``count`` places (J, q) and their weights (J,), on the host; more where q needs them.

    Tensor Gauss-Hermite for q ≤ 2; above, quasi-Monte-Carlo whose first three moments are exact.
    """
    if q <= _TENSOR:
        return gauss_hermite(q, math.ceil(count ** (1.0 / q)))
    return quasi_monte_carlo(q, 2 ** math.ceil(math.log2(max(count, 4 * q))), 0)


__all__ = ["nodes"]
