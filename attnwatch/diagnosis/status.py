"""Status of a run as a whole."""

from enum import Enum


class RunStatus(str, Enum):
    """Verdict on a run as a whole.

    Example:
        >>> RunStatus.AT_RISK.is_alarm, RunStatus.UNSTABLE.is_alarm
        (False, True)
    """

    UNDETERMINED = "undetermined"
    """Too little was observed for a verdict; the risk is nan."""
    HEALTHY = "healthy"
    """Nothing was found, and the risk is below 0.7."""
    AT_RISK = "at_risk"
    """Nothing was found, but of runs with this risk about seven in ten fail, or more."""
    NOT_CONVERGING = "not_converging"
    """Attention stays uniform or sees nothing in most of the model, a checkup has found a fault, or the run resembles
    runs that failed."""
    UNSTABLE = "unstable"
    """Attention collapses, its logits explode, or values are not finite."""

    @property
    def is_alarm(self) -> bool:
        """True if the run is likely to fail."""
        return self in (RunStatus.NOT_CONVERGING, RunStatus.UNSTABLE)
