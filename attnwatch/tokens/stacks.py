"""The stacks of layers that a model has, and why tokens can't be dropped in some."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from attnwatch.capture import (
    asked_when_traced,
    attention_functions,
    find_sites,
    ignores,
    module_ignores,
    names_in_forward,
    site_name,
)
from attnwatch.errors import ConfigurationError
from attnwatch.tokens.interception import original_class
from attnwatch.tokens.layouts import TORCH, TRANSFORMERS, TokenLayout, registered_layout

# Modules and parameters by which a layer would know how far apart two tokens lie in the tensor.
_POSITIONS_INSIDE = re.compile(r"rotary|relative|rel_pos|alibi|distance|position", re.IGNORECASE)
# Models whose rotary positions are one table [tokens, features], for all sequences the same.
_POSITIONS_WITHOUT_BATCH = ("dinov3_vit", "mlcd_vision_model", "sapiens2")
# In the code of attention that knows the places of the tokens; the scales of Llama 4 go by them.
_COUNTING = {"arange", "floor_scale"}
_LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
_MIXING = (nn.modules.conv._ConvNd, nn.RNNBase)


@dataclass(frozen=True, eq=False)
class Stack:
    """Layers that a model runs one after the other.

    Attributes:
        name: path of their container in the model.
        layers: in their order.
        layout: what each is given.
        entries: the modules whose call may be one forward of the model, outermost first.
        model: in which it was found.
    """

    name: str
    layers: tuple[nn.Module, ...]
    layout: TokenLayout
    entries: tuple[nn.Module, ...]
    model: nn.Module

    @property
    def says_something_of_each_token(self) -> bool:
        """As language models do, and taggers."""
        names = type(self.entries[0]).__name__
        return any(part in names for part in ("LMHead", "CausalLM", "MaskedLM", "TokenClass", "QuestionAnswering"))

    @asked_when_traced
    def ignores(self, name: str) -> bool:
        """Whether no layer looks at a keyword argument of this name, nor an attention function that it calls."""
        return all(module_ignores(inner(layer), name) for layer in self.layers) and all(
            ignores(function, name) for layer in self.layers for function in attention_functions(layer)
        )

    @property
    def is_decoder_of_two(self) -> bool:
        """Of an encoder-decoder, whose decoder is given arguments of its own."""
        config = getattr(self.entries[0], "config", None)
        return bool(getattr(config, "is_encoder_decoder", False)) and "decoder" in self.name


def find_stacks(model: nn.Module) -> tuple[dict[str, Stack], dict[str, str]]:
    """Stacks in which tokens can be dropped, by name, and for the others why not."""
    stacks, refused = {}, {}
    for path, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential) or not len(container):
            continue
        layers = tuple(container)
        name = site_name(path, container)
        layout = _layout(layers[0])
        if layout is not None and all(_layout(layer) is layout for layer in layers):
            stacks[name] = Stack(name, layers, layout, _entries(model, path), model)
        elif any(_attends(layer) for layer in layers) and not _lies_in(name, (*stacks, *refused)):
            refused[name] = _why_unknown(layers)
    return stacks, refused


def choose_stack(model: nn.Module, name: str | None) -> Stack:
    """The model's stack of that name, or its only one.

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
    """Both inclusive and not negative. The last one is by default the last but one.

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


def why_not(stack: Stack, layers: tuple[nn.Module, ...], *, has_starts: bool = True) -> str:
    """Why tokens can't be dropped in these layers of a stack; empty where they can.

    Args:
        has_starts: the first token of each document stays.
    """
    config = getattr(stack.entries[0], "config", None)
    implementation = str(getattr(config, "_attn_implementation", ""))
    if implementation == "flex_attention":
        return "flex attention's block masks can't be cut; use attn_implementation='sdpa'"
    if getattr(config, "output_router_logits", False):
        return "its loss wants the router logits of all tokens (output_router_logits)"
    if "flash" in implementation and not has_starts:
        return "flash attention tells documents apart by their first tokens: `protect_first` must be at least 1"
    skipping = next((name for name in _LAYER_DROPS if getattr(config, name, None)), None)
    if skipping is not None:
        return f"layers are left out at random ({skipping}={getattr(config, skipping)}); set it to 0"
    if getattr(config, "use_mid_position_embeddings", False):
        return "positions of all tokens are added between its layers (use_mid_position_embeddings)"
    if stack.layout is not TRANSFORMERS:
        return ""
    if getattr(config, "model_type", "") in _POSITIONS_WITHOUT_BATCH:
        return f"{config.model_type} has one table of positions for all sequences, and each keeps other tokens"
    depth = getattr(config, "num_hidden_layers", None)
    if isinstance(depth, int) and depth > len(stack.layers):
        return f"its {depth} layers share the weights of {len(stack.layers)}"
    for layer in layers:
        reason = _why_not_layer(layer)
        window = _window(layer)
        if not reason and "flash" in implementation and window is not None:
            reason = (
                f"flash attention measures its window of {window} tokens in the tensor, where some are missing; "
                "use attn_implementation='sdpa'"
            )
        if reason:
            return f"layer {stack.layers.index(layer)}: {reason}"
    return ""


def inner(layer: nn.Module) -> nn.Module:
    """A layer without the wrappers of torch.compile and of activation checkpointing."""
    for name in ("_orig_mod", "_checkpoint_wrapped_module"):
        layer = getattr(layer, name, layer)
    return layer


def _layout(layer: nn.Module) -> TokenLayout | None:
    layer = inner(layer)
    layout = registered_layout(layer)
    if layout is not None:
        return layout
    if isinstance(layer, nn.TransformerEncoderLayer):
        return TORCH if type(layer).forward is nn.TransformerEncoderLayer.forward else None
    if not _is_of_transformers(layer):
        return None
    named = _named_arguments(layer)
    is_layer = named[:1] == [TRANSFORMERS.states] and _attends(layer) and not _is_attention(layer)
    return TRANSFORMERS if is_layer and all(map(TRANSFORMERS.knows, named)) else None


def _named_arguments(layer: nn.Module) -> list[str]:
    """But for flags that say what else to return."""
    parameters = inspect.signature(type(layer).forward).parameters.items()
    named = [name for name, parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD][1:]
    return [name for name in named if not name.startswith("output_")]


def _why_unknown(layers: tuple[nn.Module, ...]) -> str:
    kinds = list(dict.fromkeys(original_class(inner(layer)).__name__ for layer in layers))
    if len(kinds) > 1:
        return f"its layers are of several kinds ({', '.join(kinds)})"
    name, named = kinds[0], _named_arguments(inner(layers[0]))
    unknown = [each for each in named if not TRANSFORMERS.knows(each)]
    if _is_of_transformers(inner(layers[0])) and TRANSFORMERS.states in named and unknown:
        return f"its layers ({name}) take {', '.join(unknown)}, which can't be cut to the kept tokens"
    return f"what its layers ({name}) are given is not known; describe it with attnwatch.register_token_layout"


def _is_of_transformers(layer: nn.Module) -> bool:
    return original_class(layer).__module__.split(".")[0] in ("transformers", "transformers_modules")


def _attends(layer: nn.Module) -> bool:
    return bool(find_sites(layer))


def _is_attention(layer: nn.Module) -> bool:
    return any(site.module is layer for site in find_sites(layer))


def _why_not_layer(layer: nn.Module) -> str:
    for site in find_sites(layer):
        if not site.is_readable:
            return f"{site.name} {site.reason}"
        counting = sorted(_COUNTING & names_in_forward(type(site.module)))
        if counting:
            return f"{site.name} counts the tokens in the tensor ({counting[0]}), which it would take for positions"
    for path, module in layer.named_modules():
        if isinstance(module, _MIXING):
            return f"{path} ({type(module).__name__}) mixes tokens that are neighbours in the tensor"
        names = [type(module).__name__, path.rpartition(".")[2], *module._parameters, *module._buffers]
        found = next((name for name in names if path and _POSITIONS_INSIDE.search(name)), None)
        if found is not None:
            return f"{path} ({found}) knows positions itself, which it would take from the tensor"
        if any(_is_mask(buffer) for buffer in module._buffers.values()):
            return f"{path} has a mask of its own, which goes by the places of the tokens in the tensor"
    return ""


def _is_mask(buffer: torch.Tensor | None) -> bool:
    """A causal mask is right for tokens in their order, any other (of a local attention) is not."""
    if buffer is None or buffer.dtype != torch.bool or buffer.ndim < 2:
        return False
    return not torch.equal(buffer, torch.ones_like(buffer).tril())


def _window(layer: nn.Module) -> int | None:
    """Of sliding-window attention: the module's own, or the config's, which the code of some asks."""
    for site in find_sites(layer):
        config = getattr(site.module, "config", None)
        window = getattr(site.module, "sliding_window", getattr(config, "sliding_window", None))
        if window is not None:
            return window
    return None


def _entries(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    """The transformers models around the stack, or the module that holds it."""
    ancestors = list(_ancestors(model, path))
    models = [
        module for module in ancestors if any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)
    ]
    return tuple(models) or (ancestors[-1],)


def _ancestors(model: nn.Module, path: str) -> Iterator[nn.Module]:
    yield model
    names = path.split(".")
    for depth in range(1, len(names)):
        yield model.get_submodule(".".join(names[:depth]))


def _lies_in(name: str, others: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
