"""Run readers, one file for each format: how to find a run, and what to read from it."""

from attnwatch.runs.readers.base import RunReader

__all__ = ["RunReader"]
