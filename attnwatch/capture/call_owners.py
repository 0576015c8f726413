"""Owner of a call: the forward of the innermost attention module that is running in its thread."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from attnwatch.capture import function_mode
from attnwatch.capture.code_names import is_of_torch
from attnwatch.capture.delivery import begin, site_id
from attnwatch.capture.forward_pass import calling_frames, in_backward
from attnwatch.capture.patching import shared_patch
from attnwatch.utils.forwards import parameters_of
from attnwatch.utils.hooks import Remove, put

if TYPE_CHECKING:
    from attnwatch.capture.calls.base import FunctionCall
    from attnwatch.capture.capture import Capture

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Enter = Callable[[nn.Module, Args, Kwargs], None]
"""Forward pre-hook, as for `nn.Module.register_forward_pre_hook(…, with_kwargs=True)`."""

# Names of arguments that hold the tokens of another sequence.
_CONTEXT = re.compile(r"context|encoder|cross|memory|cond|source|key_value|^kv")


class Entry(NamedTuple):
    """A forward that has begun but not ended.

    Attributes:
        module: the module; None marks a call that was already handled.
        number: number of the module under which its calls are delivered; None if they are not.
        same_tokens: True if queries and keys are known to be the same tokens.
        given: arguments of the forward; None in compiled code.
    """

    module: nn.Module | None
    number: int | None
    same_tokens: bool = False
    given: tuple[Args, Kwargs] | None = None

    def attends_to_context(self, num_keys: int) -> bool:
        """Return whether the number of keys equals that of the tokens of another sequence among the arguments.

        This excludes joint attention, whose keys are the tokens of both sequences.
        """
        if self.given is None or self.module is None:
            return False
        args, kwargs = self.given
        given = {**dict(zip(parameters_of(self.module.forward), args, strict=False)), **kwargs}
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.ndim >= 3}
        own = next(iter(tensors.values()), None)
        return any(
            value is not own and value.shape[1] == num_keys and value.is_floating_point()
            for name, value in tensors.items()
            if _CONTEXT.search(name) and "mask" not in name
        )


# File name of the code that torch.fx generates for graphs.
_CODE_OF_GRAPHS = "<eval_with_key>"

HANDLED = Entry(None, None)
"""Entry that hides calls, because the patched function calls the original one, or an earlier patch of it."""


class _Thread(threading.local):
    """State of one thread.

    Attributes:
        entries: forwards of attention modules, innermost last.
        finders: captures that are looking for sites.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.finders: list[Capture] = []


_thread = _Thread()


def enter(entry: Entry) -> None:
    """Record that a forward has begun; do nothing in a backward pass, where nothing is delivered."""
    if torch.compiler.is_compiling() or not in_backward():
        _thread.entries.append(entry)


def leave(module: nn.Module | None) -> None:
    """Record that the forward of `module` has ended, including any inner ones that raised."""
    entries = _thread.entries
    if torch.compiler.is_compiling():
        if entries and entries[-1].module is module:
            entries.pop()
        return
    if in_backward():
        return
    for index in range(len(entries) - 1, -1, -1):
        if entries[index].module is module:
            del entries[index:]
            return


def forget_interrupted() -> None:
    """Record that all forwards have ended, because interrupted ones never do."""
    _thread.entries.clear()
    function_mode.forget()


def enter_forward(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
    """Forward pre-hook of a site whose function calls are delivered."""
    number = site_id(module)
    begin(number)
    enter(Entry(module, number, same_tokens=True, given=None if torch.compiler.is_compiling() else (args, kwargs)))


def enter_unwatched(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
    """Forward pre-hook of a module whose function calls are neither delivered nor attributed to a parent."""
    enter(Entry(module, None))


def leave_forward(module: nn.Module, args: Args, output: object) -> None:
    """Forward hook of a module with an entry."""
    leave(module)


def hooked(
    module: nn.Module, before: Enter, after: Callable[[nn.Module, Args, Any], None] = leave_forward
) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a module has these hooks once, however many captures observe it."""

    def put_hooks() -> Remove:
        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=True),  # even if the forward raises
        ]
        return put(module, handles=handles)

    return shared_patch((id(module), before), put_hooks)


@contextlib.contextmanager
def shown_to(finder: "Capture") -> Iterator[None]:
    """Report to `finder` the modules that call an attention function in this thread but that code reading missed."""
    _thread.finders.append(finder)
    try:
        yield
    finally:
        _thread.finders[:] = [other for other in _thread.finders if other is not finder]


def owner_of(call: "FunctionCall", *, by_name: bool) -> Entry | None:
    """Return the forward that the current call belongs to.

    A finder determines the innermost forward from the stack frames, without a hook on any module.

    Args:
        call: kind of the call.
        by_name: True if the call came through a patched name, and will therefore be seen in later steps too.
    """
    entry = _thread.entries[-1] if _thread.entries else None
    if torch.compiler.is_compiling() or not _thread.finders or entry is HANDLED or in_backward():
        return entry
    values = _innermost_call()
    if values is None or is_of_torch(values["self"]):
        return entry
    module = values["self"]
    is_site = [finder.find(module, call, by_name=by_name) for finder in _thread.finders]
    if not any(is_site) or (entry is not None and entry.module is module and entry.number is not None):
        return entry
    return Entry(module, site_id(module), same_tokens=True, given=(values["args"], values["kwargs"]))


def _innermost_call() -> dict[str, Any] | None:
    """Return the variables of the innermost call of a module in this thread.

    None if the module is compiled: its graph calls functions on behalf of inner modules, which are not called.
    """
    graph = None
    for frame in calling_frames():
        if frame.f_code.co_filename.startswith(_CODE_OF_GRAPHS):
            graph = frame.f_locals.get("self") if graph is None else graph
        elif frame.f_code is nn.Module._call_impl.__code__:
            return frame.f_locals if graph is None or graph is frame.f_locals["self"] else None
    return None
