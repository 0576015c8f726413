"""Sites that are discovered through calls during training."""

from collections.abc import Sequence

from attnwatch.capture import Capture
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.recorder.pending import PendingSteps
from attnwatch.recorder.processes import Processes

_MOST_STEPS_TO_LOOK = 5  # observed steps in which calls may reveal new sites, if no attention was called before


class SiteGrowth:
    """Announce newly discovered sites to all objects that keep values of sites.

    Args:
        capture: sites of the model.
        pending: steps that have not been copied to the host.
        buffer: observations on the host.
        processes: processes of the training; None if there is only one.
    """

    def __init__(self, capture: Capture, pending: PendingSteps, buffer: HistoryBuffer, processes: Processes | None):
        self._capture, self._pending, self._buffer, self._processes = capture, pending, buffer, processes
        self._steps_looked = 0

    def look_no_longer_than_needed(self) -> None:
        """Stop looking for sites after the first step with attention calls; with several processes, after a flush."""
        self._steps_looked += 1
        is_settled = self._capture.has_seen_any if self._processes is None else self._processes.has_agreed
        if is_settled or self._steps_looked > _MOST_STEPS_TO_LOOK:
            self._capture.stop_looking()

    def adopt(self, sites: Sequence[str]) -> Sequence[str]:
        """Add sites that calls on other processes have revealed, and return all sites in module order."""
        self._capture.adopt(sites)
        self.grow()
        return self._capture.sites

    def grow(self) -> None:
        """Add the sites that the capture has discovered."""
        sites = self._capture.sites
        if sites == self._buffer.sites:
            return
        self._buffer.grow(sites)
        self._pending.grow(sites)
        if self._processes is not None:
            self._processes.grow(sites)
