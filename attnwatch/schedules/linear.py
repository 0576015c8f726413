"""Schedule with equal steps."""

from attnwatch.plugins import register
from attnwatch.schedules.base import Schedule


@register
class Linear(Schedule):
    """Equal steps, proportional to time."""

    name = "linear"

    def __call__(self, progress: float) -> float:
        return progress
