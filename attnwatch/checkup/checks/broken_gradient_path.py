"""Layers that get little or no gradient although other layers do."""

import itertools
from collections.abc import Mapping

import torch
from torch import nn

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.checks.no_gradient import bypassed_layers, without_grad
from attnwatch.checkup.evidence import NO_GRADIENTS, StepEvidence
from attnwatch.checkup.forward import POSITIONS, is_of_adapter
from attnwatch.checkup.library import is_as_it_comes
from attnwatch.checkup.residuals import Residuals
from attnwatch.checkup.stacks import after_last, are_of_one_stack
from attnwatch.checkup.weights import small_scales
from attnwatch.utils.entries import as_real
from attnwatch.utils.messages import counted, listed

# Gradients of sound models differ by less than 30-fold over depth, and by more between an encoder and its reader.
_MOST_RATIO, _MOST_BETWEEN_STACKS = 1000.0, 1e5
_LEAST_LAYERS = 4
# Gates and output layers that start at zero become nonzero in the first steps.
_STEPS_OF_GATES = 3
_FADED = 1e-20

_FADES = (
    "Check that each layer has its residual connection and its norm, that nothing between these layers rescales or "
    "saturates, and the initialisation of their weights."
)
# A single attention layer above others may be a readout.
_LEAST_RESIDUALS = 2
_RESIDUALS = "Add the output of each attention layer to its input: x = x + attention(norm(x))."


@register
class BrokenGradientPath(Check):
    """The gradient does not reach trainable layers that were part of the forward, or vanishes over depth.

    Attention layers after the last one of their stack with a gradient do not count, because they may be unused. Within
    a layer, either all trainable weights must have a gradient or none, except in unmodified transformers models.
    Modules called before the first attention layer, such as embeddings, must have a gradient if that layer does. The
    graph of autograd must have a path around each attention layer, as residual connections give it. The
    norms of the gradients must not rise or fall steadily from layer to layer by more than 1,000-fold in total, nor drop
    by as much from one layer to the one before it in the same stack.
    """

    name = "broken_gradient_path"
    decides = True
    remedy = (
        "Check first that forward uses these weights and the output of their module: an embedding may be computed but "
        "never added. Then look for detach(), .data, torch.no_grad(), argmax or a conversion to NumPy between these "
        "layers and the loss, and for reentrant activation checkpointing with inputs that require no gradient."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        called = step.forward.called
        found = [site for site in find_sites(step.model) if not step.is_of_teacher(site.name)]
        sites = [(site.name, site.module) for site in found if site.name in called]
        sites.sort(key=lambda site: called.index(site[0]))
        weights = {name: _trainable(module) for name, module in sites}
        weights = {name: each for name, each in weights.items() if each}
        if not weights:
            raise CannotCheck("no attention with trainable weights was called")
        reached = [name for name, each in weights.items() if any(w.grad is not None for w in each.values())]
        if not reached:
            return _without_any(step, weights)
        up_to = list(weights)[: list(weights).index(reached[-1]) + 1]
        left_out = {*bypassed_layers(step), *after_last(up_to, reached)}
        up_to = [name for name in up_to if name not in left_out]
        is_known = is_as_it_comes(step.forward.module)
        missing = tuple(
            f"{name}.{weight}"
            for name in up_to
            for weight, w in weights[name].items()
            if w.grad is None and not _is_idle(step, name, weight)
            if name not in reached or not is_known
        )
        missing = _missing_before(step, sites[0][0]) + missing
        told_by_others = {*step.graph.cut, *without_grad(step)}
        missing = tuple(name for name in missing if name not in told_by_others)
        if missing:
            layers = sum(name not in reached for name in up_to)
            what = f"{listed(missing, most=1)} got no gradient, although {reached[-1]} did"
            return Fault(what, missing, {"weights": float(len(missing)), "layers_without_gradient": float(layers)})
        fault = _without_residuals(step.graph.residuals)
        if fault is not None:
            return fault
        norms = {name: _norm(weights[name]) for name in reached if not any(map(is_of_adapter, weights[name]))}
        dead = _without_slope(norms)
        if dead and step.num_steps < _STEPS_OF_GATES:
            raise CannotCheck("the gradient of a layer is zero, which can be normal at the start")
        if dead:
            what = f"the gradient of {dead[0]} is zero in the first steps, although that of {reached[-1]} is not"
            return Fault(what, dead, {"layers_without_gradient": float(len(dead))})
        for name in small_scales(step.forward.module):
            raise CannotCheck(f"{name} is almost zero, so the layer that it scales gets a small gradient")
        return _vanishing(norms) or _dropping(norms, step)


def _without_any(step: StepEvidence, weights: Mapping[str, Mapping[str, nn.Parameter]]) -> Fault:
    """Return the fault for no attention layer having a gradient although another part of the same network does."""
    inside = set(step.forward.module.parameters())  # excludes other networks, such as the critic of a GAN
    others = [name for name, each in step.trainable.items() if each.grad is not None and each in inside]
    if not others:
        raise CannotCheck(NO_GRADIENTS)
    what = f"no attention layer got a gradient, although {others[-1]} did"
    return Fault(what, tuple(weights), {"layers_without_gradient": float(len(weights))})


def _missing_before(step: StepEvidence, site: str) -> tuple[str, ...]:
    """Return the trainable matrices without a gradient in modules called before an attention layer."""
    called = itertools.takewhile(lambda name: name != site, step.forward.called)
    modules, is_known = dict(step.model.named_modules()), is_as_it_comes(step.forward.module)
    return tuple(
        f"{name}.{weight}" if name else weight
        for name in called
        if not (step.is_of_teacher(name) or (is_known and POSITIONS.search(name)))
        for weight, each in modules[name].named_parameters(recurse=False)
        if each.requires_grad and each.ndim > 1 and each.grad is None and not is_of_adapter(name)
        if next(modules[name].children(), None) is None  # a container may hold what another call needs
    )


def _is_idle(step: StepEvidence, site: str, weight: str) -> bool:
    """Return whether a weight of an attention layer is in a linear layer that was not called, though others were."""
    module = weight.rpartition(".")[0]
    called = [name for name in step.forward.called if name.startswith(f"{site}.")]
    return bool(module and called) and f"{site}.{module}" not in called


def _without_residuals(residuals: Residuals) -> Fault | None:
    """Return the fault for attention layers that have no path around them; a note if others have one."""
    count, total = residuals.num_missing, residuals.num_layers
    if not count:
        return None
    what = f"no residual connection leads around {count} of the {counted(total, 'self-attention layer')} above another"
    numbers = {"layers_without_residual": float(count), "layers": float(total)}
    return Fault(what, numbers=numbers, is_note=count < total or total < _LEAST_RESIDUALS, remedy=_RESIDUALS)


def _without_slope(norms: Mapping[str, float]) -> tuple[str, ...]:
    """Return the layers with a zero gradient before one with a nonzero gradient; none if it only fades away."""
    values = list(norms.values())
    positive = [index for index, norm in enumerate(values) if norm > 0]
    if not positive or values[positive[0]] < _FADED:
        return ()
    return tuple(name for index, (name, norm) in enumerate(norms.items()) if norm == 0 and index < positive[-1])


def _vanishing(norms: Mapping[str, float]) -> Fault | None:
    """Return the fault for gradient norms that rise or fall steadily from layer to layer by a large factor."""
    values = list(norms.values())
    positive = [each for each in values if 0 < each < float("inf")]
    is_steady = values in (sorted(values), sorted(values, reverse=True))
    if len(positive) < _LEAST_LAYERS or not is_steady or max(positive) < _MOST_RATIO * min(values):
        return None
    ratio = max(positive) / min(positive)
    (first, *_), (*_, last) = norms, norms
    what = f"the norm of the gradient differs {ratio:,.0f}-fold between {first} ({values[0]:.2g}) and {last}"
    numbers = {"ratio": ratio, "first": values[0], "last": values[-1]}
    return Fault(f"{what} ({values[-1]:.2g})", (first, last), numbers, remedy=_FADES)


def _dropping(norms: Mapping[str, float], step: StepEvidence) -> Fault | None:
    """Return the fault for a gradient that is much smaller in all layers before a certain one."""
    names, values = list(norms), list(norms.values())
    for index in range(1, len(values)):
        before, after = max(values[:index]), min(values[index:])
        ratio = _MOST_RATIO if are_of_one_stack(names[index - 1 : index + 1]) else _MOST_BETWEEN_STACKS
        if not 0 < ratio * before < after:
            continue
        if step.num_steps < _STEPS_OF_GATES:
            raise CannotCheck("the gradient of a layer is small, which can be normal at the start")
        what = f"the norm of the gradient falls {after / before:,.0f}-fold from {names[index]} ({values[index]:.2g})"
        what += f" to {names[index - 1]} ({values[index - 1]:.2g})"
        return Fault(what, tuple(names[:index]), {"ratio": after / before}, remedy=_FADES)
    return None


def _norm(weights: Mapping[str, nn.Parameter]) -> float:
    norms = [as_real(each.grad).float().norm() for each in weights.values() if each.grad is not None]
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).norm())


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in module.named_parameters() if each.requires_grad and each.ndim > 1}
