"""Buffer and attribute in which a module records its removed heads."""

import torch
from torch import Tensor, nn

KEPT_HEADS = "kept_heads"
"""Name of the buffer with the numbers, in the unpruned model, of the heads that the module still has.

It is in the state dict, so that a checkpoint shows how its model was pruned. It is floating point, because moving
averages of a model's buffers (EMA) corrupt integers: 0.9 · 3 + 0.1 · 3 becomes 2."""
UNPRUNED_HEADS = "unpruned_heads"
"""Name of the attribute with the numbers of query and key-value heads that the module had."""


def kept_heads(module: nn.Module) -> Tensor | None:
    """Return the numbers of a pruned module's heads in the unpruned model, int64 [heads]; None if not pruned."""
    kept = getattr(module, KEPT_HEADS, None)
    return None if kept is None else kept.round().long()


def at_unpruned_heads(values: Tensor, module: nn.Module) -> Tensor:
    """Spread […, current heads] to […, heads of the unpruned module], 0 for removed heads, without synchronizing."""
    kept = kept_heads(module)
    if kept is None:
        return values
    spread = torch.zeros(
        *values.shape[:-1], getattr(module, UNPRUNED_HEADS)[0], dtype=values.dtype, device=values.device
    )
    return spread.index_copy_(-1, kept, values)
