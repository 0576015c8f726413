"""Guard that keeps errors of hooks away from the training run."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from attnwatch.utils.messages import warn


class Guard:
    """Guard that keeps errors of functions away from the training run: it reports the first and calls none after it.

    Attributes:
        failure: the error that occurred; empty if there was none.
    """

    def __init__(self) -> None:
        self.failure = ""

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that it returns None from the first error on."""

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.failure:
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:  # from arbitrary inputs of the hooks; training must continue
                self.failure = f"{type(error).__name__}: {error}"
                warn(f"the checkup failed and stops, training continues: {self.failure}")
                return None

        return guarded
