"""Keys and values of whole sequences, kept so that only what comes after a hidden token is computed anew."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attnwatch.capture import CACHES
from attnwatch.explain.subject import Batch, Subject


@dataclass(frozen=True)
class Prefix:
    """Of each layer the keys and the values, [batch, heads, tokens, head_dim]; and how the model calls what holds them.

    The cache that a model makes for itself drops what lies before a sliding window; this one has all tokens in all
    layers, so that positions in it are positions in the sequence, and the model's masks hide what the window hides.
    """

    name: str
    layers: list[tuple[Tensor, Tensor]]

    def arguments(self, sequences: Tensor, start: int) -> dict[str, Any]:
        """For a forward of these sequences, int64 [rows], from the token `start` on."""
        cache = _new_cache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys[sequences, :, :start], values[sequences, :, :start], layer)
        return {self.name: cache, "use_cache": True}


def name_of_cache(subject: Subject) -> str | None:
    """The argument with which the model takes one; None where it is not known to take any."""
    if subject.has_own_forward:
        return None
    return next((name for name in CACHES if subject.takes(name)), None)


def kept_prefix(subject: Subject, batch: Batch, name: str) -> tuple[Tensor | None, Prefix | None]:
    """(logits of the whole batch, what was kept); None where the model can't work with it."""
    cache = _new_cache()
    try:
        logits = subject.logits(batch, **{name: cache}, use_cache=True)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
    except Exception:  # of whatever kind: models differ in what they do with a cache
        return None, None
    shape = batch["input_ids"].shape
    if not layers or any(each.ndim != 4 or (len(each), each.shape[2]) != shape for pair in layers for each in pair):
        return logits, None
    return logits, Prefix(name, layers)


def _new_cache() -> Any:
    from transformers.cache_utils import DynamicCache  # only ever called for a model of transformers

    return DynamicCache()
