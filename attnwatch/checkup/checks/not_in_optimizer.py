"""Parameters that no optimizer holds."""

import torch

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class NotInOptimizer(Check):
    """Trainable parameters are held by no optimizer, and stay as they are.

    It is a fault if the optimizer holds parameters that the model does not have, as after a module was replaced, or
    holds most of the model without these. It is a note if the optimizer holds the smaller part, as in a linear probe.
    """

    name = "not_in_optimizer"
    watches = True
    remedy = (
        "Make the optimizer after the last change of the model, from model.parameters() or from groups that "
        "name every trainable parameter; set requires_grad=False where a parameter is to stay as it is."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        held = step.held
        missing = {name: each for name, each in step.trainable.items() if each not in held}
        if not missing:
            return None
        of_model = set(step.model.parameters())
        strange = [parameter for parameter in held if parameter not in of_model]
        num_strange = len(strange)
        is_half = all(each.dtype in (torch.bfloat16, torch.float16) for each in missing.values())
        copies = {each.shape for each in strange if each.dtype is torch.float32}
        if is_half and {each.shape for each in missing.values()} <= copies:
            raise CannotCheck("the optimizers hold copies of the weights in float32")
        share = sum(each.numel() for each in missing.values()) / sum(each.numel() for each in step.trainable.values())
        names = tuple(missing)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        what = f"no optimizer holds {listed} ({share:.0%} of the trainable entries)"
        if num_strange:
            what += f", and the optimizers hold {num_strange} parameters that are not the model's"
        numbers = {"parameters": float(len(names)), "share": share, "strange_parameters": float(num_strange)}
        return Fault(what, names, numbers, is_note=not num_strange and share > 0.5)
