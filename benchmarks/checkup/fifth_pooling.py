"""Vectors of texts for a fifth blind set: with faults for `fifth_flow`, and sound for `odd_fifth`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.checkup import changes
from benchmarks.checkup.architectures import SentenceEncoder
from benchmarks.checkup.nets import WIDTH, Net, TorchEncoder
from benchmarks.checkup.scripts import Prepare

POOLED = ("own encoder", "torch encoder", "bert classifier", "roberta classifier", "sentence encoder")
Pool = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Function of the model, its states [batch, tokens, width] and the attention mask."""


def with_pooling(pool: Pool, *, has_query: bool = False) -> Prepare:
    """Return the change of encoders that make one vector of a text's states by a function."""

    def prepare(model: nn.Module) -> None:
        if has_query:
            model.query = nn.Parameter(torch.randn(WIDTH) * 0.02)
        if isinstance(model, Net):
            model.pooled = lambda ids, mask=None: pool(model, model.encode(model.embed(ids), mask), mask)
        elif isinstance(model, TorchEncoder):
            model.forward = lambda input_ids, attention_mask=None: _of_torch(model, input_ids, attention_mask, pool)
        elif isinstance(model, SentenceEncoder):
            model.pool = lambda states, mask: pool(model, states, mask)
        else:
            _pool_before_head(model, pool)

    return prepare


def _of_torch(model: TorchEncoder, ids: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    states = model.tokens(ids) + model.positions_of(ids.shape[1])
    return model.head(pool(model, model.encoder(states, src_key_padding_mask=model.key_padding_mask(mask)), mask))


def _pool_before_head(model: nn.Module, pool: Pool) -> None:
    """Let the head, which takes the first state, find the vector there."""
    masks: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple, named: dict[str, Tensor]) -> None:
        masks[:] = [named["attention_mask"] if "attention_mask" in named else inputs[1]]

    model.register_forward_pre_hook(remember, with_kwargs=True)
    for head in changes.named(model, r"bert\.pooler|classifier"):
        if hasattr(head, "dense"):
            head.register_forward_pre_hook(lambda module, inputs: pool(model, inputs[0], masks[0])[:, None])


def by_attention(*, has_mask: bool) -> Pool:
    """Return the function that takes the mean of the states by weights that a learned vector gives."""

    def pool(model: nn.Module, states: Tensor, mask: Tensor) -> Tensor:
        scores = states @ model.query
        if has_mask:
            scores = scores.masked_fill(mask == 0, -1e9)
        return (scores.softmax(-1)[..., None] * states).sum(1)

    return pool


def last_word(*, has_offset: bool) -> Pool:
    """Return the function that reads the last real token's state in the flattened batch, with rows' offsets or not."""

    def pool(model: nn.Module, states: Tensor, mask: Tensor) -> Tensor:
        places = mask.sum(1) - 1
        if has_offset:
            places = places + torch.arange(len(states)) * states.shape[1]
        return states.flatten(0, 1)[places]

    return pool
