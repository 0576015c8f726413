"""Removes heads while a model trains, on a schedule and under guard, without knowing any trainer."""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.arguments import require_int
from attnwatch.errors import AttnwatchWarning, ConfigurationError
from attnwatch.pruning.guard import Guard
from attnwatch.pruning.importance import Criterion, HeadImportance, check_criterion
from attnwatch.pruning.plan import PruningPlan
from attnwatch.pruning.schedule import PruningSchedule
from attnwatch.pruning.selection import check_choice, choose_heads
from attnwatch.pruning.snapshot import Snapshot, restore_snapshot, take_snapshot
from attnwatch.pruning.surgery import Surgery, apply_all

# Steps whose median time is compared before and after a cut.
_TIMED_STEPS = 20
# The last cut, or the only one, is judged after so many steps.
_STEPS_WITHOUT_A_NEXT_CUT = 60


@dataclass(frozen=True)
class PruningOptions:
    """See `attnwatch.lightning.HeadPruning`.

    Raises:
        ConfigurationError: an argument is wrong; the message names it.
    """

    target: float
    criterion: Criterion
    start: float | int
    end: float | int
    num_cuts: int
    ranking: str
    grouping: str
    min_heads: int
    guard: Guard | None
    seed: int

    def __post_init__(self):
        check_choice(target=self.target, ranking=self.ranking, grouping=self.grouping, min_heads=self.min_heads)
        if isinstance(self.target, int):
            raise ConfigurationError(f"`target` must be a fraction of the heads between 0 and 1, got {self.target!r}.")
        check_criterion(self.criterion)
        require_int("num_cuts", self.num_cuts, minimum=1)
        require_int("seed", self.seed, minimum=0)
        for name, at in (("start", self.start), ("end", self.end)):
            if isinstance(at, bool) or not isinstance(at, int | float) or at < 0 or (isinstance(at, float) and at >= 1):
                raise ConfigurationError(
                    f"`{name}` must be a fraction of the run below 1 or a number of steps, got {at!r}."
                )
        if type(self.start) is type(self.end) and self.start > self.end:
            raise ConfigurationError(f"`start` must not be after `end`, got {self.start!r} and {self.end!r}.")
        if self.guard is not None and not isinstance(self.guard, Guard):
            raise ConfigurationError(f"`guard` must be an attnwatch.Guard or None, got {self.guard!r}.")


@dataclass
class Cut:
    """One cut that was made.

    Attributes:
        step: after this optimizer step.
        plan: what went.
        seconds_before, seconds_after: median time of a step; None while it is not known.
        seconds_lost: what the cut took, and the first steps after it beyond that median (recompilation).
        taken_back: why the guard took it back; empty where it did not.
    """

    step: int
    plan: PruningPlan
    seconds_before: float | None = None
    seconds_after: float | None = None
    seconds_lost: float = 0.0
    taken_back: str = ""

    @property
    def num_heads(self) -> int:
        """How many heads went."""
        return sum(map(len, self.plan.heads.values()))

    def __str__(self) -> str:
        if self.taken_back:
            return f"the {self.num_heads} heads that were removed after step {self.step} are back: {self.taken_back}"
        text = f"{self.num_heads} heads removed after step {self.step}"
        if self.seconds_before is None or self.seconds_after is None:
            return text
        return (
            f"{text}: a step took {1e3 * self.seconds_before:.3g} ms, now {1e3 * self.seconds_after:.3g} ms; the cut "
            f"itself took {self.seconds_lost:.2g} s"
        )


Value = Tensor | float
Patient = tuple[nn.Module, Sequence[Optimizer]]


@dataclass
class _Watched:
    """The latest cut, while the guard has not judged it."""

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
        after_change: Callable[[], None] = lambda: None,
    ):
        self.cuts: list[Cut] = []
        self.schedule = schedule
        self._patients = patients
        self._importance = importance
        self._options = options
        self._agree = agree
        self._after_change = after_change
        self._recovery, self._window = (
            (0, 0) if options.guard is None else options.guard.steps(schedule.gap or _STEPS_WITHOUT_A_NEXT_CUT)
        )
        self._values: list[Value] = []
        self._seconds: list[float] = []
        self._watched: _Watched | None = None
        self._has_ended = False
        self._step = 0
        self.heads_left = self._count_heads()

    def record(self, value: Value) -> None:
        """A new value of the guard's metric."""
        if self._watched is None:
            self._values = [*self._values, value][-max(self._window, 1) :]
        elif self._step - self.cuts[-1].step >= self._recovery:
            self._watched.values_after.append(value)

    def after_step(self, step: int, seconds: float | None = None) -> list[Cut]:
        """After an optimizer step that took so long: the cuts about which there is news, made or taken back."""
        self._step = step
        news = self._time(seconds)
        if self._watched is not None and self._can_judge(self._watched):
            news += self._judge(self._watched)
        due = len(self.cuts) < len(self.schedule.steps) and step >= self.schedule.steps[len(self.cuts)]
        if due and self._watched is None and not self._has_ended:
            news += self._cut()
        return news

    def state_dict(self) -> dict[str, Any]:
        watched = self._watched
        return {
            "step": self._step,
            "has_ended": self._has_ended,
            "values": list(map(float, self._values)),
            "cuts": [
                {**vars(cut), "plan": {"heads": dict(cut.plan.heads), "num_heads": dict(cut.plan.num_heads)}}
                for cut in self.cuts
            ],
            "watched": watched
            and {
                "values_before": list(map(float, watched.values_before)),
                "values_after": list(map(float, watched.values_after)),
                "snapshots": watched.snapshots,
            },
            "importance": self._importance.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step, self._has_ended = state["step"], state["has_ended"]
        self._values = list(state["values"])
        self.cuts = [Cut(**{**cut, "plan": PruningPlan(**cut["plan"])}) for cut in state["cuts"]]
        self._watched = _Watched(**state["watched"]) if state["watched"] else None
        self._importance.load_state_dict(state["importance"])
        self.heads_left = self._count_heads()

    def _count_heads(self) -> float:
        gone = PruningPlan.of(self._patients()[0][0])
        return 1 - sum(map(len, gone.heads.values())) / sum(gone.num_heads.values())

    def _cut(self) -> list[Cut]:
        begin = time.perf_counter()
        try:
            plan = self._make_cut()
        except Exception as error:  # of a criterion, of a model that has changed; the training is worth more
            self._has_ended, self._watched = True, None
            warnings.warn(
                f"attnwatch: no heads were removed after step {self._step}, and none will be: {error}",
                AttnwatchWarning,
                stacklevel=2,
            )
            return []
        cut = Cut(self._step, plan, statistics.median(self._seconds) if self._seconds else None)
        cut.seconds_lost = time.perf_counter() - begin
        self.cuts.append(cut)
        self._seconds.clear()
        return [cut]

    def _make_cut(self) -> PruningPlan:
        patients = self._patients()
        plan = self._choose(patients[0][0])
        surgeries = [Surgery(patient, plan.heads, optimizers) for patient, optimizers in patients]
        guard = self._options.guard
        if guard is not None and (self._values or guard.metric is not None):  # otherwise there is nothing to judge by
            self._watched = _Watched(self._values, [take_snapshot(*patient) for patient in patients])
        apply_all(surgeries)
        self._importance.reset()
        self._after_change()
        self.heads_left = self._count_heads()
        return plan

    def _choose(self, model: nn.Module) -> PruningPlan:
        """The first process chooses; where it fails, all do."""
        options, plan, failure = self._options, None, None
        try:
            plan = choose_heads(
                model,
                self._importance.values(),
                target=self.schedule.targets[len(self.cuts)],
                ranking=options.ranking,
                grouping=options.grouping,
                min_heads=options.min_heads,
            )
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        heads, failure = self._agree((plan and dict(plan.heads), failure))
        if failure is not None:
            raise RuntimeError(failure)
        return PruningPlan(heads, PruningPlan.of(model).num_heads)

    def _can_judge(self, watched: _Watched) -> bool:
        is_timed = self.cuts[-1].seconds_after is not None or not self._options.guard.require_speedup
        return is_timed and len(watched.values_after) >= self._window

    def _judge(self, watched: _Watched) -> list[Cut]:
        cut, guard = self.cuts[-1], self._options.guard
        values_before, values_after = (list(map(float, v)) for v in (watched.values_before, watched.values_after))
        harm = guard.harm(values_before, values_after)
        is_timed = cut.seconds_before is not None and cut.seconds_after is not None
        if harm is None and guard.require_speedup and is_timed and cut.seconds_after >= cut.seconds_before:
            harm = f"a step takes {cut.seconds_after:.3g} s, before {cut.seconds_before:.3g} s"
        cut.taken_back = self._agree(harm) or ""
        self._watched = None
        if not cut.taken_back:
            self._values = watched.values_after[-self._window :]
            return []
        for (model, optimizers), snapshot in zip(self._patients(), watched.snapshots, strict=True):
            restore_snapshot(model, optimizers, snapshot)
        self._values = watched.values_before
        self._importance.reset()
        self._has_ended = True
        self._after_change()
        self.heads_left = self._count_heads()
        return [cut]

    def _time(self, seconds: float | None) -> list[Cut]:
        if seconds is not None:
            self._seconds = [*self._seconds, seconds][-_TIMED_STEPS:]
        last = self.cuts[-1] if self.cuts else None
        if last is None or last.seconds_after is not None or len(self._seconds) < _TIMED_STEPS:
            return []
        last.seconds_after = statistics.median(self._seconds)
        last.seconds_lost += max(sum(self._seconds) - _TIMED_STEPS * last.seconds_after, 0.0)
        return [last]
