"""Schedule that starts fast and ends slowly."""

from attnwatch.plugins import register
from attnwatch.schedules.base import Schedule


@register
class Cubic(Schedule):
    """1 - (1 - p)³ at the share p of the time, as in Zhu & Gupta 2017 (arXiv 1710.01878): fast first, then slower."""

    name = "cubic"

    def __call__(self, progress: float) -> float:
        return 1 - (1 - progress) ** 3
