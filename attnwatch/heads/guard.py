"""Guard that takes back a cut if it did lasting harm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class Guard:
    """Condition for taking a cut back: heads, weights and optimizer state return to what they were before it.

    A copy of the model and optimizer state is kept until a cut is judged.

    Args:
        metric: name of a logged metric; None means the training loss.
        mode: `"min"` if lower is better, `"max"` if higher is better.
        tolerance: a cut did harm if the metric is worse than before by more than this share of its absolute value,
            and by more than twice the standard error of the difference.
        recovery_steps: number of optimizer steps after a cut that do not count; None means two thirds of the steps to
            the next cut.
        window: number of values of the metric to compare before the cut and after the recovery. None means 1 for a
            logged metric and, for the training loss, the number of steps between the recovery and the next cut.
        require_speedup: also take a cut back if steps are slower than before the first cut by more than the
            tolerance, and the last cut if they are not faster.

    Raises:
        ConfigurationError: an argument is invalid.

    Example:
        >>> Guard("val_accuracy", mode="max").harm(before=[0.9], after=[0.8])
        'val_accuracy went from 0.9 to 0.8'
    """

    metric: str | None = None
    mode: Literal["min", "max"] = "min"
    tolerance: float = 0.05
    recovery_steps: int | None = None
    window: int | None = None
    require_speedup: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigurationError(f"`mode` must be 'min' or 'max', got {self.mode!r}.")
        if not isinstance(self.tolerance, int | float) or not self.tolerance >= 0:
            raise ConfigurationError(f"`tolerance` must be a number of at least 0, got {self.tolerance!r}.")
        require_int("recovery_steps", self.recovery_steps, minimum=0, optional=True)
        require_int("window", self.window, minimum=1, optional=True)

    def steps(self, gap: int) -> tuple[int, int]:
        """Return the number of (recovery steps, values to compare) if the next cut comes after `gap` steps."""
        recovery = 2 * gap // 3 if self.recovery_steps is None else self.recovery_steps
        default = max(gap - recovery, 1) if self.metric is None else 1
        return recovery, self.window or default

    def harm(self, before: Sequence[float], after: Sequence[float]) -> str | None:
        """Return a description of the harm that a cut did; None if it did none."""
        name = self.metric or "training loss"
        if not all(map(math.isfinite, after)):
            return f"{name} is no longer finite"
        before = [value for value in before if math.isfinite(value)]
        if not before:
            return None
        was, now = float(np.mean(before)), float(np.mean(after))
        worse = now - was if self.mode == "min" else was - now
        variances = [float(np.var(each, ddof=1)) / len(each) for each in (before, after) if len(each) > 1]
        if worse <= max(self.tolerance * abs(was), 2 * math.sqrt(sum(variances))):
            return None
        return f"{name} went from {was:.4g} to {now:.4g}"
