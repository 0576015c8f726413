"""Choice of the training steps that are observed."""

from collections.abc import Mapping
from typing import Any


class ObservedSteps:
    """Position in a run: its last step, and whether that step is observed.

    The first step at or after each multiple of `every_n_steps` is observed.

    Attributes:
        has_begun: True if a step has begun and `finish` has not been called since.
        is_observing: True if the current step, or else the last one, is observed.
        last_observed: last observed step; None before the first.
    """

    def __init__(self, every_n_steps: int):
        self._every_n_steps = every_n_steps
        self._last: int | None = None
        self.last_observed: int | None = None
        self.has_begun = self.is_observing = False

    def begin(self, step: int) -> bool:
        """Begin a step, or another micro-batch of it, and return whether an observed step begins."""
        is_new = step != self._last
        self.is_observing = self._is_due(step)
        self._last, self.has_begun = step, True
        if is_new and self.is_observing:
            self.last_observed = step
        return is_new and self.is_observing

    def finish(self) -> None:
        """Finish the current step."""
        self.is_observing = self.has_begun = False

    def state_dict(self) -> dict[str, int | None]:
        """Return the last step and the last observed one."""
        return {"last_step": self._last, "last_due": self.last_observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._last, self.last_observed = state["last_step"], state["last_due"]
        self.is_observing = False

    def _is_due(self, step: int) -> bool:
        every, last = self._every_n_steps, self._last
        if last is None:
            return True
        if step == last:  # another micro-batch
            return step == self.last_observed
        if step < last:  # the run went back
            return step % every == 0
        return step // every > last // every
