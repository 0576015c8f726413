"""Collective operations between the processes of a training run; no-ops with one process."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ValueT = TypeVar("ValueT")
_NAMESPACES = ("c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd")


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first of `torch.distributed`, which reports for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def has_processes() -> bool:
    """Return whether `torch.distributed` was initialized, possibly with one process."""
    return dist.is_available() and dist.is_initialized()


def num_processes() -> int:
    """Return the number of processes of `torch.distributed`; 1 if it was not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def has_other_processes() -> bool:
    """Return whether `torch.distributed` has other processes."""
    return num_processes() > 1


def is_sharded(parameter: Tensor) -> bool:
    """Return whether this process holds only part of a parameter, as under FSDP, DeepSpeed or tensor parallelism."""
    return type(parameter).__name__ in ("DTensor", "FlatParameter") or hasattr(parameter, "ds_id")


def gathered(value: ValueT) -> list[ValueT]:
    """Return the values of all processes, by rank. All processes must call it."""
    if not has_other_processes():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: ValueT) -> ValueT:
    """Return the first process's value. All processes must call it."""
    values = [value]
    if has_other_processes():
        dist.broadcast_object_list(values)
    return values[0]


def together(make: Callable[[], ValueT]) -> ValueT:
    """Return the result of `make` on this process. If it raises on one process, all raise, so that none waits forever.

    All processes must call it. `make` must not wait for other processes.

    Raises:
        Exception: the error of `make`, on the processes where it was raised.
        RuntimeError: on the other processes; names the failed process and its error.
    """
    made: list[ValueT] = []
    failure: Exception | None = None
    try:
        made.append(make())
    except Exception as error:  # raised once the other processes know
        failure = error
    messages = gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"process {rank} of {len(messages)} failed: {message}")
    return made[0]


def without_communication() -> contextlib.AbstractContextManager[Any]:
    """Raise an error for each collective operation in the context, on which a process would wait for the others.

    Raises:
        RuntimeError: from the operation; names it.
    """
    return _WithoutCommunication() if has_other_processes() else contextlib.nullcontext()


class _WithoutCommunication(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace in _NAMESPACES:
            raise RuntimeError(f"it waits for the other processes ({func})")
        return func(*args, **(kwargs or {}))
