"""Sums of a step by site, with the loss and the layer statistics beside them."""

from typing import NamedTuple

from torch import Tensor

from attnwatch.recorder.layer_values import LayerValues


class StepSums(NamedTuple):
    """Sums of one step, by site.

    Attributes:
        step: global step.
        sums: sums of each called site, [statistics, 2, heads]; for `LOSS`, (sum, number).
        layers: layer statistics of the sites.
    """

    step: int
    sums: dict[str, Tensor]
    layers: LayerValues


LOSS = ".loss"  # beside the sites, whose names are module paths
