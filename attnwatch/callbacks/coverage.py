"""Warnings of what a monitor does not observe."""

from attnwatch.recorder import AttentionRecorder, unobserved
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import warn


class CoverageWarnings:
    """Warnings of one training, each once."""

    def __init__(self) -> None:
        self._has_reported = self._has_warned = False

    def of_silent_model(self, recorder: AttentionRecorder, step: int) -> None:
        """Warn if no attention was called in an observed step, and nothing says why."""
        is_silent = not (recorder.has_seen_step or recorder.has_silent_sites)
        if is_silent and recorder.sites and not self._has_warned:  # without sites the recorder says so
            self._has_warned = True
            warn(
                f"nothing was observed in step {step}: the model that trains is not the one that was there when "
                "training began, or it has not called its attention; put a new model into a new fit",
                once_for_all=True,
            )

    def of_unobserved_sites(self, recorder: AttentionRecorder, run: TrainerRun) -> None:
        """Warn after the first batch of the sites that are not observed, and why."""
        if self._has_reported or not run.is_main_process:
            return
        self._has_reported = True
        message = unobserved(recorder.coverage(), is_complete=True)
        if message:
            warn(message)
