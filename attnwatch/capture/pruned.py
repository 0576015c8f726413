"""What a module remembers of the heads that were removed from it."""

import torch
from torch import Tensor, nn

# A buffer: the numbers, in the unpruned model, of the heads that the module still has. It is in the state dict, so that
# a checkpoint says itself how its model was pruned.
KEPT_HEADS = "kept_heads"
# An attribute: how many query and key-value heads it had.
UNPRUNED_HEADS = "unpruned_heads"


def at_unpruned_heads(values: Tensor, module: nn.Module) -> Tensor:
    """[…, heads that the module has] to [… heads that it had], 0 where a head is gone. No synchronization."""
    kept = getattr(module, KEPT_HEADS, None)
    if kept is None:
        return values
    spread = torch.zeros(
        *values.shape[:-1], getattr(module, UNPRUNED_HEADS)[0], dtype=values.dtype, device=values.device
    )
    return spread.index_copy_(-1, kept, values)
