"""Forward pass of a training step, with the tensors that the model received and returned."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attnwatch.checkup.containers import parts_of, tensors_in, with_parts
from attnwatch.checkup.graph import Graph
from attnwatch.utils.forwards import parameters_of

# Parts of the names of adapter parameters.
_ADAPTERS = ("lora", "adapter", "ia3", "vera", "oft", "prompt_encoder")
POSITIONS = re.compile(r"(^|[._])(pos|wpe)([._]|$)|pos_?emb|position|rotary|rope|alibi|relative", re.IGNORECASE)
"""Pattern for the names of modules, parameters and arguments that concern positions."""


_Value = TypeVar("_Value")


class CannotCheck(Exception):
    """Exception raised if a check can't be done. The message is the reason."""


def known(value: Callable[[], _Value], otherwise: _Value) -> _Value:
    """Return what a function computes, or `otherwise` if it raises `CannotCheck`."""
    try:
        return value()
    except CannotCheck:
        return otherwise


@dataclass(frozen=True)
class RecordedForward:
    """First forward pass of a step that is trained on.

    Attributes:
        module: outermost called module.
        name: path of the module in the model; empty for the model itself.
        given: arguments of the call by name, positional ones first.
        num_positional: number of positional arguments.
        container: name of the only argument with tensors if it is a mapping, a dataclass or a named tuple, such as the
            whole batch; empty if there is none.
        shapes: shapes of the tensors that the module returned, by name or index.
        was_training: True if the module was in train mode.
        uses_float16: True if the module computed in float16, through autocast or its weights.
        called: names of the modules called during the forward pass, in the order of their first calls.
        positions: position ids by the argument or module that received them.
        changes: name of something that the forward pass changed in the module; empty if it changed nothing.
        graph: what the outputs were computed from.
        with_gradient: names of the tensors that the module returned with a gradient.
        has_tokens_first: True if the batch is sequence-first, [tokens, batch, features], as `nn.MultiheadAttention`
            expects by default, and a mask confirms it.
        is_followed: True if the step passes its outputs to another part of the model.
    """

    module: nn.Module
    name: str
    given: Mapping[str, Any]
    num_positional: int
    container: str
    shapes: Mapping[str, torch.Size]
    was_training: bool
    uses_float16: bool
    called: tuple[str, ...]
    positions: Mapping[str, Tensor]
    changes: str
    graph: Graph
    with_gradient: frozenset[str]
    has_tokens_first: bool
    is_followed: bool

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of the call by name, positional ones first; the parts of the `container` instead of it."""
        if not self.container:
            return self.given
        others = {name: value for name, value in self.given.items() if name != self.container}
        return others | {str(name): value for name, value in parts_of(self.given[self.container]).items()}

    def repeat(self, arguments: Mapping[str, Any]) -> Any:
        """Call the module with these `arguments` instead of the recorded ones."""
        if self.container:
            old = self.given[self.container]
            new = with_parts(old, {name: arguments[str(name)] for name in parts_of(old)})
            arguments = {**self.given, self.container: new}
        values, number = list(arguments.items()), self.num_positional
        return self.module(*(value for _, value in values[:number]), **dict(values[number:]))

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that the module received.

        Raises:
            CannotCheck: there are none.
        """
        tensors = [tensor for _, tensor in tensors_in(self.arguments)]
        if not tensors:
            raise CannotCheck("the model received no tensor")
        return tensors

    @property
    def why_not(self) -> str:
        """Reason why the module's inputs can't be checked; empty if they can."""
        tensors = [tensor for _, tensor in tensors_in(self.arguments)]
        if any(tensor.is_nested for tensor in tensors):
            return "the model received a nested tensor, whose tokens can't be changed: check it with a padded batch"
        first = next((tensor for tensor in tensors if tensor.ndim > 1), None)
        if first is not None and not first.numel():
            return f"the batch is empty: the model received a tensor of shape {list(first.shape)}"
        return ""

    @property
    def num_sequences(self) -> int:
        """Size of the batch: the first dimension of most tensor arguments, or the second if tokens come first."""
        tensors = [(name, value) for name, value in self.arguments.items() if isinstance(value, Tensor)]
        if self.has_tokens_first:  # masks are [tokens, tokens] or [batch, tokens]
            sizes = [value.shape[1] for name, value in tensors if value.ndim > 1 and "mask" not in name]
        else:
            sizes = [len(value) for _, value in tensors if value.ndim]
        if not sizes:
            raise CannotCheck("the model received no tensor by name or position")
        size = max(sizes, key=sizes.count)
        if not size:
            raise CannotCheck("the batch is empty")
        return size


def is_of_adapter(name: str) -> bool:
    """Return whether a parameter with this name belongs to an adapter, such as LoRA."""
    return any(part in name.lower() for part in _ADAPTERS)


def is_encoder_decoder(module: nn.Module) -> bool:
    """Return whether a transformers model has an encoder and a decoder, each with its own tokens."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def argument_names(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; positional ones without a name are called "0", "1", …"""
    named = [
        name
        for name, parameter in parameters_of(module.forward).items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = named + [str(index) for index in range(len(named), len(args))]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def container_of(arguments: Mapping[str, Any]) -> str:
    """Return the name of the only argument with tensors if its parts have names; empty if there is none."""
    holding = [name for name, value in arguments.items() if any(True for _ in tensors_in(value))]
    value = arguments[holding[0]] if len(holding) == 1 else None
    has_names = isinstance(value, Mapping) or is_dataclass(value) or hasattr(value, "_fields")
    return holding[0] if has_names else ""
