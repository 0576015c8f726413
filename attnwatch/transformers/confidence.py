"""Asking the model as a callback of the transformers Trainer."""

from attnwatch.callbacks.confidence import Asking
from attnwatch.transformers.hooks import Hooks


class ConfidenceProbe(Asking, Hooks):
    # Its documentation is that of `Asking`.
    pass
