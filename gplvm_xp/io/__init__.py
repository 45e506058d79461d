"""Model files: one ``.npz`` of plain arrays and a JSON header; no pickle, so no code is run.

The entry ``header`` holds UTF-8 JSON: the format and its version, the version of this library, the
class, its constructor parameters and what was learned (kernel, likelihood, numbers); the other
entries are arrays. JSON numbers are written by ``repr``, which a float64 survives exactly. Each
estimator declares what it consists of: see ``gplvm_xp/estimators/_saved.py``.
"""

from __future__ import annotations

from gplvm_xp.io._format import FORMAT, FORMAT_VERSION
from gplvm_xp.io._read import load
from gplvm_xp.io._write import replacing, save

__all__ = ["FORMAT", "FORMAT_VERSION", "load", "replacing", "save"]
