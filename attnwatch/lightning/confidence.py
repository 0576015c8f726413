"""Asking the model as a Lightning callback."""

from attnwatch.callbacks.confidence import Asking
from attnwatch.lightning.hooks import Hooks


class ConfidenceProbe(Asking, Hooks):
    # Its documentation is that of `Asking`.
    pass
