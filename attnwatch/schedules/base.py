"""Base class of the schedules."""

from typing import ClassVar

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry


class Schedule(Plugin):
    """Base class of schedules: how far something has gone when a share of its time is over.

    `HeadPruning` takes the share of its cuts that are made, and removes that share of its target. A schedule of
    `TokenDropping` is a `KeepSchedule`.

    Example:
        >>> class Squared(Schedule):
        ...     name = "squared"
        ...     def __call__(self, progress: float) -> float:
        ...         return progress**2
        >>> Squared().value(0.5)
        0.25
    """

    registry: ClassVar[Registry["Schedule"]] = Registry("schedule", "attnwatch.schedules", as_instances=True)

    @classmethod
    def check(cls, plugin: "Schedule") -> None:
        """Raise a `ConfigurationError` if the schedule can't be called."""
        if cls.__call__ is Schedule.__call__:
            raise ConfigurationError(f"{cls.registry.describe(plugin)} must have a method `__call__(self, progress)`.")

    def __call__(self, progress: float) -> float:
        """Return how far it has gone, 0 to 1, when a share of the time is over, 0 to 1."""
        raise NotImplementedError

    def value(self, progress: float) -> float:
        """Return what a call returns, checked.

        Raises:
            ConfigurationError: the schedule fails, or returns no number from 0 to 1.
        """
        described = self.registry.describe(self)
        try:
            value = self(progress)
        except Exception as error:
            raise ConfigurationError(f"{described} failed with {type(error).__name__}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigurationError(f"{described} must return a number from 0 to 1, got {value!r} at {progress:.3g}.")
        return float(value)


def find_schedule(argument: str, schedule: "str | Schedule | type[Schedule]") -> Schedule:
    """Return the schedule that a user asks for by name, or as it is.

    Args:
        argument: of the function that the user called.
        schedule: name of a schedule, or a schedule.

    Raises:
        ConfigurationError: there is none of this name, or it can't be called.
    """
    if isinstance(schedule, type) and issubclass(schedule, Schedule):
        schedule = schedule()
    if isinstance(schedule, Schedule):
        schedule.check(schedule)
        return schedule
    return Schedule.registry.choose(argument, schedule, otherwise="a Schedule")
