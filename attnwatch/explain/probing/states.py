"""The hidden states of all layers of a model, from one forward."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.subject import Batch, Subject, token_mask
from attnwatch.tokens.stacks import find_stacks
from attnwatch.utils.interception import without_wrappers

HiddenStates = Callable[[nn.Module, Batch], Sequence[Tensor]]
"""Calls a model with a batch; returns [batch, tokens, features] for the embeddings and for each layer."""

Read = Callable[[Batch], list[Tensor]]

# What else it leaves in the attributes of modules.
_LEFT = {"_output_capturing_hooks_installed", "forward"}


def reader(subject: Subject, *, is_given: bool = False) -> Read:
    """A function that returns the states of a batch: of the embeddings, then of each layer.

    transformers models are asked for `output_hidden_states`; of others, hooks see the layers of their stack.

    Args:
        is_given: what the subject returns are the states.

    Raises:
        ConfigurationError: the model has no stack of layers, or more than one.
    """
    if is_given:
        return lambda batch: _checked(subject.output(batch), batch)
    if not subject.has_own_forward:
        return lambda batch: _checked(_of_transformers(subject, batch), batch)
    layers, is_batch_first = _layers(subject.model)
    return lambda batch: _checked(_of_stack(subject, layers, is_batch_first, batch), batch)


def _of_transformers(subject: Subject, batch: Batch) -> Any:
    """Of an encoder-decoder, those of the encoder, which sees `input_ids`."""
    with _without_lasting_hooks(subject.model):
        output = subject.output(batch, output_hidden_states=True)
    return getattr(output, "hidden_states", None) or getattr(output, "encoder_hidden_states", None)


@contextlib.contextmanager
def _without_lasting_hooks(model: nn.Module) -> Iterator[None]:
    """transformers would leave hooks on the modules, which can't be pickled and which compiled code would see.

    Before 5 it would leave a forward that belongs to this module in all copies of it.
    """
    modules = list(model.modules())
    before = [(module, set(module._forward_hooks), _LEFT - vars(module).keys()) for module in modules]
    try:
        yield
    finally:
        for module, known, missing in before:
            for key in set(module._forward_hooks) - known:
                for hooks in (
                    module._forward_hooks,
                    module._forward_hooks_with_kwargs,
                    module._forward_hooks_always_called,
                ):
                    hooks.pop(key, None)
            for name in missing:
                vars(module).pop(name, None)


def _layers(model: nn.Module) -> tuple[list[nn.Module], bool]:
    """Of the model's only stack, and whether their states are [batch, tokens, features].

    Layers are only looked at here, so that those in which tokens can't be dropped do as well.
    """
    stacks, refused = find_stacks(model)
    names = [*stacks, *refused]
    if len(names) != 1:
        found = f"{len(names)} stacks of layers ({', '.join(names)})" if names else "no stack of layers with attention"
        raise ConfigurationError(
            f"`model` ({type(model).__name__}) has {found} in it: give `hidden_states`, a function of (model, batch) "
            "that returns the states of the embeddings and of each layer, each [batch, tokens, features]."
        )
    (name,) = names
    if name in refused:
        return list(model.get_submodule(name)), True
    stack = stacks[name]
    return list(stack.layers), stack.layout.is_batch_first(without_wrappers(stack.layers[0]))


def _of_stack(subject: Subject, layers: list[nn.Module], is_batch_first: bool, batch: Batch) -> list[Tensor]:
    seen: list[Tensor] = []

    def see_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    def see_output(module: nn.Module, args: tuple, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(_removed(layers[0].register_forward_pre_hook(see_input, with_kwargs=True)))
        for layer in layers:
            hooks.enter_context(_removed(layer.register_forward_hook(see_output)))
        subject.output(batch)
    if len(seen) != len(layers) + 1:
        raise ConfigurationError(
            f"`model`: its {len(layers)} layers were called {max(len(seen) - 1, 0)} times in a forward; give "
            "`hidden_states`, a function of (model, batch)."
        )
    tokens = batch["input_ids"].shape[1]
    seen = [_dense(states, tokens) for states in seen]
    return seen if is_batch_first else [states.transpose(0, 1) for states in seen]


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _dense(states: Tensor, tokens: int) -> Tensor:
    """`nn.TransformerEncoder` leaves padding out in evaluation."""
    if not states.is_nested:
        return states
    padded = states.to_padded_tensor(0.0)
    return torch.nn.functional.pad(padded, (0, 0, 0, tokens - padded.shape[1]))


def _checked(states: Any, batch: Batch) -> list[Tensor]:
    shape = token_mask(batch).shape
    if not isinstance(states, Sequence) or not states or not all(_are_of(each, shape) for each in states):
        got = [list(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in states or ()]
        raise ConfigurationError(
            f"`hidden_states`: a tensor [batch, tokens, features] with {list(shape)} first expected for the embeddings "
            f"and each layer, got {got}; give a function of (model, batch) that returns them."
        )
    return list(states)


def _are_of(states: Any, shape: torch.Size) -> bool:
    return isinstance(states, Tensor) and states.ndim == 3 and states.shape[:2] == shape and states.is_floating_point()
