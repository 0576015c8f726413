"""Parameters that no optimizer holds."""

from collections.abc import Collection, Container, Set

import torch
from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.weights import have_learned, hidden_parameters
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
        if self._frozen is None:
            self._frozen = frozenset(name for name, _ in step.model.named_parameters()) - step.trainable.keys()
        held = step.held
        return _of_hidden(step, held) or _of_foreign(step, held) or _of_missing(step, held, self._frozen)


def _of_hidden(step: StepEvidence, held: Container[nn.Parameter]) -> Fault | None:
    """Return the fault for parameters in plain containers."""
    own = set(step.model.parameters())
    hidden = tuple(
        name
        for name, each in hidden_parameters(step.model)
        if each not in own and each.grad is not None and each not in held
    )
    if not hidden:
        return None
    what = (
        f"{counted(len(hidden), 'parameter')} with a gradient {'is' if len(hidden) == 1 else 'are'} in a plain list or"
    )
    what += f" dict ({hidden[0]}), where neither the model nor the optimizers find parameters"
    remedy = "Keep modules in nn.ModuleList or nn.ModuleDict, and parameters in nn.ParameterList."
    return Fault(what, hidden, {"parameters": float(len(hidden))}, remedy=remedy)


def _of_foreign(step: StepEvidence, held: Container[nn.Parameter]) -> Fault | None:
    """Return the fault for parameters that the forward uses and no module has."""
    foreign = [each for each in step.graph.foreign if each not in held]
    if not foreign:
        return None
    number = counted(len(foreign), "trainable parameter")
    what = f"the forward pass uses {number} that neither the model nor the optimizers hold, such as one of shape "
    what += str(list(foreign[0].shape))
    remedy = "Create modules and parameters in __init__, as attributes of the model, not in forward."
    return Fault(what, numbers={"parameters": float(len(foreign))}, remedy=remedy)


def _of_missing(step: StepEvidence, held: Collection[nn.Parameter], frozen_at_first: Set[str]) -> Fault | None:
    """Return the fault for parameters of the model that no optimizer holds."""
    trainable = {name: each for name, each in step.trainable.items() if not step.is_of_teacher(name)}
    missing = {name: each for name, each in trainable.items() if each not in held}
    if not missing:
        return None
    of_model = set(step.model.parameters())
    strange = [parameter for parameter in held if parameter not in of_model]
    is_half = all(each.dtype in (torch.bfloat16, torch.float16) for each in missing.values())
    copies = {each.shape for each in strange if each.dtype is torch.float32}
    if is_half and {each.shape for each in missing.values()} <= copies:
        raise CannotCheck("the optimizers hold float32 copies of the weights")
    share = sum(each.numel() for each in missing.values()) / sum(each.numel() for each in trainable.values())
    woken_up = frozen_at_first & missing.keys()
    num_empty = sum(not group["params"] for optimizer in step.optimizers for group in optimizer.param_groups)
    details = {
        f", and the optimizers hold {counted(len(strange), 'parameter')} that are not in the model": bool(strange),
        "; the optimizers hold only frozen parameters": share == 1 and not strange,
        f"; {len(woken_up)} of these {len(missing)} were frozen at first": bool(woken_up),
        f"; the optimizers have {counted(num_empty, 'empty parameter group')}": bool(num_empty),
    }
    what = f"no optimizer holds {listed(list(missing))} ({share:.0%} of the trainable weights)"
    what += "".join(detail for detail, is_so in details.items() if is_so)
    numbers = {"parameters": float(len(missing)), "share": share, "strange_parameters": float(len(strange))}
    is_probe = not (strange or woken_up or num_empty) and 0.5 < share < 1 and have_learned(missing)
    return Fault(what, tuple(missing), numbers, is_note=is_probe)
