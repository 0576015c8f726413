"""Quantities of a block of query rows, from which statistics are computed. Each is computed lazily and once.

The first visible key (the usual attention sink) is treated separately. A softmax over the rest alone stays exact even
if the sink takes all but 1e-9 of the weight, and the full distribution follows from the two log-sum-exps. The
distribution is over tokens and excludes the weight of a learned sink. Logits are relative to the largest of the rest,
so that terms of very different size are never subtracted.

Tensors [B, H, R, N] are read and written as rarely as possible, because their memory traffic dominates the cost.
"""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attnwatch.attention.inputs import AttentionInputs

# Up to here, a float32 can hold the sum of the squares of any number of logits.
_LARGEST_SQUARED = 2.0**30


class AttentionRows:
    """Some query rows of one attention call, with all quantities that a statistic may need.

    Shapes: B sequences, H heads, R rows, N keys. Properties are [B, H, R] unless stated otherwise. Their values are
    arbitrary for rows that are not `valid`. Each is computed once, on first use; [B, H, R, N] tensors are expensive.
    The layers of a model may be computed together, as one call with all heads.

    Attributes:
        inputs: `AttentionInputs` of the call: query, key, scale and masks.
        rows: int64 [R], indices of the rows among the queries, ascending.
        shape: (B, H, R, N).
        visible: bool [B or 1, H or 1, R, N], True if the row sees the key.
    """

    def __init__(self, inputs: AttentionInputs, rows: Tensor):
        self.inputs = inputs
        self.rows = rows
        logits = inputs.logits(rows)
        self.shape = logits.shape
        visible = inputs.visible(rows)
        if visible is None:
            visible = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=rows.device)
        self.visible = visible.expand(*visible.shape[:2], len(rows), inputs.num_keys)
        first_visible = self.visible.to(torch.uint8).argmax(-1, keepdim=True)
        self._first_visible = first_visible.expand(*self.shape[:3], 1)
        self._first_logit = logits.gather(-1, self._first_visible).squeeze(-1)
        self._sum_over_rest(logits, self.visible.scatter(-1, first_visible, False))

    def _sum_over_rest(self, logits: Tensor, rest: Tensor) -> None:
        """Sum over all visible keys except the first, as marked by `rest`. Overwrites `logits`."""
        rest_logits = _hide_(logits, rest)
        self._rest_max = rest_logits.amax(-1)
        self._rest_weights = rest_logits.softmax(-1)  # [B, H, R, N]
        relative = rest_logits.sub_(self._rest_max.unsqueeze(-1)).mul_(rest.to(logits.dtype))
        self._rest_spread = -relative.amin(-1)
        # Sums use this unit, because the squares of large logits would not be finite.
        spread = torch.maximum(self._rest_spread, (self._first_logit - self._rest_max).abs())
        self._unit = (spread / _LARGEST_SQUARED).clamp(min=1).masked_fill(self.num_visible < 2, 1.0)
        self._rest_sum = relative.div_(self._unit.unsqueeze(-1)).sum(-1)
        self._rest_sum_of_squares = torch.linalg.vector_norm(relative, dim=-1).square()
        self._rest_mean = relative.mul_(self._rest_weights).sum(-1) * self._unit
        self._scratch = relative

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type in which the rows are computed."""
        return self._first_logit.dtype

    @property
    def device(self) -> torch.device:
        """Device of the call's tensors."""
        return self.rows.device

    @property
    def logits(self) -> Tensor:
        """Attention logits [B, H, R, N], -inf for hidden keys. Recomputed on each access."""
        return self.inputs.logits(self.rows).masked_fill_(~self.visible, -torch.inf)

    @property
    def weights(self) -> Tensor:
        """Attention weights [B, H, R, N], which sum to one over the visible keys. Recomputed on each access.

        They exclude the weight of a learned sink.
        """
        weights = self._rest_weights * self._rest_mass.unsqueeze(-1)
        return weights.scatter_(-1, self._first_visible, self._first_mass.unsqueeze(-1)).mul_(self.visible)

    @cached_property
    def num_visible(self) -> Tensor:
        """Number of keys that the row sees; float, broadcastable to [B, H, R]."""
        return self.visible.sum(-1).to(self._first_logit.dtype)

    @cached_property
    def counts(self) -> Tensor:
        """Bool, True if the row sees at least two keys and is not padding."""
        counts = (self.num_visible >= 2).expand(self.shape[:3])
        query_mask = self.inputs.query_mask
        return counts if query_mask is None else counts & query_mask[:, None, self.rows]

    @cached_property
    def counts_as_finite(self) -> Tensor:
        """Bool, True if the row counts; in sequences where none does, True for rows that see one of several keys.

        Self-attention only. Thus `nonfinite`, unlike other statistics, is known if a mask hides all but one key from
        each row. Sequences of one token, and queries over keys of other tokens, reveal nothing about a mask.
        """
        if not self.inputs.has_positions or self.inputs.num_keys < 2:
            return self.counts
        sees_one = (self.num_visible == 1).expand(self.shape[:3]) & ~self.counts.any(-1, keepdim=True)
        query_mask = self.inputs.query_mask
        if query_mask is not None:
            sees_one = sees_one & (query_mask[:, self.rows] & (query_mask.sum(-1, keepdim=True) >= 2))[:, None]
        return self.counts | sees_one

    @cached_property
    def valid(self) -> Tensor:
        """Bool, True if the row counts and all its visible logits are finite."""
        return self.counts & self.is_finite

    @cached_property
    def is_finite(self) -> Tensor:
        """Bool, True if no visible logit is nan, infinite or `too_large`. A learned sink may be -inf."""
        largest = too_large(self._first_logit.dtype)
        rest = (self._rest_max < largest) & (self._rest_max - self._rest_spread > -largest)
        finite = (self._first_logit.abs() < largest) & (rest | (self.num_visible <= 1))
        return finite if self.inputs.learned_sink is None else finite & (self._learned_sink < torch.inf)

    @cached_property
    def max_logit(self) -> Tensor:
        return torch.maximum(self._first_logit, self._rest_max)

    @cached_property
    def logit_std(self) -> Tensor:
        """Population standard deviation of the logits over the visible keys."""
        sink = (self._first_logit - self._rest_max) / self._unit
        mean = (self._rest_sum + sink) / self.num_visible
        mean_square = (self._rest_sum_of_squares + sink.square()) / self.num_visible
        return (mean_square - mean.square()).clamp(min=0).sqrt() * self._unit

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy in nats. Chain rule: H(p) = h(p_first) + (1 - p_first) · H(rest)."""
        split = -(self._first_mass * self._log_first_mass) - (self._rest_mass * self._log_rest_mass)
        return split + self._rest_mass * self.entropy_without_sink

    @cached_property
    def max_entropy(self) -> Tensor:
        """Entropy of uniform attention over the visible keys, in nats."""
        return self.num_visible.log().expand(self.shape[:3])

    @cached_property
    def sink_mass(self) -> Tensor:
        """Weight on the first visible key and on a learned sink."""
        if self.inputs.learned_sink is None:
            return self._first_mass
        return 1 - self._token_mass + self._token_mass * self._first_mass

    @cached_property
    def max_weight(self) -> Tensor:
        """Largest weight on a token."""
        largest = torch.maximum(self._first_mass, self._rest_mass * self._largest_rest_weight)
        return largest if self.inputs.learned_sink is None else self._token_mass * largest

    @cached_property
    def entropy_without_sink(self) -> Tensor:
        """Entropy of the renormalized weights on all visible keys except the first, in nats."""
        return (self._rest_relative_lse - self._rest_mean).clamp(min=0)

    @cached_property
    def distance(self) -> Tensor:
        """Mean of |query position - key position| under the weights, in tokens."""
        keys, queries = self._key_and_query_positions
        distances = (queries[:, :, None] - keys[:, None]).abs().to(self._rest_weights.dtype)
        rest = torch.mul(self._rest_weights, distances[:, None], out=self._scratch).sum(-1)
        firsts = keys[:, None, None].expand(*self.shape[:3], -1).gather(-1, self._first_visible).squeeze(-1)
        sink = (queries[:, None] - firsts).abs()
        return self._first_mass * sink + self._rest_mass * rest

    @property
    def _key_and_query_positions(self) -> tuple[Tensor, Tensor]:
        """Positions of keys [B or 1, N] and of queries [B or 1, R]."""
        keys, queries = self.inputs.positions, self.rows[None]
        if keys is None:
            keys = torch.arange(self.inputs.num_keys, device=self.rows.device)[None]
        else:
            queries = keys[:, self.rows]
        return keys, queries

    @cached_property
    def content_sensitivity(self) -> Tensor:
        """Jensen-Shannon divergence across the batch, in nats [H, R]: H(mean_b p) - mean_b H(p).

        Valid only if `comparable`, so that the first visible key is the same in all sequences.
        """
        if self.shape[0] == 1:
            return torch.zeros_like(self._first_logit[0])
        mean_weights = torch.mul(self._rest_weights, self._rest_mass.unsqueeze(-1), out=self._scratch).mean(0)
        mean_weights.scatter_(-1, self._first_visible[0], self._first_mass.mean(0).unsqueeze(-1))
        log_weights = mean_weights.clamp(min=torch.finfo(mean_weights.dtype).tiny).log()
        return (-(mean_weights * log_weights).sum(-1) - self.entropy.mean(0)).clamp(min=0)

    @cached_property
    def comparable(self) -> Tensor:
        """Bool [H, R], True if at least two sequences have this row, all valid, and all see the same keys."""
        if self.shape[0] == 1:
            return torch.zeros_like(self.valid[0])
        same_keys = (self.visible == self.visible[:1]).all(-1).all(0)
        return self.valid.all(0) & same_keys

    @cached_property
    def _rest_relative_lse(self) -> Tensor:
        # The largest weight is exp(0 - lse), and at least 1 / N.
        return -self._largest_rest_weight.log()

    @cached_property
    def _largest_rest_weight(self) -> Tensor:
        return self._rest_weights.amax(-1)

    @cached_property
    def _lse(self) -> Tensor:
        return torch.logaddexp(self._first_logit, self._rest_max + self._rest_relative_lse)

    @property
    def _learned_sink(self) -> Tensor:
        """Logit of the learned sink [H, 1]."""
        sink = self.inputs.learned_sink
        assert sink is not None  # only calls with one have this property
        return sink.to(self._first_logit.dtype)[:, None]

    @cached_property
    def _token_mass(self) -> Tensor:
        """Weight on all tokens, for heads with a learned sink."""
        return (self._lse - self._learned_sink).sigmoid()

    @cached_property
    def _log_odds(self) -> Tensor:
        """Log odds of the first key, from the difference of two logits, which is exact for large logits."""
        return (self._first_logit - self._rest_max) - self._rest_relative_lse

    @cached_property
    def _log_first_mass(self) -> Tensor:
        return logsigmoid(self._log_odds)

    @cached_property
    def _first_mass(self) -> Tensor:
        return self._log_first_mass.exp()

    @cached_property
    def _log_rest_mass(self) -> Tensor:
        return logsigmoid(-self._log_odds)

    @cached_property
    def _rest_mass(self) -> Tensor:
        return self._log_rest_mass.exp()


def too_large(dtype: torch.dtype) -> float:
    """Return the size above which logits count as infinite, so that sums stay finite: 1e30 in float32."""
    return torch.finfo(dtype).max / 2**28


def _hide_(logits: Tensor, visible: Tensor) -> Tensor:
    """Overwrite the logits of hidden keys, even nan, with a finite value that gives them no weight.

    On a CPU, `masked_fill_` would take twice as long. Visible logits that are not finite stay so.
    """
    lowest = torch.finfo(logits.dtype).min / 4
    if not logits.is_cpu:
        return logits.masked_fill_(~visible, lowest)
    highest = torch.full_like(visible, torch.inf, dtype=logits.dtype).masked_fill_(~visible, lowest)
    return torch.minimum(logits.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=torch.inf), highest, out=logits)
