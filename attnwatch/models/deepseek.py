"""DeepSeek's sparse attention, and models that have it from DeepSeek."""

from torch import nn

from attnwatch.models.base import CHOOSES_KEYS, ModelFamily
from attnwatch.plugins import register

# Attributes of a module that chooses its keys, takes those that an earlier layer chose, or makes one key of several.
# Other layers of these models have none of them.
_CHOOSERS = ("indexer", "skip_topk", "compressor")


@register
class DeepSeek(ModelFamily):
    """Layers that choose the keys of each token, from V3.2 on."""

    name = "deepseek"

    def has_own_calls(self, module: nn.Module) -> bool:
        return any(getattr(module, name, None) not in (None, False) for name in _CHOOSERS)

    def refuses_call(self, module: nn.Module) -> str:
        return CHOOSES_KEYS
