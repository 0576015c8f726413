"""Attention statistics, one file each, that are recorded, drawn and judged for every head.

The files are listed when a statistic is looked up; `attnwatch.register` adds your own.
"""

from attnwatch.statistics.base import DETAILS, OVERVIEW, Reduction, Statistic

__all__ = ["DETAILS", "OVERVIEW", "Reduction", "Statistic"]
