"""Delivery of patched attention calls to the captures that watch their modules, in eager and in compiled code.

In eager code, a call is read only if a capture is armed. In code traced by `torch.compile`, reading is part of the
graph and ends in a custom operator. The operator checks at run time whether a capture is armed, so that arming neither
breaks the graph nor recompiles it. It is declared to mutate a token, which keeps it in the graph, and to be unsafe in
CUDA graphs, which would replay kernels without the check.
"""

import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture.compilation import NOT_IN_CUDA_GRAPHS, ORDER
from attnwatch.capture.forward_pass import gradient_of, in_backward, or_recorded
from attnwatch.capture.positions import kept_positions
from attnwatch.utils.hooks import Remove, put

if TYPE_CHECKING:
    from attnwatch.capture.capture import Capture

CallInputs = AttentionInputs | str
"""Inputs of an attention call, or the reason why they can't be read."""


class _Mark:
    """Number of a module in compiled code, which distinguishes similar modules that share graphs.

    A copy of the module is a different module and has no number.
    """

    def __init__(self, number: int):
        self.digits = str(number)  # an integer would become a variable of the graph


_MARK = "_attnwatch_mark"
# A compiled graph holds only the number of a module, and outlives the capture that it was traced with. Therefore,
# numbers are unique in the process: a module keeps its number for the next capture, and no other module ever gets it.
_next_number = itertools.count()
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
# Only their owners keep captures alive, so that a capture that was never closed ends with its owner.
_captures: dict[int, tuple[tuple["weakref.ref[Capture]", str], ...]] = {}
_marks: dict[int, Remove] = {}
_lock = threading.RLock()


def subscribe(module: nn.Module, capture: "weakref.ref[Capture]", site: str) -> None:
    """Also deliver the calls of `module` to `capture`, under the name `site`, until `unsubscribe`."""
    with _lock:
        number = _numbers.get(module)
        if number is None:
            number = _numbers[module] = next(_next_number)
        if number not in _captures:
            _marks[number] = put(module, attributes={_MARK: _Mark(number)})
        _captures[number] = (*_captures.get(number, ()), (capture, site))


def unsubscribe(module: nn.Module, capture: "weakref.ref[Capture]") -> None:
    """Stop delivering the calls of `module` to `capture`."""
    with _lock:
        number = _numbers[module]
        left = tuple((other, site) for other, site in _captures[number] if other is not capture)
        if left:
            _captures[number] = left
        else:
            del _captures[number]
            _marks.pop(number)()


def site_id(module: nn.Module) -> int | None:
    """Return the number under which calls of this module are delivered; None if no capture watches it."""
    if torch.compiler.is_compiling():
        mark = getattr(module, _MARK, None)
        return None if mark is None else int(mark.digits)
    number = _numbers.get(module)
    return number if number in _captures else None


def is_armed(number: int | None) -> bool:
    """Return whether a capture currently receives calls under this number."""
    return number is not None and bool(_armed(number))


def _armed(number: int) -> list[tuple["Capture", str]]:
    """Return the captures that currently receive calls under this number, with their names for the site."""
    found = [(reference(), site) for reference, site in _captures.get(number, ())]
    return [(capture, site) for capture, site in found if capture is not None and capture.armed]


def begin(number: int | None) -> None:
    """Notify armed captures that the forward of this module begins, whether or not it makes a call."""
    if number is None or torch.compiler.is_compiling() or in_backward():
        return
    for capture, site in _armed(number):
        capture.begin(site)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Hide calls from the currently armed captures, since extra forwards are not part of training."""
    armed = {id(capture): capture for number in list(_captures) for capture, _ in _armed(number)}
    for capture in armed.values():
        capture.armed = False
    try:
        yield
    finally:
        for capture in armed.values():
            capture.armed = True


def deliver(number: int, read: Callable[..., CallInputs], *args: Any, sources: Iterable[Tensor] = ()) -> None:
    """Pass the call described by `read(*args)` to the captures of a module. Never raises `Exception` in eager code.

    Nothing is delivered while PyTorch traces without Dynamo, as when it exports models or runs functions that Dynamo
    leaves opaque: tensors have no values there, and passing real tensors to the operators is an error.

    Args:
        number: number of the module, see `site_id`.
        read: function that reads the call, called only if a capture is armed, or in traced code.
        args: arguments of `read`.
        sources: tensors that query and key were computed from, if these do not show whether they need a gradient.
    """
    if torch.compiler.is_compiling():
        if not torch.compiler.is_dynamo_compiling():
            return
        inputs = read(*args)
        _deliver_compiled(number, inputs, gradient_of(_query_and_key(inputs)))
        return
    _deliver_now(number, lambda inputs: gradient_of((*_query_and_key(inputs), *sources)), read, *args)


def _query_and_key(inputs: CallInputs) -> tuple[Tensor, ...]:
    return () if isinstance(inputs, str) else (inputs.query, inputs.key)


def _deliver_now(
    number: int, gradient: Callable[[CallInputs], int], read: Callable[..., CallInputs], *args: Any
) -> None:
    armed = _armed(number)
    if not armed or in_backward():
        return
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        read, args = _read_in_cuda_graph, ()
    for capture, site in armed:
        try:
            inputs = read(*args)
            capture.receive(site, inputs, or_recorded(gradient(inputs)))
        except Exception as error:
            capture.fail(site, error)


def _read_in_cuda_graph() -> CallInputs:
    return (
        "it was called during the capture of a CUDA graph, which replays kernels but no code; capture the graph "
        "without attention, or use torch.compile(mode='reduce-overhead'), which is observed"
    )


def _deliver_compiled(number: int, inputs: CallInputs, gradient: int) -> None:
    if not isinstance(inputs, str) and inputs.mask_mod is not None:
        inputs = "a flex-attention block mask can't be read inside torch.compile; compile the model without it"
    if not isinstance(inputs, str):
        inputs = _why_not_an_argument(inputs) or inputs
    if isinstance(inputs, str):
        _not_observed(ORDER, number, gradient, inputs)
        return
    given = [getattr(inputs, name) for name in _ARGUMENTS]
    detached = [value.detach() if isinstance(value, Tensor) else value for value in given]
    has_positions = inputs.has_positions and kept_positions(inputs.num_queries) is None
    _observe(ORDER, number, gradient, has_positions, *detached)


def _why_not_an_argument(inputs: AttentionInputs) -> str:
    """Return the reason why the operator can't take a part of a call, such as a tensor scale; empty if it can."""
    for name, kinds in _ARGUMENTS.items():
        if not isinstance(getattr(inputs, name), kinds):
            return f"its {name} can't be read inside torch.compile, because it is not a {kinds[0].__name__}"
    return ""


_CALL = "Tensor(a!) token, int number, int gradient"
# The parts of `AttentionInputs` that can be passed to an operator.
_INPUTS = (
    "Tensor query, Tensor key, Tensor? attn_mask, bool is_causal, float? scale, float? softcap, Tensor? position_bias, "
    "Tensor? learned_sink, int? sliding_window, Tensor? key_padding, Tensor? segments"
)
_KINDS: dict[str, tuple[type, ...]] = {"Tensor": (Tensor,), "bool": (bool,), "int": (int,), "float": (float, int)}
_ARGUMENTS = {
    name: (*_KINDS[kind.rstrip("?")], *([type(None)] if kind.endswith("?") else []))
    for kind, name in (part.split() for part in _INPUTS.split(", "))
}
_operator = functools.partial(torch.library.custom_op, mutates_args=("token",), tags=NOT_IN_CUDA_GRAPHS)


@_operator("attnwatch::observe", schema=f"({_CALL}, bool has_positions, {_INPUTS}) -> ()")
def _observe(token: Tensor, number: int, gradient: int, has_positions: bool, *values: Any) -> None:
    given = dict(zip(_ARGUMENTS, values, strict=True))
    masks = (given[name] for name in ("attn_mask", "position_bias", "key_padding", "segments"))
    inputs = AttentionInputs(**given, has_positions=has_positions, keeps_its_masks=all(mask is None for mask in masks))
    _run_compiled(number, gradient, inputs)


@_operator("attnwatch::not_observed", schema=f"({_CALL}, str reason) -> ()")
def _not_observed(token: Tensor, number: int, gradient: int, reason: str) -> None:
    _run_compiled(number, gradient, reason)


_observe.register_fake(lambda *_: None)
_not_observed.register_fake(lambda *_: None)


def _run_compiled(number: int, gradient: int, inputs: CallInputs) -> None:
    if number in _captures:  # a compiled graph outlives the capture that it was traced with
        # The gradient is known from tracing; at run time, neither the grad mode nor the tensors show it.
        _deliver_now(number, lambda _: gradient, lambda: inputs)
