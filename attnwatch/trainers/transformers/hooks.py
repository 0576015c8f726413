"""When the transformers Trainer calls what the callbacks of all trainers share, and what is kept in its checkpoints."""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from attnwatch.callbacks import TrainingPart
from attnwatch.callbacks.documentation import Kind, documented
from attnwatch.callbacks.part import refuse_two, wrong_trainer
from attnwatch.heads.mismatch import name_other_heads
from attnwatch.trainers.transformers.keeping import Keeper, restored_states
from attnwatch.trainers.transformers.run import TransformersRun
from attnwatch.trainers.transformers.trainer import listen, trainer_of, unlisten
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import begin_run, warn_if_untested


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
    """In the order in which they come. A batch begins and ends with the trainer's `training_step`.

    The first of a trainer's callbacks of this kind reads and writes the states of all.
    """

    _run: TransformersRun | None = None
    _loss: Tensor | None = None
    _has_ended = False
    _comparing: Sequence[RemovableHandle] = ()
    _is_in_step = False
    _keeper: Keeper | None = None
    _restored: Mapping[str, Any] | None = None

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        self._comparing = name_other_heads(model)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for handle in self._comparing:  # a checkpoint that is resumed from was loaded before
            handle.remove()
        trainer, checkpoint = trainer_of(self)
        parts = _parts_of(trainer)
        if self is parts[0]:
            _leave_what_broke_off(trainer.model)
            begin_run(trainer.model)
        self._run, self._loss, self._has_ended, self._is_in_step = TransformersRun(trainer), None, False, False
        refuse_two(parts, self)
        warn_if_untested("transformers", trainer.model)
        self._keeper = None
        if self is parts[0]:
            states = restored_states(parts, checkpoint, trainer)
            for part in parts:
                part.restore(states.get(part.state_key))
            self._keeper = Keeper(trainer, parts)
            self._keeper.mark(until=state.global_step)
        try:
            self._start(self._run, trainer.model)
            restored, self._restored = self._restored, None
            self._go_on(self._run, restored)
        except BaseException:
            self.leave()
            raise
        listen(trainer, self)
        _attached.add(self)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on with this state when training begins; None: begin anew."""
        self._restored = state

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self._keeper is not None:
            self._keeper.mark(until=state.global_step + 1)

    def batch_begins(self) -> None:
        self._is_in_step = True
        self._begin_batch(self._run)

    def batch_ends(self, loss: Tensor) -> None:
        self._loss = self._run.mean_loss(loss)
        if self._run.has_whole_gradients:
            self._before_optimizer_step(None)

    def batch_fails(self) -> None:
        try:
            self._break_off(self._run)
        finally:
            self.leave()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if not self._run.has_whole_gradients:  # of float16: only here they are unscaled, and clipped already
            self._before_optimizer_step(None)

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self._end_batch(self._run, self._loss, is_last=False)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        is_last = control.should_evaluate or control.should_save or control.should_training_stop
        self._end_batch(self._run, self._loss, is_last=is_last)
        self._is_in_step = False
        if self._keeper is not None:
            self._keeper.mark(until=state.global_step)

    def on_log(self, args, state, control, **kwargs) -> None:
        if self._run is not None:  # a trainer may evaluate before it trains
            self._run.trainer_logs()

    def model_is_saved(self, folder: Path) -> None:
        """The trainer begins a checkpoint with its model."""
        if self._keeper is None:
            return
        if self._is_in_step:
            warn(
                f"{folder} was saved in the middle of a step, so that attnwatch's callbacks can't be resumed from it; "
                "save between steps, as the trainer's `save_strategy` does."
            )
            return
        self._keeper.begin(folder)

    def on_save(self, args, state, control, **kwargs) -> None:
        if self._keeper is not None:
            self._keeper.finish()

    def checkpoint_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return self._state()

    def write_beside(self, folder: Path) -> None:
        """Write files that others read of a checkpoint."""

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        # Loggers close, and the best model is loaded, before on_train_end comes to this callback.
        if control.should_training_stop:
            self._finish()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._finish()
        self.leave()

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning, which knows no hook of the transformers Trainer."""
        raise wrong_trainer(self, given_to="Lightning's Trainer", right="attnwatch.lightning")

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning after `setup` has refused it."""

    def _finish(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._end(self._run)

    def leave(self) -> None:
        """Take everything of ours from the model and from the trainer."""
        _attached.discard(self)
        unlisten(self._run.trainer, self)
        self._detach()

    def watches(self, modules: Set[nn.Module]) -> bool:
        """Whether one of them is a part of the model in training."""
        return not modules.isdisjoint(self._run.trainer.model.modules())


_attached: WeakSet[Hooks] = WeakSet()


def _leave_what_broke_off(model: nn.Module) -> None:
    """Take from a model what an earlier training left there, which ended by an error of which no callback hears."""
    modules = set(model.modules())
    for part in list(_attached):
        if part.watches(modules):
            part.leave()


def _parts_of(trainer: Trainer) -> list[Hooks]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Hooks)]
