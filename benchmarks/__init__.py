"""Runnable measurements; their results are in ``benchmarks/results``."""
