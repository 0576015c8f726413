"""Measurements, one claim each: `python -m benchmarks.<name>` prints a table and stores the result."""
