"""When the transformers Trainer calls what the callbacks of all trainers share, and what is kept in its checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from attnwatch.callbacks import TrainingPart
from attnwatch.callbacks.documentation import Kind, documented
from attnwatch.callbacks.part import refuse_two, wrong_trainer
from attnwatch.pruning.mismatch import name_other_heads
from attnwatch.transformers.run import TransformersRun
from attnwatch.transformers.trainer import listen, trainer_of, unlisten
from attnwatch.versions import begin_run, warn_if_untested


def documented_for_transformers(call: str) -> Callable[[Kind], Kind]:
    """Make a class decorator: see `documented`; the example gives the callback that `call` makes to a trainer."""
    return documented(
        f"""
        from transformers import Trainer
        from attnwatch.transformers import {call.split("(")[0]}

        trainer = Trainer(model, args, train_dataset=train_dataset, callbacks=[{call}])
        """
    )


class Hooks(TrainingPart, TrainerCallback):
    """In the order in which they come. A batch begins and ends with the trainer's `training_step`."""

    _run: TransformersRun | None = None
    _loss: Tensor | None = None
    _has_ended = False
    _comparing: Sequence[RemovableHandle] = ()
    _state_file: str
    """In the folders of checkpoints."""

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        self._comparing = name_other_heads(model)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for handle in self._comparing:  # a checkpoint that is resumed from was loaded before
            handle.remove()
        trainer, checkpoint = trainer_of(self)
        self._run, self._loss, self._has_ended = TransformersRun(trainer), None, False
        refuse_two(self._run.callbacks, type(self))
        if next(each for each in self._run.callbacks if isinstance(each, Hooks)) is self:
            begin_run(trainer.model)
        warn_if_untested("transformers", trainer.model)
        self._start(self._run, trainer.model)
        self._go_on(self._run, self._kept_in(checkpoint))
        listen(trainer, self)

    def batch_begins(self) -> None:
        self._begin_batch(self._run)

    def batch_ends(self, loss: Tensor) -> None:
        self._loss = self._run.mean_loss(loss)
        if self._run.has_whole_gradients:
            self._before_optimizer_step(None)

    def batch_fails(self) -> None:
        try:
            self._break_off(self._run)
        finally:
            self._leave()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if not self._run.has_whole_gradients:  # of float16: only here they are unscaled, and clipped already
            self._before_optimizer_step(None)

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self._end_batch(self._run, self._loss, is_last=False)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        is_last = control.should_evaluate or control.should_save or control.should_training_stop
        self._end_batch(self._run, self._loss, is_last=is_last)

    def on_log(self, args, state, control, **kwargs) -> None:
        if self._run is not None:  # a trainer may evaluate before it trains
            self._run.trainer_logs()

    def on_save(self, args, state, control, **kwargs) -> None:
        kept = self._state()
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if args.should_save and folder.is_dir():
            torch.save(kept, folder / self._state_file)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        # Loggers close, and the best model is loaded, before on_train_end comes to this callback.
        if control.should_training_stop:
            self._finish()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._finish()
        self._leave()

    @property
    def state_key(self) -> str:
        """Name of the callback; Lightning asks for it before it calls `setup`."""
        return type(self).__name__

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning, which knows no hook of the transformers Trainer."""
        raise wrong_trainer(self, given_to="Lightning's Trainer", right="attnwatch.lightning")

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning after `setup` has refused it."""

    def _finish(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._end(self._run)

    def _leave(self) -> None:
        unlisten(self._run.trainer, self)
        self._detach()

    def _kept_in(self, checkpoint: str | None) -> dict[str, Any] | None:
        if checkpoint is None or not Path(checkpoint, self._state_file).is_file():
            return None
        return torch.load(Path(checkpoint, self._state_file), weights_only=True, map_location="cpu")
