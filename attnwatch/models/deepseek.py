"""DeepSeek's sparse attention, and models that adopted it."""

from torch import nn

from attnwatch.models.base import CHOOSES_KEYS, ModelFamily
from attnwatch.plugins import register

# Attributes of modules that choose their keys, reuse those chosen by an earlier layer, or merge several keys into one.
# Other layers of these models have none of these attributes.
_CHOOSERS = ("indexer", "skip_topk", "compressor")


@register
class DeepSeek(ModelFamily):
    """Layers that choose the keys of each token, since V3.2."""

    name = "deepseek"

    def has_own_calls(self, module: nn.Module) -> bool:
        return any(getattr(module, name, None) not in (None, False) for name in _CHOOSERS)

    def refuses_call(self, module: nn.Module) -> str:
        return CHOOSES_KEYS
