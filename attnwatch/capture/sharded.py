"""Which of a site's heads this process computes, where tensor parallelism splits them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

HeadShard = tuple[int, int]
"""Which part of a site's heads this process computes, of how many parts."""


def at_all_heads(values: Tensor, shard: HeadShard) -> Tensor:
    """[…, heads of this process] to [… heads of all], 0 where another one computes them."""
    index, number = shard
    if number == 1:
        return values
    heads = values.shape[-1]
    spread = torch.zeros(*values.shape[:-1], number * heads, dtype=values.dtype, device=values.device)
    spread[..., index * heads : (index + 1) * heads] = values
    return spread


def head_shard(module: nn.Module) -> HeadShard:
    """The part of the output features of its first projection that is split by them. To be called in a forward.

    There, parameters that are sharded for memory's sake only (FSDP) are whole.
    """
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    from torch.distributed.tensor import DTensor

    for child in module.children():
        weight = child._parameters.get("weight")
        if isinstance(weight, DTensor):
            for dimension, placement in enumerate(weight.placements):
                if placement.is_shard(0):
                    return weight.device_mesh.get_local_rank(dimension), weight.device_mesh.size(dimension)
    return 0, 1
