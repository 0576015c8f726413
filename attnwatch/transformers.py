"""Callbacks of the transformers Trainer. Needs `pip install attnwatch[transformers]`."""

from typing import Any

try:
    import accelerate  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "attnwatch.transformers needs transformers and accelerate: pip install 'attnwatch[transformers]'"
    ) from error

from attnwatch import callbacks
from attnwatch.trainers.transformers import TransformersAdapter

__all__ = list(callbacks.CALLBACKS)


def __getattr__(name: str) -> Any:
    """Return a callback's class, which is made when it is first used; `transformers.pyi` declares them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return TransformersAdapter.callback(getattr(callbacks, name))
