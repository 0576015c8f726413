"""Attention layers that get no gradient although other layers do."""

from torch import nn

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class BrokenGradientPath(Check):
    """The gradient does not reach trainable attention layers that were part of the forward.

    Layers after the last one with a gradient do not count, as their outputs may be unused. Within a layer, either
    all trainable weights have a gradient or none has.
    """

    name = "broken_gradient_path"
    remedy = (
        "Look for detach(), .data, torch.no_grad(), argmax or a conversion to numpy between these layers and the loss, "
        "and for reentrant activation checkpointing with inputs that require no gradient."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        called = step.forward.called
        sites = [(site.name, site.module) for site in find_sites(step.model) if site.name in called]
        weights = {name: _trainable(module) for name, module in sites}
        weights = {name: each for name, each in weights.items() if each}
        if not weights:
            raise CannotCheck("no attention with trainable weights was called")
        reached = [name for name, each in weights.items() if any(w.grad is not None for w in each.values())]
        inside = set(step.forward.module.parameters())  # not those of another network, such as the critic of a GAN
        others = [name for name, each in step.trainable.items() if each.grad is not None and each in inside]
        if not reached and others:
            what = f"no attention layer got a gradient, although {others[-1]} did"
            return Fault(what, tuple(weights), {"layers_without_gradient": float(len(weights))})
        if not reached:
            raise CannotCheck("nothing has a gradient: call backward inside the step")
        up_to = list(weights)[: list(weights).index(reached[-1]) + 1]
        missing = tuple(f"{name}.{weight}" for name in up_to for weight, w in weights[name].items() if w.grad is None)
        if not missing:
            return None
        layers = sum(name not in reached for name in up_to)
        what = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
        what += f" got no gradient, although {reached[-1]} did"
        return Fault(what, missing, {"weights": float(len(missing)), "layers_without_gradient": float(layers)})


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad and each.ndim > 1}
