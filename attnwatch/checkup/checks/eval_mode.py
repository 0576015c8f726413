"""Models trained in eval mode."""

from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.utils.messages import counted, listed

_DROPOUTS = (nn.modules.dropout._DropoutNd,)
_NORMS = (nn.modules.batchnorm._NormBase,)
# Names of attributes that hold the rate of dropout or of stochastic depth.
_RATES = ("dropout", "drop_prob")


@register
class EvalMode(Check):
    """The model is trained in eval mode, so its dropout has no effect.

    `from_pretrained` in transformers returns models in eval mode, and Lightning does not change that. A model is also
    reported if more than half of its trained dropout layers are in eval mode, or if the outputs of all dropout layers
    are unused.
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
        prefix = f"{step.forward.name}." if step.forward.name else ""
        if not step.forward.was_training and not any(part.training for part in acting.values()):
            modules = counted(len(acting), "module")
            what = f"the model was in eval mode, so dropout and batch norm act as in evaluation ({modules})"
            return Fault(what, tuple(f"{prefix}{name}" for name in acting), {"modules": float(len(acting))})
        lost = _thrown_away(step, prefix)
        if lost:
            what = f"the outputs of all dropout layers are unused, such as that of {lost[0]}"
            return Fault(what, lost, {"modules": float(len(lost))}, remedy="Use what dropout returns: x = dropout(x).")
        trained = {name: part for name, part in acting.items() if _drops(part) and _trains(module, name)}
        still = [f"{prefix}{name}" for name, part in trained.items() if not part.training]
        if len(still) <= len(trained) / 2:
            return None
        them = "it" if len(still) == 1 else "them"
        what = f"{listed(still, most=1)} stayed in eval mode while the layers around {them} are trained"
        return Fault(f"{what}, so their dropout has no effect", tuple(still), {"modules": float(len(still))})


def _thrown_away(step: StepEvidence, prefix: str) -> tuple[str, ...]:
    """Return the dropout layers that were called in training mode; nothing if the output of one of them is used."""
    called = set(step.forward.called)
    modules = ((f"{prefix}{name}", module) for name, module in step.forward.module.named_modules())
    acting = [name for name, module in modules if _is_active(module) and name in called]
    return tuple(acting) if set(acting) <= step.graph.unused else ()


def _is_active(module: nn.Module) -> bool:
    return isinstance(module, _DROPOUTS) and module.p > 0 and module.training


def _drops(module: nn.Module) -> bool:
    """Return whether a module applies dropout in training, either itself or by passing a rate to a function."""
    if isinstance(module, _DROPOUTS):
        return module.p > 0
    shares = (value for name, value in vars(module).items() if name.endswith(_RATES) and isinstance(value, float))
    return any(share > 0 for share in shares)


def _trains(model: nn.Module, name: str) -> bool:
    """Return whether the module, or else the one that contains it, has trainable parameters."""
    modules = (model.get_submodule(name), model.get_submodule(name.rpartition(".")[0]))
    parameters = next((list(each.parameters()) for each in modules if any(True for _ in each.parameters())), [])
    return any(each.requires_grad for each in parameters)
