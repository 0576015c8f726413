"""Training steps that ascend the gradient of the loss."""

from torch import Tensor

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, RunStatus, register
from attnwatch.checkup.evidence import StepEvidence

_NUM_STEPS = 2
# Cosine between directions that are opposite except for regularisation.
_OPPOSITE = -0.5
# A step that descends has a negative cosine to the gradient. Weight decay can reverse it for some matrices.
_UPWARDS, _SHARE = 0.05, 0.8


@register
class LossRises(Check):
    """The training run maximises the loss: its steps ascend the gradient.

    The gradient that reaches the logits is compared with that of the cross-entropy, and the first update of the weights
    with their gradient. A negative learning rate is also reported, and so are losses that are all multiplied by a
    negative number. Losses weighted per sample, as in policy gradients, are not checked.
    """

    name = "loss_rises"
    watches = True
    status = RunStatus.UNSTABLE
    severity = 1.0
    remedy = (
        "Check the sign of the loss, and that the optimizer was not created with maximize=True. Unlearning by gradient "
        "ascent looks like this too."
    )

    def __init__(self) -> None:
        self._alignments: dict[int, list[Tensor]] = {}
        self._slopes: dict[int, list[Tensor]] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        self._alignments.setdefault(step.global_step, []).extend(
            alignment for call in step.scored for alignment in call.alignments
        )
        cosine = self._largest_cosine()
        if cosine < _OPPOSITE:
            what = "the gradient at the logits opposes the gradient of the cross-entropy"
            return Fault(f"{what} (cosine {cosine:.2f})", numbers={"cosine": cosine})
        if self._is_negated(step):
            return Fault("the losses are maximised: the gradient that reaches each loss function is negative")
        rates = [update.rate for updates in step.updates.steps[-1:] for update in updates.values()]
        if min(rates, default=0.0) < 0:
            what, remedy = (
                f"the learning rate is negative: {min(rates):.3g}",
                "Check the schedule of the learning rate.",
            )
            return Fault(what, numbers={"rate": min(rates)}, remedy=remedy)
        first = step.updates.first()
        upwards = [name for name, each in first.items() if float(each.along_gradient) > _UPWARDS]
        if len(upwards) < _SHARE * len(first):
            return None
        what = f"the first step moved {len(upwards)} of {len(first)} weight matrices up their gradient"
        return Fault(what, tuple(upwards), {"share": len(upwards) / len(first)})

    def _is_negated(self, step: StepEvidence) -> bool:
        """Return whether all losses in the first steps are multiplied by a negative number."""
        self._slopes.setdefault(step.global_step, []).extend(slope for call in step.losses for slope in call.slopes)
        if len(self._slopes) < _NUM_STEPS or not all(self._slopes.values()):
            return False
        return all(float(slope) < 0 for slopes in self._slopes.values() for slope in slopes)

    def _largest_cosine(self) -> float:
        """Return the largest cosine over the first steps and all calls of cross-entropy; 1 without such calls."""
        if len(self._alignments) < _NUM_STEPS:
            raise CannotCheck(f"needs {_NUM_STEPS} steps of a training loop")
        if not all(self._alignments.values()):
            return 1.0
        return max(float(each) for alignments in self._alignments.values() for each in alignments)
