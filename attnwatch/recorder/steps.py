"""What is kept of a step until a flush: sums by site, with the loss beside them."""

from torch import Tensor

StepSums = tuple[int, dict[str, Tensor]]
"""The global step, and of each site that was called [statistics, 2, heads]; of `LOSS` (sum, number)."""

LOSS = ".loss"  # beside the sites, whose names are module paths
