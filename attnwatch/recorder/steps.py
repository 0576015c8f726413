"""Sums of a step by site, with the loss beside them."""

from torch import Tensor

StepSums = tuple[int, dict[str, Tensor]]
"""Global step, and sums [statistics, 2, heads] of each site that was called; for `LOSS` (sum, number)."""

LOSS = ".loss"  # beside the sites, whose names are module paths
