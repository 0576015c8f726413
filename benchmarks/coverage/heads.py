"""Removal of heads: attention modules that allow it, and comparison with the model whose heads are masked."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch import ConfigurationError, prune_heads
from attnwatch.heads import HeadMap
from attnwatch.heads.site import HeadSite
from benchmarks.coverage.architecture import Architecture, deviation_of, outputs_of
from benchmarks.coverage.batches import Batch


def pruning_of(architecture: Architecture, batch: Batch) -> dict[str, Any]:
    """Remove one head of every site, or a group of heads that share keys and values.

    `deviation` is the largest between the outputs of the pruned and of the masked model, relative to the largest
    output; `effect` is that between the masked and the whole model.
    """
    model = architecture.build().eval()
    heads = HeadMap.of(model)
    sites = heads.sites
    result = {"sites": len(heads.names), "prunable": 0, "reasons": dict(Counter(heads.refused.values()))}
    gone = {name: _one_group(site, index) for index, (name, site) in enumerate(sites.items())}
    gone = {name: heads for name, heads in gone.items() if heads}
    if len(gone) < len(sites):
        result["reasons"]["its heads all share keys and values"] = len(sites) - len(gone)
    if not gone:
        return result
    whole, masked = _outputs(model, batch), _outputs(_masked(architecture, gone), batch)
    try:
        prune_heads(model, gone)
    except ConfigurationError as reason:
        result["reasons"][str(reason)] = len(gone)
        return result
    left = HeadMap.of(model).sites
    removed = [name for name, heads in gone.items() if left[name].num_heads == sites[name].num_heads - len(heads)]
    deviation, effect = deviation_of(_outputs(model, batch), masked), deviation_of(whole, masked)
    return result | {"prunable": len(removed), "deviation": deviation, "effect": effect}


def _one_group(site: HeadSite, index: int) -> list[int]:
    """Return the heads of one group, another one in each layer; none if no head would be left."""
    groups = site.groups()
    if len(groups) > 1:
        return groups[index % len(groups)]
    return [site.kept[index % site.num_heads]] if site.num_heads > 1 else []


@torch.no_grad()
def _masked(architecture: Architecture, gone: dict[str, list[int]]) -> nn.Module:
    """Return the model with zeros in its output projections, in the columns of these heads."""
    model = architecture.build().eval()
    sites = HeadMap.of(model).sites
    for name, heads in gone.items():
        site = sites[name]
        site.output_weight.unflatten(1, (site.num_heads, site.head_dim))[:, heads] = 0
    return model


@torch.no_grad()
def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    return outputs_of(model, batch)
