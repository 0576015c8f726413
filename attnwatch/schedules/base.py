"""Base class of the schedules."""

from numbers import Real
from typing import ClassVar

from attnwatch.errors import ConfigurationError
from attnwatch.plugins import Plugin, Registry, named_errors


class Schedule(Plugin):
    """Base class of schedules, which map the elapsed share of the time to a value from 0 to 1.

    `HeadPruning` calls a schedule with the share of its cuts made so far, and removes the returned share of its target,
    so the values must rise to 1.

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
        """Return the value, 0 to 1, after a share of the time, 0 to 1."""
        raise NotImplementedError

    def value(self, progress: float) -> float:
        """Return the checked value of a call as a float.

        Raises:
            ConfigurationError: the schedule fails, or does not return a number from 0 to 1.
        """
        with named_errors(self):
            value = self(progress)
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            described = self.registry.describe(self)
            raise ConfigurationError(f"{described} must return a number from 0 to 1, got {value!r} at {progress:.3g}.")
        return float(value)


def find_schedule(argument: str, schedule: "str | Schedule | type[Schedule]") -> Schedule:
    """Return the requested schedule, given by name or as an instance.

    Args:
        argument: name of the user's argument, for messages.
        schedule: name of a schedule, or a schedule.

    Raises:
        ConfigurationError: no schedule has this name, or it can't be called.
    """
    if isinstance(schedule, type) and issubclass(schedule, Schedule):
        schedule = schedule()
    if isinstance(schedule, Schedule):
        schedule.check(schedule)
        return schedule
    return Schedule.registry.choose(argument, schedule, otherwise="a Schedule")
