"""Removes heads while a model trains, on a schedule and under guard, without knowing any trainer."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.errors import ConfigurationError
from attnwatch.heads.cut import Cut, step_times
from attnwatch.heads.importance import HeadImportance, Importance
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.plan import PruningPlan, keep_beside_adapters
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.selection import choose_heads
from attnwatch.heads.snapshot import Snapshot, check_snapshot, restore_snapshot, take_snapshot
from attnwatch.heads.surgery import Surgery, apply_all
from attnwatch.utils.messages import duration, warn
from attnwatch.utils.processes import together
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1
# Steps whose median time is compared before and after a cut.
_TIMED_STEPS = 20
# The last cut, or the only one, is judged after so many steps.
_STEPS_WITHOUT_A_NEXT_CUT = 60


Value = Tensor | float
Patient = tuple[nn.Module, Sequence[Optimizer]]


@dataclass
class _Watched:
    """Cuts that the guard has not judged, from this one on."""

    first: int
    values_before: list[Value]
    snapshots: list[Snapshot]
    values_after: list[Value] = field(default_factory=list)


class HeadPruner:
    """What a trainer's callback does, step by step.

    Args:
        patients: returns the models that are cut alike, each with the optimizers that train it; the first one counts.
        importance: of the first one's heads.
        options, schedule: what goes when.
        agree: makes the first process's value that of all.
        before_change: called when heads are about to go, or to come back.
        after_change: called when parameters were replaced.

    Attributes:
        cuts: made so far, those that were taken back included.
        heads_left: share of the unpruned model's heads.
    """

    def __init__(
        self,
        patients: Callable[[], list[Patient]],
        importance: HeadImportance,
        options: PruningOptions,
        schedule: PruningSchedule,
        *,
        agree: Callable[[Any], Any] = lambda value: value,
        before_change: Callable[[], None] = lambda: None,
        after_change: Callable[[], None] = lambda: None,
    ):
        self.cuts: list[Cut] = []
        self.schedule = schedule
        self._patients = patients
        self._importance = importance
        self._options = options
        self._agree = agree
        self._before_change, self._after_change = before_change, after_change
        self._recovery, self._window = (
            (0, 0) if options.guard is None else options.guard.steps(schedule.gap or _STEPS_WITHOUT_A_NEXT_CUT)
        )
        self._values: list[Value] = []
        self._seconds: list[float] = []
        self._keep_ratio = 1.0
        self._watched: _Watched | None = None
        self._has_ended = False
        self._step = self._scheduled_until = 0
        self._timed_steps = min(_TIMED_STEPS, schedule.gap or _TIMED_STEPS)
        self.heads_left = self._count_heads()
        self._check_target()

    def record(self, value: Value) -> None:
        """A new value of the guard's metric."""
        if self._watched is None:
            self._values = [*self._values, value][-max(self._window, 1) :]
        elif self._step - self.cuts[-1].step >= self._recovery:
            self._watched.values_after.append(value)

    def after_step(self, step: int, seconds: float | None = None, keep_ratio: float = 1.0) -> list[Cut]:
        """After an optimizer step: the cuts about which there is news, made or taken back.

        Args:
            step: how many steps are complete.
            seconds: that it took.
            keep_ratio: share of the tokens that it computed. Times are compared at equal shares only.
        """
        self._step = step
        news = self._time(seconds, keep_ratio)
        if self._watched is not None and self._can_judge(self._watched):
            news += self._judge(self._watched)
        due = [target for target, at in self._planned if self._scheduled_until < at <= step]
        self._scheduled_until = step
        if due and not self._has_ended:
            news += self._cut(due[-1])
        return news

    def state_dict(self) -> dict[str, Any]:
        watched = self._watched
        state = {
            "step": self._step,
            "settings": self._settings,
            "has_ended": self._has_ended,
            "values": list(map(float, self._values)),
            "cuts": [
                {**vars(cut), "plan": {"heads": dict(cut.plan.heads), "num_heads": dict(cut.plan.num_heads)}}
                for cut in self.cuts
            ],
            "watched": watched
            and {
                "first": watched.first,
                "values_before": list(map(float, watched.values_before)),
                "values_after": list(map(float, watched.values_after)),
                "snapshots": watched.snapshots,
            },
            "importance": self._importance.state_dict(),
        }
        return with_format(_STATE_FORMAT, state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with a model that has the heads of then.

        Raises:
            ConfigurationError: `state` is of another version.
        """
        check_format(state, _STATE_FORMAT, "HeadPruner")
        self._step = self._scheduled_until = state["step"]
        self._has_ended = state["has_ended"]
        changed = {name: now for name, now in self._settings.items() if state["settings"][name] != now}
        if changed:
            text = f"the run goes on with other settings than it began with: {changed}, before {state['settings']}"
            warn(text, always=True, once_for_all=True)
        self._values = list(state["values"])
        self.cuts = [Cut(**{**cut, "plan": PruningPlan(**cut["plan"])}) for cut in state["cuts"]]
        self._watched = _Watched(**state["watched"]) if state["watched"] else None
        self._importance.load_state_dict(state["importance"])
        self.heads_left = self._count_heads()

    def summary(self) -> str:
        """What it came to, in a sentence."""
        gone = PruningPlan.of(self._patients()[0][0])
        text = f"{gone.num_removed} of {gone.num_unpruned} heads are gone; the target was {self._options.target:.0%}"
        return text + step_times(self.cuts)

    @property
    def _planned(self) -> list[tuple[float, int]]:
        return list(zip(self.schedule.targets, self.schedule.steps, strict=True))

    @property
    def _settings(self) -> dict[str, Any]:
        return {"target": self._options.target, "steps": list(self.schedule.steps)}

    def _count_heads(self) -> float:
        gone = PruningPlan.of(self._patients()[0][0])
        return 1 - gone.num_removed / gone.num_unpruned

    def _check_target(self) -> None:
        """Raises a `ConfigurationError` where no head could go, whatever the importance."""
        options, whole = self._options, PruningPlan.of(self._patients()[0][0])
        alike = {site: torch.zeros(number) for site, number in whole.num_heads.items()}
        if not whole.heads and not self._choose_by(alike, options.target).heads:
            raise ConfigurationError(
                f"`target` {options.target}: no head of this model can go with min_heads={options.min_heads}, "
                f"ranking={options.ranking!r} and grouping={options.grouping!r}; it has {dict(whole.num_heads)}."
            )

    def _cut(self, target: float) -> list[Cut]:
        begin, watched = time.perf_counter(), self._watched
        try:
            plan = self._make_cut(target)
        except Exception as error:  # of a criterion, of a model that has changed; the training is worth more
            self._has_ended, self._watched = True, watched  # cuts before this one are still judged
            text = f"no heads were removed after step {self._step}, and none will be: {error}"
            warn(text, always=True, once_for_all=True)
            return []
        if not plan.heads:
            return []
        before = statistics.median(self._seconds) if self._seconds else None
        cut = Cut(self._step, plan, before, keep_ratio=self._keep_ratio)
        cut.seconds_lost = time.perf_counter() - begin
        self.cuts.append(cut)
        self._seconds.clear()
        return [cut]

    def _make_cut(self, target: float) -> PruningPlan:
        patients = self._patients()
        plan = self._choose(patients[0][0], target)
        if not plan.heads:
            return plan
        # What one process can't cut, none cuts.
        surgeries = together(lambda: [Surgery(patient, plan.heads, optimizers) for patient, optimizers in patients])
        guard = self._options.guard
        if self._watched is not None:  # judged together with this one
            self._watched.values_after.clear()
        elif guard is not None and (self._values or guard.metric is not None):  # else there is nothing to judge by
            snapshots = together(lambda: [take_snapshot(*patient) for patient in patients])
            self._watched = _Watched(len(self.cuts), self._values, snapshots)
        self._before_change()
        apply_all(surgeries)
        for patient, _ in patients:
            keep_beside_adapters(patient)
        self._importance.reset()
        self._after_change()
        self.heads_left = self._count_heads()
        return plan

    def _choose(self, model: nn.Module, target: float) -> PruningPlan:
        """The first process chooses; where it fails, all do."""
        plan = failure = None
        try:
            plan = self._choose_by(self._importance.values(), target)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        heads, failure = self._agree((plan and dict(plan.heads), failure))
        if failure is not None:
            raise RuntimeError(failure)
        return PruningPlan(heads, PruningPlan.of(model).num_heads)

    def _choose_by(self, importance: Importance, target: float) -> PruningPlan:
        return choose_heads(
            self._patients()[0][0],
            importance,
            target=target,
            ranking=self._options.ranking,
            grouping=self._options.grouping,
            min_heads=self._options.min_heads,
        )

    def _can_judge(self, watched: _Watched) -> bool:
        guard, last = self._options.guard, self.cuts[-1]
        # Without a time before the cut, there is nothing to compare with.
        is_timed = last.seconds_after is not None or last.seconds_before is None or not guard.require_speedup
        can_judge = is_timed and len(watched.values_after) >= self._window
        # A metric may be logged on the first process only.
        return can_judge if guard.metric is None else self._agree(can_judge)

    def _judge(self, watched: _Watched) -> list[Cut]:
        cuts, guard = self.cuts[watched.first :], self._options.guard
        values_before, values_after = (list(map(float, v)) for v in (watched.values_before, watched.values_after))
        harm = guard.harm(values_before, values_after)
        if harm is None and guard.require_speedup:
            harm = self._no_speedup()
        harm = self._agree(harm)
        self._watched = None
        if not harm:
            self._values = watched.values_after[-self._window :]
            return []
        try:
            together(lambda: self._restore(watched.snapshots))
        except (ConfigurationError, RuntimeError) as error:
            text = f"{harm}, but the cut after step {cuts[0].step} can't be taken back: {error}"
            warn(text, always=True, once_for_all=True)
            return []
        for cut in cuts:
            cut.taken_back = harm
        self._values = watched.values_before
        self._importance.reset()
        self._has_ended = True
        self._after_change()
        self.heads_left = self._count_heads()
        return cuts

    def _restore(self, snapshots: Sequence[Snapshot]) -> None:
        taken = list(zip(self._patients(), snapshots, strict=True))
        for patient, snapshot in taken:
            check_snapshot(*patient, snapshot)
        self._before_change()
        for patient, snapshot in taken:
            restore_snapshot(*patient, snapshot)

    def _no_speedup(self) -> str | None:
        first, last = self.cuts[0], self.cuts[-1]
        before, after = first.seconds_before, last.seconds_after
        is_last = self._scheduled_until >= self.schedule.steps[-1]
        noise = 0.0 if is_last else self._options.guard.tolerance
        if before is None or after is None or first.keep_ratio != last.keep_ratio or after < before * (1 + noise):
            return None
        return f"a step takes {duration(after)}, before the first cut {duration(before)}"

    def _time(self, seconds: float | None, keep_ratio: float) -> list[Cut]:
        last = self.cuts[-1] if self.cuts else None
        if keep_ratio != self._keep_ratio:
            self._seconds.clear()
            self._keep_ratio = keep_ratio
        if last is not None and last.seconds_after is None and keep_ratio != last.keep_ratio:
            last.seconds_before = None  # nothing to compare the steps after it with
        if seconds is not None:
            self._seconds = [*self._seconds, seconds][-self._timed_steps :]
        is_known = last is None or last.seconds_after is not None or last.seconds_before is None
        if is_known or len(self._seconds) < self._timed_steps:
            return []
        last.seconds_after = statistics.median(self._seconds)
        last.seconds_lost += max(sum(self._seconds) - len(self._seconds) * last.seconds_after, 0.0)
        return [last]
