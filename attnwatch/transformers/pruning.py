"""Head pruning as a callback of the transformers Trainer."""

from pathlib import Path

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from attnwatch.callbacks import TrainerRun
from attnwatch.callbacks.pruning import Pruning
from attnwatch.messages import warn
from attnwatch.pruning.checkpoints import PLAN_FILE
from attnwatch.pruning.plan import PruningPlan
from attnwatch.pruning.state import accept_pruned_state
from attnwatch.transformers.hooks import Hooks


class HeadPruning(Pruning, Hooks):
    # Its documentation is that of `Pruning`.

    _state_file = "head_pruning.pt"

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        super().on_init_end(args, state, control, model=model, **kwargs)
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

    def on_save(self, args, state, control, **kwargs) -> None:
        """With a plan, so that `attnwatch.load_pruned` loads the checkpoint."""
        super().on_save(args, state, control, **kwargs)
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        plan = PruningPlan.of(self._model)
        if args.should_save and folder.is_dir() and plan.heads:
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
