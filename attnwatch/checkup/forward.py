"""Forward pass of a training step, with the tensors that the model received and returned."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnwatch.checkup.changes import ForwardState
from attnwatch.checkup.graph import Graph, GraphRecorder
from attnwatch.checkup.guard import Guard
from attnwatch.checkup.read_tokens import ReadTokens, read_tokens, some_of
from attnwatch.utils.forwards import parameters_of

# Name of all outputs of later forward passes.
_OTHER = "of another forward"
# Parts of the names of adapter parameters.
_ADAPTERS = ("lora", "adapter", "ia3", "vera", "oft", "prompt_encoder")
POSITIONS = re.compile(r"(^|[._])(pos|wpe)([._]|$)|pos_?emb|position|rotary|rope|alibi|relative", re.IGNORECASE)
"""Pattern for the names of modules, parameters and arguments that concern positions."""


class CannotCheck(Exception):
    """Exception raised if a check can't be done. The message is the reason."""


@dataclass(frozen=True)
class RecordedForward:
    """First forward pass of a step that is trained on.

    Attributes:
        module: outermost called module.
        name: path of the module in the model; empty for the model itself.
        arguments: arguments of the call by name, positional ones first.
        num_positional: number of positional arguments.
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
    """

    module: nn.Module
    name: str
    arguments: Mapping[str, Any]
    num_positional: int
    shapes: Mapping[str, torch.Size]
    was_training: bool
    uses_float16: bool
    called: tuple[str, ...]
    positions: Mapping[str, Tensor]
    changes: str
    graph: Graph
    with_gradient: frozenset[str]
    has_tokens_first: bool

    def repeat(self, arguments: Mapping[str, Any]) -> Any:
        """Call the module with these arguments instead of the recorded ones."""
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


def tensors_in(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in mappings, lists, tuples and dataclasses with their names, or with indices as names."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from ((str(name), each) for _, each in tensors_in(value))
    elif isinstance(output, list | tuple):
        for place, value in zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True):
            yield from ((place, each) for _, each in tensors_in(value))
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from ((field.name, each) for _, each in tensors_in(getattr(output, field.name, None)))


class ForwardRecorder:
    """Recorder of the first forward pass of a step that is trained on. The model has hooks while a step is open.

    Args:
        model: model being trained, or a module that wraps it.
        on_forward, on_backward: functions called when a forward pass begins, and when its backward pass does.

    Attributes:
        forward: the recorded forward pass; None if there was none.
        received: names of its outputs that have received a gradient.
        read: tokens whose outputs the loss reads, by the name of the output.
    """

    def __init__(self, model: nn.Module, on_forward: Callable[[], None], on_backward: Callable[[], None], guard: Guard):
        self._on_forward, self._on_backward, self._guard = on_forward, on_backward, guard
        self._state: ForwardState | None = None
        self._names = {module: name for name, module in model.named_modules()}
        self._handles: list[Any] = []
        self._depth: list[nn.Module] = []
        self._called: dict[str, None] = {}
        self._positions: dict[str, Tensor] = {}
        self._graph = GraphRecorder(self._names)
        self._size: torch.Size | None = None  # of the first sequence-first attention call
        self.forward: RecordedForward | None = None
        self.received: set[str] = set()
        self.read: dict[str, ReadTokens] = {}

    def open(self) -> None:
        """Register the hooks on the model."""
        self.forward, self.received, self.read = None, set(), {}
        self._begin()
        for module in self._names:
            if isinstance(module, torch.jit.ScriptModule):  # accepts no hooks
                continue
            leave = self._guard(self._leave)
            self._handles.append(module.register_forward_pre_hook(self._guard(self._enter)))
            self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._depth.clear()

    def _name(self, module: nn.Module) -> str:
        """Return the name of a module; that of the model for a shallow copy of it, which has the same hooks."""
        return self._names.get(module, "")

    def _receive(self, name: str, gradient: Tensor) -> None:
        self.received.add(name)
        self._on_backward()

    def _read(self, name: str, some_outputs: Tensor, gradient: Tensor) -> None:
        self.read.setdefault(name, read_tokens(some_outputs, gradient.detach()))

    def _begin(self) -> None:
        self._called, self._positions, self._graph = {}, {}, GraphRecorder(self._names)
        self._size = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._depth and torch.is_grad_enabled():
            self._on_forward()
            if self.forward is None:
                self._begin()
                self._state = ForwardState(module)
        self._depth.append(module)
        name = self._name(module)
        self._called[name] = None
        if _embeds_what_it_is_given(module) and POSITIONS.search(name) and args and isinstance(args[0], Tensor):
            self._positions[name] = args[0]

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._depth or self._depth.pop() is not module:  # interrupted by an error
            self._depth.clear()
            return
        if self._depth:
            if self._size is None and isinstance(module, nn.MultiheadAttention):
                self._size = _size_of_tokens_first(module, argument_names(module, args, kwargs))
            if self.forward is None and torch.is_grad_enabled():
                self._graph.add(module, args, [tensor for _, tensor in tensors_in(output)])
            elif self.forward is None:
                self._graph.add_without_grad(module, [tensor for _, tensor in tensors_in([args, kwargs])])
            return
        if not torch.is_grad_enabled():
            return
        computed = [(name, tensor) for name, tensor in tensors_in(output) if tensor.grad_fn is not None]
        is_other = not computed or self.forward is not None
        for name, tensor in computed:
            tensor.register_hook(self._guard(partial(self._receive, _OTHER if is_other else name)))
        if is_other:
            return
        for name, tensor in computed:
            if type(tensor) is Tensor and not tensor.is_nested and tensor.ndim == 3 and tensor.is_floating_point():
                some = tensor.detach()[some_of(tensor)].clone()
                tensor.register_hook(self._guard(partial(self._read, name, some)))
        arguments = argument_names(module, args, kwargs)
        given = {f"`{name}`": value for name, value in arguments.items() if _are_positions(name, value)}
        self.forward = RecordedForward(
            module,
            self._name(module),
            arguments,
            len(args),
            {name: tensor.shape for name, tensor in tensors_in(output) if not tensor.is_nested},
            module.training,
            _uses_float16(module),
            tuple(self._called),
            given | self._positions,
            "" if self._state is None else self._state.changed(),
            self._graph.take([tensor for _, tensor in computed], [tensor for _, tensor in tensors_in(arguments)]),
            frozenset(name for name, _ in computed),
            _has_tokens_first(self._size, arguments),
        )


def _embeds_what_it_is_given(module: nn.Module) -> bool:
    """Return whether a module is a plain embedding; those of OPT and BART override forward to count positions."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward


def _size_of_tokens_first(attention: nn.MultiheadAttention, arguments: Mapping[str, Any]) -> torch.Size | None:
    """Return the size [tokens, batch] of a call whose masks show that its tokens come first; None if they do not."""
    query, padding, mask = (arguments.get(name) for name in ("query", "key_padding_mask", "attn_mask"))
    if attention.batch_first or not isinstance(query, Tensor) or query.ndim != 3 or query.is_nested:
        return None
    is_shown = padding is not None or (isinstance(mask, Tensor) and mask.shape[-2] == len(query))
    return query.shape[:2] if is_shown else None


def _has_tokens_first(size: torch.Size | None, arguments: Mapping[str, Any]) -> bool:
    """Return whether a model receives tensors [tokens, batch, …], and does not transpose them itself."""
    given = [tensor for name, tensor in tensors_in(arguments) if tensor.ndim > 1 and "mask" not in name]
    sizes = {tensor.shape[:2] for tensor in given if tensor.dtype is not torch.bool and not tensor.is_nested}
    return size is not None and size in sizes and size[::-1] not in sizes


def _are_positions(name: str, value: Any) -> bool:
    return name == "position_ids" and isinstance(value, Tensor) and not value.is_floating_point()


def _uses_float16(module: nn.Module) -> bool:
    parameter = next(module.parameters(), None)
    if parameter is None:
        return False
    kind = parameter.device.type
    by_autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return by_autocast or parameter.dtype is torch.float16
