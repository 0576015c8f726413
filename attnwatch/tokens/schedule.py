"""Schedules of the share of the tokens that is kept, over a run."""

import bisect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError

KeepRatio = float | str | Callable[[float], float]
"""Share of the tokens that is kept, the name of a schedule of it, or a schedule."""

# A schedule with more changes than these is a slope, of which nobody wants to read each step.
_MOST_STEPS = 16
# In a longer run, steps are looked at in equal distances, and changes between them searched.
_MOST_LOOKED_AT = 10_000


def require_keep_ratio(name: str, value: object) -> None:
    """Raise a `ConfigurationError` unless a value is a share of the tokens, above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(
            f"`{name}` must be the share of the tokens that is kept, above 0 and up to 1; got {value!r}."
            + (" Set dropper.keep_ratio = schedule(progress) in your loop." if callable(value) else "")
        )


@dataclass(frozen=True)
class KeepSchedule:
    """Share of the tokens that is kept, as steps over the run. Call it with the share of the run that is over.

    Steps, not slopes: each ratio is a length for which a compiled model is compiled anew.

    Attributes:
        steps: pairs of the share of the run from which on it holds, and the ratio; the first begins at 0.

    Raises:
        ConfigurationError: the steps are no such pairs, or not in their order.

    Example:
        >>> schedule = KeepSchedule.constant(0.5)  # the last 20% of the run at full length
        >>> schedule(0.3), schedule(0.9)
        (0.5, 1.0)
    """

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple):
            raise ConfigurationError(
                "`steps` must be pairs; make a schedule by KeepSchedule.constant(0.5), .linear(0.5) or "
                f".stepwise({{0.0: 0.5}}); got {self.steps!r}."
            )
        begins = [begin for begin, _ in self.steps]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)) or begins[-1] >= 1:
            raise ConfigurationError(f"`steps` must begin at 0 and ascend to below 1; got {begins}.")
        for _, ratio in self.steps:
            require_keep_ratio("keep_ratio", ratio)

    @classmethod
    def constant(cls, keep_ratio: float, *, full_length_from: float | None = 0.8) -> "KeepSchedule":
        """Return one ratio, then all tokens, so that the model that comes out is the one that was trained."""
        return cls.stepwise({0.0: keep_ratio}, full_length_from=full_length_from)

    @classmethod
    def linear(
        cls, start: float, end: float = 1.0, *, num_steps: int = 4, full_length_from: float | None = 0.8
    ) -> "KeepSchedule":
        """Return equal steps from one ratio to another, each equally long, then all tokens: where `end` is 1, these."""
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
            raise ConfigurationError(f"`num_steps` must be an integer of at least 2, got {num_steps!r}.")
        until = 1.0 if full_length_from is None else full_length_from
        before = num_steps - (end == 1 and full_length_from is not None)
        steps = {until * index / before: start + (end - start) * index / (num_steps - 1) for index in range(before)}
        return cls.stepwise(steps, full_length_from=full_length_from)

    @classmethod
    def stepwise(cls, steps: Mapping[float, float], *, full_length_from: float | None = 0.8) -> "KeepSchedule":
        """Return the steps {share of the run: ratio from there on}, then all tokens."""
        if full_length_from is None:
            return cls(tuple(sorted(steps.items())))
        if isinstance(full_length_from, bool) or not 0 < full_length_from < 1:
            raise ConfigurationError(
                f"`full_length_from` must be a share of the run between 0 and 1, or None; got {full_length_from!r}."
            )
        if any(begin >= full_length_from for begin in steps):
            raise ConfigurationError(
                f"`steps` must begin before `full_length_from` ({full_length_from}), from where on all tokens stay; "
                f"got {sorted(steps)}."
            )
        return cls(tuple(sorted((dict(steps) | {full_length_from: 1.0}).items())))

    def __call__(self, progress: float) -> float:
        """Return the ratio when this share of the run is over, 0 to 1."""
        return next(ratio for begin, ratio in reversed(self.steps) if begin <= max(progress, 0.0) + 1e-9)

    def __str__(self) -> str:
        ends = [begin for begin, _ in self.steps[1:]] + [1.0]
        return ", ".join(
            f"{ratio:.0%} of the tokens from {begin:.0%} to {end:.0%} of the run"
            for (begin, ratio), end in zip(self.steps, ends, strict=True)
        )


def schedule_of(keep_ratio: KeepRatio, *, full_length_from: float | None) -> Callable[[float], float]:
    """Return the schedule that a user asks for; a number means: one ratio, then all tokens from a share of the run on.

    Raises:
        ConfigurationError: there is no schedule of this name, or the number is no share of the tokens.
    """
    if isinstance(keep_ratio, str):
        from attnwatch.schedules import Schedule

        return Schedule.registry.choose("keep_ratio", keep_ratio, otherwise="a number")
    return keep_ratio if callable(keep_ratio) else KeepSchedule.constant(keep_ratio, full_length_from=full_length_from)


@dataclass(frozen=True)
class Span:
    """Part of a run with one ratio, or with a slope of ratios.

    Attributes:
        begin: steps that were complete.
        end: the same of the next part; None for the last one.
        lowest, highest: ratios in it.
    """

    begin: int
    end: int | None
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{self.lowest:.0%}" if self.lowest == self.highest else f"{self.lowest:.0%} to {self.highest:.0%}"


def spans_of(schedule: Callable[[float], float], total_steps: int | None) -> list[Span]:
    """Return the parts of a run, in their order. All steps have the first ratio where their number is not known.

    Raises:
        ConfigurationError: the schedule fails, or returns something else than a share of the tokens.
    """

    def ratio(step: int) -> float:
        return _ratio(schedule, step, total_steps)

    last = max(total_steps or 0, 1) - 1
    looked_at = sorted({*range(0, last, last // _MOST_LOOKED_AT + 1), last})
    changes = _changes(ratio, looked_at)
    if len(changes) > _MOST_STEPS:
        changes = _changes(lambda step: ratio(step) == 1, looked_at)
    begins = [0, *changes]
    ratios = {step: ratio(step) for step in (*looked_at, *changes)}
    spans = []
    for begin, end in zip(begins, [*changes, None], strict=True):
        inside = [each for step, each in ratios.items() if begin <= step and (end is None or step < end)]
        spans.append(Span(begin, end, min(inside), max(inside)))
    return spans


def _changes(value: Callable[[int], float], steps: list[int]) -> list[int]:
    """Return where the value of a step is another one than before: at most one between two of the steps."""
    pairs = [(before, after) for before, after in itertools.pairwise(steps) if value(before) != value(after)]
    return [
        before + 1 + bisect.bisect_left(range(before + 1, after), True, key=lambda step: value(step) != value(before))
        for before, after in pairs
    ]


def _ratio(schedule: Callable[[float], float], step: int, total_steps: int | None) -> float:
    progress = step / (total_steps or float("inf"))
    try:
        ratio = schedule(progress)
        require_keep_ratio("keep_ratio", ratio)
    except Exception as error:
        raise ConfigurationError(f"`keep_ratio`: {schedule!r} failed at {progress:.0%} of the run: {error}") from error
    return ratio
