"""Warnings of a recorder, each shown once."""

from collections.abc import Mapping

from attnwatch.capture import is_observed
from attnwatch.utils.messages import WarnOnce
from attnwatch.utils.processes import is_first_process

# Number of observed steps without a loss before the warning. A trainer should pass a loss sooner.
_STEPS_WITHOUT_LOSS = 50
_STEPS_WITHOUT_LOSS_OF_TRAINER = 10


class Notices:
    """Warnings of a recorder.

    Args:
        under_trainer: True if the recorder belongs to a trainer's callback, which itself reports unobserved sites.
    """

    def __init__(self, *, under_trainer: bool):
        self._under_trainer = under_trainer
        self._has_told_of_silence = under_trainer
        self._has_told_of_nothing = False
        self._warn = WarnOnce()

    def of_silent_sites(self, silent: Mapping[str, str]) -> None:
        """Warn after the first observed step about sites whose forward ran without an attention call."""
        if self._has_told_of_silence:
            return
        self._has_told_of_silence = True
        message = unobserved(silent)
        if message:
            self._warn(message)

    def of_no_attention(self, why: str, coverage: Mapping[str, str], step: int) -> None:
        """Warn after the first observed step that neither code nor calls contain attention that can be read."""
        is_said = self._under_trainer and coverage  # the trainer's callback then warns
        if self._has_told_of_nothing or is_said or not is_first_process():
            return
        self._has_told_of_nothing = True
        self._warn(
            f"attention is not observed: {why} None of them was called in step {step} either. The run is judged by its "
            "loss alone. To have attention observed, call one of these functions in the model's modules"
        )

    def of_loss_outside_of_step(self) -> None:
        self._warn(
            "`record_loss` was called outside of a step, so this loss is not kept: call it inside "
            "`with recorder.step(global_step):`, or after it and before the next step"
        )

    def of_missing_loss(self, num_observations: int) -> None:
        """Warn if no loss was recorded in the first observed steps."""
        most = _STEPS_WITHOUT_LOSS_OF_TRAINER if self._under_trainer else _STEPS_WITHOUT_LOSS
        if num_observations < most or not is_first_process():
            return
        remedy = "call recorder.record_loss(loss) in each step"
        if self._under_trainer:
            remedy = "return it from training_step"
        self._warn(
            f"no loss was recorded in {most} observed steps, so the run is judged by attention alone, and attention "
            f"that is frozen while the loss falls can't be found: {remedy}"
        )


def unobserved(coverage: Mapping[str, str], *, is_complete: bool = False) -> str:
    """Return a message about the sites that are not observed; empty if all are.

    Args:
        coverage: `"observed"` or a reason, by name of the site. The first three reasons are listed.
        is_complete: True if the coverage has all sites of the model, so that the message gives their number.
    """
    reasons = {site: reason for site, reason in coverage.items() if not is_observed(reason)}
    if not reasons:
        return ""
    total = f" of {len(coverage)}" if is_complete else ""
    is_one = not is_complete and len(reasons) == 1
    listed = "; ".join(f"{site}: {reason}" for site, reason in list(reasons.items())[:3])
    more = f"; and {len(reasons) - 3} more, see coverage()" if len(reasons) > 3 else ""
    return f"{len(reasons)}{total} attention {'site is' if is_one else 'sites are'} not observed. {listed}{more}"
