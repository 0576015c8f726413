"""GPT-2, whose projections are `Conv1D`s."""

from torch import nn

from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.models.transformers import fitted_layout, has_parts
from attnwatch.plugins import register


@register
class GPT2(ModelFamily):
    """Attention with a joint projection, of which cross-attention has only the keys and values."""

    name = "gpt2"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        return fitted_layout(module, _CROSS if has_parts(module, "q_attn") else _SELF)


_SELF = HeadLayout({"c_attn": "q|k|v"}, output="c_proj", after_output="resid_dropout")
_CROSS = HeadLayout({"q_attn": "q", "c_attn": "k|v"}, output="c_proj", after_output="resid_dropout")
