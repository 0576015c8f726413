"""Where the heads of an attention module lie: one declaration per family; surgery and importance follow from it.

The output features of an input projection are written as segments: `"q"` are the query heads, `"k|v"` the key heads
and then the value heads, `"qkv"` query, key and value of each head together. Keys and values count key-value heads.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from attnwatch.capture import CACHES, locals_of_forward, names_in_forward
from attnwatch.errors import ConfigurationError
from attnwatch.heads.forwards import (
    early_timm_forward,
    multihead_forward,
    nanogpt_forward,
    nanogpt_head_dim,
    t5_forward,
    timm_forward,
)
from attnwatch.heads.projections import Refused

# What transformers' attention modules call the things that a layout must know.
_HEAD_DIM = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
# Forwards that compute the weights by hand are of many kinds.
_KERNELS = {"ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention"}
# A forward that takes the width of its heads' output from one of these can't do with fewer heads.
_WIDTHS_OF_THE_MODEL = {"embed_dim", "hidden_size", "d_model", "n_embd", "dim"}
# A bias for each head comes from outside then, and is that of all heads (BEiT).
_BIASES_OF_ALL_HEADS = ("use_relative_position_bias", "use_shared_relative_position_bias")
# Widths of the module's own that are not kept up to date (EXAONE 4.5's vision).
_OTHER_WIDTHS = {"q_dim", "kv_dim", "q_size", "kv_size"}
# Keys and values that another layer reads too (Gemma 3n) can't be cut for one of them.
_SHARED = {"is_kv_shared_layer"}

# Attributes of modules that surgery keeps up to date, by what they say.
SIZES = {
    "heads": ("num_heads", "num_attention_heads", "n_heads", "n_head"),
    "key-value heads": ("num_key_value_heads", "num_kv_heads"),
    "heads of a group": ("num_key_value_groups", "n_rep"),
    "features of the heads": ("all_head_size", "inner_dim", "split_size", "attn_dim"),
}


@dataclass(frozen=True)
class HeadLayout:
    """How to find, count and cut the heads of one kind of attention module.

    ```python
    register_layout(MyAttention, HeadLayout({"qkv": "q|k|v"}, output="proj", head_dim=64, returns="output"))
    ```

    The module's forward must take the number of heads from its weights, or from one of the attributes that surgery
    keeps up to date (see `docs/pruning.md`); or `forward` must.

    Args:
        inputs: path of each input projection in the module, with the segments of its output features.
        output: path of the output projection in the module; a leading `../` starts at the module's parent.
        head_dim: features per head, the name of the module's attribute that has them, or a function of the module.
        per_head: parameters of the module with one entry per query head, and the dimension where.
        whole: names of parameters and submodules of the module that do not depend on its heads.
        head_norms: names of norms over the features of one head, the same for all heads.
        forward: called as forward(module, *args, **kwargs) in place of the module's own once heads are missing. It
            takes what the module's own forward takes: the same names, positions and defaults, or `*args` and
            `**kwargs`.
        returns: what the module's forward returns: `"output"`, `"pair"` (output, None), or None if `forward` also
            works without any head.
        when_pruned: attributes of the module that take another value once heads are missing.
        after_output: module that the output goes through (a dropout), or None.

    Raises:
        ConfigurationError: segments that can't be read.
    """

    inputs: Mapping[str, str]
    output: str
    head_dim: int | str | Callable[[nn.Module], int]
    per_head: Mapping[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()
    forward: Callable | None = None
    returns: str | None = "pair"
    when_pruned: Mapping[str, Any] = field(default_factory=dict)
    after_output: str | None = None

    def __post_init__(self):
        for path, segments in self.inputs.items():
            if not segments or not all(segment and set(segment) <= set("qkv") for segment in segments.split("|")):
                raise ConfigurationError(
                    f"`inputs` for {path!r} must be segments of the letters q, k and v, separated by |, such as "
                    f"'q|k|v'; got {segments!r}."
                )
        for name in ("whole", "head_norms"):
            if isinstance(getattr(self, name), str):
                raise ConfigurationError(f"`{name}` must be a tuple of names, got {getattr(self, name)!r}.")
        if self.returns not in ("output", "pair", None):
            raise ConfigurationError(f"`returns` must be 'output', 'pair' or None, got {self.returns!r}.")


_registered: dict[type, HeadLayout] = {}


def register_layout(module_class: type, layout: HeadLayout) -> None:
    """Say where the heads of a module class lie; its subclasses are not included. `check_layout` tries whether it fits.

    Args:
        module_class: class of attention modules.
        layout: where the heads lie in its projections.

    Raises:
        ConfigurationError: `module_class` is no class of modules.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise ConfigurationError(f"`module_class` must be a class of modules, got {module_class!r}.")
    _registered[module_class] = layout


def is_registered(module: nn.Module) -> bool:
    """Whether its layout is one of the user's."""
    return type(module) in _registered


def layout_of(module: nn.Module) -> HeadLayout | None:
    """The layout of a module, or None where it is unknown.

    Raises:
        Refused: it is known that its heads can't be removed.
    """
    if type(module) in _registered:
        return _registered[type(module)]
    if isinstance(module, nn.MultiheadAttention):
        is_torchs = type(module).forward is nn.MultiheadAttention.forward
        return _multihead(module) if is_torchs and not module.add_zero_attn else None
    if type(module).__name__ == "CausalSelfAttention" and _has(module, *_ATTRIBUTES_OF_NANOGPT):
        return _NANOGPT if names_in_forward(type(module)) <= _NAMES_OF_NANOGPT else None
    if type(module).__name__ == "Attention" and type(module).__module__ in _MODULES_OF_TIMM:
        return _of_timm(module) if _has(module, "qkv", "proj", "head_dim") else None
    if type(module).__module__.split(".")[0] in ("transformers", "transformers_modules"):
        return _of_transformers(module)
    return None


_NANOGPT = HeadLayout(
    {"c_attn": "q|k|v"},
    output="c_proj",
    head_dim=nanogpt_head_dim,
    forward=nanogpt_forward,
    returns="output",
    after_output="resid_dropout",
)
# Variants of it (with rotary embeddings, say) go by the same name, but compute something else.
_ATTRIBUTES_OF_NANOGPT = ("c_attn", "c_proj", "n_head", "n_embd", "dropout", "resid_dropout")
_NAMES_OF_NANOGPT = {
    *(*_ATTRIBUTES_OF_NANOGPT, "attn_dropout", "flash", "bias", "training"),
    *("torch", "nn", "F", "functional", "scaled_dot_product_attention", "softmax", "math", "sqrt", "masked_fill"),
    *("size", "split", "view", "reshape", "transpose", "contiguous", "float"),
}
_TIMM = HeadLayout(
    {"qkv": "q|k|v"},
    output="proj",
    head_dim="head_dim",
    head_norms=("q_norm", "k_norm"),
    forward=timm_forward,
    returns="output",
    after_output="proj_drop",
)
_MODULES_OF_TIMM = ("timm.layers.attention", "timm.models.vision_transformer")
_T5 = {"whole": ("relative_attention_bias",), "forward": t5_forward, "returns": None}
_NORMS = {"head_norms": ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm", "key_norm")}

# Of transformers' modules, told apart by the names of their projections.
_TRANSFORMERS = (
    ({"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "q"}, ("o_proj",), _NORMS),
    ({"q_proj": "q", "k_proj": "k", "v_proj": "v"}, ("o_proj", "out_proj", "dense"), _NORMS),
    ({"q_proj": "q", "k_proj": "k", "v_proj": "v"}, ("Wo",), {"after_output": "out_drop"}),
    ({"Wqkv": "q|k|v"}, ("Wo",), {"after_output": "out_drop"}),
    ({"query": "q", "key": "k", "value": "v"}, ("../output.dense",), {}),
    ({"q_lin": "q", "k_lin": "k", "v_lin": "v"}, ("out_lin",), {}),
    ({"q": "q", "k": "k", "v": "v"}, ("o",), _T5),
    ({"qkv_proj": "q|k|v"}, ("o_proj",), _NORMS),
    ({"qkv": "q|k|v"}, ("proj",), {"returns": "output", **_NORMS}),
    ({"query_key_value": "qkv"}, ("dense",), _NORMS),
    ({"q_attn": "q", "c_attn": "k|v"}, ("c_proj",), {"after_output": "resid_dropout"}),
    ({"c_attn": "q|k|v"}, ("c_proj",), {"after_output": "resid_dropout"}),
)


def _of_transformers(module: nn.Module) -> HeadLayout | None:
    head_dim = next((name for name in _HEAD_DIM if isinstance(getattr(module, name, None), int)), None)
    names = names_in_forward(type(module))
    widths = (names | locals_of_forward(type(module))) & _WIDTHS_OF_THE_MODEL
    if head_dim is None or not names & _KERNELS or widths or names & (_SHARED | _OTHER_WIDTHS):
        return None
    if "num_key_value_heads" in names and not hasattr(module, "num_key_value_heads"):  # read from the model's config
        return None
    if any(getattr(getattr(module, "config", None), name, False) for name in _BIASES_OF_ALL_HEADS):
        return None
    for inputs, outputs, more in _TRANSFORMERS:
        if not _has(module, *inputs) or (more is _T5 and "position_bias" not in _arguments(module)):
            continue
        if "gate_proj" in inputs and not any(name in _arguments(module) for name in CACHES):
            continue  # those of EsmFold2 are given biases of all heads
        for output in outputs:
            if output.startswith("../") or _has(module, output):
                per_head = {"sinks": 0} if _has(module, "sinks") else {}
                return HeadLayout(inputs, output, head_dim, per_head=per_head, **more)
    return None


def _of_timm(module: nn.Module) -> HeadLayout:
    if not isinstance(getattr(module, "norm", None), nn.Identity | None):
        raise Refused("its norm runs over all heads together")
    forward = timm_forward if "attn_dim" in names_in_forward(type(module)) else early_timm_forward
    gate = {"gate": "q"} if _has(module, "gate") else {}
    return replace(_TIMM, inputs={**_TIMM.inputs, **gate}, forward=forward)


def _multihead(module: nn.MultiheadAttention) -> HeadLayout:
    joint = {"in_proj_weight": "q|k|v"}
    apart = {"q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"}
    return HeadLayout(
        {**(joint if module.in_proj_weight is not None else apart), "in_proj_bias": "q|k|v"},
        output="out_proj",
        head_dim="head_dim",
        forward=multihead_forward,
        returns=None,
        when_pruned={"_qkv_same_embed_dim": False},  # keeps nn.TransformerEncoder off its fused inference path
    )


def _arguments(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(module).forward).parameters


def _has(module: nn.Module, *names: str) -> bool:
    return all(getattr(module, name, None) is not None for name in names)
