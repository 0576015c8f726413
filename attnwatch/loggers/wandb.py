"""Weights & Biases."""

from pathlib import Path
from typing import Any

from attnwatch.loggers.base import Draw, Logger
from attnwatch.plugins import register

PAGE_TAG = "attention/report"


@register
class WandbLogger(Logger):
    """Weights & Biases: numbers, images, and the page about the run."""

    name = "wandb"
    class_names = ("WandbLogger", "WandbCallback")

    def log_images(self, draw: Draw, step: int) -> None:
        import wandb

        self._run.log({tag: wandb.Image(image) for tag, image in draw().items()})

    def log_page(self, page: Path) -> None:
        import wandb

        self._run.log({PAGE_TAG: wandb.Html(str(page), inject=False)})

    @property
    def _run(self) -> Any:
        """The run of Lightning's logger; the callback of transformers writes to the current one."""
        import wandb

        return getattr(self.target, "experiment", wandb.run)
