"""Selection of the kept tokens of tensors along any token axes."""

import torch
from torch import Tensor


def take(tensor: Tensor, axes: str, kept: Tensor) -> Tensor:
    """Return the kept tokens of a tensor.

    Args:
        tensor: any tensor.
        axes: a word for each of its axes: `batch` (as long as the batch, or 1), `tokens` (may occur twice; an axis of
            length 1 is broadcast and stays) and any others. Without `batch`, all sequences share the tensor.
            `boundaries` alone denotes cumulative lengths of documents: int [documents + 1], in a batch of one sequence.
        kept: int64 [batch, kept], positions of the tokens in each sequence, ascending.

    Returns:
        The tensor with only the kept tokens on its token axes, and with a batch axis as long as that of `kept`, added
        in front if there was none.

    Example:
        >>> take(torch.tensor([[10, 11, 12], [20, 21, 22]]), "batch tokens", torch.tensor([[0, 2], [1, 2]]))
        tensor([[10, 12],
                [21, 22]])
    """
    words = axes.split()
    if words == ["boundaries"]:
        return torch.searchsorted(kept[0], tensor.long()).to(tensor.dtype)
    if "batch" not in words:
        tensor, words = tensor.unsqueeze(0), ["batch", *words]
    batch_dim = words.index("batch")
    for dim, word in enumerate(words):
        if word == "tokens" and tensor.shape[dim] > 1:
            shape = [1] * tensor.ndim
            shape[batch_dim], shape[dim] = kept.shape
            index = (kept if batch_dim < dim else kept.t()).reshape(shape)
            tensor = tensor.expand(_with(tensor.shape, batch_dim, len(kept)))
            tensor = tensor.gather(dim, index.expand(_with(tensor.shape, dim, kept.shape[1])))
    return tensor


def take_states(states: Tensor, kept: Tensor) -> Tensor:
    """Select [batch, kept, features] from [batch, tokens, features], like `take` but with a faster gradient."""
    return states.flatten(0, 1).index_select(0, _flat(kept, states.shape[1])).unflatten(0, kept.shape)


def put_states(states: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """Return a copy of [batch, tokens, features] with `values` [batch, kept, features] at the kept tokens."""
    index = _flat(kept, states.shape[1])
    return states.flatten(0, 1).index_copy(0, index, values.flatten(0, 1).to(states.dtype)).view_as(states)


def _with(shape: torch.Size, dim: int, length: int) -> list[int]:
    return [*shape[:dim], length, *shape[dim + 1 :]]


def _flat(kept: Tensor, num_tokens: int) -> Tensor:
    first = torch.arange(len(kept), device=kept.device) * num_tokens
    return (kept + first[:, None]).flatten()
