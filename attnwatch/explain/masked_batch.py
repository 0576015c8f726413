"""A batch of which tokens can be hidden, one forward for many rows."""

from typing import Any

import torch
from torch import Tensor

from attnwatch.explain.batches import Batch, sequences_of, token_mask
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.explain.hiding import HidingOptions, make_hiding, special_token_ids
from attnwatch.explain.prefix_cache import PrefixCache, find_cache_argument, forward_with_cache
from attnwatch.utils.messages import logger

# Error of values that are computed in another order, relative to their spread, by bytes of a parameter.
_ROUNDING = {8: 1e-4, 4: 1e-4}
_ROUNDING_OF_HALF_PRECISION = 0.05


class MaskedBatch:
    """A batch and its model, with a method to hide tokens. Used while `model.evaluating()` is open.

    Attributes:
        real: bool [batch, tokens], False at padding.
        special: bool [batch, tokens], True at special tokens.
        hideable: bool [batch, tokens], True where a token is neither.
        removes_outputs: see `HidingMethod`.

    Raises:
        ConfigurationError: tokens of this model can't be hidden this way.
    """

    def __init__(self, model: EvaluatedModel, batch: Batch, options: HidingOptions):
        self.model = model
        self._hiding = make_hiding(options, model)
        self.removes_outputs = self._hiding.removes_outputs
        self.real = token_mask(batch)
        self.special = torch.isin(batch["input_ids"], special_token_ids(model, options)) & self.real
        self.hideable = self.real & ~self.special
        self._batch = dict(batch)
        if self.removes_outputs:
            self._batch.setdefault("attention_mask", self.real.long())
        self._without_cache = {"use_cache": False} if self._accepts("use_cache") else {}

    def unmasked_logits(self, *, keep_prefix: bool) -> tuple[Tensor, PrefixCache | None, str]:
        """Return the logits with nothing hidden, the keys and values that were kept, and why none were kept.

        Args:
            keep_prefix: keep keys and values, if the model can.
        """
        if self.removes_outputs and self._accepts("position_ids") and "position_ids" not in self._batch:
            self._keep_positions()
        why_not = "the model keeps no keys and values that are known"
        argument = find_cache_argument(self.model) if keep_prefix else None
        is_decoder = not getattr(self.model.config, "is_encoder_decoder", False)
        if argument is not None and is_decoder and self._accepts("use_cache") and self._accepts("attention_mask"):
            try:
                logits, prefix = forward_with_cache(self.model, self._batch, argument)
            except Exception as error:  # of any kind: models differ in what they do with a cache
                why_not = f"keys and values could not be kept: {error}"
            else:
                return logits, prefix, "" if prefix else why_not
        return self.model.logits(self._batch, **self._without_cache), None, why_not

    def logits(
        self, sequences: Tensor, hidden: Tensor, start: int, end: int, prefix: PrefixCache | None = None
    ) -> Tensor:
        """Return the logits of rows at the tokens from `start` to `end`.

        Args:
            sequences: int64 [rows], of the batch.
            hidden: bool [rows, tokens].
            prefix: keys and values of the tokens before `start`.
        """
        kept = self._without_cache if prefix is None else prefix.arguments(sequences, start)
        with self._hiding.hidden_in(sequences_of(self._batch, sequences), hidden, start) as rows:
            return self.model.logits(_cut(rows, self.real.shape[1], start, end), **kept)

    def ends(self, mask: Tensor) -> Tensor:
        """Return the end of what must be computed in each sequence, int64 [batch], at least 1.

        That is behind the last True of the mask, bool [batch, tokens]; with a custom forward it is the last token, as
        only the user's function knows what may be left out.
        """
        tokens = mask.shape[1]
        if self.model.has_custom_forward:
            return torch.full((len(mask),), tokens, device=mask.device)
        return (mask * torch.arange(1, tokens + 1, device=mask.device)).amax(1).clamp(min=1)

    @property
    def rounding(self) -> float:
        """Relative error that a computation in another order may have."""
        parameter = next(self.model.model.parameters(), torch.zeros(()))
        return _ROUNDING.get(parameter.element_size(), _ROUNDING_OF_HALF_PRECISION)

    def _keep_positions(self) -> None:
        """Give a model that counts positions in the mask those of the whole sequences: hidden tokens would shift them.

        Whether it counts so is tried on the sequence with the most padding, where other ways to count differ most.
        """
        lengths = self.real.sum(1)
        sequence = lengths.masked_fill(lengths < 2, self.real.shape[1] + 1).argmin()[None]
        row, real = sequences_of(self._batch, sequence), self.real[sequence]
        positions = positions_by_mask(self._batch["attention_mask"])
        try:
            own = self.model.logits(row, **self._without_cache)
            given = self.model.logits(row, position_ids=positions[sequence], **self._without_cache)
        except Exception as error:
            # A model that does not take these positions counts in its own way. An error with another cause is raised
            # again by the forward of the whole batch, which is made without positions.
            logger.debug("attnwatch: %s is not given `position_ids`: %s", self.model.name, error)
            return
        if own.ndim == 3:
            own, given = own[real], given[real]
        if self.model.broadcast(torch.allclose(given, own, rtol=self.rounding, atol=self.rounding)):
            self._batch["position_ids"] = positions

    def _accepts(self, argument: str) -> bool:
        return not self.model.has_custom_forward and self.model.accepts(argument)


def positions_by_mask(mask: Tensor) -> Tensor:
    """Return positions as models derive them from a mask: real tokens counted from 0, int64 [batch, tokens].

    Padding has 0: an accelerator does not recover from an index of -1.
    """
    return mask.long().cumsum(1).mul(mask.long()).sub(1).clamp(min=0)


def _cut(rows: dict[str, Any], tokens: int, start: int, end: int) -> dict[str, Any]:
    """Return the tokens from `start` to `end`; the mask of keys begins at the first token."""
    cut = {}
    for name, each in rows.items():
        if isinstance(each, Tensor) and each.ndim >= 2 and each.shape[1] == tokens:
            each = each[:, (0 if name == "attention_mask" else start) : end]
        cut[name] = each
    return cut
