"""The forward of a training step: what the model was given and returned, by name, and repeats of it."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.capture import undisturbed

# A repeated forward is given so many sequences at most.
_MOST_SEQUENCES = 4
# Outputs that are one for each token or sequence, in order of preference.
_OUTPUTS = ("logits", "last_hidden_state", "prediction_logits", "start_logits")
# Parts of the names of adapters beside the weights of a model.
_ADAPTERS = ("lora", "adapter", "ia3", "vera", "oft", "prompt_encoder")
# Objects that a forward changes, so that a second one would see what the first one has left there.
_CACHES = ("past_key_values", "past_key_value", "cache_params", "encoder_outputs")


class CannotCheck(Exception):
    """A check can't be done. The message is the reason."""


@dataclass(frozen=True)
class RecordedForward:
    """First forward of a step that is trained on.

    Attributes:
        module: outermost module that was called.
        name: path of it in the model; empty for the model itself.
        arguments: what it was given, by name, those that were given by position first.
        num_positional: number of arguments that were given by position.
        output: tensors that it returned, detached, by name or place.
        was_training: flag that the module was in train mode.
        uses_float16: flag that it computed in float16, by autocast or by its weights.
        called: names of the modules that were called in it.
    """

    module: nn.Module
    name: str
    arguments: Mapping[str, Any]
    num_positional: int
    output: Mapping[str, Tensor]
    was_training: bool
    uses_float16: bool
    called: frozenset[str]

    def repeat(self, arguments: Mapping[str, Any]) -> Any:
        """Call the module with these arguments in place of the recorded ones."""
        values, number = list(arguments.items()), self.num_positional
        return self.module(*(value for _, value in values[:number]), **dict(values[number:]))

    def require_weights(self) -> None:
        """Raise `CannotCheck` if a weight matrix is zero, as output layers may be at the start: nothing moves then."""
        for name, parameter in self.module.named_parameters():
            if parameter.ndim > 1 and parameter.numel() and not is_of_adapter(name) and not parameter.any():
                raise CannotCheck(f"{name} is zero, so that nothing behind it moves")

    @property
    def similarities(self) -> frozenset[str]:
        """Names of the outputs [batch, batch] of a large batch, which compare each sequence with all others."""
        size = self.num_sequences
        if size <= _MOST_SEQUENCES:
            return frozenset()
        return frozenset(name for name, tensor in self.output.items() if tensor.shape == (size, size))

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that the module was given.

        Raises:
            CannotCheck: there are none.
        """
        tensors = [tensor for _, tensor in tensors_in(self.arguments)]
        if not tensors:
            raise CannotCheck("the model was given no tensor")
        return tensors

    @property
    def num_sequences(self) -> int:
        """Size of the batch, the first dimension that most of the tensors among the arguments share."""
        sizes = [len(value) for value in self.arguments.values() if isinstance(value, Tensor) and value.ndim]
        if not sizes:
            raise CannotCheck("the model was given no tensor by name or position")
        return max(sizes, key=sizes.count)


class Repeats:
    """Forwards that repeat a recorded one with one thing changed, in eval mode and without gradients.

    Args:
        forward: what is repeated, with its first sequences only.

    Raises:
        CannotCheck: it can't be repeated.
    """

    def __init__(self, forward: RecordedForward):
        self._forward = forward
        held = [name for name in _CACHES if forward.arguments.get(name) is not None]
        if held:
            raise CannotCheck(f"the model was given `{held[0]}`, which its forward changes")
        size = forward.num_sequences
        self.num_sequences = min(size, _MOST_SEQUENCES)
        self.arguments = {name: _first(value, size, self.num_sequences) for name, value in forward.arguments.items()}
        self._has_decoder = is_encoder_decoder(forward.module)
        self._lengths = {value.shape[1] for _, value in tensors_in(self.arguments) if value.ndim >= 2}
        self._unchanged: Tensor | None = None

    def output(self, **changes: Any) -> Tensor:
        """Return the output with these arguments changed, float32 [batch, …].

        Raises:
            CannotCheck: the forward fails, or returns no tensor with one entry per sequence.
        """
        module = self._forward.module
        try:
            with undisturbed(module):
                torch.manual_seed(0)
                output = self._forward.repeat({**self.arguments, **changes})
        except Exception as error:
            raise CannotCheck(f"the forward can't be repeated: {type(error).__name__}: {error}") from error
        output = _main_output(output, self.num_sequences, self._forward.similarities)
        if output.ndim == 3 and output.shape[1] not in self._lengths and not self._has_decoder:
            raise CannotCheck(f"the model returns {output.shape[1]} outputs for {sorted(self._lengths)} tokens")
        return output.float()

    @property
    def unchanged(self) -> Tensor:
        """Output of the forward as it was, which is computed once."""
        if self._unchanged is None:
            self._unchanged = self.output()
        return self._unchanged


def is_of_adapter(name: str) -> bool:
    """Return whether a parameter of this name belongs to an adapter, such as LoRA's, beside the weights of a model."""
    return any(part in name.lower() for part in _ADAPTERS)


def is_encoder_decoder(module: nn.Module) -> bool:
    """Return whether a transformers model has an encoder and a decoder, with tokens of their own."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def argument_names(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; positional ones without a name are called "0", "1", …"""
    named = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = named + [str(index) for index in range(len(named), len(args))]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _first(value: Any, size: int, number: int) -> Any:
    """Return the first sequences of a value, wherever its tensors lie."""
    if isinstance(value, Tensor):
        return value.detach()[:number] if value.ndim and len(value) == size else value.detach()
    if isinstance(value, Mapping) and type(value) is dict:
        return {name: _first(each, size, number) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_first(each, size, number) for each in value)
    if isinstance(value, Iterator):
        raise CannotCheck("the model was given an iterator, which can be read once")
    return value


def tensors_in(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an output with their names, or their places as names."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from ((str(name), each) for _, each in tensors_in(value))
    elif isinstance(output, list | tuple):
        for place, value in enumerate(output):
            yield from ((str(place), each) for _, each in tensors_in(value))


def _main_output(output: Any, num_sequences: int, similarities: Collection[str]) -> Tensor:
    """Return the output that is one for each sequence or token: by its name, else the first of the most dimensions."""
    fitting = {
        name: tensor
        for name, tensor in tensors_in(output)
        if tensor.ndim >= 2 and len(tensor) == num_sequences and tensor.is_floating_point() and name not in similarities
    }
    if not fitting:
        raise CannotCheck("the model returns no tensor [batch, …] of floating-point numbers, such as its logits")
    by_name = [fitting[name] for name in _OUTPUTS if name in fitting]
    return (by_name or sorted(fitting.values(), key=lambda tensor: -min(tensor.ndim, 3)))[0]


class ForwardRecorder:
    """Records the first forward in a step that is trained on. Hooks lie on the model while a step is open.

    Args:
        model: model that trains, or a module around it.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._handles: list[Any] = []
        self._depth: list[nn.Module] = []
        self._called: set[str] = set()
        self.forward: RecordedForward | None = None

    def open(self) -> None:
        """Put the hooks on the model."""
        self.forward = None
        self._called.clear()
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._depth.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._depth and torch.is_grad_enabled() and self.forward is None:
            self._called.clear()
        self._depth.append(module)
        self._called.add(self._names[module])

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._depth or self._depth.pop() is not module:  # interrupted by an error
            self._depth.clear()
            return
        if self._depth or self.forward is not None or not torch.is_grad_enabled():
            return
        if not any(tensor.requires_grad for _, tensor in tensors_in(output)):
            return
        self.forward = RecordedForward(
            module,
            self._names[module],
            argument_names(module, args, kwargs),
            len(args),
            {name: tensor.detach() for name, tensor in tensors_in(output)},
            module.training,
            _uses_float16(module),
            frozenset(self._called),
        )


def _uses_float16(module: nn.Module) -> bool:
    parameter = next(module.parameters(), None)
    if parameter is None:
        return False
    kind = parameter.device.type
    by_autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return by_autocast or parameter.dtype is torch.float16
