"""Operator that chooses the tokens, also in code compiled by `torch.compile`, without a graph break.

It declares a mutation of the same tensor as the capture's operators, so that no compiler runs it twice, omits it, or
moves it before its dependencies.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from attnwatch.capture import NOT_IN_CUDA_GRAPHS, ORDER
from attnwatch.utils.operators import ObjectTable


class Chooser(Protocol):
    """Part of a `TokenChooser` that the operator calls."""

    def choose(self, states: Tensor, number: int, known: Mapping[str, Tensor]) -> Tensor: ...


# Information about the tokens, in the order of the operator's arguments.
KNOWN = ("input_ids", "attention_mask", "position_ids", "layer_mask", "layer_positions", "hidden", "boundaries")
CHOOSERS: ObjectTable[Chooser] = ObjectTable()


def choose(chooser: int, states: Tensor, number: int, known: Mapping[str, Any]) -> Tensor:
    """Return the choice of the chooser with this number: int64 [batch, number]."""
    tensors = [value if isinstance(value := known.get(name), Tensor) else None for name in KNOWN]
    if not torch.compiler.is_compiling():
        return _run(chooser, states, number, tensors)
    return _choose_tokens(ORDER, chooser, states.detach(), number, tensors)


def _run(chooser: int, states: Tensor, number: int, tensors: Sequence[Tensor | None]) -> Tensor:
    known = {name: tensor for name, tensor in zip(KNOWN, tensors, strict=True) if tensor is not None}
    return CHOOSERS[chooser].choose(states, number, known)


@torch.library.custom_op("attnwatch::choose_tokens", mutates_args=("token",), tags=NOT_IN_CUDA_GRAPHS)
def _choose_tokens(
    token: Tensor, chooser: int, states: Tensor, number: int, tensors: Sequence[Tensor | None]
) -> Tensor:
    return _run(chooser, states, number, tensors)


@_choose_tokens.register_fake
def _(token: Tensor, chooser: int, states: Tensor, number: int, tensors: Sequence[Tensor | None]) -> Tensor:
    return states.new_empty((states.shape[0], number), dtype=torch.int64)
