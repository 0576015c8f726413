"""Check of a causal language model with one hidden token."""

import torch
from torch import Tensor

from attnwatch.errors import ConfigurationError
from attnwatch.explain.effects import Effect
from attnwatch.explain.masked_batch import MaskedBatch, PrefixCache

# A sequence with fewer tokens to hide is a weak test.
_FEWEST = 4


def check_causality(batch: MaskedBatch, effect: Effect, logits: Tensor, prefix: PrefixCache | None) -> str:
    """Check that hiding a token changes no prediction before it, and return why the prefix cache can't be used.

    The check hides one token of one row. It returns "" if the cache can be used, or if there is none.

    Args:
        effect: effect "loss" of the batch.
        logits: logits with nothing hidden.

    Raises:
        ConfigurationError: the model is not causal, or its outputs are not finite.
    """
    outputs = effect.outputs
    assert outputs is not None  # the effect "loss" has one output per token
    # All logits before the hidden token are compared, including those without a label.
    usable = batch.hideable & outputs.any(1, keepdim=True) & (batch.real.cumsum(1) > 1)
    is_nan = (logits.isnan().any(-1) & batch.real).any(1, keepdim=True)
    if usable.any() and not (usable & ~is_nan).any():
        raise _not_finite(batch)
    usable &= ~is_nan
    if not usable.any():
        return "no token can be hidden to test whether keys and values can be kept"
    has_output_behind = usable & (outputs.flip(1).cumsum(1).flip(1) - (outputs & batch.removes_outputs).long() > 0)
    sequence, place = _middle_of_one(has_output_behind if has_output_behind.any() else usable)
    rows = torch.tensor([sequence], device=batch.real.device)
    hidden = torch.zeros_like(batch.real[:1])
    hidden[0, place] = True
    found = batch.logits(rows, hidden, 0, int(batch.ends(batch.real)[sequence]))
    before = batch.real[sequence, :place]
    _check_unchanged(batch, logits[sequence, :place][before], found[0, :place][before])
    if prefix is None:
        return ""
    if not has_output_behind.any():
        return "too little is predicted to see whether keys and values can be kept"
    end = int(batch.ends(outputs)[sequence])
    try:
        again = batch.logits(rows, hidden, place, end, prefix)
    except Exception as error:  # of any kind, because models handle caches differently
        return f"kept keys and values could not be used: {error}"
    change = effect.measure(again, rows, place) - effect.measure(found[:, place:end], rows, place)
    change = change.masked_fill(~outputs[rows, place:end], 0.0)[:, int(batch.removes_outputs) :]
    if _exceeds(batch, change, batch.rounding * (1 + effect.largest_loss)):
        return "the model's outputs differ with kept keys and values"
    return ""


def _check_unchanged(batch: MaskedBatch, base: Tensor, found: Tensor) -> None:
    """Compare logits before the hidden token, [tokens, vocabulary], relative to their spread."""
    if found.isnan().any():
        raise _not_finite(batch)
    spread = (base - base.mean(-1, keepdim=True)).abs().nan_to_num(posinf=0.0).max()
    change = torch.where(base == found, 0.0, base - found)  # an infinity that stays is not a change
    if _exceeds(batch, change, batch.rounding * float(spread)):
        raise ConfigurationError(
            f"`effect` 'loss' needs a causal language model, but in {batch.model.name} hiding a token changes "
            "predictions before it: pass effect='kl'."
        )


def _not_finite(batch: MaskedBatch) -> ConfigurationError:
    return ConfigurationError(
        f"`model`: the outputs of {batch.model.name} are not finite (nan), so nothing can be measured: look for "
        "nan among its weights and in the batch."
    )


def _exceeds(batch: MaskedBatch, values: Tensor, tolerance: float) -> bool:
    """Return whether a value is larger than the tolerance, or nan."""
    return batch.model.broadcast(not bool((values.abs() <= tolerance).all()))


def _middle_of_one(usable: Tensor) -> tuple[int, int]:
    """Return the middle token of the shortest sequence that is long enough, where models differ in padding."""
    numbers = usable.sum(1)
    sequence = int(numbers.masked_fill(numbers < min(_FEWEST, int(numbers.max())), usable.shape[1] + 1).argmin())
    places = usable[sequence].nonzero()[:, 0]
    return sequence, int(places[len(places) // 2])
