"""Weights & Biases."""

from typing import Any

from attnwatch.loggers.base import Draw, Logger
from attnwatch.plugins import register


@register
class WandbLogger(Logger):
    """Weights & Biases: numbers and images."""

    name = "wandb"
    class_names = ("WandbLogger", "WandbCallback")

    def log_images(self, draw: Draw, step: int) -> None:
        import wandb

        # The callback of transformers writes to the current run.
        run: Any = getattr(self.target, "experiment", wandb.run)
        run.log({tag: wandb.Image(image) for tag, image in draw().items()})
