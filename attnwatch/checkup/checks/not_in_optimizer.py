"""Parameters that no optimizer holds."""

import torch

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.weights import have_learned
from attnwatch.utils.messages import counted, listed


@register
class NotInOptimizer(Check):
    """Trainable parameters are in no optimizer and are never updated.

    This is a fault if the optimizer holds parameters that the model does not have (as after replacing a module) or most
    of the model, if the parameters were frozen at first, or if a parameter group is empty, as after using a generator
    twice. The finding is a note if the optimizer holds the smaller part of a pretrained model, as in a linear probe; a
    model whose norms have their initial values is not pretrained. Networks inside the model that read its inputs under
    `torch.no_grad()` do not count, because they are teachers.
    """

    name = "not_in_optimizer"
    decides = True
    watches = True
    remedy = (
        "Create the optimizer after the last change to the model, from model.parameters() or from groups that cover "
        "every trainable parameter, and set requires_grad=False on parameters that should not change."
    )

    def __init__(self) -> None:
        self._frozen: frozenset[str] | None = None

    def look(self, step: StepEvidence) -> Fault | None:
        held = step.held
        if self._frozen is None:
            self._frozen = frozenset(name for name, _ in step.model.named_parameters()) - step.trainable.keys()
        hidden = {name: each for name, each in step.hidden.items() if each not in held}
        if hidden:
            first = next(iter(hidden))
            verb = "is" if len(hidden) == 1 else "are"
            what = f"{counted(len(hidden), 'parameter')} with a gradient {verb} in a plain list or dict ({first})"
            what += ", where neither the model nor the optimizers find parameters"
            remedy = "Keep modules in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList."
            return Fault(what, tuple(hidden), {"parameters": float(len(hidden))}, remedy=remedy)
        foreign = [each for each in step.graph.foreign if each not in held]
        if foreign:
            what = (
                f"the forward pass uses {counted(len(foreign), 'trainable parameter')} that neither the model nor the "
                f"optimizers hold, such as one of shape {list(foreign[0].shape)}"
            )
            remedy = "Create modules and parameters in __init__, as attributes of the model, not in forward."
            return Fault(what, numbers={"parameters": float(len(foreign))}, remedy=remedy)
        trainable = {name: each for name, each in step.trainable.items() if not step.is_of_teacher(name)}
        missing = {name: each for name, each in trainable.items() if each not in held}
        if not missing:
            return None
        of_model = set(step.model.parameters())
        strange = [parameter for parameter in held if parameter not in of_model]
        num_strange = len(strange)
        is_half = all(each.dtype in (torch.bfloat16, torch.float16) for each in missing.values())
        copies = {each.shape for each in strange if each.dtype is torch.float32}
        if is_half and {each.shape for each in missing.values()} <= copies:
            raise CannotCheck("the optimizers hold float32 copies of the weights")
        share = sum(each.numel() for each in missing.values()) / sum(each.numel() for each in trainable.values())
        names = tuple(missing)
        what = f"no optimizer holds {listed(names)} ({share:.0%} of the trainable weights)"
        if num_strange:
            what += f", and the optimizers hold {counted(num_strange, 'parameter')} of other models"
        woken_up = self._frozen & missing.keys()
        if share == 1 and not num_strange:
            what += "; the optimizers hold only frozen parameters"
        if woken_up:
            what += f"; {len(woken_up)} of these {len(names)} were frozen at first"
        num_empty = sum(not group["params"] for optimizer in step.optimizers for group in optimizer.param_groups)
        if num_empty:
            what += f"; the optimizers have {counted(num_empty, 'empty parameter group')}"
        numbers = {"parameters": float(len(names)), "share": share, "strange_parameters": float(num_strange)}
        is_probe = not num_strange and not woken_up and not num_empty and 0.5 < share < 1 and have_learned(missing)
        return Fault(what, names, numbers, is_note=is_probe)
