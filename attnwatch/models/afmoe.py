"""AFMoE, whose attention multiplies the output of its heads by a gate."""

from torch import nn

from attnwatch.capture import CACHES
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.models.transformers import HEAD_NORMS, fitted_layout, takes
from attnwatch.plugins import register


@register
class Afmoe(ModelFamily):
    """Attention with a gate projection. EsmFold2 has one too, but takes no cache and receives biases for all heads."""

    name = "afmoe"

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        layout = fitted_layout(module, _LAYOUT)
        return layout if layout is not None and takes(module, *CACHES) else None


_LAYOUT = HeadLayout(
    {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "q"}, output="o_proj", head_norms=HEAD_NORMS
)
