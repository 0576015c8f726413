"""Head pruning: a thin layer over the pruner."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from attnwatch.callbacks.clock import StepClock
from attnwatch.callbacks.monitor import AttentionMonitor
from attnwatch.callbacks.part import TrainingPart, others_workload
from attnwatch.callbacks.publisher import Publisher
from attnwatch.errors import ConfigurationError
from attnwatch.heads.cut import Cut
from attnwatch.heads.guard import Guard
from attnwatch.heads.importance import Criterion, HeadImportance, find_criterion
from attnwatch.heads.optimizer_state import forget_other_sizes
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.plan import PLAN_FILE, PruningPlan
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.selection import Grouping, Ranking
from attnwatch.recorder import AttentionHistory
from attnwatch.runs import RunEvent
from attnwatch.schedules import Schedule
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import WarnOnce, warn


class HeadPruning(TrainingPart):
    """Remove the attention heads that matter least while a model trains, so that its steps get faster.

    Weights, biases and optimizer state are cut. A guard takes back a cut that does lasting harm. The callback logs
    `pruning/heads` (share of heads left) and `pruning/step_seconds`; `cuts` has the rest. To resume a run from its
    checkpoint, start with a freshly built, unpruned model; for Lightning's `load_from_checkpoint` see
    `attnwatch.accept_pruned_state`.

    Args:
        target: fraction of the heads to remove in total, between 0 and 1.
        criterion: importance of heads: the name of a `HeadCriterion`, an instance, or a function of the model; see
            `attnwatch.HeadImportance`. Criteria that read statistics need an `AttentionMonitor` in the same trainer.
        start, end: time of the first and last cut: optimizer steps if they are integers, else fractions of the run.
        num_cuts: number of cuts, evenly spaced.
        schedule: number of heads per cut, by the name of a `Schedule` or an instance; `"linear"` means equally many.
        ranking: `"global"`, `"layer"` or `"equal"`; see `attnwatch.choose_heads`.
        grouping: with grouped-query attention, whole groups or some heads of each; see `attnwatch.choose_heads`.
        min_heads: number of heads that stay in every layer; 0 allows layers without attention.
        guard: rule by which a cut is taken back; None means never.
        seed: seed of the random numbers that a criterion draws.

    Attributes:
        cuts: cuts so far, each with `step`, `plan`, `seconds_before`, `seconds_after`, `seconds_lost` and
            `taken_back`; each prints as a sentence.

    Raises:
        ConfigurationError: an argument is invalid, the model has no heads that can be removed, or its parameters are
            sharded (the latter two are raised when training starts).
    """

    example = "HeadPruning(target=0.5)"
    steers_training = True
    resizes_model = True

    def __init__(
        self,
        target: float = 0.5,
        *,
        criterion: Criterion = "gate",
        start: int | float = 0.1,
        end: int | float = 0.4,
        num_cuts: int = 4,
        schedule: str | Schedule = "linear",
        ranking: Ranking = "global",
        grouping: Grouping = "auto",
        min_heads: int = 1,
        guard: Guard | None = Guard(),  # noqa: B008
        seed: int = 0,
    ):
        self._options = PruningOptions(
            target,
            criterion=criterion,
            start=start,
            end=end,
            num_cuts=num_cuts,
            schedule=schedule,
            ranking=ranking,
            grouping=grouping,
            min_heads=min_heads,
            guard=guard,
            seed=seed,
        )
        self.watched_metric = None if guard is None else guard.metric
        if (known := find_criterion(criterion)).statistics:
            self.choice_by_attention = f"heads by criterion={known.name!r}", "criterion='gate'"
        self._known_pruner: HeadPruner | None = None
        self._importance: HeadImportance | None = None
        self._clock = StepClock()

    @property
    def criterion(self) -> Criterion:
        """Criterion of head importance."""
        return self._options.criterion

    @property
    def cuts(self) -> list[Cut]:
        """Cuts so far, including those that were taken back."""
        return [] if self._known_pruner is None else self._known_pruner.cuts

    @property
    def workload(self) -> float:
        """Share of the heads that are left."""
        return 1.0 if self._known_pruner is None else self._known_pruner.heads_left

    @property
    def description(self) -> str:
        return "" if self._known_pruner is None else self._known_pruner.summary()

    @property
    def events(self) -> list[RunEvent]:
        """Cuts so far, including those that were taken back."""
        return [self._event(cut) for cut in self.cuts]

    def _event(self, cut: Cut) -> RunEvent:
        label = "cut taken back" if cut.taken_back else "heads removed"
        details: dict[str, float | str] = {
            "heads": cut.plan.num_removed,
            "criterion": find_criterion(self.criterion).name,
        }
        if cut.times is not None:
            before, after = cut.times
            details["cut itself [s]"] = cut.seconds_lost
            details |= {"step before [s]": before, "step after [s]": after, "times as fast": before / after}
        if cut.speed_ceiling is not None:
            details["at most"] = cut.speed_ceiling
        text = f"{cut}." if cut.taken_back else ""
        return RunEvent(cut.step, "heads", label, text, details)

    # Training hooks.

    def check(self, run: TrainerRun) -> None:
        if run.sharding is not None:
            raise ConfigurationError(
                f"HeadPruning does not work under {run.sharding}, which shards parameters or keeps copies of them. "
                "Prune a checkpoint with attnwatch.prune_heads, then train the result."
            )

    def start(self, run: TrainerRun) -> None:
        self.detach()
        self.check(run)
        self._model = run.model
        for optimizer in [optimizer for _, optimizers in run.models_with_optimizers() for optimizer in optimizers]:
            forget_other_sizes(optimizer)  # the best model of an earlier training may have been loaded since then
        self._publisher, self._warn_once, self._has_seen_metric = Publisher(), WarnOnce(), False
        criterion, history = self._options.criterion, _history_for(self._options.criterion, run)
        importance = HeadImportance(run.model, criterion=criterion, history=history, seed=self._options.seed)
        self._importance = importance
        self._known_pruner = HeadPruner(
            run.models_with_optimizers,
            importance,
            self._options,
            PruningSchedule((1,), (self._options.target,)) if run.is_dry_run else self._schedule(run),
            broadcast=run.broadcast,
            before_change=run.before_parameters_change,
            after_change=run.after_parameters_changed,
            num_tokens=lambda: max((part.num_tokens for part in _monitors(run)), default=0),
        )

    def resume(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        if state:
            self._pruner.load_state_dict(dict(state))
        self._clock.start(run.global_step)

    def begin_batch(self, run: TrainerRun) -> None:
        self._clock.batch_starts()

    def before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        if self._importance is not None:
            self._importance.update(optimizer)

    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        seconds = self._clock.batch_ends(run.global_step)
        if seconds is None:
            return
        self._record_loss(loss)
        for cut in self._pruner.after_step(run.global_step, seconds, others_workload(self, run)):
            self._report(cut, run)
        numbers = {"pruning/heads": self._pruner.heads_left, "pruning/step_seconds": seconds}
        run.log(numbers, run.global_step, to_loggers=True)

    def record_metric(self, value: Tensor | float) -> None:
        if self._known_pruner is not None:
            self._has_seen_metric = True
            self._pruner.record(value)

    def end(self, run: TrainerRun) -> None:
        run.inform(self._pruner.summary())
        plan = PruningPlan.of(run.model)
        if plan.heads:
            run.after_pruning(plan)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._known_pruner is None else self._known_pruner.state_dict()

    def write_beside_checkpoint(self, folder: Path) -> None:
        """Write the plan that `attnwatch.load_pruned` reads."""
        plan = PruningPlan.of(self._model)
        if plan.heads:
            plan.save(folder / PLAN_FILE)

    def detach(self) -> None:
        if self._importance is not None:
            self._importance.close()

    # Helpers.

    @property
    def _pruner(self) -> HeadPruner:
        if self._known_pruner is None:
            raise ConfigurationError("HeadPruning has no heads to remove yet: no training has started.")
        return self._known_pruner

    def _record_loss(self, loss: Tensor | None) -> None:
        """Record the loss of a complete step, if the guard looks at it."""
        if self._options.guard is None or self.watched_metric is not None:
            return
        if loss is not None:
            self._pruner.record(loss)
        else:
            self._warn_once(
                "`guard`: training_step returns no loss, so cuts are not judged; return the loss, or give a "
                "Guard(metric=...) whose metric is logged.",
                once_for_all=True,
            )

    def _schedule(self, run: TrainerRun) -> PruningSchedule:
        options = self._options
        if run.total_steps is None and not (isinstance(options.start, int) and isinstance(options.end, int)):
            raise ConfigurationError(
                "the length of the run is not known: give `start` and `end` as numbers of steps, or max_steps to the "
                "trainer."
            )
        return PruningSchedule.spread(
            options.target,
            start=options.start,
            end=options.end,
            num_cuts=options.num_cuts,
            total_steps=float("inf") if run.total_steps is None else run.total_steps,
            schedule=options.schedule,
        )

    def _report(self, cut: Cut, run: TrainerRun) -> None:
        if self.watched_metric is not None and not self._has_seen_metric:
            self._warn_once(
                f"`guard`: the metric {self.watched_metric!r} was not logged before the first cut, so there is "
                f"nothing to compare with; logged metrics: {', '.join(sorted(run.metrics)) or 'none'}.",
                once_for_all=True,
            )
        if cut.taken_back:
            warn(f"{cut}. No further cuts are made.", always=True, once_for_all=True)
        else:
            run.inform(str(cut))
        text = f"{cut}\n\nRemoved so far:\n\n```\n{self._pruner.removed}\n```"
        self._publisher.text(run.loggers, "pruning/cuts", text, run.global_step)


def _history_for(criterion: Criterion, run: TrainerRun) -> Callable[[], AttentionHistory] | None:
    """Return a function that returns the history of the trainer's monitor, if the criterion reads statistics."""
    found = find_criterion(criterion)
    if not found.statistics:
        return None
    monitors = _monitors(run)
    if not monitors:
        raise ConfigurationError(
            f"`criterion` {found.name!r} needs an AttentionMonitor among the trainer's callbacks, as it reads "
            f"{', '.join(found.statistics)}."
        )
    return lambda: monitors[0].history


def _monitors(run: TrainerRun) -> list[AttentionMonitor]:
    return [part for part in run.parts if isinstance(part, AttentionMonitor)]
