"""Probes of the layers as a callback of the transformers Trainer."""

from attnwatch.callbacks.probes import Probing
from attnwatch.transformers.hooks import Hooks


class LayerProbe(Probing, Hooks):
    # Its documentation is that of `Probing`.
    pass
