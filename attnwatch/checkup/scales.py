"""Scales of the attention calls in a repeated forward pass."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import Capture, ForwardPass
from attnwatch.capture.function_mode import changes_path
from attnwatch.checkup.attention_scale import NUM_ROWS, AttentionScale, have_same_norm, norm_of_all, spread
from attnwatch.checkup.by_hand import AttentionByHand
from attnwatch.errors import NoAttentionError

# q_norm, query_layernorm, norm_k, qk_norm
_NORM_OF_QUERIES = re.compile(r"\b(q|k|qk|query|key)_?(layer_?)?(norm|ln)|(norm|ln)_?(q|k|query|key)\b", re.IGNORECASE)


@contextlib.contextmanager
def attention_scales(module: nn.Module, scales: dict[str, AttentionScale]) -> Iterator[None]:
    """Record the scale of each attention call in the context in `scales`, by site name.

    If a model computes attention by hand, its products and its calls of softmax are read.
    """

    def observe(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        scales[site] = _scale_of(inputs, has_norm=_has_norm(capture.module(site)))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoAttentionError):
            capture = Capture(module, observe)
            stack.callback(capture.detach)
            capture.attach()
            stack.enter_context(capture.arm())
        by_hand = AttentionByHand()
        if not changes_path(module):
            stack.enter_context(by_hand)
        yield
    if not scales:
        scales.update(by_hand.scales)


def _scale_of(inputs: AttentionInputs, *, has_norm: bool) -> AttentionScale:
    rows = torch.arange(0, inputs.num_queries, max(inputs.num_queries // NUM_ROWS, 1), device=inputs.query.device)
    logits, visible = inputs.logits(rows), inputs.visible(rows)
    logits = logits if visible is None else logits.masked_fill(~visible, torch.nan)
    std = spread(logits)
    is_normalised = has_norm or any(have_same_norm(each) for each in (inputs.query, inputs.key))
    others = rows[:, None] != torch.arange(inputs.num_keys, device=rows.device)
    seen = others.expand(logits.shape) if visible is None else (others & visible).expand(logits.shape)
    seen = seen.any(1).any(1)
    largest = abs(inputs.effective_scale) * norm_of_all(inputs.query) * norm_of_all(inputs.key)
    return AttentionScale(inputs.effective_scale, inputs.query.shape[-1], std, is_normalised, largest, seen)


def _has_norm(module: nn.Module) -> bool:
    """Return whether an attention module normalises queries or keys, judging by the names of its submodules."""
    return any(_NORM_OF_QUERIES.search(name) for name, _ in module.named_modules())
