"""Head pruning as a Lightning callback: a thin layer over the pruner."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from attnwatch.errors import AttnwatchWarning, ConfigurationError
from attnwatch.lightning.loggers import LoggerPublisher
from attnwatch.lightning.monitor import AttentionMonitor
from attnwatch.lightning.steps import StepClock, total_steps
from attnwatch.pruning.cut import Cut
from attnwatch.pruning.guard import Guard
from attnwatch.pruning.importance import Criterion, HeadImportance, needs_history
from attnwatch.pruning.options import PruningOptions
from attnwatch.pruning.plan import PruningPlan
from attnwatch.pruning.pruner import HeadPruner, Patient
from attnwatch.pruning.schedule import PruningSchedule
from attnwatch.pruning.state import accept_pruned_state


class HeadPruning(pl.Callback):
    """Removes the attention heads that matter least while a model trains, so that its steps get faster.

    ```python
    trainer = Trainer(callbacks=[HeadPruning(target=0.5)])
    ```

    Weights, biases and optimizer state are cut. A guard takes a cut back that does lasting harm. Logged are
    `pruning/heads` (share that is left) and `pruning/step_seconds`; `cuts` has the rest. A run is resumed with
    `trainer.fit(ckpt_path=...)` on a freshly built, unpruned module; for `load_from_checkpoint` see
    `attnwatch.accept_pruned_state`.

    Args:
        target: fraction of the heads that goes in all, between 0 and 1.
        criterion: importance of heads: `"gate"`, `"entropy"`, `"confidence"`, `"weight"`, `"random"`, or a function;
            see `attnwatch.HeadImportance`. "entropy" and "confidence" read an `AttentionMonitor` in the same trainer.
        start, end: of the first and the last cut; optimizer steps where they are integers, else fractions of the run.
        num_cuts: how many cuts, evenly spaced, of equally many heads.
        ranking: `"global"`, `"layer"` or `"equal"`; see `attnwatch.choose_heads`.
        grouping: with grouped-query attention, whole groups or some heads of each; see `attnwatch.choose_heads`.
        min_heads: that stay in every layer; 0 allows layers without attention.
        guard: when a cut is taken back; None: never.
        seed: of the criterion "random".

    Attributes:
        cuts: those that were made, each with `step`, `plan`, `seconds_before`, `seconds_after`, `seconds_lost` and
            `taken_back`; printed, it is a sentence.

    Raises:
        ConfigurationError: an argument is wrong, or when fitting starts, if the model has no heads that can be
            removed, or the strategy shards parameters.
    """

    def __init__(
        self,
        target: float = 0.5,
        *,
        criterion: Criterion = "gate",
        start: float | int = 0.1,
        end: float | int = 0.4,
        num_cuts: int = 4,
        ranking: str = "global",
        grouping: str = "auto",
        min_heads: int = 1,
        guard: Guard | None = Guard(),  # noqa: B008
        seed: int = 0,
    ):
        self._options = PruningOptions(
            target, criterion, start, end, num_cuts, ranking, grouping, min_heads, guard, seed
        )
        self._pruner: HeadPruner | None = None
        self._importance: HeadImportance | None = None
        self._restored: dict[str, Any] = {}
        self._loading: list[RemovableHandle] = []
        self._publisher = LoggerPublisher()
        self._clock = StepClock()
        self._warned: set[str] = set()
        self._metric_is_new_after: str | None = None

    @property
    def cuts(self) -> list[Cut]:
        return [] if self._pruner is None else self._pruner.cuts

    # Lightning's hooks, in the order in which they come.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if sum(isinstance(callback, HeadPruning) for callback in trainer.callbacks) > 1:
            raise ConfigurationError("`callbacks` has two HeadPruning: one of them must do.")
        if stage == "fit" and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ConfigurationError(
                f"HeadPruning does not work under {type(trainer.strategy).__name__}, which shards parameters or keeps "
                "copies of them. Prune a checkpoint with attnwatch.prune_heads, then train that."
            )
        self._loading = [accept_pruned_state(model) for model in _models(trainer, pl_module)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = self._history(trainer) if needs_history(self._options.criterion) else None
        self._importance = HeadImportance(
            pl_module, criterion=self._options.criterion, history=history, seed=self._options.seed
        )
        self._pruner = HeadPruner(
            lambda: _patients(trainer, pl_module),
            self._importance,
            self._options,
            self._schedule(trainer, pl_module),
            agree=trainer.strategy.broadcast,
            after_change=lambda: _rebuild(trainer),
        )
        if self._restored:
            self._pruner.load_state_dict(self._restored)
            self._restored = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self._clock.batch_starts()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer) -> None:
        # Gradients are unscaled and not clipped yet.
        self._importance.update(optimizer if len(trainer.optimizers) > 1 else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        seconds = self._clock.batch_ends(trainer)
        if seconds is None:
            return
        if self._options.guard is not None:
            self._record(trainer, outputs)
        for cut in self._pruner.after_step(trainer.global_step, seconds):
            self._report(cut, trainer, pl_module)
        pl_module.log_dict({"pruning/heads": self._pruner.heads_left, "pruning/step_seconds": seconds})

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch > 0:
            self._record_logged(trainer, "epoch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and self._pruner is not None:
            self._record_logged(trainer, "validation")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank_zero_info(f"attnwatch: {self._pruner.summary()}")

    def state_dict(self) -> dict[str, Any]:
        return {} if self._pruner is None else self._pruner.state_dict()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for handle in self._loading:
            handle.remove()
        if self._importance is not None:
            self._importance.close()

    # What the hooks share.

    def _schedule(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> PruningSchedule:
        options = self._options
        if trainer.fast_dev_run:  # too short for more than to see that it works
            return PruningSchedule((1,), (options.target,))
        total = total_steps(trainer, pl_module)
        if total == math.inf and not (isinstance(options.start, int) and isinstance(options.end, int)):
            raise ConfigurationError(
                "the length of the run is not known: give `start` and `end` as numbers of steps, or max_steps to the "
                "trainer."
            )
        return PruningSchedule.spread(
            options.target, start=options.start, end=options.end, num_cuts=options.num_cuts, total_steps=total
        )

    def _history(self, trainer: pl.Trainer):
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, AttentionMonitor)]
        if not monitors:
            raise ConfigurationError(
                f"`criterion` {self._options.criterion!r} needs an AttentionMonitor among the trainer's callbacks."
            )
        return lambda: monitors[0].history

    def _record(self, trainer: pl.Trainer, outputs: Any) -> None:
        """The guard's metric after a step."""
        if self._options.guard.metric is not None:
            self._record_logged(trainer, "step")
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            self._pruner.record(torch.as_tensor(loss).detach())
        else:
            self._warn_once(
                "`guard`: training_step returns no loss, so that cuts are not judged; return it, or give a "
                "Guard(metric=...) that is logged."
            )

    def _record_logged(self, trainer: pl.Trainer, when: str) -> None:
        """Logged metrics keep their value until they are logged again; when one is seen first says when it is new."""
        metric = self._options.guard and self._options.guard.metric
        if metric is None or metric not in trainer.callback_metrics:
            return
        self._metric_is_new_after = self._metric_is_new_after or when
        if self._metric_is_new_after == when:
            self._pruner.record(trainer.callback_metrics[metric].detach().clone())

    def _check_metric(self, trainer: pl.Trainer) -> None:
        metric = self._options.guard and self._options.guard.metric
        if metric is not None and self._metric_is_new_after is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            self._warn_once(
                f"`guard`: the metric {metric!r} was not logged before the first cut, so that there is nothing to "
                f"compare with; logged were: {known}."
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"attnwatch: {message}", AttnwatchWarning, stacklevel=2)

    def _report(self, cut: Cut, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_metric(trainer)
        if cut.taken_back:
            message = f"attnwatch: {cut}. No further cut is made."
            warnings.warn(message, AttnwatchWarning, stacklevel=2)
        else:
            rank_zero_info(f"attnwatch: {cut}")
        self._publisher.text(
            trainer,
            "pruning/cuts",
            f"{cut}\n\nRemoved so far:\n\n```\n{PruningPlan.of(pl_module)}\n```",
            trainer.global_step,
        )


def _models(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """The module, and the averaged copy of it that Lightning's WeightAveraging or StochasticWeightAveraging keeps."""
    averages = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
    averages = [average.module if isinstance(average, AveragedModel) else average for average in averages]
    return [pl_module, *(average for average in averages if average is not None)]


def _patients(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Patient]:
    module, *copies = _models(trainer, pl_module)
    return [(module, trainer.strategy.optimizers), *((model, ()) for model in copies)]


def _rebuild(trainer: pl.Trainer) -> None:
    """Data parallelism reduces the gradients of the parameters that it was made with."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.model = trainer.strategy.lightning_module
        trainer.strategy.configure_ddp()
