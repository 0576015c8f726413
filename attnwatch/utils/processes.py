"""Collective operations in which an error of one process is raised by all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Made = TypeVar("Made")


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes by rank. All processes must call it; a single process gets its own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(make: Callable[[], Made]) -> Made:
    """Call `make` on all processes and return its result; if it raises on one process, all raise.

    All processes must call it. `make` must not wait for other processes.

    Raises:
        Exception: of `make`, on the processes where it was raised.
        RuntimeError: on the others; names the process and its error.
    """
    made, failure = None, None
    try:
        made = make()
    except Exception as error:  # to be raised when the others know
        failure = error
    messages = gathered(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, message in enumerate(messages):
        if message is not None:
            raise RuntimeError(f"process {rank} of {len(messages)} failed: {message}")
    return made
