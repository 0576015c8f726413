"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`."""

from typing import Any

from attnwatch import callbacks
from attnwatch.trainers.callback import callback_class
from attnwatch.trainers.lightning import LightningAdapter
from attnwatch.trainers.lightning import callback as _callback  # noqa: F401  # names what is to be installed

__all__ = list(callbacks.CALLBACKS)


def __getattr__(name: str) -> Any:
    """Return a callback's class, which is created at first use; `lightning.pyi` declares the classes."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return callback_class(LightningAdapter, getattr(callbacks, name))
