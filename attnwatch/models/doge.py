"""Doge."""

from torch import nn

from attnwatch.models.base import CHOOSES_KEYS, ModelFamily
from attnwatch.plugins import register


@register
class Doge(ModelFamily):
    """Dynamic masks, with which each head chooses its keys."""

    name = "doge"

    def has_own_calls(self, module: nn.Module) -> bool:
        return type(module).__name__ == "DogeAttention"

    def refuses_call(self, module: nn.Module) -> str:
        return CHOOSES_KEYS
