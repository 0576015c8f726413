"""Scales of the attention calls in a repeated forward pass."""

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import Capture, ForwardPass
from attnwatch.errors import NoAttentionError

_NUM_ROWS = 16
# Vectors count as normalised if the relative spread of their norms is smaller. Random vectors of 64 features have 10%.
_SAME_NORM = 1e-3
# q_norm, query_layernorm, norm_k, qk_norm
_NORM_OF_QUERIES = re.compile(r"\b(q|k|qk|query|key)_?(layer_?)?(norm|ln)|(norm|ln)_?(q|k|query|key)\b", re.IGNORECASE)


@dataclass(frozen=True)
class AttentionScale:
    """Scale of the logits of one attention call.

    Attributes:
        scale: factor applied to the dot products.
        head_dim: number of features of a query.
        logit_std: standard deviation of the logits of a query over the keys that it sees, averaged over queries.
        is_normalised: True if queries or keys are normalised, so that the scale may have any value.
        largest_logit: upper bound of the logits if queries and keys are normalised; infinite if they are not.
        seen: keys that the query of another token sees: bool [batch, keys].
    """

    scale: float
    head_dim: int
    logit_std: float
    is_normalised: bool
    largest_logit: float
    seen: Tensor


@contextlib.contextmanager
def attention_scales(module: nn.Module, scales: dict[str, AttentionScale]) -> Iterator[None]:
    """Record the scale of each attention call in the context in `scales`, by site name."""

    def observe(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        scales[site] = _scale_of(inputs, has_norm=_has_norm(capture.module(site)))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoAttentionError):
            capture = Capture(module, observe)
            stack.callback(capture.detach)
            capture.attach()
            stack.enter_context(capture.arm())
        yield


def _scale_of(inputs: AttentionInputs, *, has_norm: bool) -> AttentionScale:
    rows = torch.arange(0, inputs.num_queries, max(inputs.num_queries // _NUM_ROWS, 1), device=inputs.query.device)
    logits, visible = inputs.logits(rows), inputs.visible(rows)
    logits = logits if visible is None else logits.masked_fill(~visible, torch.nan)
    centred = logits - logits.nanmean(-1, keepdim=True)
    std = centred.square().nanmean(-1).sqrt().nanmean()
    is_normalised = has_norm or any(_has_same_norm(each) for each in (inputs.query, inputs.key))
    others = rows[:, None] != torch.arange(inputs.num_keys, device=rows.device)
    seen = others.expand(logits.shape) if visible is None else (others & visible).expand(logits.shape)
    seen = seen.any(1).any(1)
    largest = abs(inputs.effective_scale) * _norm(inputs.query) * _norm(inputs.key)
    return AttentionScale(inputs.effective_scale, inputs.query.shape[-1], float(std), is_normalised, largest, seen)


def _norm(vectors: Tensor) -> float:
    """Return the norm that all vectors share; infinite if their norms differ."""
    return float(vectors.float().norm(dim=-1).mean()) if _has_same_norm(vectors) else math.inf


def _has_norm(module: nn.Module) -> bool:
    """Return whether an attention module normalises queries or keys, judging by the names of its submodules."""
    return any(_NORM_OF_QUERIES.search(name) for name, _ in module.named_modules())


def _has_same_norm(vectors: Tensor) -> bool:
    norms = vectors.float().norm(dim=-1)
    return bool(norms.std() < _SAME_NORM * norms.mean()) if norms.numel() > 1 else False
