"""Probes of the layers as a Lightning callback."""

from attnwatch.callbacks.probes import Probing
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning


@documented_for_lightning("LayerProbe(every_n_steps=500, tokenizer=tokenizer)")
class LayerProbe(Probing, Hooks):
    pass
