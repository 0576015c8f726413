"""Warnings of attention that is not observed in a training."""

from attnwatch.recorder import AttentionRecorder, unobserved
from attnwatch.utils.messages import warn


class UnobservedAttention:
    """Warns of what is not observed, of each kind once a training."""

    def __init__(self) -> None:
        self._has_told_of_step = self._has_told_of_sites = False

    def check_step(self, recorder: AttentionRecorder, step: int) -> None:
        """Warn if nothing was observed in a step that is observed."""
        is_silent = not (recorder.has_seen_step or recorder.has_silent_sites)
        if recorder.is_observing and is_silent and recorder.sites and not self._has_told_of_step:  # else it says so
            self._has_told_of_step = True
            warn(
                f"nothing was observed in step {step}: the model that trains is not the one that was there when "
                "training began, or it has not called its attention; put a new model into a new fit",
                once_for_all=True,
            )

    def check_sites(self, recorder: AttentionRecorder) -> None:
        """Warn, after the first batch, of the sites that are not observed, and why."""
        if self._has_told_of_sites:
            return
        self._has_told_of_sites = True
        message = unobserved(recorder.coverage(), is_complete=True)
        if message:
            warn(message)
