"""Statistics of attention, one file each: what is recorded, drawn and judged of every head.

The files are listed when a statistic is looked up; `attnwatch.register` adds one of yours.
"""

from attnwatch.statistics.base import DETAILS, OVERVIEW, Reduction, Statistic

__all__ = ["DETAILS", "OVERVIEW", "Reduction", "Statistic"]
