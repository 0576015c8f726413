"""Observation of the loss functions in `torch.nn.functional`."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

import torch.nn.functional as F

from attnwatch.capture import replace, shared_patch
from attnwatch.checkup.guard import Guard

_Call = TypeVar("_Call")


@contextlib.contextmanager
def observed_losses(
    names: Sequence[str],
    describe: Callable[[str, Any, Mapping[str, Any]], _Call | None],
    receive: Callable[[_Call], None],
    guard: Guard,
) -> Iterator[None]:
    """Pass a description of each call of these functions to `receive` while the context is open.

    Args:
        names: names of the functions in `torch.nn.functional`.
        describe: function of (name, loss, arguments by name, with defaults); calls for which it returns None are not
            passed on.
        receive: function called with each description.
        guard: keeps errors away from the training run.
    """

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @guard
        def pass_on(loss: Any, *args: Any, **kwargs: Any) -> None:
            given = inspect.signature(original).bind(*args, **kwargs)
            given.apply_defaults()
            if not given.arguments.keys() >= {"input", "target"}:  # the function of another library
                return
            call = describe(name, loss, given.arguments)
            if call is not None:
                receive(call)

        @wraps(original)
        def computed(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            pass_on(loss, *args, **kwargs)
            return loss

        return computed

    with contextlib.ExitStack() as stack:
        for name in names:
            apply = partial(replace, vars(F), name, partial(wrap, name))
            stack.enter_context(shared_patch((F, name, receive), apply))
        yield
