"""Head pruning as a callback, without the hooks that call it: a thin layer over the pruner."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.callbacks.monitor import Monitor
from attnwatch.callbacks.part import TrainingPart, others_workload
from attnwatch.callbacks.publisher import Publisher
from attnwatch.callbacks.run import StepClock, TrainerRun
from attnwatch.errors import ConfigurationError
from attnwatch.heads.cut import Cut
from attnwatch.heads.guard import Guard
from attnwatch.heads.importance import Criterion, HeadImportance, find_criterion
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.selection import Grouping, Ranking
from attnwatch.recorder import AttentionHistory
from attnwatch.schedules import Schedule
from attnwatch.utils.messages import WarnOnce, warn


class Pruning(TrainingPart):
    """Remove the attention heads that matter least while a model trains, so that its steps get faster.

    Weights, biases and optimizer state are cut. A guard takes a cut back that does lasting harm. Logged are
    `pruning/heads` (share that is left) and `pruning/step_seconds`; `cuts` has the rest. A run is resumed from its
    checkpoint with a freshly built, unpruned model; for Lightning's `load_from_checkpoint` see
    `attnwatch.accept_pruned_state`.

    Args:
        target: fraction of the heads that goes in all, between 0 and 1.
        criterion: importance of heads: the name of a `HeadCriterion`, one itself, or a function of the model; see
            `attnwatch.HeadImportance`. Those that read statistics need an `AttentionMonitor` in the same trainer.
        start, end: of the first and the last cut; optimizer steps where they are integers, else fractions of the run.
        num_cuts: how many cuts, evenly spaced.
        schedule: how many heads each cut takes: the name of a `Schedule`, or one itself; `"linear"` takes equally many.
        ranking: `"global"`, `"layer"` or `"equal"`; see `attnwatch.choose_heads`.
        grouping: with grouped-query attention, whole groups or some heads of each; see `attnwatch.choose_heads`.
        min_heads: that stay in every layer; 0 allows layers without attention.
        guard: when a cut is taken back; None: never.
        seed: of the random numbers that a criterion draws.

    Attributes:
        cuts: those that were made, each with `step`, `plan`, `seconds_before`, `seconds_after`, `seconds_lost` and
            `taken_back`; printed, it is a sentence.

    Raises:
        ConfigurationError: an argument is wrong, or when training starts, if the model has no heads that can be
            removed, or its parameters are sharded.
    """

    steers_training = True

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
        self._pruner: HeadPruner | None = None
        self._importance: HeadImportance | None = None
        self._clock = StepClock()

    @property
    def criterion(self) -> Criterion:
        """By which heads are removed."""
        return self._options.criterion

    @property
    def cuts(self) -> list[Cut]:
        return [] if self._pruner is None else self._pruner.cuts

    @property
    def workload(self) -> float:
        return 1.0 if self._pruner is None else self._pruner.heads_left

    @property
    def changes(self) -> list[tuple[int, str]]:
        return [(cut.step, "cut, taken back" if cut.taken_back else "heads go") for cut in self.cuts]

    # What happens in a training.

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._detach()
        self._publisher, self._warn_once, self._has_seen_metric = Publisher(), WarnOnce(), False
        self._model = model
        history = _history_of(run.callbacks, self._options.criterion)
        self._importance = HeadImportance(
            model, criterion=self._options.criterion, history=history, seed=self._options.seed
        )
        self._pruner = HeadPruner(
            run.patients,
            self._importance,
            self._options,
            PruningSchedule((1,), (self._options.target,)) if run.is_trial else self._schedule(run),
            broadcast=run.agree,
            before_change=self._before_change,
            after_change=run.parameters_were_replaced,
        )

    def _go_on(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        if state:
            self._pruner.load_state_dict(state)
        self._clock.start(run.global_step)

    def _begin_batch(self, run: TrainerRun) -> None:
        self._clock.batch_starts()

    def _before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        self._importance.update(optimizer)

    def _end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        seconds = self._clock.batch_ends(run.global_step)
        if seconds is None:
            return
        self._record_step(loss)
        for cut in self._pruner.after_step(run.global_step, seconds, others_workload(self, run)):
            self._report(cut, run)
        numbers = {"pruning/heads": self._pruner.heads_left, "pruning/step_seconds": seconds}
        run.log(numbers, run.global_step, to_sinks=True)

    def _end(self, run: TrainerRun) -> None:
        run.tell(self._pruner.summary())

    def _state(self) -> dict[str, Any]:
        return {} if self._pruner is None else self._pruner.state_dict()

    def _detach(self) -> None:
        if self._importance is not None:
            self._importance.close()

    def _before_change(self) -> None:
        """Nothing, where checkpoints have the whole model."""

    # What these share.

    @property
    def _metric(self) -> str | None:
        """That the guard looks at, if it is a logged one."""
        return self._options.guard and self._options.guard.metric

    def _record_metric(self, value: Tensor | float) -> None:
        """A new value of it."""
        self._has_seen_metric = True
        self._pruner.record(value)

    def _record_step(self, loss: Tensor | None) -> None:
        """After a complete step: the loss, if the guard looks at it."""
        if self._options.guard is None or self._metric is not None:
            return
        if loss is not None:
            self._pruner.record(loss)
        else:
            self._warn_once(
                "`guard`: training_step returns no loss, so that cuts are not judged; return it, or give a "
                "Guard(metric=...) that is logged.",
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
        if self._metric is not None and not self._has_seen_metric:
            self._warn_once(
                f"`guard`: the metric {self._metric!r} was not logged before the first cut, so that there is nothing "
                f"to compare with; logged were: {', '.join(sorted(run.metrics)) or 'none'}.",
                once_for_all=True,
            )
        if cut.taken_back:
            warn(f"{cut}. No further cut is made.", always=True, once_for_all=True)
        else:
            run.tell(str(cut))
        text = f"{cut}\n\nRemoved so far:\n\n```\n{self._pruner.removed}\n```"
        self._publisher.text(run.sinks, "pruning/cuts", text, run.global_step)


def _history_of(callbacks: Iterable[object], criterion: Criterion) -> Callable[[], AttentionHistory] | None:
    """Return that of the trainer's monitor, if the criterion reads statistics."""
    found = find_criterion(criterion)
    if not found.statistics:
        return None
    monitors = [callback for callback in callbacks if isinstance(callback, Monitor)]
    if not monitors:
        raise ConfigurationError(
            f"`criterion` {found.name!r} needs an AttentionMonitor among the trainer's callbacks, as it reads "
            f"{', '.join(found.statistics)}."
        )
    return lambda: monitors[0].history
