"""Models that are split over processes: which of the heads this one computes, and with whom it shares the tokens."""

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.capture.sites import find_sites

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

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
    if not has_processes():
        return 0, 1
    from torch.distributed.tensor import DTensor

    for child in module.children():
        weight = child._parameters.get("weight")
        if isinstance(weight, DTensor):
            for dimension, placement in enumerate(weight.placements):
                if placement.is_shard(0):
                    return weight.device_mesh.get_local_rank(dimension), weight.device_mesh.size(dimension)
    return 0, 1


def has_processes() -> bool:
    """Whether this process is one of a group, be it the only one."""
    return dist.is_available() and dist.is_initialized()


def is_split(module: nn.Module) -> bool:
    """Whether a process has parts of its parameters only."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(values: Tensor) -> Tensor:
    """What is split over processes, put together; all of them must call it."""
    return values.full_tensor() if hasattr(values, "full_tensor") else values


class Peers:
    """Processes that compute the same tokens, each with heads of its own (tensor parallelism). Others are alone.

    Args:
        model: that is trained.
        part: of it, with attention.

    Attributes:
        leader: the first one's rank; 0 where there are no processes.
        number: of them, this process among them.
    """

    def __init__(self, model: nn.Module, part: nn.Module):
        self.leader, self.number, self._groups = 0, 1, []
        if not has_processes():
            return
        self.leader = dist.get_rank()
        mesh, dimensions = _split_by_heads(model, part)
        if mesh is None:
            return
        place = [0 if index in dimensions else own for index, own in enumerate(mesh.get_coordinate())]
        self.leader = int(mesh.mesh[tuple(place)])
        self._groups = [mesh.get_group(dimension) for dimension in dimensions]
        self.number = math.prod(group.size() for group in self._groups)

    def mean(self, values: Tensor) -> Tensor:
        """Of the values of all of them, on the model's device; all must call it."""
        for group in self._groups:
            values = (values / group.size()).contiguous()
            dist.all_reduce(values, group=group)
        return values


def _split_by_heads(model: nn.Module, part: nn.Module) -> tuple["DeviceMesh | None", list[int]]:
    """(device mesh, its dimensions over which attention is split by heads); None where it is not.

    What is not attention may be split over processes with other tokens (experts).
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    is_sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    for site in find_sites(part):
        for parameter in site.module.parameters():
            if isinstance(parameter, DTensor):
                dimensions = list(range(parameter.device_mesh.ndim))[_num_of_fsdp(parameter) if is_sharded else 0 :]
                if dimensions:
                    return parameter.device_mesh, dimensions
    return None, []


def _num_of_fsdp(parameter: Tensor) -> int:
    """Of the dimensions of its mesh: FSDP's come first, one, or two where it has replicas of what it shards."""
    placements = parameter.placements
    return 2 if len(placements) > 1 and placements[0].is_replicate() else 1
