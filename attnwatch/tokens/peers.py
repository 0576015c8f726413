"""Processes that compute the same tokens, each with heads of its own: they must choose alike."""

import math
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.capture import find_sites
from attnwatch.tokens.stacks import Stack

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Peers:
    """Of this process in tensor parallelism; elsewhere it is alone.

    Args:
        stack: whose tokens are dropped.
        layer: in which they are.

    Attributes:
        leader: the first one's rank; 0 where there are no processes.
        number: of them, this process among them.
    """

    def __init__(self, stack: Stack, layer: nn.Module):
        self.leader, self.number, self._groups = 0, 1, []
        if not dist.is_available() or not dist.is_initialized():
            return
        self.leader = dist.get_rank()
        mesh, dimensions = _split_by_heads(layer, _is_sharded(stack.model))
        if mesh is None:
            return
        place = [0 if index in dimensions else own for index, own in enumerate(mesh.get_coordinate())]
        self.leader = int(mesh.mesh[tuple(place)])
        self._groups = [mesh.get_group(dimension) for dimension in dimensions]
        self.number = math.prod(group.size() for group in self._groups)

    def mean(self, scores: Tensor) -> Tensor:
        """Of what they score; all must call it. On the device of the model."""
        for group in self._groups:
            scores = (scores / group.size()).contiguous()
            dist.all_reduce(scores, group=group)
        return scores


def _is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def _split_by_heads(layer: nn.Module, is_sharded: bool) -> tuple["DeviceMesh | None", list[int]]:
    """(device mesh, its dimensions over which attention is split by heads); None where it is not.

    Other parts of the layer may be split over processes with other tokens (experts).
    """
    from torch.distributed.tensor import DTensor

    for site in find_sites(layer):
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
