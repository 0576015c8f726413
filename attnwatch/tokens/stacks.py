"""Stacks of layers in a model, and the layers in which tokens can be dropped."""

from dataclasses import dataclass

from torch import nn

from attnwatch.capture import (
    asked_when_traced,
    attention_functions,
    find_sites,
    ignores,
    module_ignores,
    site_name,
)
from attnwatch.errors import ConfigurationError
from attnwatch.models import ModelFamily, Refused
from attnwatch.models.base import first_answer, require_token_layout
from attnwatch.tokens.layouts import TokenLayout
from attnwatch.utils.interception import original_class, without_wrappers


@dataclass(frozen=True, eq=False)
class Stack:
    """Stack of layers that a model runs one after the other.

    Attributes:
        name: path of the layers' container in the model.
        layers: layers in order.
        layout: token layout of the layers.
        entries: modules whose call may be one forward pass of the model, outermost first.
        model: model that contains the stack.
        argument_prefix: prefix of the model's arguments about these tokens.
    """

    name: str
    layers: tuple[nn.Module, ...]
    layout: TokenLayout
    entries: tuple[nn.Module, ...]
    model: nn.Module
    argument_prefix: str

    @asked_when_traced
    def ignores(self, name: str) -> bool:
        """Return whether neither a layer nor an attention function that it calls uses a keyword of this name."""
        return all(module_ignores(without_wrappers(layer), name) for layer in self.layers) and all(
            ignores(function, name) for layer in self.layers for function in attention_functions(layer)
        )


def find_stacks(model: nn.Module) -> tuple[dict[str, Stack], dict[str, str]]:
    """Return the stacks in which tokens can be dropped, and the reasons against the others, by name.

    Raises:
        ConfigurationError: a model family failed; the message names it.
    """
    stacks: dict[str, Stack] = {}
    refused: dict[str, str] = {}
    for path, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential) or not len(container):
            continue
        name, layers = site_name(path, container), tuple(container)
        found = list(map(_layout_or_reason, layers))
        layout = found[0]
        if isinstance(layout, TokenLayout) and all(other == layout for other in found):
            entries = _entries(model, path)
            stacks[name] = Stack(name, layers, layout, entries, model, _argument_prefix(entries[0], name))
        elif any(map(find_sites, layers)) and not _lies_in(name, (*stacks, *refused)):
            refused[name] = _why_unknown(layers, "" if isinstance(layout, TokenLayout) else layout)
    return stacks, refused


def choose_stack(model: nn.Module, name: str | None) -> Stack:
    """Return the model's stack with this name, or its only one.

    Raises:
        ConfigurationError: there is no such stack, or there are several; the message names them.
    """
    stacks, refused = find_stacks(model)
    if name in refused:
        raise ConfigurationError(f"`stack`: tokens can't be dropped in {name!r}: {refused[name]}.")
    if not stacks:
        reasons = "; ".join(f"{each}: {reason}" for each, reason in refused.items())
        raise ConfigurationError(
            f"`model` has no stack of layers in which tokens can be dropped. {reasons or 'It has none.'}"
        )
    if name is None and len(stacks) == 1:
        return next(iter(stacks.values()))
    if name not in stacks:
        has = "must be one of" if name is None else f"is {name!r}; it must be one of"
        raise ConfigurationError(f"`stack` {has} {', '.join(map(repr, stacks))}.")
    return stacks[name]


def layer_range(stack: Stack, first_layer: int, last_layer: int | None) -> tuple[int, int]:
    """Return the first and last layer, inclusive, counted from 0. By default, the last is the stack's last but one.

    Raises:
        ConfigurationError: the layers are not in the stack, or in the wrong order.
    """
    depth = len(stack.layers)
    if last_layer is None and depth < 3 and first_layer == 1:
        raise ConfigurationError(
            f"`last_layer`: none of the {depth} layers is between the first and the last; pass `first_layer` and "
            "`last_layer`."
        )
    last_layer = max(depth - 2, 0) if last_layer is None else last_layer
    places = []
    for name, layer in (("first_layer", first_layer), ("last_layer", last_layer)):
        if isinstance(layer, bool) or not isinstance(layer, int) or not -depth <= layer < depth:
            raise ConfigurationError(f"`{name}` must be one of the {depth} layers 0 to {depth - 1}, got {layer!r}.")
        places.append(layer % depth)
    first, last = places
    if first > last:
        raise ConfigurationError(
            f"`first_layer` must not come after `last_layer`, got {first} and {last} of the {depth} layers."
        )
    return first, last


def check_layers(
    stack: Stack, layers: tuple[nn.Module, ...], *, protect_first: int, drop_in_evaluation: bool = False
) -> None:
    """Check with all model families that tokens can be dropped in these layers of a stack.

    Raises:
        ConfigurationError: tokens can't be dropped, or a family failed; the message says why.
    """

    def ask(family: ModelFamily) -> None:
        family.check_tokens(stack, layers, protect_first=protect_first, drop_in_evaluation=drop_in_evaluation)

    try:
        first_answer(ask)
    except Refused as reason:
        raise ConfigurationError(f"`model`: tokens can't be dropped in {stack.name!r}: {reason}.") from None


def _layout_or_reason(layer: nn.Module) -> TokenLayout | str:
    """Return the layout of a layer, or the reason why there is none, empty if no family knows the layer."""
    layer = without_wrappers(layer)

    def ask(family: ModelFamily) -> TokenLayout | None:
        layout = family.token_layout(layer)
        if layout is not None:
            require_token_layout(family, original_class(layer), layout)
        return layout

    try:
        return first_answer(ask) or ""
    except Refused as reason:
        return str(reason)


def _why_unknown(layers: tuple[nn.Module, ...], reason: str) -> str:
    kinds = list(dict.fromkeys(original_class(without_wrappers(layer)).__name__ for layer in layers))
    if len(kinds) > 1:
        return f"its layers are of several kinds ({', '.join(kinds)})"
    if reason:
        return f"its layers ({kinds[0]}) {reason}"
    return (
        f"the token axes of the arguments of its layers ({kinds[0]}) are unknown; declare them in an "
        "attnwatch.ModelFamily and register it"
    )


def _entries(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """Return the models around a stack, outermost first; if there are none, the module that holds the stack."""
    names = path.split(".")
    around = [model, *(model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names)))]
    return tuple(filter(_is_model, around)) or (around[-1],)


def _argument_prefix(model: nn.Module, stack: str) -> str:
    return first_answer(lambda family: family.argument_prefix(model, stack)) or ""


def _is_model(module: nn.Module) -> bool:
    return bool(first_answer(lambda family: family.is_model(module)))


def _lies_in(name: str, others: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
