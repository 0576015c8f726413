"""Declaration of the location of an attention module's heads, for surgery and importance."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from attnwatch.errors import ConfigurationError

Returned = Literal["output", "pair"]
"""Return value of an attention module's forward: the output, or the pair (output, None)."""

# Attributes of modules that surgery keeps up to date, by meaning.
SIZES = {
    "heads": ("num_heads", "num_attention_heads", "n_heads", "n_head"),
    "key-value heads": ("num_key_value_heads", "num_kv_heads"),
    "heads of a group": ("num_key_value_groups", "n_rep"),
    "features of the heads": ("all_head_size", "inner_dim", "split_size", "attn_dim"),
}


@dataclass(frozen=True)
class HeadLayout:
    """Declaration of how to find, count and cut the heads of one kind of attention module.

    Segments describe the output features of an input projection: `"q"` means the query heads, `"k|v"` the key heads
    followed by the value heads, `"qkv"` query, key and value of each head together. Keys and values count key-value
    heads.

    The module's forward must take the number of heads from its weights, or from an attribute that surgery keeps up to
    date (see `docs/explanation/pruning.md`); otherwise pass a `forward` that does.

    Args:
        inputs: path of each input projection in the module, with the segments of its output features.
        output: path of the output projection in the module; a leading `../` starts at the module's parent.
        head_dim: features per head, as a number, the name of the module's attribute, or a function of the module.
        per_head: parameters of the module with one entry per query head, and the dimension of these entries.
        whole: names of parameters and submodules of the module that do not depend on its heads.
        head_norms: names of norms over the features of one head, the same for all heads.
        forward: function called as forward(module, *args, **kwargs) in place of the module's own once heads are
            removed. It must accept the arguments of the module's own forward: the same names, positions and defaults,
            or `*args` and `**kwargs`.
        returns: return value of the module's forward, `"output"` or `"pair"`; None if `forward` also works without
            any head.
        when_pruned: attributes of the module by name, as pairs of their values without and with removed heads.
        after_output: name of a module that is applied to the output (a dropout), or None.
        calls_output: True if the module's forward calls the output projection; False if it only reads its weight.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> HeadLayout({"qkv": "q|k|v"}, output="proj", head_dim=64, returns="output").returns
        'output'
    """

    inputs: Mapping[str, str]
    output: str
    head_dim: int | str | Callable[[nn.Module], int] = "head_dim"
    per_head: Mapping[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    head_norms: tuple[str, ...] = ()
    forward: Callable[..., Any] | None = None
    returns: Returned | None = "pair"
    when_pruned: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    after_output: str | None = None
    calls_output: bool = True

    def __post_init__(self) -> None:
        for path, segments in self.inputs.items():
            if not segments or not all(segment and set(segment) <= set("qkv") for segment in segments.split("|")):
                raise ConfigurationError(
                    f"`inputs` for {path!r} must be segments of the letters q, k and v separated by |, such as "
                    f"'q|k|v'; got {segments!r}."
                )
        for name in ("whole", "head_norms"):
            if isinstance(getattr(self, name), str):
                raise ConfigurationError(f"`{name}` must be a tuple of names, got {getattr(self, name)!r}.")
        if self.returns not in (*get_args(Returned), None):
            raise ConfigurationError(f"`returns` must be 'output', 'pair' or None, got {self.returns!r}.")
