"""Models that train in eval mode."""

from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NORMS = (nn.modules.batchnorm._NormBase,)


@register
class EvalMode(Check):
    """The model trains in eval mode, so that its dropout does nothing.

    `from_pretrained` of transformers returns models in eval mode, and Lightning leaves them in it.
    """

    name = "eval_mode"
    watches = True
    severity = 0.5
    remedy = "Call model.train() before the loop, and again after each evaluation."

    def look(self, step: StepEvidence) -> Fault | None:
        module = step.forward.module
        acting = {name: part for name, part in module.named_modules() if isinstance(part, _NORMS) or _drops(part)}
        if not acting:
            raise CannotCheck("the model has no dropout and no batch norm, so that its mode makes no difference")
        if step.forward.was_training or any(part.training for part in acting.values()):
            return None
        prefix = f"{step.forward.name}." if step.forward.name else ""
        what = f"the model was in eval mode: its {len(acting)} modules with dropout or batch norm do nothing"
        return Fault(what, sites=tuple(f"{prefix}{name}" for name in acting), numbers={"modules": float(len(acting))})


def _drops(module: nn.Module) -> bool:
    """Return whether a module drops something in training, be it by a number that it gives to a function."""
    if isinstance(module, _DROPOUTS):
        return module.p > 0
    shares = (value for name, value in vars(module).items() if name.endswith("dropout") and isinstance(value, float))
    return any(share > 0 for share in shares)
