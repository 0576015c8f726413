"""Models of transformers, whose attention modules are recognised by the names of their projections.

Families with peculiarities have their own files and call `fitted_layout` too.
"""

import inspect
from dataclasses import replace

from torch import nn

from attnwatch.capture import locals_of_forward, names_in_forward
from attnwatch.heads.layout import HeadLayout
from attnwatch.models.base import ModelFamily
from attnwatch.plugins import register

HEAD_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm", "key_norm")

# Names of the number of features of a head in attention modules.
_HEAD_DIM = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
# Forwards that compute the weights by hand vary widely.
_KERNELS = {"ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention"}
# A forward that takes the width of its heads' output from one of these can't work with fewer heads.
_WIDTHS_OF_THE_MODEL = {"embed_dim", "hidden_size", "d_model", "n_embd", "dim"}
# Widths stored by the module that are not kept up to date (EXAONE 4.5's vision).
_OTHER_WIDTHS = {"q_dim", "kv_dim", "q_size", "kv_size"}
# Keys and values that another layer also reads (Gemma 3n) can't be cut for one of them.
_SHARED = {"is_kv_shared_layer"}
# In this case, a bias for each head comes from outside and covers all heads (BEiT).
_BIASES_OF_ALL_HEADS = ("use_relative_position_bias", "use_shared_relative_position_bias")

_QUERY_KEY_VALUE = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}
_LAYOUTS = (
    *(HeadLayout(_QUERY_KEY_VALUE, output, head_norms=HEAD_NORMS) for output in ("o_proj", "out_proj", "dense")),
    HeadLayout({"query": "q", "key": "k", "value": "v"}, "../output.dense"),
    HeadLayout({"q_lin": "q", "k_lin": "k", "v_lin": "v"}, "out_lin"),
    HeadLayout({"qkv_proj": "q|k|v"}, "o_proj", head_norms=HEAD_NORMS),
    HeadLayout({"qkv": "q|k|v"}, "proj", head_norms=HEAD_NORMS, returns="output"),
    HeadLayout({"query_key_value": "qkv"}, "dense", head_norms=HEAD_NORMS),
    HeadLayout(_QUERY_KEY_VALUE, "Wo", after_output="out_drop"),
    HeadLayout({"Wqkv": "q|k|v"}, "Wo", after_output="out_drop"),
    HeadLayout({"q_attn": "q", "c_attn": "k|v"}, "c_proj", after_output="resid_dropout"),
    HeadLayout({"c_attn": "q|k|v"}, "c_proj", after_output="resid_dropout"),
)


@register
class Transformers(ModelFamily):
    """Attention modules of transformers with common projection names, such as those of Llama, BERT and GPT-NeoX."""

    name = "transformers"
    is_fallback = True

    def head_layout(self, module: nn.Module) -> HeadLayout | None:
        fitted = (fitted_layout(module, layout) for layout in _LAYOUTS)
        return next((layout for layout in fitted if layout is not None), None)


def fitted_layout(module: nn.Module, layout: HeadLayout) -> HeadLayout | None:
    """Return a layout adapted to one attention module of transformers; None if it does not fit the module.

    The module must have the projections. Its forward must leave the attention weights to a kernel, and depend on the
    heads only through sizes that are kept up to date.

    Args:
        module: any module.
        layout: layout with the projections; the features of a head and learned sinks are added from the module.
    """
    if type(module).__module__.split(".")[0] not in ("transformers", "transformers_modules"):
        return None
    has_output = layout.output.startswith("../") or has_parts(module, layout.output)
    head_dim = next((name for name in _HEAD_DIM if isinstance(getattr(module, name, None), int)), None)
    if head_dim is None or not has_output or not has_parts(module, *layout.inputs) or _is_special(module):
        return None
    return replace(layout, head_dim=head_dim, per_head={"sinks": 0} if has_parts(module, "sinks") else {})


def has_parts(module: nn.Module, *names: str) -> bool:
    """Return whether a module has all of these attributes, and none of them is None."""
    return all(getattr(module, name, None) is not None for name in names)


def takes(module: nn.Module, *names: str) -> bool:
    """Return whether the forward of a module has an argument with one of these names."""
    return any(name in inspect.signature(type(module).forward).parameters for name in names)


def _is_special(module: nn.Module) -> bool:
    """Return whether the forward of a module depends on its heads in a way that is not kept up to date."""
    names = names_in_forward(type(module))
    widths = (names | locals_of_forward(type(module))) & _WIDTHS_OF_THE_MODEL
    if not names & _KERNELS or widths or names & (_SHARED | _OTHER_WIDTHS):
        return True
    if "num_key_value_heads" in names and not hasattr(module, "num_key_value_heads"):  # read from the model's config
        return True
    return any(getattr(getattr(module, "config", None), name, False) for name in _BIASES_OF_ALL_HEADS)
