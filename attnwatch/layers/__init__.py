"""Layer statistics, one file each: numbers for the blocks that the attention modules belong to.

The files are listed when a statistic is looked up; `attnwatch.register` adds your own.
"""

from attnwatch.layers.base import LayerSource, LayerStatistic

__all__ = ["LayerSource", "LayerStatistic"]
