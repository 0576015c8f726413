"""Reasons why the heads of a module, or of a whole model, can't be removed."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from attnwatch.capture import names_in_forward
from attnwatch.heads.layouts import SIZES
from attnwatch.heads.projections import Refused
from attnwatch.heads.signatures import not_honoured

if TYPE_CHECKING:
    from attnwatch.heads.heads import HeadSite

# Adapters of PEFT that add keys and values to attention.
_ADAPTERS_OF_ALL_HEADS = ("PREFIX_TUNING", "ADAPTION_PROMPT")


def refuse_unclaimed(site: "HeadSite") -> None:
    """A parameter that nobody has told where its heads are may depend on them."""
    layout = site.layout
    output = () if site.is_output_outside else (layout.output,)
    claimed = (*layout.inputs, *output, *layout.per_head, *layout.whole, *layout.head_norms)
    for name, parameter in site.module.named_parameters():
        if not any(name == known or name.startswith(f"{known}.") for known in claimed):
            raise Refused(
                f"its parameter {name} {list(parameter.shape)} is not in the layout; name it in `per_head` where it "
                "has an entry for each head, in `whole` where it does not depend on them"
            )
        norm = next((known for known in layout.head_norms if name.startswith(f"{known}.")), None)
        if norm and (name.count(".") > 1 or parameter.shape != (site.head_dim,)):
            raise Refused(
                f"its {norm} normalizes all heads together, or each head with weights of its own; layers whose norm "
                "has the features of one head, or that have none, can be pruned"
            )


def refuse_other_forward(site: "HeadSite") -> None:
    """A forward that replaces the module's own is called with whatever the module's class takes."""
    if site.layout.forward is None:
        return
    unknown = not_honoured(site.layout.forward, site.module)
    if unknown:
        name = getattr(site.layout.forward, "__name__", repr(site.layout.forward))
        raise Refused(
            f"the forward of {type(site.module).__name__} has {', '.join(map(repr, unknown))}, which the forward of "
            f"its layout, {name}, does not take in the same way: by the same name, at the same position, with the same "
            "default, or in *args and **kwargs"
        )


def refuse_unknown_sizes(site: "HeadSite") -> None:
    """A number that is the module's number of heads by another name would stay what it was."""
    known = {name for names in SIZES.values() for name in names} | set(site.layout.whole) | {site.layout.head_dim}
    sizes = {site.num_heads, site.num_heads * site.head_dim}
    used = names_in_forward(type(site.module))
    for name, value in vars(site.module).items():
        if type(value) is int and value in sizes and value > 1 and name in used and name not in known:
            raise Refused(
                f"its forward uses {name!r}, which is {value} like its number of heads or their features: call it "
                f"{' or '.join(map(repr, next(iter(SIZES.values()))))}, name it in `whole` if it is something else, or "
                "give the layout a `forward`"
            )


def why_no_heads(modules: Iterable[nn.Module]) -> str:
    """What of the whole model is against it."""
    for module in modules:
        configs = getattr(module, "peft_config", None)
        for config in configs.values() if isinstance(configs, Mapping) else ():
            kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
            if kind in _ADAPTERS_OF_ALL_HEADS:
                return f"the adapter {kind} has keys and values for all heads; merge it or take it out first"
    return ""
