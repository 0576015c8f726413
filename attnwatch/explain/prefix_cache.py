"""Keys and values of whole sequences, reused so that only the tokens from the first hidden one on are computed."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attnwatch.capture import CACHES
from attnwatch.explain.batches import Batch
from attnwatch.explain.evaluated_model import EvaluatedModel


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of all layers, each [batch, heads, tokens, head_dim].

    The cache that a model makes for itself drops what lies before a sliding window. This one has all tokens in all
    layers, so that positions in it are positions in the sequence, and the model's masks hide what the window hides.

    Attributes:
        argument: name of the argument with which the model takes a cache.
        layers: (keys, values) of each layer.
    """

    argument: str
    layers: list[tuple[Tensor, Tensor]]

    def arguments(self, sequences: Tensor, start: int) -> dict[str, Any]:
        """Return arguments for a forward of these sequences, int64 [rows], from the token `start` on."""
        cache = _empty_cache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys[sequences, :, :start], values[sequences, :, :start], layer)
        return {self.argument: cache, "use_cache": True}


def find_cache_argument(model: EvaluatedModel) -> str | None:
    """Return the name of the argument with which a model takes a cache; None if it is not known to take one."""
    if model.has_custom_forward:
        return None
    return next((name for name in CACHES if model.accepts(name)), None)


def forward_with_cache(model: EvaluatedModel, batch: Batch, argument: str) -> tuple[Tensor, PrefixCache | None]:
    """Return the logits of a batch and its keys and values; None if the model does not keep those of all tokens.

    Raises:
        Exception: of any kind, as models differ in what they do with a cache that they did not make.
    """
    cache = _empty_cache()
    logits = model.logits(batch, **{argument: cache}, use_cache=True)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    shape = batch["input_ids"].shape
    if not layers or any(each.ndim != 4 or (len(each), each.shape[2]) != shape for pair in layers for each in pair):
        return logits, None
    return logits, PrefixCache(argument, layers)


def _empty_cache() -> Any:
    from transformers.cache_utils import DynamicCache  # only called for models of transformers

    return DynamicCache()
