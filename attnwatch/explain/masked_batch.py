"""Batch whose tokens can be hidden, with one forward for many rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnwatch.capture import CACHES
from attnwatch.explain.batches import Batch, sequences_of, token_mask
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.hiding import HidingOptions, make_hiding, special_token_ids
from attnwatch.utils.messages import logger


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of whole sequences, so that only tokens from the first hidden one on must be computed.

    A model's own cache drops the tokens before a sliding window. This cache keeps all tokens in all layers, so that its
    positions are positions in the sequence; the model's masks hide the tokens outside the window.

    Attributes:
        argument: name of the model's argument for a cache.
        layers: (keys, values) of each layer, each [batch, heads, tokens, head_dim].
    """

    argument: str
    layers: list[tuple[Tensor, Tensor]]

    def arguments(self, sequences: Tensor, start: int) -> dict[str, Any]:
        """Return arguments for a forward of these sequences, int64 [rows], from the token `start` on."""
        cache = _empty_cache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys[sequences, :, :start], values[sequences, :, :start], layer)
        return {self.argument: cache, "use_cache": True}


class MaskedBatch:
    """Batch and model with a method to hide tokens. The model must be in `EvaluatedModel.evaluating`.

    Attributes:
        real: bool [batch, tokens], False at padding.
        special: bool [batch, tokens], True at special tokens.
        hideable: bool [batch, tokens], True at all other tokens.
        removes_outputs: True if the model's outputs at hidden tokens are meaningless.

    Raises:
        ConfigurationError: tokens of this model can't be hidden this way.
    """

    def __init__(self, model: EvaluatedModel, batch: Batch, options: HidingOptions):
        self.model = model
        self._hide = make_hiding(options, model)
        self.removes_outputs = options.hide == "remove"
        self.real = token_mask(batch)
        self.special = torch.isin(batch["input_ids"], special_token_ids(model, options)) & self.real
        self.hideable = self.real & ~self.special
        self._batch = dict(batch)
        if self.removes_outputs:
            self._batch.setdefault("attention_mask", self.real.long())
        self._without_cache = {"use_cache": False} if self._accepts("use_cache") else {}

    def unmasked_logits(self, *, keep_prefix: bool) -> tuple[Tensor, PrefixCache | None, str]:
        """Return the logits with nothing hidden, the kept keys and values, and the reason why none were kept.

        Args:
            keep_prefix: True to keep keys and values if the model can.
        """
        if self.removes_outputs and self._accepts("position_ids") and "position_ids" not in self._batch:
            self._keep_positions()
        why_not = "the model has no known cache of keys and values"
        if keep_prefix and (argument := self._cache_argument()):
            try:
                logits, prefix = self._logits_and_prefix(argument)
            except Exception as error:  # of any kind, because models handle caches differently
                why_not = f"keys and values could not be kept: {error}"
            else:
                return logits, prefix, "" if prefix else why_not
        return self.model.logits(self._batch, **self._without_cache), None, why_not

    def logits(
        self, sequences: Tensor, hidden: Tensor, start: int, end: int, prefix: PrefixCache | None = None
    ) -> Tensor:
        """Return the logits of rows for the tokens from `start` to `end`.

        Args:
            sequences: int64 [rows], indices of the batch's sequences.
            hidden: bool [rows, tokens], tokens to hide.
            prefix: keys and values of the tokens before `start`.
        """
        kept = self._without_cache if prefix is None else prefix.arguments(sequences, start)
        with self._hide(sequences_of(self._batch, sequences), hidden, start) as rows:
            return self.model.logits(_cut(rows, self.real.shape[1], start, end), **kept)

    def ends(self, mask: Tensor) -> Tensor:
        """Return the number of tokens that must be computed in each sequence, int64 [batch], at least 1.

        They end with the last True of the mask, bool [batch, tokens]. A custom forward always receives all tokens.
        """
        tokens = mask.shape[1]
        if self.model.has_custom_forward:
            return torch.full((len(mask),), tokens, device=mask.device)
        return (mask * torch.arange(1, tokens + 1, device=mask.device)).amax(1).clamp(min=1)

    @property
    def rounding(self) -> float:
        """Error of values computed in another order, relative to their spread."""
        parameter = next(self.model.model.parameters(), torch.zeros(()))
        return 1e-4 if parameter.element_size() >= 4 else 0.05

    def _keep_positions(self) -> None:
        """Pass positions to a model that derives them from the mask, because hidden tokens would shift them.

        Whether the model does so is tested on the sequence with the most padding, where other rules differ most.
        """
        lengths = self.real.sum(1)
        sequence = lengths.masked_fill(lengths < 2, self.real.shape[1] + 1).argmin()[None]
        row, real = sequences_of(self._batch, sequence), self.real[sequence]
        positions = positions_by_mask(self._batch["attention_mask"])
        try:
            own = self.model.logits(row, **self._without_cache)
            given = self.model.logits(row, position_ids=positions[sequence], **self._without_cache)
        except Exception as error:
            # The model does not accept these positions. An error with another cause is raised again by the forward of
            # the whole batch, which runs without positions.
            logger.debug("attnwatch: %s is not given `position_ids`: %s", self.model.name, error)
            return
        if own.ndim == 3:
            own, given = own[real], given[real]
        if self.model.broadcast(torch.allclose(given, own, rtol=self.rounding, atol=self.rounding)):
            self._batch["position_ids"] = positions

    def _cache_argument(self) -> str | None:
        """Return the name of the model's argument for a cache; None if it has no known one."""
        is_decoder = not getattr(self.model.config, "is_encoder_decoder", False)
        if is_decoder and self._accepts("use_cache") and self._accepts("attention_mask"):
            return next(filter(self._accepts, CACHES), None)
        return None

    def _logits_and_prefix(self, argument: str) -> tuple[Tensor, PrefixCache | None]:
        """Return the logits and the keys and values; None if the model does not keep those of all tokens."""
        cache = _empty_cache()
        logits = self.model.logits(self._batch, **{argument: cache}, use_cache=True)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        kept = [each for pair in layers for each in pair]
        is_whole = kept and all(each.ndim == 4 and (len(each), each.shape[2]) == self.real.shape for each in kept)
        return logits, PrefixCache(argument, layers) if is_whole else None

    def _accepts(self, argument: str) -> bool:
        return not self.model.has_custom_forward and self.model.accepts(argument)


def _empty_cache() -> Any:
    from transformers.cache_utils import DynamicCache  # only called for transformers models

    return DynamicCache()


def positions_by_mask(mask: Tensor) -> Tensor:
    """Return positions as models derive them from a mask: real tokens counted from 0, int64 [batch, tokens].

    Padding has position 0, because an accelerator can't recover from an index of -1.
    """
    return mask.long().cumsum(1).mul(mask.long()).sub(1).clamp(min=0)


def _cut(rows: dict[str, Any], tokens: int, start: int, end: int) -> dict[str, Any]:
    """Return the tokens from `start` to `end`; the mask of keys starts at the first token."""
    cut = {}
    for name, each in rows.items():
        if isinstance(each, Tensor) and each.ndim >= 2 and each.shape[1] == tokens:
            each = each[:, (0 if name == "attention_mask" else start) : end]
        cut[name] = each
    return cut
