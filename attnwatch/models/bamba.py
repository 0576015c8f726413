"""Bamba, and FalconH1, which uses the same masks."""

from torch import nn

from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register
from attnwatch.utils.versions import is_early_transformers


@register
class Bamba(ModelFamily):
    """Attention layers interleaved with Mamba layers."""

    name = "bamba"

    def has_own_calls(self, module: nn.Module) -> bool:
        return type(module).__name__ in ("BambaAttention", "FalconH1Attention") and is_early_transformers()

    def refuses_call(self, module: nn.Module) -> str:
        return (
            "its masks show padding to itself before transformers 5, so padding can't be distinguished from a "
            "second document; upgrade transformers"
        )
