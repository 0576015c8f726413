"""Criterion by chance, the null hypothesis."""

import torch
from torch import Tensor

from attnwatch.heads.criteria.base import HeadCriterion, HeadData
from attnwatch.plugins import register


@register
class Random(HeadCriterion):
    """Uniform random numbers that depend only on the seed, so that later cuts keep the order."""

    name = "random"

    def scores(self, data: HeadData) -> Tensor:
        return torch.rand(data.num_heads, generator=data.generator)
