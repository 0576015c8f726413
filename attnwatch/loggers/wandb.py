"""Weights & Biases."""

from pathlib import Path
from typing import Any

from attnwatch.loggers.base import AlertLevel, Draw, Logger
from attnwatch.plugins import register

PAGE_TAG = "attention/report"


@register
class WandbLogger(Logger):
    """Weights & Biases: numbers, images, the page about the run, and alerts by mail or Slack as set in your account."""

    name = "wandb"
    class_names = ("WandbLogger", "WandbCallback")

    @property
    def _run(self) -> Any:
        """The run of Lightning's logger; the transformers callback writes to the current one."""
        import wandb

        return getattr(self.target, "experiment", wandb.run)

    def log_images(self, draw: Draw, step: int) -> None:
        import wandb

        self._run.log({tag: wandb.Image(image) for tag, image in draw().items()})

    def log_page(self, page: Path) -> None:
        import wandb

        self._run.log({PAGE_TAG: wandb.Html(str(page), inject=False)})

    def log_alert(self, title: str, text: str, level: AlertLevel) -> None:
        self._run.alert(title, text, level="ERROR" if level == "error" else "WARN")
