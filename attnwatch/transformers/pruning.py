"""Head pruning as a callback of the transformers Trainer."""

from pathlib import Path

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from attnwatch.callbacks import TrainerRun
from attnwatch.callbacks.pruning import Pruning
from attnwatch.pruning.checkpoints import PLAN_FILE
from attnwatch.pruning.plan import PruningPlan
from attnwatch.pruning.removed import Heads, RemovedHeads
from attnwatch.pruning.state import StateLoader
from attnwatch.transformers.hooks import Hooks


class HeadPruning(Pruning, Hooks):
    # Its documentation is that of `Pruning`.

    _state_file = "head_pruning.pt"

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        # For as long as the model lives: a trainer loads checkpoints before training begins and after it has ended.
        self._removed = RemovedHeads()
        self._loader = StateLoader(self._removed, self._heads_of_best_model, waits=True)
        self._loader.attach(model)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._loader.finish()
        super().on_train_begin(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._loader.finish()
        super().on_train_end(args, state, control, **kwargs)

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._run.refuse_shards("HeadPruning")
        super()._start(run, model)

    def _before_change(self) -> None:
        if self._run.trainer.args.load_best_model_at_end:
            self._removed.note(self._model)

    def _heads_of_best_model(self) -> Heads | None:
        """Those of the checkpoint that the trainer loads at the end, as far as the run knows which one that is."""
        best = self._run.trainer.state.best_model_checkpoint if self._has_ended else None
        if best is None or not self._removed.stages or not Path(best).is_dir():
            return None
        plan = Path(best, PLAN_FILE)
        gone = PruningPlan.load(plan).heads if plan.exists() else {}
        return {
            site: tuple(head for head in range(number) if head not in gone.get(site, ()))
            for site, number in PruningPlan.of(self._model).num_heads.items()
        }

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        super().on_log(args, state, control, **kwargs)
        self._record_from(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        self._record_from(metrics)

    def on_save(self, args, state, control, **kwargs) -> None:
        """With a plan, so that `attnwatch.load_pruned` loads the checkpoint."""
        super().on_save(args, state, control, **kwargs)
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        plan = PruningPlan.of(self._model)
        if args.should_save and folder.is_dir() and plan.heads:
            plan.save(folder / PLAN_FILE)

    def _record_from(self, numbers: dict[str, float] | None) -> None:
        if self._pruner is not None and self._metric is not None and self._metric in (numbers or {}):
            self._record_metric(numbers[self._metric])
