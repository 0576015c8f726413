"""Positions of the tokens that a layer computes, some possibly dropped, and their padding."""

import threading

import torch
from torch import Tensor

from attnwatch.attention import Identity
from attnwatch.attention.inputs import HIDDEN_AT, AttentionInputs

# Number of masks whose padding is cached: layers may alternate between sliding-window and full masks.
_MOST_MASKS = 2


class _Thread(threading.local):
    """State of one thread; other threads may run other layers at the same time."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None


_thread = _Thread()


def put_kept_positions(kept: Tensor | None) -> Tensor | None:
    """Declare the positions of the tokens that attention in this thread sees, and return the previous declaration.

    Args:
        kept: positions, int64 [batch, tokens]; None if all tokens are present.
    """
    before, _thread.kept = _thread.kept, kept
    return before


def kept_positions(num_tokens: int) -> Tensor | None:
    """Return the positions of this many tokens; None if they are the whole sequence."""
    kept = _thread.kept
    return kept if kept is not None and kept.shape[1] == num_tokens else None


class QueryMasks:
    """Cache of the masks of queries that are not padding. A mask shared by several layers is evaluated once."""

    def __init__(self) -> None:
        self._known: dict[Identity, Tensor | None] = {}

    def of(self, inputs: AttentionInputs) -> Tensor | None:
        """Return a mask of the queries, bool [batch, queries], False at padding; None if no mask marks padding."""
        mask = inputs.attn_mask
        if mask is None or inputs.key_padding is not None or not inputs.keeps_its_masks:
            return _self_attention_query_mask(inputs)
        identity = Identity(mask)
        if identity not in self._known:
            if len(self._known) == _MOST_MASKS:  # cached masks stay alive, possibly for a whole run
                del self._known[next(iter(self._known))]
            self._known[identity] = _self_attention_query_mask(inputs)
        return self._known[identity]

    def clear(self) -> None:
        """Discard the masks."""
        self._known.clear()


def _self_attention_query_mask(inputs: AttentionInputs) -> Tensor | None:
    """Return bool [batch, queries], False at padding, which must not count in means; None if no mask marks it.

    In self-attention, a token is padding if its own key is hidden from it. If no token of a sequence sees its own
    key, the mask excludes the diagonal on purpose, and all tokens count.
    """
    if inputs.num_queries != inputs.num_keys:
        return None
    if inputs.key_padding is not None:
        return inputs.key_padding
    own_key = None
    if inputs.mask_mod is not None:
        device = inputs.query.device
        tokens = torch.arange(inputs.num_queries, device=device)
        batch = torch.arange(inputs.batch_size, device=device)[:, None]
        own_key = inputs.mask_mod(batch, torch.zeros_like(batch), tokens, tokens)
    elif inputs.attn_mask is not None:
        own_key = sees_own_key(inputs.attn_mask)
    if own_key is None:
        return None
    return (own_key | ~own_key.any(-1, keepdim=True)).expand(inputs.batch_size, inputs.num_queries)


def sees_own_key(mask: Tensor) -> Tensor:
    """Return whether each query sees its own key: bool [batch or 1, queries], from the first head's mask."""
    mask = mask[(None,) * (4 - mask.ndim)][:, 0]
    own = mask[:, 0] if mask.shape[1] == 1 else mask.diagonal(dim1=-2, dim2=-1)
    return own if own.dtype == torch.bool else own > HIDDEN_AT
