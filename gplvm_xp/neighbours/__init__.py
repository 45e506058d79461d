"""Which rows are near which: nearest rows, max-min order, nearest earlier rows.

Positions (n, q) go in, from the host or from a device; indices come out as NumPy arrays, as they
are structure and not values. On the host SciPy's kd-trees answer, and on a device comparison with
all rows, chunk by chunk. Everything is a function of the positions alone: ties have a rule, and
threads and chunks leave no trace.
"""

from __future__ import annotations

from gplvm_xp.neighbours._shared import least
from gplvm_xp.neighbours.earlier import predecessors
from gplvm_xp.neighbours.near import nearest
from gplvm_xp.neighbours.order import maxmin

__all__ = ["least", "maxmin", "nearest", "predecessors"]
