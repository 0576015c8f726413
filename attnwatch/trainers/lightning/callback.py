"""Base class of the Lightning callbacks, with the hooks that call a part."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from attnwatch.heads.mismatch import name_other_heads
from attnwatch.heads.state import accept_pruned_state
from attnwatch.trainers.callback import PartCallback, PartT
from attnwatch.trainers.lightning.api import DISTRIBUTION, pl
from attnwatch.trainers.lightning.run import LightningRun
from attnwatch.utils.messages import warn
from attnwatch.utils.versions import begin_run, warn_if_untested


class LightningCallback(PartCallback[PartT, LightningRun], pl.Callback):
    """Callback that calls a part from Lightning's hooks, in the order in which Lightning calls them."""

    _restored: Mapping[str, Any] | None = None
    _earlier: tuple[int, Mapping[str, Any]] | None = None
    """(last step, state) of an earlier fit that this one may continue."""
    _loading: Sequence[RemovableHandle] = ()
    _comparing: Sequence[RemovableHandle] = ()
    _step = 0
    _logged_at: str | None = None
    _num_compared = 0

    @property
    def state_key(self) -> str:
        """Name of the callback's state in checkpoints.

        Lightning compares these names when it receives callbacks, before it calls any of them. In this comparison each
        name is unique, so that `setup` can refuse a second callback of a kind with a reason.
        """
        if sys._getframe(1).f_code.co_name != "_validate_callbacks_list":
            return super().state_key
        self._num_compared += 1
        return f"{super().state_key} {id(self)} {self._num_compared}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        run = LightningRun(trainer, pl_module)
        self.refuse_duplicate(run.callbacks)
        if stage == "fit" and self.part in run.parts[:1]:
            begin_run(pl_module)
        warn_if_untested(DISTRIBUTION, pl_module)
        if stage == "fit":  # another trainer may evaluate the module during a fit
            self.part.check(run)
            last, self._run = self._run, run
            goes_on = last is not None and last.trainer is trainer and last.model is pl_module
            self._earlier = (trainer.global_step, self.part.state_dict()) if goes_on else None
        self._comparing = name_other_heads(pl_module)
        if self.part.resizes_model:
            self._loading = [accept_pruned_state(model) for model, _ in run.models_with_optimizers()]
        if stage != "fit":
            self.part.attach_for_evaluation(pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._logged_at = None
        self.start(self.run)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Strategies that shard parameters restore checkpoints after on_fit_start.
        self._stop_comparing()
        restored, self._restored = self._restored, None
        earlier, self._earlier = self._earlier, None
        if restored is None and earlier is not None and earlier[0] == trainer.global_step > 0:
            restored = earlier[1]  # fit was called again, without a checkpoint
        self.part.resume(self.run, restored)
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._record_metric("epoch")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.part.begin_batch(self.run)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        # Gradients are unscaled and not clipped yet.
        self.part.before_optimizer_step(optimizer if len(trainer.optimizers) > 1 else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._record_metric("step")
        self.part.end_batch(self.run, self.run.loss_of(outputs), is_last=trainer.is_last_batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record_metric("validation")
            if self._run is not None:
                self.part.note_metrics(self.run)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.part.skip_batch()  # still open if the module's on_train_batch_start has skipped the rest of the epoch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run.has_ended = True
        self.part.end(self.run)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_comparing()
        self._go_back()
        if trainer.state.fn == "fit" and self._run is not None:
            self.run.has_ended = True
            self.part.interrupt(self.run)  # loggers are closed next
        self.part.detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop_comparing()
        if stage == "fit":
            self._go_back()
        if stage == "fit" or self.part.works_in_evaluation:
            self.part.detach()
        for handle in self._loading:
            handle.remove()

    def _record_metric(self, when: str) -> None:
        """Pass a newly logged metric to the part.

        Metrics keep their value until they are logged again. The kind of hook that first sees a metric is the one at
        which it is new.
        """
        name = self.part.watched_metric
        if name is None or self._run is None or name not in self.run.metrics:
            return
        self._logged_at = self._logged_at or when
        if self._logged_at == when:
            self.part.record_metric(self.run.trainer.callback_metrics[name].detach().clone())

    def _go_back(self) -> None:
        """Restore the state of an earlier fit if this one ended before it trained."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        try:
            self.part.resume(self.run, earlier[1])
        except Exception as error:  # must not replace the error that ended the fit
            warn(f"the state of {type(self).__name__} from an earlier fit is lost: {type(error).__name__}: {error}")

    def _stop_comparing(self) -> None:
        """Stop comparing the heads of checkpoints with the model's, since no more checkpoints are loaded."""
        for handle in self._comparing:
            handle.remove()
        self._comparing = ()
