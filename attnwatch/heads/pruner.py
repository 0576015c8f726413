"""Removal of heads during training, on a schedule and with a guard, for any trainer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.changes import apply_all
from attnwatch.heads.cut import Cut, CutTimes, step_times, why_no_speedup
from attnwatch.heads.guard import Guard
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.importance import HeadImportance
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.plan import PruningPlan, save_beside_adapters
from attnwatch.heads.savings import savings
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.snapshot import Snapshot, check_snapshot, restore_snapshot, take_snapshot
from attnwatch.heads.surgery import Surgery
from attnwatch.utils.messages import warn
from attnwatch.utils.processes import together
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1
# Number of steps after which the last (or only) cut is judged.
_STEPS_WITHOUT_A_NEXT_CUT = 60

Value = Tensor | float
ModelWithOptimizers = tuple[nn.Module, Sequence[Optimizer]]
"""Model, and the optimizers that train it."""


@dataclass
class _Unjudged:
    """Cuts that the guard has not judged yet, starting with this one."""

    first: int
    values_before: list[Value]
    snapshots: list[Snapshot]
    values_after: list[Value] = field(default_factory=list)


class HeadPruner:
    """Head pruning during one training run, called after every optimizer step.

    Args:
        models_with_optimizers: function that returns the models to cut alike, each with the optimizers that train
            it; heads are chosen in the first one.
        importance: importance of the first model's heads.
        options: options of the choice of heads and of the guard.
        schedule: steps and sizes of the cuts.
        broadcast: function that returns the first process's value on all processes.
        before_change, after_change: functions called before and after heads are removed or restored.
        num_tokens: function that returns the length of the longest known sequence; 0 if none is known.

    Attributes:
        cuts: cuts made so far, including those taken back.
        removed: all heads removed from the first model.
        schedule: steps and sizes of the cuts.

    Raises:
        ConfigurationError: no head could be removed, whatever the importance.
    """

    def __init__(
        self,
        models_with_optimizers: Callable[[], list[ModelWithOptimizers]],
        importance: HeadImportance,
        options: PruningOptions,
        schedule: PruningSchedule,
        *,
        broadcast: Callable[[Any], Any] = lambda value: value,
        before_change: Callable[[], None] = lambda: None,
        after_change: Callable[[], None] = lambda: None,
        num_tokens: Callable[[], int] = lambda: 0,
    ):
        self.cuts: list[Cut] = []
        self.schedule = schedule
        self._models_with_optimizers = models_with_optimizers
        self._importance, self._options, self._broadcast = importance, options, broadcast
        self._before_change, self._after_change = before_change, after_change
        self._num_tokens = num_tokens
        self._recovery, self._window = (
            (0, 0) if options.guard is None else options.guard.steps(schedule.gap or _STEPS_WITHOUT_A_NEXT_CUT)
        )
        self._values: list[Value] = []
        self._times = CutTimes(schedule.gap)
        self._unjudged: _Unjudged | None = None
        self._has_ended = False
        self._step = self._scheduled_until = 0
        heads = HeadMap.of(self._first_model)
        self.removed = PruningPlan.of(heads)
        self._check_target(heads)

    @property
    def heads_left(self) -> float:
        """Share of the unpruned model's heads that remain."""
        return 1 - self.removed.num_removed / self.removed.num_unpruned

    def record(self, value: Value) -> None:
        """Record a new value of the guard's metric."""
        if self._unjudged is None:
            self._values = [*self._values, value][-max(self._window, 1) :]
        elif self._step - self.cuts[-1].step >= self._recovery:
            self._unjudged.values_after.append(value)

    def after_step(self, step: int, seconds: float | None = None, keep_ratio: float = 1.0) -> list[Cut]:
        """Make and judge the cuts that are due after an optimizer step.

        Args:
            step: number of completed steps.
            seconds: duration of the step.
            keep_ratio: share of the tokens that the step computed. Times are compared at equal shares only.

        Returns:
            The cuts with news: just made, timed, or taken back.
        """
        self._step = step
        last = self.cuts[-1] if self.cuts else None
        news = [last] if self._times.add(seconds, keep_ratio, last) and last is not None else []
        guard, unjudged = self._options.guard, self._unjudged
        if guard is not None and unjudged is not None and self._can_judge(guard, unjudged):
            news += self._judge(guard, unjudged)
        planned = zip(self.schedule.steps, self.schedule.targets, strict=True)
        due = [target for at, target in planned if self._scheduled_until < at <= step]
        self._scheduled_until = step
        if due and not self._has_ended:
            news += self._cut(due[-1])
        return news

    def state_dict(self) -> dict[str, Any]:
        """Return cuts, values of the metric, importance, and the snapshots of cuts that are not judged yet."""
        unjudged = self._unjudged
        state = {
            "step": self._step,
            "settings": self._settings,
            "has_ended": self._has_ended,
            "values": list(map(float, self._values)),
            "cuts": list(map(asdict, self.cuts)),
            "unjudged": unjudged
            and {
                "first": unjudged.first,
                "values_before": list(map(float, unjudged.values_before)),
                "values_after": list(map(float, unjudged.values_after)),
                "snapshots": unjudged.snapshots,
            },
            "importance": self._importance.state_dict(),
        }
        return with_format(_STATE_FORMAT, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned, with a model that has the same heads as then.

        Raises:
            ConfigurationError: `state` has another version.
        """
        check_format(state, _STATE_FORMAT, "HeadPruner")
        self._step = self._scheduled_until = state["step"]
        self._has_ended = state["has_ended"]
        changed = {name: now for name, now in self._settings.items() if state["settings"][name] != now}
        if changed:
            text = f"the run continues with other settings than before: {changed}, before {state['settings']}"
            warn(text, always=True, once_for_all=True)
        self._values = list(state["values"])
        self.cuts = [Cut(**{**cut, "plan": PruningPlan(**cut["plan"])}) for cut in state["cuts"]]
        self._unjudged = _Unjudged(**state["unjudged"]) if state["unjudged"] else None
        self._importance.load_state_dict(state["importance"])
        self.removed = PruningPlan.of(self._first_model)

    def summary(self) -> str:
        """Return the outcome as a sentence."""
        gone = self.removed
        text = f"{gone.num_removed} of {gone.num_unpruned} heads removed; the target was {self._options.target:.0%}"
        return text + step_times(self.cuts)

    @property
    def _first_model(self) -> nn.Module:
        return self._models_with_optimizers()[0][0]

    def _maps_with_optimizers(self) -> list[tuple[HeadMap, Sequence[Optimizer]]]:
        return [(HeadMap.of(model), optimizers) for model, optimizers in self._models_with_optimizers()]

    @property
    def _settings(self) -> dict[str, Any]:
        return {"target": self._options.target, "steps": list(self.schedule.steps)}

    def _check_target(self, heads: HeadMap) -> None:
        """Raise a `ConfigurationError` if no head could be removed, whatever the importance."""
        options = self._options
        alike = {site: torch.zeros(number) for site, number in heads.num_heads.items()}
        if not self.removed.heads and not self._options.choose(heads, alike, options.target).heads:
            raise ConfigurationError(
                f"`target` {options.target}: no head of this model can be removed with min_heads={options.min_heads}, "
                f"ranking={options.ranking!r} and grouping={options.grouping!r}; it has {heads.num_heads}."
            )

    def _cut(self, target: float) -> list[Cut]:
        begin, unjudged = time.perf_counter(), self._unjudged
        try:
            cut = self._make_cut(target)
        except Exception as error:  # from a criterion or a changed model; training must continue
            self._has_ended, self._unjudged = True, unjudged  # earlier cuts are still judged
            text = f"no heads were removed after step {self._step}, and none will be: {error}"
            warn(text, always=True, once_for_all=True)
            return []
        if cut is None:
            return []
        cut.seconds_lost = time.perf_counter() - begin
        self.cuts.append(cut)
        self._times.clear()
        return [cut]

    def _make_cut(self, target: float) -> Cut | None:
        """Return the cut that was made; None if there is no head to remove."""
        models = together(self._maps_with_optimizers)
        plan = self._choose(models[0][0], target)
        if not plan.heads:
            return None
        cut = Cut(self._step, plan, self._times.median, keep_ratio=self._times.keep_ratio)
        if num_tokens := self._num_tokens():
            cut.speed_ceiling = savings(models[0][0].model, plan, num_tokens=num_tokens).speed_ceiling
        # If one process can't make the cut, none makes it.
        surgeries = together(lambda: [Surgery(heads, plan.heads, optimizers) for heads, optimizers in models])
        guard = self._options.guard
        if self._unjudged is not None:  # judged together with this one
            self._unjudged.values_after.clear()
        elif guard is not None and (self._values or guard.metric is not None):  # otherwise there is no baseline
            snapshots = together(lambda: [take_snapshot(heads, optimizers) for heads, optimizers in models])
            self._unjudged = _Unjudged(len(self.cuts), self._values, snapshots)
        self._before_change()
        apply_all(surgeries)
        for heads, _ in models:
            save_beside_adapters(heads.model)
        self.removed = self.removed + plan
        self._importance.reset()
        self._after_change()
        return cut

    def _choose(self, heads: HeadMap, target: float) -> PruningPlan:
        """Return the choice of the first process; if it fails, all processes fail."""
        plan = failure = None
        try:
            plan = self._options.choose(heads, self._importance.values(heads), target)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        chosen, failure = self._broadcast((plan and dict(plan.heads), failure))
        if failure is not None:
            raise RuntimeError(failure)
        return PruningPlan(chosen, heads.num_heads)

    def _can_judge(self, guard: Guard, unjudged: _Unjudged) -> bool:
        last = self.cuts[-1]
        # Without a time before the cut, there is nothing to compare with.
        is_timed = last.seconds_after is not None or last.seconds_before is None or not guard.require_speedup
        can_judge = is_timed and len(unjudged.values_after) >= self._window
        # The metric may be logged on the first process only.
        return can_judge if guard.metric is None else self._broadcast(can_judge)

    def _judge(self, guard: Guard, unjudged: _Unjudged) -> list[Cut]:
        cuts = self.cuts[unjudged.first :]
        harm = guard.harm(list(map(float, unjudged.values_before)), list(map(float, unjudged.values_after)))
        if harm is None and guard.require_speedup:
            is_last = self._scheduled_until >= self.schedule.steps[-1]
            harm = why_no_speedup(self.cuts, 0.0 if is_last else guard.tolerance)
        harm = self._broadcast(harm)
        self._unjudged = None
        if not harm:
            self._values = unjudged.values_after[-self._window :]
            return []
        try:
            together(lambda: self._restore(unjudged.snapshots))
        except (ConfigurationError, RuntimeError) as error:
            text = f"{harm}, but the cut after step {cuts[0].step} can't be taken back: {error}"
            warn(text, always=True, once_for_all=True)
            return []
        for cut in cuts:
            cut.taken_back = harm
        self._values = unjudged.values_before
        self._importance.reset()
        self._has_ended = True
        self.removed = PruningPlan.of(self._first_model)
        self._after_change()
        return cuts

    def _restore(self, snapshots: Sequence[Snapshot]) -> None:
        taken = list(zip(self._maps_with_optimizers(), snapshots, strict=True))
        for (heads, optimizers), snapshot in taken:
            check_snapshot(heads, optimizers, snapshot)
        self._before_change()
        for (heads, optimizers), snapshot in taken:
            restore_snapshot(heads, optimizers, snapshot)
