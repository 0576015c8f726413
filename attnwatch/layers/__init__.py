"""Statistics of layers, one file each: numbers of the blocks that the attention modules belong to.

The files are listed when a statistic is looked up; `attnwatch.register` adds one of yours.
"""

from attnwatch.layers.base import LayerSource, LayerStatistic

__all__ = ["LayerSource", "LayerStatistic"]
