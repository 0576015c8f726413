"""Head pruning as a callback of the transformers Trainer."""

from pathlib import Path

from torch import nn

from attnwatch.callbacks import TrainerRun
from attnwatch.callbacks.pruning import Pruning
from attnwatch.heads.optimizer_state import forget_other_sizes
from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.heads.removed import Heads, RemovedHeads
from attnwatch.heads.state import StateLoader
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers
from attnwatch.utils.messages import warn


@documented_for_transformers("HeadPruning(target=0.5)")
class HeadPruning(Pruning, Hooks):
    _loader: StateLoader | None = None

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        super().on_init_end(args, state, control, model=model, **kwargs)
        self._prepare_for_states(model)

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self._loader is None:  # of a callback that was added to the trainer later
            self._prepare_for_states(model)
        self._loader.finish()
        super().on_train_begin(args, state, control, model=model, **kwargs)

    def _prepare_for_states(self, model: nn.Module) -> None:
        """For as long as the model lives: a trainer loads checkpoints before training begins and after it has ended."""
        self._removed = RemovedHeads()
        self._loader = StateLoader(self._removed, self._heads_of_best_model, waits=True)
        self._loader.attach(model)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._loader.finish()
        super().on_train_end(args, state, control, **kwargs)

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._run.refuse_shards("HeadPruning")
        for optimizer in [optimizer for _, optimizers in run.patients() for optimizer in optimizers]:
            forget_other_sizes(optimizer)  # the best model of an earlier training may have been loaded since then
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

    def write_beside(self, folder: Path) -> None:
        """Write a plan, so that `attnwatch.load_pruned` loads the checkpoint."""
        plan = PruningPlan.of(self._model)
        if plan.heads:
            plan.save(folder / PLAN_FILE)

    def _end(self, run: TrainerRun) -> None:
        super()._end(run)
        plan = PruningPlan.of(self._model)
        if not plan.heads:
            return
        run.tell(
            "heads were removed: from_pretrained can't load what save_model or save_pretrained write of this model, "
            "attnwatch.load_pruned(folder) can; attnwatch.save_pruned(model, folder) writes a folder that "
            "from_pretrained loads, where all layers have equally many heads and the model's family allows it."
        )
        if hasattr(self._model, "peft_config") and run.is_main_process:
            self._keep_plan_of_base(plan, Path(run.trainer.args.output_dir, PLAN_FILE))

    def _keep_plan_of_base(self, plan: PruningPlan, path: Path) -> None:
        """Adapters are saved without their base, so that nothing else would say which heads it lost."""
        try:
            plan.save(path)
        except OSError as error:
            warn(f"{path} could not be written ({error}): save `PruningPlan.of(model)` beside the adapters yourself.")
        else:
            self._run.tell(f"the heads that the adapters' base lost are in {path}; keep it beside the adapters.")

    def _record_from(self, numbers: dict[str, float] | None) -> None:
        if self._pruner is not None and self._metric is not None and self._metric in (numbers or {}):
            self._record_metric(numbers[self._metric])
