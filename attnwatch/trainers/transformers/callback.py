"""Base class of the transformers callbacks, with the hooks that call a part and the states in checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

from attnwatch.heads.mismatch import name_other_heads
from attnwatch.trainers.callback import PartCallback, PartT
from attnwatch.trainers.transformers.checkpoints import AttnwatchMark
from attnwatch.trainers.transformers.keeping import Keeper, restored_states
from attnwatch.trainers.transformers.run import TransformersRun
from attnwatch.trainers.transformers.states import PrunedStates
from attnwatch.trainers.transformers.trainer import Tap, release, tap_of, trainer_of
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import begin_run, warn_if_untested


class TransformersCallback(PartCallback[PartT, TransformersRun], TrainerCallback):
    """Callback that calls a part from the Trainer's hooks, in the order in which they are called.

    A batch begins and ends with the trainer's `training_step`. The first of a trainer's callbacks of this kind reads
    and writes the states of all.
    """

    _loss: Tensor | None = None
    _has_ended = False
    _is_in_step = False
    _comparing: Sequence[RemovableHandle] = ()
    _states: PrunedStates | None = None
    _keeper: Keeper | None = None
    _restored: Mapping[str, Any] | None = None

    def on_init_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        model, trainer = kwargs["model"], trainer_of(self)[0]
        if not any(isinstance(each, AttnwatchMark) for each in trainer.callback_handler.callbacks):
            trainer.add_callback(AttnwatchMark)
        self._comparing = name_other_heads(model)
        self._prepare(model)
        self.part.attach_for_evaluation(model)

    def on_train_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        for handle in self._comparing:  # the checkpoint to resume from is already loaded
            handle.remove()
        trainer, checkpoint = trainer_of(self)
        run = TransformersRun(trainer)
        run.states = self._prepare(run.model)  # for the first time if the callback was added to the trainer later
        if run.states is not None:
            run.states.loads_best = None
            run.states.loader.finish()
        ours = [each for each in run.callbacks if isinstance(each, TransformersCallback)]
        if self is ours[0]:
            release(run.model)
            begin_run(run.model)
        self._loss, self._has_ended, self._is_in_step, self._keeper = None, False, False, None
        self.refuse_duplicate(ours)
        warn_if_untested("transformers", run.model)
        if self is ours[0]:
            states = restored_states(ours, checkpoint, trainer)
            for each in ours:
                each._restored = states.get(each.state_key)
            self._keeper = Keeper(trainer, ours)
            self._keeper.mark(until=state.global_step)
        try:
            self.start(run)
            restored, self._restored = self._restored, None
            self.part.resume(run, restored)
        except BaseException:
            self.leave()
            raise
        (tap_of(trainer) or Tap(trainer)).add(self)

    def on_step_begin(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._keeper is not None:
            self._keeper.mark(until=state.global_step + 1)

    # Called by the tap of the trainer, which knows when a batch begins and ends.

    def batch_begins(self) -> None:
        self._is_in_step = True
        self.part.begin_batch(self.run)

    def batch_ends(self, loss: Tensor) -> None:
        """Record the loss of a training step. The losses of micro-batches add up to that of the step."""
        self._loss = self.run.mean_loss(loss)
        if self.run.has_whole_gradients:
            self.part.before_optimizer_step(None)

    def batch_fails(self) -> None:
        """Interrupt the part after an error in the training step or while fetching its batches."""
        try:
            self.part.interrupt(self.run)
        finally:
            self.leave()

    def on_pre_optimizer_step(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if not self.run.has_whole_gradients:  # float16 gradients are unscaled only here, and already clipped
            self.part.before_optimizer_step(None)

    def on_substep_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self.part.end_batch(self.run, self._loss, is_last=False)

    def on_step_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        is_last = control.should_evaluate or control.should_save or control.should_training_stop
        self.part.end_batch(self.run, self._loss, is_last=is_last)
        self._is_in_step = False
        if self._keeper is not None:
            self._keeper.mark(until=state.global_step)

    def on_log(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._run is not None:  # a trainer may evaluate before it trains
            self._run.log_waiting()
        self._record_metric(kwargs.get("logs"))

    def on_evaluate(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        self._record_metric(kwargs.get("metrics"))

    def model_is_saved(self, folder: Path) -> None:
        """Begin saving the states of a checkpoint whose model the trainer has saved."""
        if self._keeper is None:
            return
        if self._is_in_step:
            warn(
                f"{folder} was saved in the middle of a step, so attnwatch's callbacks can't be resumed from it; "
                "save between steps, as the trainer's `save_strategy` does."
            )
            return
        self._keeper.begin(folder)

    def on_save(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._keeper is not None:
            self._keeper.finish()

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        # Loggers close, and the best model is loaded, before on_train_end reaches this callback.
        if control.should_training_stop:
            self._finish()

    def on_train_end(self, args: Arguments, state: State, control: Control, **kwargs: Any) -> None:
        if self._states is not None:
            self._states.loader.finish()
        self._finish()
        self.leave()
        self.part.attach_for_evaluation(self.run.model)

    def leave(self) -> None:
        """Detach the callback from the model and the trainer."""
        tap = None if self._run is None else tap_of(self._run.trainer)
        if tap is not None:
            tap.remove(self)
        self.part.detach()

    def _prepare(self, model: nn.Module) -> PrunedStates | None:
        if self.part.resizes_model and self._states is None:
            self._states = PrunedStates(model)
        return self._states

    def _record_metric(self, numbers: Mapping[str, float] | None) -> None:
        name, numbers = self.part.watched_metric, numbers or {}
        if name is not None and name in numbers:
            self.part.record_metric(numbers[name])
        if self._run is not None:
            self.part.note_metrics(self.run)

    def _finish(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            if self._states is not None:
                self._states.loads_best = self.run.trainer
            self.part.end(self.run)
