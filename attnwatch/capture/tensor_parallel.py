"""Tensor-parallel models: the heads of this process, and the processes with the same tokens."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.utils.processes import has_other_processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

HeadShard = tuple[int, int]
"""Index of the part of a site's heads that this process computes, and the number of parts."""


def at_all_heads(values: Tensor, shard: HeadShard) -> Tensor:
    """Spread […, heads of this process] over […, all heads], with 0 for heads that other processes compute."""
    index, number = shard
    if number == 1:
        return values
    heads = values.shape[-1]
    spread = torch.zeros(*values.shape[:-1], number * heads, dtype=values.dtype, device=values.device)
    spread[..., index * heads : (index + 1) * heads] = values
    return spread


def head_shard(module: nn.Module, num_heads: int) -> HeadShard:
    """Return the part of a module's heads that this process computes, judging by its first split projection.

    Call it in a forward, where parameters sharded only for memory (FSDP) are whole.

    Args:
        module: attention module.
        num_heads: number of heads in the module's call; all heads if the projection's outputs are gathered.
    """
    if not has_other_processes() or num_heads == _num_all_heads(module):
        return 0, 1
    from torch.distributed.tensor import DTensor

    for child in module.children():
        weight = dict(child.named_parameters(recurse=False)).get("weight")
        if isinstance(weight, DTensor):
            for dimension, placement in enumerate(weight.placements):
                if placement.is_shard(0):
                    return weight.device_mesh.get_local_rank(dimension), weight.device_mesh.size(dimension)
    return 0, 1


def _num_all_heads(module: nn.Module) -> int | None:
    config = getattr(module, "config", None)
    return getattr(module, "num_attention_heads", getattr(config, "num_attention_heads", None))


def is_split(module: nn.Module) -> bool:
    """Return whether a process holds only parts of a module's parameters."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole(values: Tensor) -> Tensor:
    """Return values that may be split over processes as one tensor; all processes must call it."""
    return values.full_tensor() if hasattr(values, "full_tensor") else values


class TensorParallelGroup:
    """Processes that compute the same tokens, each a part of the features; only this one without tensor parallelism.

    Args:
        model: model being trained.
        part: part of the model whose parameters determine the group.

    Attributes:
        leader: rank of the first process; 0 if there are no processes.
        size: number of processes, including this one.
    """

    def __init__(self, model: nn.Module, part: nn.Module):
        self.leader, self.size = 0, 1
        self._groups: list[dist.ProcessGroup] = []
        if not has_other_processes():
            return
        self.leader = dist.get_rank()
        others = _ranks_with_other_tokens(model)
        for mesh in _meshes(model, part):
            dimensions = _shared_dimensions(mesh, others)
            groups = [mesh.get_group(dimension) for dimension in dimensions]
            size = math.prod(group.size() for group in groups)
            if size > self.size:
                place = [0 if index in dimensions else own for index, own in enumerate(mesh.get_coordinate() or ())]
                self.leader, self.size, self._groups = int(mesh.mesh[tuple(place)]), size, groups

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the values of all processes, on the model's device; all must call it."""
        for group in self._groups:
            values = (values / group.size()).contiguous()
            dist.all_reduce(values, group=group)
        return values


def _meshes(model: nn.Module, part: nn.Module) -> Iterator["DeviceMesh"]:
    """Yield the meshes over which the part is split, and those of transformers' plans, where some weights are plain."""
    from torch.distributed.tensor import DTensor

    for parameter in part.parameters():
        if isinstance(parameter, DTensor):
            yield parameter.device_mesh
    for module in model.modules():
        mesh, is_split = getattr(module, "_device_mesh", None), (getattr(module, "_tp_size", None) or 1) > 1
        if is_split and mesh is not None:
            yield mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh


def _shared_dimensions(mesh: "DeviceMesh", others: set[int]) -> list[int]:
    """Return the dimensions of a mesh along which all processes have the same tokens."""
    own = mesh.get_coordinate()
    if own is None:  # this process is not one of them
        return []
    lines = [
        mesh.mesh[tuple(slice(None) if index == each else at for index, at in enumerate(own))]
        for each in range(mesh.ndim)
    ]
    return [index for index, line in enumerate(lines) if not others.issuperset(line.tolist())]


def _ranks_with_other_tokens(model: nn.Module) -> set[int]:
    """Return the ranks over which FSDP shards or replicates the model, including this process's.

    A parameter shows this only while it is sharded. In a forward, it is whole, and so is its device mesh.
    """
    from torch.distributed.fsdp import FSDPModule

    ranks = {dist.get_rank()}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
            for group in filter(None, groups):
                ranks.update(group.mesh_info.mesh.mesh.flatten().tolist())
    return ranks
