"""Reasons why the heads of a module, or of a whole model, can't be removed."""

from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from attnwatch.capture import is_split, names_in_forward
from attnwatch.heads.layout import SIZES
from attnwatch.heads.projections import refuse_hooks
from attnwatch.heads.signatures import not_honoured
from attnwatch.heads.site import HeadSite
from attnwatch.models import Refused

# PEFT adapters that add keys and values to attention.
_ADAPTERS_OF_ALL_HEADS = ("PREFIX_TUNING", "ADAPTION_PROMPT")


def why_no_heads(modules: Iterable[nn.Module]) -> str:
    """Return the reason why no module of a model can lose heads; empty if there is none."""
    for module in modules:
        configs = getattr(module, "peft_config", None)
        for config in configs.values() if isinstance(configs, Mapping) else ():
            kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
            if kind in _ADAPTERS_OF_ALL_HEADS:
                return f"the adapter {kind} has keys and values for all heads; merge or remove it first"
    return ""


def refuse_wrapped(module: nn.Module, parent: nn.Module) -> None:
    """Raise `Refused` if something around the parameters of a module would not survive a cut."""
    if is_parametrized(module):
        raise Refused(
            "its parameters are parametrized; remove the parametrization first "
            "(torch.nn.utils.parametrize.remove_parametrizations) and register it again after the cut"
        )
    if is_split(module):
        raise Refused(
            "its parameters are sharded (DTensor); remove heads before fully_shard or parallelize_module, or from a "
            "checkpoint of the whole model"
        )
    if getattr(parent, "base_layer", None) is module:
        raise Refused(
            f"it is inside an adapter {type(parent).__name__}, whose forward needs all of its heads; merge the adapter "
            "first (merge_and_unload), or adapt its projections in place of the whole module"
        )


def refuse_unclaimed(site: HeadSite) -> None:
    """Raise `Refused` if a parameter is not in the layout, because it may depend on the heads."""
    layout = site.layout
    output = () if site.is_output_outside else (layout.output,)
    claimed = (*layout.inputs, *output, *layout.per_head, *layout.whole, *layout.head_norms)
    for name, parameter in site.module.named_parameters():
        if not any(name == known or name.startswith(f"{known}.") for known in claimed):
            raise Refused(
                f"its parameter {name} {list(parameter.shape)} is not in the layout; name it in `per_head` if it has "
                "an entry for each head, or in `whole` if it does not depend on the heads"
            )
        norm = next((known for known in layout.head_norms if name.startswith(f"{known}.")), None)
        if norm and (name.count(".") > 1 or parameter.shape != (site.head_dim,)):
            raise Refused(
                f"its {norm} normalizes all heads together, or each head with its own weights; only layers whose norm "
                "has the features of one head, or that have no norm, can be pruned"
            )


def refuse_other_forward(site: HeadSite) -> None:
    """Raise `Refused` if the layout's forward does not accept the arguments of the class's own forward."""
    if site.layout.forward is None:
        return
    unknown = not_honoured(site.layout.forward, site.module)
    if unknown:
        name = getattr(site.layout.forward, "__name__", repr(site.layout.forward))
        raise Refused(
            f"the forward of {type(site.module).__name__} has {', '.join(map(repr, unknown))}, which the forward of "
            f"its layout, {name}, does not accept in the same way: with the same name, position and default, or "
            "through *args and **kwargs"
        )


def refuse_unknown_sizes(site: HeadSite) -> None:
    """Raise `Refused` if the forward uses a number that may be the number of heads under an unknown name."""
    if site.layout.forward is not None or site.is_pruned:
        return
    known = {name for names in SIZES.values() for name in names} | {*site.layout.whole, site.layout.head_dim}
    sizes = {site.num_heads, site.num_heads * site.head_dim}
    used = names_in_forward(type(site.module))
    for name, value in vars(site.module).items():
        if type(value) is int and value in sizes and value > 1 and name in used and name not in known:
            raise Refused(
                f"its forward uses {name!r}, which is {value} like its number of heads or their features: rename it to "
                f"{' or '.join(map(repr, SIZES['heads']))}, name it in `whole` if it is something else, or give the "
                "layout a `forward`"
            )


def refuse_shared(site: HeadSite, uses: Mapping[int, int]) -> None:
    """Raise `Refused` if the module shares parameters or projections, which can't be cut for one user only.

    Args:
        uses: number of places in the model that use a parameter or module, by its identity.
    """
    for name, parameter in (*site.module.named_parameters(), *site.projection.named_parameters()):
        if uses[id(parameter)] > 1:
            raise Refused(
                f"its parameter {name} {list(parameter.shape)} is also used elsewhere (tied weights); "
                "give each place its own copy first"
            )
        refuse_hooks(name, parameter)
    parts = [site.module, *site.projections] if site.is_output_outside else site.projections
    if any(uses[id(part)] > 1 for part in parts):
        raise Refused(
            "the module or one of its projections is also used elsewhere in the model (as in ALBERT); give each "
            "place its own copy first"
        )
