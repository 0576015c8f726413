"""Hooks whose errors do not reach the training."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from attnwatch.utils.messages import warn


class Guard:
    """Keeps errors of functions away from the training: one is told, and nothing is called after it.

    Attributes:
        failure: error that ended it; empty before.
    """

    def __init__(self) -> None:
        self.failure = ""

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which returns None from its first error on."""

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.failure:
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:  # of whatever the hooks are given; the training is worth more
                self.failure = f"{type(error).__name__}: {error}"
                warn(f"the checkup failed and ends, training goes on: {self.failure}")
                return None

        return guarded
