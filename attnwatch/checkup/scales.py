"""Scales of the attention calls in a repeated forward pass."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnwatch.attention import AttentionInputs
from attnwatch.capture import Capture, ForwardPass
from attnwatch.capture.function_mode import changes_path
from attnwatch.errors import NoAttentionError

_NUM_ROWS = 16
_SOFTMAX = frozenset({torch.softmax, torch.nn.functional.softmax, Tensor.softmax})
# Fewer tokens than these are more often groups or classes.
_LEAST_TOKENS = 4
# Masks add -10,000 or less; those that add the smallest float leave nothing of the logits.
_LEAST_LOGIT, _NO_LOGIT = -5000.0, -1e30
# Vectors count as normalised if the relative spread of their norms is smaller. Random vectors of 64 features have 10%.
_SAME_NORM = 1e-3
# q_norm, query_layernorm, norm_k, qk_norm
_NORM_OF_QUERIES = re.compile(r"\b(q|k|qk|query|key)_?(layer_?)?(norm|ln)|(norm|ln)_?(q|k|query|key)\b", re.IGNORECASE)


@dataclass(frozen=True)
class AttentionScale:
    """Scale of the logits of one attention call.

    Attributes:
        scale: factor applied to the dot products; nan if unknown.
        head_dim: number of features of a query; 0 if unknown.
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
    """Record the scale of each attention call in the context in `scales`, by site name.

    If a model computes attention by hand, the logits are read at its calls of softmax.
    """

    def observe(site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        scales[site] = _scale_of(inputs, has_norm=_has_norm(capture.module(site)))

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NoAttentionError):
            capture = Capture(module, observe)
            stack.callback(capture.detach)
            capture.attach()
            stack.enter_context(capture.arm())
        by_hand = _SoftmaxCalls()
        if not changes_path(module):
            stack.enter_context(by_hand)
        yield
    if not scales:
        scales.update(by_hand.scales)


class _SoftmaxCalls(TorchFunctionMode):
    """Mode that reads the logits of softmax calls with a square of queries and keys, [batch, …, tokens, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: dict[str, AttentionScale] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        weights = func(*args, **(kwargs or {}))
        logits = args[0] if args else None
        if func in _SOFTMAX and isinstance(logits, Tensor) and _is_square(logits):
            self.scales[f"softmax {len(self.scales) + 1}"] = _scale_by_hand(logits.float(), weights)
        return weights


def _is_square(logits: Tensor) -> bool:
    return logits.ndim > 2 and logits.shape[-1] == logits.shape[-2] >= _LEAST_TOKENS


def _scale_by_hand(logits: Tensor, weights: Tensor) -> AttentionScale:
    visible = ((weights > 0) & (logits > _NO_LOGIT)) | (logits > _LEAST_LOGIT)
    std = _spread(logits.masked_fill(~visible, torch.nan))
    others = visible & ~torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    seen = others.flatten(1, -2).any(1) if logits.ndim > 3 else others.any(1)
    return AttentionScale(math.nan, 0, std, False, math.inf, seen)


def _spread(logits: Tensor) -> float:
    """Return the standard deviation of the logits of a query, without those that are nan, averaged over queries."""
    centred = logits - logits.nanmean(-1, keepdim=True)
    return float(centred.square().nanmean(-1).sqrt().nanmean())


def _scale_of(inputs: AttentionInputs, *, has_norm: bool) -> AttentionScale:
    rows = torch.arange(0, inputs.num_queries, max(inputs.num_queries // _NUM_ROWS, 1), device=inputs.query.device)
    logits, visible = inputs.logits(rows), inputs.visible(rows)
    logits = logits if visible is None else logits.masked_fill(~visible, torch.nan)
    std = _spread(logits)
    is_normalised = has_norm or any(_has_same_norm(each) for each in (inputs.query, inputs.key))
    others = rows[:, None] != torch.arange(inputs.num_keys, device=rows.device)
    seen = others.expand(logits.shape) if visible is None else (others & visible).expand(logits.shape)
    seen = seen.any(1).any(1)
    largest = abs(inputs.effective_scale) * _norm(inputs.query) * _norm(inputs.key)
    return AttentionScale(inputs.effective_scale, inputs.query.shape[-1], std, is_normalised, largest, seen)


def _norm(vectors: Tensor) -> float:
    """Return the norm that all vectors share; infinite if their norms differ."""
    return float(vectors.float().norm(dim=-1).mean()) if _has_same_norm(vectors) else math.inf


def _has_norm(module: nn.Module) -> bool:
    """Return whether an attention module normalises queries or keys, judging by the names of its submodules."""
    return any(_NORM_OF_QUERIES.search(name) for name, _ in module.named_modules())


def _has_same_norm(vectors: Tensor) -> bool:
    norms = vectors.float().norm(dim=-1)
    return bool(norms.std() < _SAME_NORM * norms.mean()) if norms.numel() > 1 else False
