"""Probes of the layers as a Lightning callback."""

from attnwatch.callbacks.probes import Probing
from attnwatch.lightning.hooks import Hooks


class LayerProbe(Probing, Hooks):
    # Its documentation is that of `Probing`.
    pass
