"""Criterion "loss", which keeps tokens whose vocabulary id is hard to predict."""

import torch
from torch import Tensor

from attnwatch.plugins import register
from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.criteria.base import TokenCriterion

# Score of an unseen id, above all losses; and scale of the noise that breaks ties.
_UNSEEN, _TIES = 1e3, 1e-6


@register
class Loss(TokenCriterion):
    """Running mean of the loss of each vocabulary id (Hou et al. 2022, arXiv 2203.13240).

    Unseen ids are kept first; ties are broken at random.
    """

    name = "loss"
    reads = ("losses",)

    def scores(self, batch: TokenBatch) -> Tensor:
        noise = batch.noise()
        return torch.where(batch.losses.isnan(), _UNSEEN + noise, batch.losses + _TIES * noise)
