"""Probes of the layers as a callback of the transformers Trainer."""

from attnwatch.callbacks.probes import Probing
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers


@documented_for_transformers("LayerProbe(every_n_steps=500, tokenizer=tokenizer)")
class LayerProbe(Probing, Hooks):
    pass
