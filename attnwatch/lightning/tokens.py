"""Token dropping as a Lightning callback."""

from typing import Any

import lightning.pytorch as pl

from attnwatch.callbacks import refuse_two
from attnwatch.callbacks.tokens import Dropping
from attnwatch.lightning.run import LightningRun


class TokenDropping(Dropping, pl.Callback):
    # Its documentation is that of `Dropping`. The hooks come in this order.

    _restored: dict[str, Any] | None = None
    _run: LightningRun

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_two(trainer.callbacks, TokenDropping)
        if stage != "fit" and self._options["for_good"]:
            self._attach(pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run = LightningRun(trainer, pl_module)
        restored, self._restored = self._restored, None
        self._start(self._run, pl_module, restored)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._begin_batch(self._run)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        self._end_batch(self._run)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(self._run)

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._detach()
