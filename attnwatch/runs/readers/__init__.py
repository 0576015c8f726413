"""Formats in which runs are kept, one file each: how a run is found, and what of it is read."""

from attnwatch.runs.readers.base import RunReader

__all__ = ["RunReader"]
