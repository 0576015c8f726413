"""Callbacks of the transformers Trainer. Needs `pip install attnwatch[transformers]`."""

from typing import Any

from attnwatch import callbacks
from attnwatch.trainers.callback import callback_class
from attnwatch.trainers.transformers import TransformersAdapter
from attnwatch.utils.extras import extra_needed

with extra_needed("transformers", __name__):
    import accelerate  # noqa: F401
    import transformers  # noqa: F401

__all__ = list(callbacks.CALLBACKS)


def __getattr__(name: str) -> Any:
    """Return a callback's class, which is created at first use; `transformers.pyi` declares the classes."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return callback_class(TransformersAdapter, getattr(callbacks, name))
