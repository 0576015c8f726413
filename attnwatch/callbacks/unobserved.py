"""Warnings about attention that is not observed in a training."""

from attnwatch.recorder import AttentionRecorder, unobserved
from attnwatch.utils.messages import warn


class UnobservedAttention:
    """Warn about attention that is not observed, once per training for each kind of warning."""

    def __init__(self) -> None:
        self._has_told_of_step = self._has_told_of_sites = False

    def check_step(self, recorder: AttentionRecorder, step: int) -> None:
        """Warn if there were no observations in a step that should have been observed."""
        is_silent = not (recorder.has_seen_step or recorder.has_silent_sites)
        # Without sites, there is another warning.
        if recorder.is_observing and is_silent and recorder.sites and not self._has_told_of_step:
            self._has_told_of_step = True
            warn(
                f"nothing was observed in step {step}: the model was replaced after training began, or it did not "
                "call its attention; train a new model in a new fit",
                once_for_all=True,
            )

    def check_sites(self, recorder: AttentionRecorder) -> None:
        """Warn, after the first batch, about the sites that are not observed, with the reasons."""
        if self._has_told_of_sites:
            return
        self._has_told_of_sites = True
        message = unobserved(recorder.coverage(), is_complete=True)
        if message:
            warn(message)
