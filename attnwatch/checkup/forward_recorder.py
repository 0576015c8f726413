"""Recorder of the first forward pass of a step that is trained on."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnwatch.capture import find_sites, replace_method
from attnwatch.capture.compilation import compiles_anything
from attnwatch.checkup.changes import ForwardState
from attnwatch.checkup.containers import parts_of, tensors_in
from attnwatch.checkup.forward import POSITIONS, RecordedForward, argument_names, container_of
from attnwatch.checkup.graph import GraphRecorder
from attnwatch.checkup.guard import Guard
from attnwatch.checkup.read_tokens import ReadTokens, read_tokens, some_of
from attnwatch.utils.forwards import is_redirected

# Name of all outputs of later forward passes.
_OTHER = "of another forward"


class ForwardRecorder:
    """Recorder of the first forward pass of a step that is trained on. The model has hooks while a step is open.

    If a step calls parts of the model in turn, the first part with a known attention is recorded; without any, the
    first part.

    Args:
        model: model being trained, or a module that wraps it.
        on_forward, on_backward: functions called when a forward pass begins, and when its backward pass does.

    Attributes:
        forward: the recorded forward pass; None if there was none.
        received: names of its outputs that have received a gradient.
        read: tokens whose outputs the loss reads, by the name of the output.
    """

    def __init__(self, model: nn.Module, on_forward: Callable[[], None], on_backward: Callable[[], None], guard: Guard):
        self._model = model
        self._on_forward, self._on_backward, self._guard = on_forward, on_backward, guard
        self._has_attention = functools.cache(lambda module: bool(find_sites(module)))
        self._state: ForwardState | None = None
        self._names = {module: name for name, module in model.named_modules()}
        self._handles: list[Any] = []
        self._undo: Callable[[], None] = _do_nothing
        self._depth: list[nn.Module] = []
        self._given: dict[str, Any] = {}  # parts of the container that the outermost module received
        self._called: dict[str, None] = {}
        self._positions: dict[str, Tensor] = {}
        self._graph = GraphRecorder(self._names)
        self._size: torch.Size | None = None  # of the first sequence-first attention call
        self.forward: RecordedForward | None = None
        self.received: set[str] = set()
        self.read: dict[str, ReadTokens] = {}

    def open(self) -> None:
        """Register the hooks on the model."""
        self.release()
        self._begin()
        for module in self._names:
            if isinstance(module, torch.jit.ScriptModule):  # accepts no hooks
                continue
            enter, leave = self._guard(self._enter), self._guard(self._leave)
            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        self._undo = self._watch_direct_calls()

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._depth.clear()
        self._undo()
        self._undo = _do_nothing

    def release(self) -> None:
        """Forget the recorded forward pass, whose arguments may be large."""
        self.forward, self.received, self.read, self._given = None, set(), {}, {}

    def _watch_direct_calls(self) -> Callable[[], None]:
        """Record calls of `model.forward`, which skip the hooks, too; return a function that undoes it.

        The forward of the class is replaced, because a copy of the model would keep one of the model itself.
        """
        kind, enter, leave = type(self._model), self._guard(self._enter), self._guard(self._leave)
        if not isinstance(inspect.getattr_static(kind, "forward", None), FunctionType) or compiles_anything():
            return _do_nothing  # compiled code would be recompiled

        def watched(original: FunctionType) -> Callable[..., Any]:
            @functools.wraps(original)
            def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if module is not self._model or self._depth or not self._handles:  # called by hooks, or closed
                    return original(module, *args, **kwargs)
                output = None
                enter(module, args, kwargs)
                try:
                    output = original(module, *args, **kwargs)
                finally:
                    leave(module, args, kwargs, output)
                return output

            return forward

        return replace_method(kind, "forward", watched)

    def _name(self, module: nn.Module) -> str:
        """Return the name of a module; that of the model for a shallow copy of it, which has the same hooks."""
        return self._names.get(module, "")

    def _receive(self, module: nn.Module, name: str, gradient: Tensor) -> None:
        is_recorded = self.forward is not None and self.forward.module is module
        self.received.add(name if is_recorded else _OTHER)
        self._on_backward()

    def _read(self, module: nn.Module, name: str, some_outputs: Tensor, gradient: Tensor) -> None:
        if self.forward is not None and self.forward.module is module:
            self.read.setdefault(name, read_tokens(some_outputs, gradient.detach()))

    def _begin(self) -> None:
        self._called, self._positions, self._graph = {}, {}, GraphRecorder(self._names)
        self._size = None

    def _follow(self, module: nn.Module, inputs: list[Any]) -> None:
        """Leave a recorded part without a known attention if this module, which has one, follows it."""
        first = self.forward
        if first is None or self._has_attention(first.module):
            return
        if any(tensor.grad_fn is not None for _, tensor in tensors_in(inputs)):
            self.forward = None if self._has_attention(module) else replace(first, is_followed=True)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._depth and (isinstance(module, DistributedDataParallel) or is_redirected(module)):
            return  # the module within, or what its other method calls, is what counts
        if not self._depth and torch.is_grad_enabled():
            self._on_forward()
            self._follow(module, [args, kwargs])
            if self.forward is None:
                self._begin()
                self._state = ForwardState(module)
        if not self._depth:
            self._given = _entries(argument_names(module, args, kwargs))
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
            tensor.register_hook(self._guard(partial(self._receive, module, _OTHER if is_other else name)))
        if is_other:
            return
        for name, tensor in computed:
            if type(tensor) is Tensor and not tensor.is_nested and tensor.ndim == 3 and tensor.is_floating_point():
                some = tensor.detach()[some_of(tensor)].clone()
                tensor.register_hook(self._guard(partial(self._read, module, name, some)))
        arguments = argument_names(module, args, kwargs)
        changed = "" if self._state is None else self._state.changed()
        after = _entries(arguments)
        if any(after.get(name) is not value for name, value in self._given.items()):
            arguments, changed = self._given, "the batch that it receives"
        given = {f"`{name}`": value for name, value in arguments.items() if _are_positions(name, value)}
        self.forward = RecordedForward(
            module,
            self._name(module),
            arguments,
            len(args),
            container_of(arguments),
            {name: tensor.shape for name, tensor in tensors_in(output) if not tensor.is_nested},
            module.training,
            _uses_float16(module),
            tuple(self._called),
            given | self._positions,
            changed,
            self._graph.take([tensor for _, tensor in computed], [tensor for _, tensor in tensors_in(arguments)]),
            frozenset(name for name, _ in computed),
            _has_tokens_first(self._size, arguments),
            is_followed=False,
        )


def _entries(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the argument that holds all tensors; empty if there is no such argument."""
    container = container_of(arguments)
    return {str(name): value for name, value in parts_of(arguments[container]).items()} if container else {}


def _do_nothing() -> None:
    return None


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
