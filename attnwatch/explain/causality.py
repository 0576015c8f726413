"""Checks on one row: that hiding a token changes nothing before it, and that kept keys and values can be used."""

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.effects import LossEffect
from attnwatch.explain.masked_batch import MaskedBatch
from attnwatch.explain.prefix_cache import PrefixCache

# With fewer tokens that can be hidden, little can be seen in a sequence.
_FEWEST = 4


class CausalityCheck:
    """Check of a batch with one token of one row hidden.

    Args:
        effect: of the batch.
        logits: with nothing hidden.

    Raises:
        ConfigurationError: the model is not causal, or its outputs are not finite.
    """

    def __init__(self, batch: MaskedBatch, effect: LossEffect, logits: Tensor):
        self._batch, self._effect = batch, effect
        # Logits before the hidden token show a change, whether or not they have labels.
        usable = batch.hideable & effect.outputs.any(1, keepdim=True) & (batch.real.cumsum(1) > 1)
        is_nan = (logits.isnan().any(-1) & batch.real).any(1, keepdim=True)
        if usable.any() and not (usable & ~is_nan).any():
            self._refuse_nan()
        usable &= ~is_nan
        self._is_possible = bool(usable.any())
        if not self._is_possible:
            return
        outputs = effect.outputs
        ahead = outputs.flip(1).cumsum(1).flip(1) - (outputs & batch.removes_outputs).long() > 0
        self._has_output_behind = bool((usable & ahead).any())
        sequence, self._place = _middle_of_one(usable & ahead if self._has_output_behind else usable)
        self._sequences = torch.tensor([sequence], device=batch.real.device)
        self._hidden = torch.zeros_like(batch.real[:1])
        self._hidden[0, self._place] = True
        end = int(batch.ends(batch.real)[sequence])
        self._found = batch.logits(self._sequences, self._hidden, 0, end)
        before = batch.real[sequence, : self._place]
        self._compare(logits[sequence, : self._place][before], self._found[0, : self._place][before])

    def usable_prefix(self, prefix: PrefixCache | None) -> tuple[PrefixCache | None, str]:
        """Return the prefix cache if the effects of the row are the same with it; else None and the reason."""
        if prefix is None or not self._is_possible:
            return None, "no token can be hidden to try whether keys and values can be kept"
        if not self._has_output_behind:
            return None, "too little is predicted to see whether keys and values can be kept"
        end = int(self._batch.ends(self._effect.outputs)[self._sequences])
        try:
            again = self._batch.logits(self._sequences, self._hidden, self._place, end, prefix)
        except Exception as error:  # of any kind: models differ in what they do with a cache
            return None, f"kept keys and values could not be used: {error}"
        change = self._effects(again, self._place) - self._effects(self._found, 0)
        tolerance = self._batch.rounding * (1 + self._effect.largest)
        if self._exceeds(change[self._place + self._batch.removes_outputs :], tolerance):
            return None, "with kept keys and values the model's outputs are others"
        return prefix, ""

    def _compare(self, base: Tensor, found: Tensor) -> None:
        """Compare logits before the hidden token, [tokens, vocabulary], relative to their spread."""
        if found.isnan().any():
            self._refuse_nan()
        spread = (base - base.mean(-1, keepdim=True)).abs().nan_to_num(posinf=0.0).max()
        change = torch.where(base == found, 0.0, base - found)  # an infinity that stays is no change
        if self._exceeds(change, self._batch.rounding * float(spread)):
            raise ConfigurationError(
                f"`effect` 'loss' is of a causal language model, and in {self._batch.model.name} hiding a token "
                "changes predictions before it: give effect='kl'."
            )

    def _refuse_nan(self) -> None:
        raise ConfigurationError(
            f"`model`: the outputs of {self._batch.model.name} are not finite (nan), so that nothing can be measured: "
            "look for nan among its weights and in the batch."
        )

    def _effects(self, logits: Tensor, start: int) -> Tensor:
        """Return the row's effects [tokens], 0 before `start` and where there is no output."""
        effects = torch.zeros(self._batch.real.shape[1], device=logits.device)
        effects[start : start + logits.shape[1]] = self._effect.measure(logits, self._sequences, start)[0]
        return effects.masked_fill(~self._effect.outputs[self._sequences[0]], 0.0)

    def _exceeds(self, values: Tensor, tolerance: float) -> bool:
        """Return whether a value is larger than the tolerance, or nan."""
        return self._batch.model.broadcast(not bool((values.abs() <= tolerance).all()))


def _middle_of_one(usable: Tensor) -> tuple[int, int]:
    """Return (sequence, place) in the sequence with the fewest tokens that is long enough: models differ in padding."""
    numbers = usable.sum(1)
    sequence = int(numbers.masked_fill(numbers < min(_FEWEST, int(numbers.max())), usable.shape[1] + 1).argmin())
    places = usable[sequence].nonzero()[:, 0]
    return sequence, int(places[len(places) // 2])
