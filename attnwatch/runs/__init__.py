"""Saving and reading of runs: what was observed during training, and what happened."""

from attnwatch.runs.logged import Points, logged_run
from attnwatch.runs.readers import RunReader
from attnwatch.runs.reading import read_run
from attnwatch.runs.record import RATE_CURVE, RISK_CURVE, Curve, RunEvent, RunRecord

__all__ = [
    "RATE_CURVE",
    "RISK_CURVE",
    "Curve",
    "Points",
    "RunEvent",
    "RunReader",
    "RunRecord",
    "logged_run",
    "read_run",
]
