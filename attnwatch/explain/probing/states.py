"""Hidden states of all layers of a model, from one forward."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, token_mask
from attnwatch.explain.evaluated_model import EvaluatedModel
from attnwatch.tokens.stacks import find_stacks
from attnwatch.utils.interception import without_wrappers

HiddenStates = Callable[[nn.Module, Batch], Sequence[Tensor]]
"""Function of a model and a batch that returns [batch, tokens, features] for the embeddings and each layer."""

ReadStates = Callable[[Batch], list[Tensor]]

# Attributes that transformers leaves on modules besides hooks.
_LEFT_ATTRIBUTES = {"_output_capturing_hooks_installed", "forward"}


def states_reader(model: EvaluatedModel, *, returns_states: bool = False) -> ReadStates:
    """Return a function that returns the states of a batch: those of the embeddings, then those of each layer.

    transformers models return them with `output_hidden_states`; in other models, hooks read them from the layers.

    Args:
        returns_states: True if the model's custom forward returns the states.

    Raises:
        ConfigurationError: the model has no stack of layers, or more than one.
    """
    if returns_states:
        return lambda batch: _checked(model.output(batch), batch)
    if not model.has_custom_forward:
        return lambda batch: _checked(_transformers_states(model, batch), batch)
    layers, is_batch_first = _layers(model.model)
    return lambda batch: _checked(_stack_states(model, layers, is_batch_first, batch), batch)


def _transformers_states(model: EvaluatedModel, batch: Batch) -> Any:
    """Return the states; for an encoder-decoder, those of the encoder, which takes `input_ids`."""
    with _without_lasting_hooks(model.model):
        output = model.output(batch, output_hidden_states=True)
    return getattr(output, "hidden_states", None) or getattr(output, "encoder_hidden_states", None)


@contextlib.contextmanager
def _without_lasting_hooks(model: nn.Module) -> Iterator[None]:
    """Remove what transformers leaves on modules after `output_hidden_states`.

    transformers 5 leaves hooks, which can't be pickled and run in compiled code. Earlier versions leave a `forward` in
    the module's dictionary, which copies of the module share.
    """
    modules = list(model.modules())
    before = [(module, set(module._forward_hooks), _LEFT_ATTRIBUTES - vars(module).keys()) for module in modules]
    try:
        yield
    finally:
        for module, known, missing in before:
            for key in set(module._forward_hooks) - known:
                for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
                    vars(module)[name].pop(key, None)
            for name in missing:
                vars(module).pop(name, None)


def _layers(model: nn.Module) -> tuple[list[nn.Module], bool]:
    """Return the layers of the model's only stack, and whether their states are [batch, tokens, features].

    Stacks in which tokens can't be dropped are allowed, because their states are only read.
    """
    stacks, refused = find_stacks(model)
    names = [*stacks, *refused]
    if len(names) != 1:
        found = f"{len(names)} stacks of layers ({', '.join(names)})" if names else "no stack of layers with attention"
        raise ConfigurationError(
            f"`model` ({type(model).__name__}) contains {found}: pass `hidden_states`, a function of (model, batch) "
            "that returns the states of the embeddings and each layer, each [batch, tokens, features]."
        )
    (name,) = names
    if name in refused:
        return list(cast(nn.ModuleList, model.get_submodule(name))), True
    stack = stacks[name]
    return list(stack.layers), stack.layout.is_batch_first(without_wrappers(stack.layers[0]))


def _stack_states(model: EvaluatedModel, layers: list[nn.Module], is_batch_first: bool, batch: Batch) -> list[Tensor]:
    seen: list[Tensor] = []

    def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    with contextlib.ExitStack() as hooks:
        hooks.callback(layers[0].register_forward_pre_hook(read_input, with_kwargs=True).remove)
        for layer in layers:
            hooks.callback(layer.register_forward_hook(read_output).remove)
        model.output(batch)
    if len(seen) != len(layers) + 1:
        raise ConfigurationError(
            f"`model`: its {len(layers)} layers were called {max(len(seen) - 1, 0)} times in a forward; pass "
            "`hidden_states`, a function of (model, batch)."
        )
    seen = [_dense(states, batch["input_ids"].shape[1]) for states in seen]
    return seen if is_batch_first else [states.transpose(0, 1) for states in seen]


def _dense(states: Tensor, tokens: int) -> Tensor:
    """Return states with the padding that `nn.TransformerEncoder` omits in evaluation."""
    if not states.is_nested:
        return states
    padded = states.to_padded_tensor(0.0)
    return torch.nn.functional.pad(padded, (0, 0, 0, tokens - padded.shape[1]))


def _checked(states: Any, batch: Batch) -> list[Tensor]:
    shape = token_mask(batch).shape
    if not isinstance(states, Sequence) or not states or not all(_is_of_shape(each, shape) for each in states):
        got = [list(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in states or ()]
        raise ConfigurationError(
            f"`hidden_states` must return a tensor [batch, tokens, features] with {list(shape)} as batch and tokens "
            f"for the embeddings and each layer, got {got}."
        )
    return list(states)


def _is_of_shape(states: Any, shape: torch.Size) -> bool:
    return isinstance(states, Tensor) and states.ndim == 3 and states.shape[:2] == shape and states.is_floating_point()
