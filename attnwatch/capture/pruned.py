"""Buffer and attribute in which a module remembers the heads that were removed from it."""

import torch
from torch import Tensor, nn

KEPT_HEADS = "kept_heads"
"""Buffer: numbers, in the unpruned model, of the heads that the module still has.

It is in the state dict, so that a checkpoint tells how its model was pruned. It is floating point, as moving averages
of a model's buffers (EMA) spoil integers: 0.9 · 3 + 0.1 · 3 is 2 there."""
UNPRUNED_HEADS = "unpruned_heads"
"""Attribute: number of query and of key-value heads that the module had."""


def kept_heads(module: nn.Module) -> Tensor | None:
    """Return the numbers of a module's heads in the unpruned model, int64 [heads] on its device; None if not pruned."""
    kept = getattr(module, KEPT_HEADS, None)
    return None if kept is None else kept.round().long()


def at_unpruned_heads(values: Tensor, module: nn.Module) -> Tensor:
    """Spread […, heads that the module has] to […, heads that it had], 0 where a head is gone. No synchronization."""
    kept = kept_heads(module)
    if kept is None:
        return values
    spread = torch.zeros(
        *values.shape[:-1], getattr(module, UNPRUNED_HEADS)[0], dtype=values.dtype, device=values.device
    )
    return spread.index_copy_(-1, kept, values)
