"""Steps up the gradient of the loss."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, RunStatus, register
from attnwatch.checkup.evidence import StepEvidence

_NUM_STEPS = 2
# Cosine between directions that are opposite but for what regularisation adds.
_OPPOSITE = -0.5
# A step that descends has a negative cosine to the gradient. Weight decay can turn that of some matrices.
_UPWARDS, _SHARE = 0.05, 0.8


@register
class LossRises(Check):
    """The training maximises the loss: the steps lead up its gradient.

    The gradient that reaches the logits is compared with that of the cross-entropy, and the first change of the weights
    with their gradient. Losses that are weighted by sample are left out, as in policy gradients.
    """

    name = "loss_rises"
    status = RunStatus.UNSTABLE
    severity = 1.0
    remedy = (
        "Check the sign of the loss, and that the optimizer does not have maximize=True. Unlearning by gradient ascent "
        "looks like this too."
    )

    def __init__(self) -> None:
        self._alignments: dict[int, list[Tensor]] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        self._alignments.setdefault(step.global_step, []).extend(
            alignment for call in step.scored for alignment in call.alignments
        )
        cosine = self._largest_cosine()
        if cosine < _OPPOSITE:
            what = "the gradient at the logits is the opposite of that of the cross-entropy"
            return Fault(f"{what} (cosine {cosine:.2f})", numbers={"cosine": cosine})
        first = step.first_updates()
        upwards = [name for name, each in first.items() if float(each.along_gradient) > _UPWARDS]
        if len(upwards) < _SHARE * len(first):
            return None
        what = f"the first step has moved {len(upwards)} of {len(first)} weight matrices up their gradient"
        return Fault(what, tuple(upwards), {"share": len(upwards) / len(first)})

    def _largest_cosine(self) -> float:
        """Return the largest cosine of the first steps, of all calls of cross-entropy; 1 without such calls."""
        if len(self._alignments) < _NUM_STEPS:
            raise CannotCheck(f"{_NUM_STEPS} steps are needed, as TrainingCheckup sees them")
        if not all(self._alignments.values()):
            return 1.0
        return max(float(each) for alignments in self._alignments.values() for each in alignments)
