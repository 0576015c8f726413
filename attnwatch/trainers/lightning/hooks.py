"""When Lightning calls what the callbacks of all trainers share."""

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.hooks import RemovableHandle

from attnwatch.callbacks import TrainingPart
from attnwatch.callbacks.documentation import Kind, documented
from attnwatch.callbacks.part import refuse_two, wrong_trainer
from attnwatch.heads.mismatch import name_other_heads
from attnwatch.trainers.lightning.api import DISTRIBUTION, pl
from attnwatch.trainers.lightning.run import LightningRun
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import begin_run, warn_if_untested

_number = itertools.count()


def documented_for_lightning(call: str) -> Callable[[Kind], Kind]:
    """Make a class decorator: see `documented`; the example gives the callback that `call` makes to a trainer."""
    return documented(
        f"""
        import lightning.pytorch as pl
        from attnwatch.lightning import {call.split("(")[0]}

        trainer = pl.Trainer(callbacks=[{call}])
        """
    )


class Hooks(TrainingPart, pl.Callback):
    """In the order in which they come."""

    _run: LightningRun | None = None
    _restored: Mapping[str, Any] | None = None
    _earlier: tuple[int, Mapping[str, Any]] | None = None
    """(its last step, its state), of a fit that may go on."""
    _comparing: Sequence[RemovableHandle] = ()

    @property
    def state_key(self) -> str:
        """Name of its state in checkpoints.

        Lightning compares these names when it is given callbacks, before it calls any of them. There each has a name of
        its own, so that `setup` can refuse a second callback of a kind with a reason.
        """
        is_compared = sys._getframe(1).f_code.co_name == "_validate_callbacks_list"
        return f"{super().state_key} {next(_number)}" if is_compared else super().state_key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_two(trainer.callbacks, self)
        if stage == "fit" and next((each for each in trainer.callbacks if isinstance(each, Hooks)), self) is self:
            begin_run(pl_module)
        warn_if_untested(DISTRIBUTION, pl_module)
        if stage == "fit":  # another trainer may evaluate the module in the middle of it
            last, self._run = self._run, LightningRun(trainer, pl_module)
            goes_on = last is not None and last.arguments == self._run.arguments
            self._earlier = (trainer.global_step, self._state()) if goes_on else None
        self._comparing = name_other_heads(pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(self._run, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Strategies that shard parameters restore checkpoints after on_fit_start.
        self._stop_comparing()
        restored, self._restored = self._restored, None
        earlier, self._earlier = self._earlier, None
        if restored is None and earlier is not None and earlier[0] == trainer.global_step > 0:
            restored = earlier[1]  # fit was called again, without a checkpoint
        self._go_on(self._run, restored)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._begin_batch(self._run)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        # Gradients are unscaled and not clipped yet.
        self._before_optimizer_step(optimizer if len(trainer.optimizers) > 1 else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        self._end_batch(self._run, self._run.loss_of(outputs), is_last=trainer.is_last_batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._run.has_ended = True
        self._end(self._run)

    def state_dict(self) -> dict[str, Any]:
        return self._state()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_comparing()
        self._go_back()
        if trainer.state.fn == "fit" and self._run is not None:
            self._run.has_ended = True
            self._break_off(self._run)  # loggers are closed next
        self._detach()

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by the transformers Trainer, which knows no hook of Lightning's."""
        raise wrong_trainer(self, given_to="the transformers Trainer", right="attnwatch.transformers")

    # Where it is added to a trainer later, one of these comes first.
    on_train_begin = on_prediction_step = on_evaluate = on_predict = on_log = on_init_end

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop_comparing()
        if stage == "fit":
            self._go_back()
            self._detach()

    def _go_back(self) -> None:
        """To what an earlier fit has left, where this one ended before it trained."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        try:
            self._go_on(self._run, earlier[1])
        except Exception as error:  # not in the place of the error that has ended the fit
            warn(f"what an earlier fit has left is lost: {type(error).__name__}: {error}")

    def _stop_comparing(self) -> None:
        """No checkpoint is loaded any more."""
        for handle in self._comparing:
            handle.remove()
        self._comparing = ()
