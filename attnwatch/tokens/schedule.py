"""Schedule of the share of tokens to keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError


def require_keep_ratio(name: str, value: object) -> None:
    """Raise a `ConfigurationError` unless a value is a share of tokens, above 0 and up to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(
            f"`{name}` must be the share of the tokens to keep, above 0 and up to 1; got {value!r}."
            + (" Set dropper.keep_ratio = schedule(progress) in your loop." if callable(value) else "")
        )


@dataclass(frozen=True)
class KeepSchedule:
    """Share of the tokens to keep, as steps over the run. Call it with the completed share of the run.

    Steps are used because a compiled model is recompiled for each new length.

    Attributes:
        steps: pairs of the share of the run at which a ratio starts, and the ratio; the first starts at 0.

    Raises:
        ConfigurationError: the steps are not such pairs, or not in order.

    Example:
        >>> schedule = KeepSchedule.constant(0.5)  # the last 20% of the run at full length
        >>> schedule(0.3), schedule(0.9)
        (0.5, 1.0)
    """

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.steps, tuple):
            raise ConfigurationError(
                "`steps` must be pairs; create a schedule with KeepSchedule.constant(0.5), .linear(0.5) or "
                f".stepwise({{0.0: 0.5}}); got {self.steps!r}."
            )
        begins = [begin for begin, _ in self.steps]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)) or begins[-1] >= 1:
            raise ConfigurationError(f"`steps` must start at 0 and ascend to below 1; got {begins}.")
        for _, ratio in self.steps:
            require_keep_ratio("keep_ratio", ratio)

    @classmethod
    def constant(cls, keep_ratio: float, *, full_length_from: float | None = 0.8) -> "KeepSchedule":
        """Return one ratio, then all tokens, so that the model ends its training as it will be used."""
        return cls.stepwise({0.0: keep_ratio}, full_length_from=full_length_from)

    @classmethod
    def linear(
        cls, start: float, end: float = 1.0, *, num_steps: int = 4, full_length_from: float | None = 0.8
    ) -> "KeepSchedule":
        """Return steps of equal length from one ratio to another, then all tokens (as the last step if `end` is 1)."""
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
            raise ConfigurationError(f"`num_steps` must be an integer of at least 2, got {num_steps!r}.")
        until = 1.0 if full_length_from is None else full_length_from
        before = num_steps - (end == 1 and full_length_from is not None)
        steps = {until * index / before: start + (end - start) * index / (num_steps - 1) for index in range(before)}
        return cls.stepwise(steps, full_length_from=full_length_from)

    @classmethod
    def stepwise(cls, steps: Mapping[float, float], *, full_length_from: float | None = 0.8) -> "KeepSchedule":
        """Return the steps {share of the run: ratio from then on}, then all tokens."""
        if full_length_from is None:
            return cls(tuple(sorted(steps.items())))
        if isinstance(full_length_from, bool) or not 0 < full_length_from < 1:
            raise ConfigurationError(
                f"`full_length_from` must be a share of the run between 0 and 1, or None; got {full_length_from!r}."
            )
        if any(begin >= full_length_from for begin in steps):
            raise ConfigurationError(
                f"`steps` must start before `full_length_from` ({full_length_from}), after which all tokens stay; "
                f"got {sorted(steps)}."
            )
        return cls(tuple(sorted((dict(steps) | {full_length_from: 1.0}).items())))

    @classmethod
    def sampled(cls, schedule: Callable[[float], float], *, num_steps: int = 20) -> "KeepSchedule":
        """Return steps of equal length, each with a schedule's ratio at its midpoint.

        Raises:
            ConfigurationError: the schedule fails, or does not return a share of tokens.
        """
        steps: dict[float, float] = {}
        for index in range(num_steps):
            progress = (index + 0.5) / num_steps
            try:
                ratio = schedule(progress)
                require_keep_ratio("keep_ratio", ratio)
            except Exception as error:
                raise ConfigurationError(f"`keep_ratio`: {schedule!r} failed at {progress}: {error}") from error
            if not steps or ratio != steps[max(steps)]:
                steps[index / num_steps] = ratio
        return cls.stepwise(steps, full_length_from=None)

    def __call__(self, progress: float) -> float:
        """Return the ratio after this share of the run, 0 to 1."""
        return next(ratio for begin, ratio in reversed(self.steps) if begin <= max(progress, 0.0) + 1e-9)

    def __str__(self) -> str:
        ends = [begin for begin, _ in self.steps[1:]] + [1.0]
        return ", ".join(
            f"{ratio:.0%} of the tokens from {begin:.0%} to {end:.0%} of the run"
            for (begin, ratio), end in zip(self.steps, ends, strict=True)
        )


KeepRatio = float | KeepSchedule | str | Callable[[float], float]
"""Share of the tokens to keep, a schedule of it, the name of one, or a function of the share of the run."""


def schedule_of(keep_ratio: KeepRatio, *, full_length_from: float | None) -> KeepSchedule:
    """Return the requested schedule; a number means one ratio, then all tokens from a share of the run on.

    Raises:
        ConfigurationError: there is no such schedule, or a ratio is not a share of tokens.
    """
    if isinstance(keep_ratio, str):
        from attnwatch.schedules import find_schedule

        return KeepSchedule.sampled(find_schedule("keep_ratio", keep_ratio))
    if isinstance(keep_ratio, KeepSchedule):
        return keep_ratio
    if callable(keep_ratio):
        return KeepSchedule.sampled(keep_ratio)
    return KeepSchedule.constant(keep_ratio, full_length_from=full_length_from)
