"""Arguments of one attention call. Only this module knows masks, grouped heads and logits.

Shapes use B = batch, H = query heads, K = key-value heads, Q = queries, N = keys, D = head dim, R = observed query
rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError

# A float mask hides a key at this value or below. Implementations write "minus infinity" as -inf, the dtype's minimum,
# -1e9 or -1e4; true biases (ALiBi, T5) are far above.
HIDDEN_AT = -1e4

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionInputs:
    """Query, key and everything else that affects the attention logits of one call.

    Attributes:
        query: queries [B, H, Q, D], floating point.
        key: keys [B, K, N, D]; K divides H, and query head h reads key head h // (H / K).
        attn_mask: mask broadcastable to [B, H, Q, N]; bool (True: allowed) or float (added to the logits).
        is_causal: True if query i sees only keys 0 to i (aligned top-left, as in PyTorch).
        scale: factor of the dot products; None means 1 / sqrt(D).
        softcap: cap of the logits, which become `softcap * tanh(logits / softcap)` before masks (Gemma 2); None or 0
            means no cap.
        position_bias: float, broadcastable to [B, H, Q, N], added to the logits (T5).
        learned_sink: float [H], logit of an additional key that all queries see and whose value is zero (gpt-oss).
        sliding_window: a query sees keys less than this many positions before it (and, if not causal, after it).
        key_padding: bool [B, N], True for real tokens.
        segments: int [B, N], document of each token in a packed batch; attention stays inside a document.
        mask_mod: function of (batch, head, query, key) indices as in `torch.nn.attention.flex_attention`.
        query_mask: bool [B, Q], True for queries that count in statistics (False: padding).
        has_positions: True if query i and key i are the same token, so that their distance is meaningful.
        positions: int64 [B, N], positions of the tokens in their sequences; None means that token i is at position i.
        query_rows: int64 [R], ascending: the rows of the call's `num_all_queries` that `query`, `attn_mask` and
            `position_bias` hold; None means all Q.
        keeps_its_masks: True if masks and biases keep their values after the call (not in compiled code).
    """

    query: Tensor
    key: Tensor
    attn_mask: Tensor | None = None
    is_causal: bool = False
    scale: float | None = None
    softcap: float | None = None
    position_bias: Tensor | None = None
    learned_sink: Tensor | None = None
    sliding_window: int | None = None
    key_padding: Tensor | None = None
    segments: Tensor | None = None
    mask_mod: MaskMod | None = None
    query_mask: Tensor | None = None
    has_positions: bool = True
    positions: Tensor | None = None
    query_rows: Tensor | None = None
    num_all_queries: int | None = None
    keeps_its_masks: bool = True

    @property
    def num_heads(self) -> int:
        return self.query.shape[1]

    @property
    def num_queries(self) -> int:
        return self.num_all_queries or self.query.shape[2]

    @property
    def num_keys(self) -> int:
        return self.key.shape[2]

    @property
    def batch_size(self) -> int:
        return max(self.query.shape[0], self.key.shape[0])

    @property
    def is_empty(self) -> bool:
        """True if there are no queries, keys or features."""
        return self.query.numel() == 0 or self.key.numel() == 0

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype in which statistics are computed: float32 for half-precision tensors, as inside fused kernels."""
        return torch.float64 if torch.float64 in (self.query.dtype, self.key.dtype) else torch.float32

    @property
    def effective_scale(self) -> float:
        return max(1, self.query.shape[-1]) ** -0.5 if self.scale is None else float(self.scale)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the attention logits of the query rows `rows` (int64 [R]), before keys are hidden: [B, H, R, N]."""
        places = self._places(rows)
        query = self.query.index_select(2, places).to(self.compute_dtype) * self.effective_scale
        key = self.key.to(self.compute_dtype)
        batch, heads, num_rows, head_dim = query.shape
        groups = query.reshape(batch, key.shape[1], heads // key.shape[1] * num_rows, head_dim)
        logits = torch.matmul(groups, key.transpose(-2, -1)).reshape(self.batch_size, heads, num_rows, self.num_keys)
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        for bias in (self.attn_mask, self.position_bias):
            if bias is not None and bias.dtype != torch.bool:
                logits = logits + select_rows(bias, places).to(logits.dtype)
        return logits

    def with_sink(self, logits: Tensor) -> Tensor:
        """Return logits [B, H, R, N] preceded by that of the learned sink, if there is one: [B, H, R, N + 1]."""
        if self.learned_sink is None:
            return logits
        sink = self.learned_sink.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat([sink, logits], -1)

    def visible(self, rows: Tensor) -> Tensor | None:
        """Return a mask of the keys that query rows see: bool, broadcastable to [B, H, R, N]; None if all see all."""
        parts = []
        if self.is_causal or self.sliding_window is not None:
            parts.append(self._visible_by_position(rows))
        if self.attn_mask is not None:
            mask = select_rows(self.attn_mask, self._places(rows))
            parts.append(mask if mask.dtype == torch.bool else ~(mask <= HIDDEN_AT))  # nan is not hidden
        if self.position_bias is not None:
            parts.append(~(select_rows(self.position_bias, self._places(rows)) <= HIDDEN_AT))
        if self.key_padding is not None:
            parts.append(self.key_padding[:, None, None, :])
        if self.segments is not None:
            parts.append((self.segments[:, rows, None] == self.segments[:, None, :])[:, None])
        if self.mask_mod is not None:
            parts.append(self._visible_by_mask_mod(self.mask_mod, rows))
        visible = None
        for part in parts:
            visible = part if visible is None else visible & part
        return visible

    def _places(self, rows: Tensor) -> Tensor:
        """Return the indices of these rows of the call among the rows that `query` holds."""
        return rows if self.query_rows is None else torch.searchsorted(self.query_rows, rows)

    def _visible_by_position(self, rows: Tensor) -> Tensor:
        ahead = torch.arange(self.num_keys, device=rows.device) - rows[:, None]
        visible = ahead <= 0 if self.is_causal else torch.ones_like(ahead, dtype=torch.bool)
        if self.sliding_window is not None:
            visible &= ahead.abs() < self.sliding_window
        return visible[None, None]

    def _visible_by_mask_mod(self, mask_mod: MaskMod, rows: Tensor) -> Tensor:
        device = rows.device
        visible = mask_mod(
            torch.arange(self.batch_size, device=device)[:, None, None, None],
            torch.arange(self.num_heads, device=device)[:, None, None],
            rows[:, None],
            torch.arange(self.num_keys, device=device),
        )
        return visible[(None,) * (4 - visible.ndim)]  # a function that ignores the batch returns fewer dimensions


def checked_inputs(
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    query_mask: Tensor | None = None,
) -> AttentionInputs:
    """Check the arguments of a public function and return them as `AttentionInputs`.

    Raises:
        ConfigurationError: a shape or dtype does not fit; the message names the argument.
    """
    for name, tensor in (("query", query), ("key", key)):
        _check_is_dense(name, tensor)
        if tensor.ndim != 4 or not tensor.is_floating_point():
            raise ConfigurationError(
                f"`{name}` must be a floating-point tensor [batch, heads, tokens, head_dim], "
                f"got {tensor.dtype} of shape {list(tensor.shape)}."
            )
        if tensor.numel() == 0:
            raise ConfigurationError(f"`{name}` must not be empty, got shape {list(tensor.shape)}.")
    for name, given in (("key", key), ("attn_mask", attn_mask), ("query_mask", query_mask)):
        if given is not None and given.device != query.device:
            raise ConfigurationError(
                f"`{name}` must be on the same device as `query`, {query.device}; got {given.device}. Move one of them."
            )
    if query.shape[-1] != key.shape[-1] or query.shape[0] != key.shape[0]:
        raise ConfigurationError(
            f"`query` and `key` must agree in batch and head_dim, got {list(query.shape)} and {list(key.shape)}."
        )
    heads, key_heads = query.shape[1], key.shape[1]
    if heads != key_heads and not (enable_gqa and key_heads and heads % key_heads == 0):
        raise ConfigurationError(
            f"`query` has {heads} heads and `key` {key_heads}: equal numbers are expected, or a multiple with "
            f"`enable_gqa=True` (now {enable_gqa})."
        )
    full = (query.shape[0], heads, query.shape[2], key.shape[2])
    if attn_mask is not None:
        _check_is_dense("attn_mask", attn_mask)
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ConfigurationError(f"`attn_mask` must be bool (True: allowed) or float, got {attn_mask.dtype}.")
        if attn_mask.dtype.itemsize == 1 and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()  # 8-bit floats can't be compared
        if not _broadcasts(attn_mask.shape, full):
            raise ConfigurationError(
                f"`attn_mask` must be broadcastable to [batch, heads, queries, keys] = {list(full)}, "
                f"got {list(attn_mask.shape)}."
            )
    if query_mask is not None and (query_mask.dtype != torch.bool or query_mask.shape != (full[0], full[2])):
        raise ConfigurationError(
            f"`query_mask` must be bool [batch, queries] = {[full[0], full[2]]}, "
            f"got {query_mask.dtype} of shape {list(query_mask.shape)}."
        )
    return AttentionInputs(query, key, attn_mask, is_causal, scale, query_mask=query_mask)


def _check_is_dense(name: str, tensor: Tensor) -> None:
    """Raise a `ConfigurationError` unless the tensor is dense and has values."""
    kind = "a nested tensor" if tensor.is_nested else f"one of layout {tensor.layout}"
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ConfigurationError(
            f"`{name}` must be a dense tensor, got {kind}; pad it, or pass one sequence at a time."
        )
    if tensor.is_meta:
        raise ConfigurationError(f"`{name}` must hold values, but tensors on the meta device have none.")


def _broadcasts(shape: torch.Size, full: tuple[int, ...]) -> bool:
    if len(shape) > len(full):
        return False
    return all(size in (1, whole) for size, whole in zip(reversed(shape), reversed(full), strict=False))


def select_rows(mask: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a mask, which may be broadcast over queries, as a 4-dimensional tensor."""
    mask = mask[(None,) * (4 - mask.ndim)]
    return mask if mask.shape[2] == 1 else mask.index_select(2, rows)
