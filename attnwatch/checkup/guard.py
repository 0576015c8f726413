"""Guard that keeps errors of hooks away from the training run."""

from collections.abc import Callable
from typing import Any

from attnwatch.utils.messages import warn


class Guard:
    """Guard that keeps errors of functions away from the training run: it reports the first and calls none after it.

    Attributes:
        failure: the error that occurred; empty if there was none.
    """

    def __init__(self) -> None:
        self.failure = ""

    def __call__(self, function: Callable[..., Any]) -> "GuardedHook":
        """Wrap a function so that it returns None from the first error on."""
        return GuardedHook(self, function)


class GuardedHook:
    """Function that returns None from the first error of a guard's functions on.

    A copy of a model that is pickled or copied meanwhile has a hook that does nothing in its place.
    """

    def __init__(self, guard: Guard, function: Callable[..., Any]):
        self._guard, self._function = guard, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._guard.failure:
            return None
        try:
            return self._function(*args, **kwargs)
        except Exception as error:  # from arbitrary inputs of the hooks; training must continue
            self._guard.failure = f"{type(error).__name__}: {error}"
            warn(f"the checkup failed and stops, training continues: {self._guard.failure}")
            return None

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _idle_hook, ()


def _idle_hook() -> GuardedHook:
    return GuardedHook(Guard(), _do_nothing)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None
