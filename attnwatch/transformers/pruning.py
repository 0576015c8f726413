"""Head pruning as a callback of the transformers Trainer."""

from pathlib import Path

from torch import nn

from attnwatch.callbacks import TrainerRun
from attnwatch.callbacks.pruning import Pruning
from attnwatch.pruning.checkpoints import PLAN_FILE
from attnwatch.pruning.plan import PruningPlan
from attnwatch.pruning.state import accept_pruned_state
from attnwatch.transformers.hooks import Hooks


class HeadPruning(Pruning, Hooks):
    # Its documentation is that of `Pruning`.

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        # For as long as the model lives: a trainer loads checkpoints before training begins and after it has ended.
        accept_pruned_state(model)

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._run.refuse_shards("HeadPruning")
        super()._start(run, model)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        super().on_log(args, state, control, **kwargs)
        self._record_from(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        self._record_from(metrics)

    def write_beside(self, folder: Path) -> None:
        """Write a plan, so that `attnwatch.load_pruned` loads the checkpoint."""
        plan = PruningPlan.of(self._model)
        if plan.heads:
            plan.save(folder / PLAN_FILE)

    def _record_from(self, numbers: dict[str, float] | None) -> None:
        if self._pruner is not None and self._metric is not None and self._metric in (numbers or {}):
            self._record_metric(numbers[self._metric])
