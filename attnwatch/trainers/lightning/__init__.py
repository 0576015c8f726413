"""Lightning, under both of its names, `lightning` and `pytorch_lightning`."""

from attnwatch.plugins import register
from attnwatch.trainers.base import TrainerAdapter


@register
class LightningAdapter(TrainerAdapter):
    """Lightning's Trainer."""

    name = "lightning"
    title = "Lightning's Trainer"
    module = "attnwatch.lightning"
    callback_base = "attnwatch.trainers.lightning.callback:LightningCallback"
    first_hooks = ("setup",)
    example = """import lightning.pytorch as pl
from attnwatch.lightning import {name}

trainer = pl.Trainer(callbacks=[{call}])"""
