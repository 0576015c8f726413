"""Models that train in eval mode."""

from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NORMS = (nn.modules.batchnorm._NormBase,)


@register
class EvalMode(Check):
    """The model trains in eval mode, so its dropout does nothing.

    `from_pretrained` in transformers returns models in eval mode, and Lightning does not change that.
    """

    name = "eval_mode"
    watches = True
    severity = 0.5
    remedy = "Call model.train() before the training loop, and again after each evaluation."

    def look(self, step: StepEvidence) -> Fault | None:
        module = step.forward.module
        acting = {name: part for name, part in module.named_modules() if isinstance(part, _NORMS) or _drops(part)}
        if not acting:
            raise CannotCheck("the model has no dropout and no batch norm, so its mode makes no difference")
        if step.forward.was_training or any(part.training for part in acting.values()):
            return None
        prefix = f"{step.forward.name}." if step.forward.name else ""
        what = f"the model was in eval mode, so dropout and batch norm act as in evaluation ({len(acting)} modules)"
        return Fault(what, sites=tuple(f"{prefix}{name}" for name in acting), numbers={"modules": float(len(acting))})


def _drops(module: nn.Module) -> bool:
    """Return whether a module applies dropout in training, itself or through a function that it gives a rate."""
    if isinstance(module, _DROPOUTS):
        return module.p > 0
    shares = (value for name, value in vars(module).items() if name.endswith("dropout") and isinstance(value, float))
    return any(share > 0 for share in shares)
