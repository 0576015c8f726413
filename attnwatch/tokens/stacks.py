"""Stacks of layers that a model has, and those of them in which tokens can be dropped."""

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
    """Layers that a model runs one after the other.

    Attributes:
        name: path of their container in the model.
        layers: in their order.
        layout: which of their arguments have a token axis.
        entries: the modules whose call may be one forward of the model, outermost first.
        model: in which the stack was found.
        argument_prefix: of the model's arguments about these tokens.
    """

    name: str
    layers: tuple[nn.Module, ...]
    layout: TokenLayout
    entries: tuple[nn.Module, ...]
    model: nn.Module
    argument_prefix: str

    @asked_when_traced
    def ignores(self, name: str) -> bool:
        """Return whether no layer looks at a keyword argument of this name, nor an attention function that it calls."""
        return all(module_ignores(without_wrappers(layer), name) for layer in self.layers) and all(
            ignores(function, name) for layer in self.layers for function in attention_functions(layer)
        )


def find_stacks(model: nn.Module) -> tuple[dict[str, Stack], dict[str, str]]:
    """Return the stacks in which tokens can be dropped, by name, and for the others the reason why not.

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
    """Return the model's stack of that name, or its only one.

    Raises:
        ConfigurationError: there is none, or several; the message names them.
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
    """Return the first and the last layer, inclusive, counted from 0. The last one is by default the last but one.

    Raises:
        ConfigurationError: they are not in the stack, or in the wrong order.
    """
    depth = len(stack.layers)
    if last_layer is None and depth < 3 and first_layer == 1:
        raise ConfigurationError(
            f"`last_layer`: of {depth} layers none lies between the first and the last; give `first_layer` and "
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
            f"`first_layer` must not be behind `last_layer`, got {first} and {last} of the {depth} layers."
        )
    return first, last


def check_layers(
    stack: Stack, layers: tuple[nn.Module, ...], *, protect_first: int, drop_in_evaluation: bool = False
) -> None:
    """Ask all model families whether tokens can be dropped in these layers of a stack.

    Raises:
        ConfigurationError: they can't, with the reason; or a family failed, which the message names.
    """
    options = {"protect_first": protect_first, "drop_in_evaluation": drop_in_evaluation}
    try:
        first_answer(lambda family: family.check_tokens(stack, layers, **options))
    except Refused as reason:
        raise ConfigurationError(f"`model`: tokens can't be dropped in {stack.name!r}: {reason}.") from None


def _layout_or_reason(layer: nn.Module) -> TokenLayout | str:
    """Return the layout of a layer, or the reason why there is none: empty where no family knows it."""
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
        f"it is not known which arguments of its layers ({kinds[0]}) have a token axis; declare them in an "
        "attnwatch.ModelFamily and register it"
    )


def _entries(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """Return the models around a stack, outermost first; where there are none, the module that holds it."""
    names = path.split(".")
    around = [model, *(model.get_submodule(".".join(names[:depth])) for depth in range(1, len(names)))]
    return tuple(filter(_is_model, around)) or (around[-1],)


def _argument_prefix(model: nn.Module, stack: str) -> str:
    return first_answer(lambda family: family.argument_prefix(model, stack)) or ""


def _is_model(module: nn.Module) -> bool:
    return bool(first_answer(lambda family: family.is_model(module)))


def _lies_in(name: str, others: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
