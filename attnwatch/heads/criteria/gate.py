"""Criterion by the gradient of a gate on each head."""

from torch import Tensor

from attnwatch.heads.criteria.base import HeadCriterion, HeadData
from attnwatch.plugins import register


@register
class Gate(HeadCriterion):
    """Mean over steps of |∂L/∂ξ_h| for a gate ξ_h = 1 on the output of head h, relative to the layer's L2 norm.

    Source: Michel et al. 2019 (arXiv 1905.10650), eq. 2. They take the absolute value of each example's gradient;
    here it is taken of the sum over the batch.
    """

    name = "gate"
    reads = ("gradients",)

    def scores(self, data: HeadData) -> Tensor:
        return data["gradients"] / data["gradients"].norm().clamp(min=1e-30)
