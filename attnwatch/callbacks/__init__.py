"""What the callbacks of all trainers share: everything but how a trainer calls them. Knows steps and losses only.

A trainer's package makes each of these a callback of its own: it says when batches begin and end, and hands over its
`TrainerRun`.
"""

from collections.abc import Iterable

from attnwatch.errors import ConfigurationError


def refuse_two(callbacks: Iterable[object], kind: type) -> None:
    """Raises a `ConfigurationError` where a trainer has two callbacks of a kind of which one must do."""
    if sum(isinstance(callback, kind) for callback in callbacks) > 1:
        raise ConfigurationError(f"`callbacks` has two {kind.__name__}: one of them must do.")
