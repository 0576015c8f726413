"""From a patched attention call to the capture that watches its module, in eager and in compiled code alike.

In eager code a call is read only when its capture is armed. In code compiled by `torch.compile` the reading is part
of the graph and ends in a custom operator; whether a capture is armed is asked when the operator runs, so that
arming neither breaks the graph nor recompiles it. The operator claims to mutate a token, which keeps it in the graph,
and to be unsafe in CUDA graphs, which would replay kernels without asking: compiled models are split around it.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture.passes import gradient_of, or_recorded
from attnwatch.capture.positions import kept_positions
from attnwatch.utils.hooks import Remove, put

Reading = AttentionInputs | str
"""What a call was given, or the reason why it can't be read."""


class Receiver(Protocol):
    """What a capture offers to the patched calls."""

    armed: bool

    def receive(self, site: str, reading: Reading, gradient: int) -> None: ...

    def begin(self, site: str) -> None: ...

    def fail(self, site: str, error: Exception) -> None: ...


class _Mark:
    """A module's number, as compiled code sees it: modules that look alike share graphs, and this tells them apart.

    A copy of the module is another module, and has none.
    """

    def __init__(self, number: int):
        self.digits = str(number)  # an integer would become a variable of the graph


_MARK = "_attnwatch_mark"
# A compiled graph holds nothing of a module but its number, and outlives the capture it was traced with. So the numbers
# are the process's: a module keeps its own for the next capture, and no other module ever gets it.
_next_number = itertools.count()
_numbers: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
# Only their owners keep receivers: one that was never closed ends with them.
_receivers: dict[int, tuple[tuple["weakref.ref[Receiver]", str], ...]] = {}
_marks: dict[int, Remove] = {}
_lock = threading.RLock()
# What operators claim to change, which keeps them in the graph and in their order.
ORDER = torch.zeros(())
NOT_IN_CUDA_GRAPHS = (torch.Tag.cudagraph_unsafe,)


def register(module: nn.Module, receiver: "weakref.ref[Receiver]", site: str) -> None:
    """From now on the calls of `module` go to `receiver` too, under the name `site`."""
    with _lock:
        number = _numbers.get(module)
        if number is None:
            number = _numbers[module] = next(_next_number)
        if number not in _receivers:
            _marks[number] = put(module, attributes={_MARK: _Mark(number)})
        _receivers[number] = (*_receivers.get(number, ()), (receiver, site))


def unregister(module: nn.Module, receiver: "weakref.ref[Receiver]") -> None:
    with _lock:
        number = _numbers[module]
        left = tuple((other, site) for other, site in _receivers[number] if other is not receiver)
        if left:
            _receivers[number] = left
        else:
            del _receivers[number]
            _marks.pop(number)()


def site_id(module: nn.Module) -> int | None:
    """The number under which calls of this module are delivered; None where nobody watches it."""
    if torch.compiler.is_compiling():
        mark = getattr(module, _MARK, None)
        return None if mark is None else int(mark.digits)
    number = _numbers.get(module)
    return number if number in _receivers else None


def is_armed(number: int) -> bool:
    """Whether a capture takes the calls that come now under this number."""
    return bool(_armed(number))


def _armed(number: int) -> list[tuple[Receiver, str]]:
    """The captures that take the calls that come now under this number, and their names of the site."""
    found = [(reference(), site) for reference, site in _receivers.get(number, ())]
    return [(receiver, site) for receiver, site in found if receiver is not None and receiver.armed]


def begin(number: int | None) -> None:
    """Tell captures that are armed that the forward of this module begins, whether or not a call will come from it."""
    if number is None or torch.compiler.is_compiling() or in_backward():
        return
    for receiver, site in _armed(number):
        receiver.begin(site)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """While it is open, captures that are armed now see nothing: what the model is asked is not its training."""
    armed = {id(receiver): receiver for number in list(_receivers) for receiver, _ in _armed(number)}
    for receiver in armed.values():
        receiver.armed = False
    try:
        yield
    finally:
        for receiver in armed.values():
            receiver.armed = True


def in_backward() -> bool:
    """Whether autograd runs a backward now: a forward inside it is activation checkpointing's second one."""
    return torch._C._current_graph_task_id() != -1


def deliver(number: int, read: Callable[..., Reading], *args, sources: Iterable[Tensor] = ()) -> None:
    """Hand the call that `read(*args)` describes to its capture. Never raises an `Exception`.

    Args:
        sources: what its query and key were computed from, where they do not tell whether they need a gradient.
    """
    if torch.compiler.is_compiling():
        reading = read(*args)
        _deliver_compiled(number, reading, gradient_of(_query_and_key(reading)))
        return
    _deliver_now(number, lambda reading: gradient_of((*_query_and_key(reading), *sources)), read, *args)


def _query_and_key(reading: Reading) -> tuple[Tensor, ...]:
    return () if isinstance(reading, str) else (reading.query, reading.key)


def _deliver_now(number: int, gradient: Callable[[Reading], int], read: Callable[..., Reading], *args) -> None:
    armed = _armed(number)
    if not armed or in_backward():
        return
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        read, args = _read_in_cuda_graph, ()
    for receiver, site in armed:
        try:
            reading = read(*args)
            receiver.receive(site, reading, or_recorded(gradient(reading)))
        except Exception as error:
            receiver.fail(site, error)


def _read_in_cuda_graph() -> Reading:
    return (
        "it was called while a CUDA graph was captured, which replays kernels and no code; capture the graph without "
        "attention, or use torch.compile(mode='reduce-overhead'), which is observed"
    )


def _deliver_compiled(number: int, reading: Reading, gradient: int) -> None:
    if not isinstance(reading, str) and reading.mask_mod is not None:
        reading = "a flex-attention block mask can't be read inside torch.compile; compile the model without it"
    if isinstance(reading, str):
        _not_observed(ORDER, number, reading, gradient)
        return
    _observe(
        ORDER,
        number,
        reading.query.detach(),
        reading.key.detach(),
        _detached(reading.attn_mask),
        reading.is_causal,
        reading.scale,
        reading.softcap,
        _detached(reading.position_bias),
        _detached(reading.learned_sink),
        reading.sliding_window,
        reading.key_padding,
        reading.segments,
        reading.has_positions and kept_positions(reading.num_queries) is None,
        gradient,
    )


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


@torch.library.custom_op("attnwatch::observe", mutates_args=("token",), tags=NOT_IN_CUDA_GRAPHS)
def _observe(
    token: Tensor,
    number: int,
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    position_bias: Tensor | None,
    learned_sink: Tensor | None,
    sliding_window: int | None,
    key_padding: Tensor | None,
    segments: Tensor | None,
    has_positions: bool,
    gradient: int,
) -> None:
    _run_compiled(
        number,
        gradient,
        lambda: AttentionInputs(
            query=query,
            key=key,
            attn_mask=attn_mask,
            is_causal=is_causal,
            scale=scale,
            softcap=softcap,
            position_bias=position_bias,
            learned_sink=learned_sink,
            sliding_window=sliding_window,
            key_padding=key_padding,
            segments=segments,
            has_positions=has_positions,
            keeps_its_masks=all(mask is None for mask in (attn_mask, position_bias, key_padding, segments)),
        ),
    )


@torch.library.custom_op("attnwatch::not_observed", mutates_args=("token",), tags=NOT_IN_CUDA_GRAPHS)
def _not_observed(token: Tensor, number: int, reason: str, gradient: int) -> None:
    _run_compiled(number, gradient, lambda: reason)


def _run_compiled(number: int, gradient: int, read: Callable[[], Reading]) -> None:
    if number in _receivers:  # a compiled graph outlives the capture it was traced with
        # The gradient is known since the tracing; while the graph runs, neither the switch nor tensors tell it.
        _deliver_now(number, lambda reading: gradient, read)


@_observe.register_fake
def _(*args) -> None:
    return None


@_not_observed.register_fake
def _(*args) -> None:
    return None
