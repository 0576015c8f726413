"""ModernBERT and its decoder, whose output projection is called `Wo`."""

from torch import nn

from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.models.transformers import fitted_layout, has_parts
from attnwatch.plugins import register


@register
class ModernBert(ModelFamily):
    """Attention with a joint projection in the encoder, and three projections in the decoder."""

    name = "modernbert"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        return fitted_layout(module, _ENCODER if has_parts(module, "Wqkv") else _DECODER)


_ENCODER = HeadLayout({"Wqkv": "q|k|v"}, output="Wo", after_output="out_drop")
_DECODER = HeadLayout({"q_proj": "q", "k_proj": "k", "v_proj": "v"}, output="Wo", after_output="out_drop")
