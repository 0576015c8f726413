"""Optimizers that step without gradients, weights that are left out of the loss, and zero gradients of attention."""

import re
from collections.abc import Sequence

import torch
from torch import nn

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import Check, Fault, known, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.library import is_as_it_comes
from attnwatch.checkup.stacks import after_last
from attnwatch.utils.messages import listed

_ROUTER = re.compile(r"(^|[._])(router|gate|gating)\w*$", re.IGNORECASE)
_IDLE = "If they should be trained, check that the loss uses their outputs; otherwise set requires_grad=False."


@register
class NoGradient(Check):
    """The optimizers step without gradients, or parts of the model get none because of how it computes.

    The check reports weights that a module uses as plain numbers, parameters that are read with `item()`, weights of
    modules that are called under `torch.no_grad()` after modules with gradients, and attention layers with gradients of
    zero. It also reports attention layers, and routers between them, whose outputs are unused although modules before
    and after them have gradients; layers that are used in eval mode do not count. It does not report modules that are
    not called. There is only a note on other trained weights without a gradient in six steps, such as those of a head
    that the loss leaves out, or of a backbone that is called under `torch.no_grad()`. There is no such note for
    unmodified transformers models, because the pooler of BERT, for example, is often unused.
    """

    name = "no_gradient"
    decides = True
    severity = 1.0
    remedy = (
        "Call backward before optimizer.step() and zero_grad() after it, and compute the loss from the model's output "
        "with gradients: no detach(), .item(), argmax or torch.no_grad() in between."
    )

    def __init__(self) -> None:
        self._zero: dict[int, tuple[str, ...]] = {}
        self._idle: frozenset[str] | None = None

    def look(self, step: StepEvidence) -> Fault | None:
        if fault := _of_graph(step):
            return fault
        self._zero[step.global_step] = _attention_without_gradient(step)
        if step.has_gradients:
            idle = _called_without_gradient(step)
            self._idle = idle if self._idle is None else self._idle & idle
        step.updates.require()
        number = len(step.updates.steps)
        if not any(step.updates.steps):
            return Fault(f"no weight matrix had a gradient in the first {number} optimizer steps")
        if not all(self._zero.values()):
            return _of_backbone(step) or self._of_idle_weights(step, number)
        sites = self._zero[step.global_step]
        what = f"the gradients of all attention layers ({len(sites)}) are zero in each step"
        return Fault(what, sites, remedy="Check that nothing multiplies their outputs, or the loss, by 0.")

    def _of_idle_weights(self, step: StepEvidence, number: int) -> Fault | None:
        """Return the note on weights that got no gradient in any step, although their modules were called."""
        updated = set().union(*step.updates.steps)
        idle = tuple(name for name in step.trainable if name in (self._idle or ()) and name not in updated)
        if not idle or is_as_it_comes(step.forward.module):
            return None
        what = f"{listed(idle)} got no gradient in the first {number} steps, although the modules were called"
        return Fault(what, idle, {"weights": float(len(idle))}, is_note=True, remedy=_IDLE)


def _called_without_gradient(step: StepEvidence) -> frozenset[str]:
    """Return the trained matrices without a gradient of the modules that the forward pass called."""
    modules, held = dict(step.model.named_modules()), step.held if step.optimizers else {}
    return frozenset(
        f"{name}.{weight}" if name else weight
        for name in step.forward.called
        if not step.is_of_teacher(name)
        for weight, each in modules[name].named_parameters(recurse=False)
        if each.ndim > 1 and each.requires_grad and each.grad is None and each in held
    )


def _of_graph(step: StepEvidence) -> Fault | None:
    """Return the fault for weights that are not part of the graph of autograd."""
    if cut := step.graph.cut:
        what = f"the outputs of the model do not depend on {listed(cut)}, although their modules are used"
        return Fault(what, cut, remedy="Compute with the parameters themselves, not with .data, detach() or .item().")
    if numbers := _read_as_numbers(step):
        what = f"{listed(numbers)} got no gradient: forward reads the parameter as a number, as with item()"
        return Fault(what, numbers, remedy="Compute with the parameter itself.")
    if (disabled := without_grad(step)) and not is_as_it_comes(step.forward.module):
        what = f"{listed(disabled)} got no gradient: the modules were called under torch.no_grad()"
        remedy = "Remove torch.no_grad() there. If the modules should not be trained, set requires_grad=False."
        return Fault(what, disabled, remedy=remedy)
    if (layers := bypassed_layers(step)) and not _are_used_in_evaluation(step, layers):
        what = f"{listed(layers)} got no gradient, although modules before and after them did"
        return Fault(what, layers, remedy="Use what each layer returns: x = layer(x).")
    if unused := unused_routers(step):
        what = f"{listed(unused)} got no gradient: the outputs of their modules are unused"
        return Fault(what, unused, remedy="Multiply the outputs of the experts by the router's probabilities.")
    return None


def _read_as_numbers(step: StepEvidence) -> tuple[str, ...]:
    """Return the trained parameters that the forward pass of the first step reads as numbers, without a gradient."""
    if step.num_steps or not step.has_gradients:  # to repeat a forward pass in each step would take too long
        return ()
    held = step.held if step.optimizers else {}
    nothing: Sequence[nn.Parameter] = ()
    read = {id(each) for each in known(lambda: step.repeats.read, nothing) if each in held and each.grad is None}
    return tuple(name for name, each in step.trainable.items() if id(each) in read)


def without_grad(step: StepEvidence) -> tuple[str, ...]:
    """Return the matrices of modules that were called without gradients after a module that has some.

    Gradients are often disabled on purpose for a backbone that is called before any trained module, and for a teacher.
    """
    modules, called = dict(step.model.named_modules()), step.forward.called
    has_gradient = (any(each.grad is not None for each in _matrices(modules[name], recurse=False)) for name in called)
    first = next((index for index, each in enumerate(has_gradient) if each), len(called))
    names = [name for name in step.graph.without_grad if called.index(name) > first and not step.is_of_teacher(name)]
    matrices = {
        f"{name}.{weight}": each
        for name in names
        for weight, each in modules[name].named_parameters(recurse=False)
        if each.ndim > 1 and each.requires_grad and each.grad is None
    }
    held = step.held if step.optimizers else {}
    return tuple(name for name, each in matrices.items() if each in held)


def _of_backbone(step: StepEvidence) -> Fault | None:
    """Return the note on trained attention layers that are only called without gradients, as a backbone may be.

    Teachers have a twin that is trained.
    """
    if not step.optimizers or not step.has_gradients:
        return None
    modules = dict(step.model.named_modules())
    called = [site.name for site in find_sites(step.model) if site.name in step.forward.called]
    names = [name for name in called if any(f"{name}.".startswith(f"{each}.") for each in step.graph.without_grad)]
    lost = {name: [each for each in _matrices(modules[name]) if each.grad is None] for name in names}
    sites = tuple(name for name in names if lost[name] and all(each in step.held for each in lost[name]))
    if not sites or is_as_it_comes(step.forward.module):
        return None
    around = [each for each in step.graph.without_grad if f"{sites[0]}.".startswith(f"{each}.")]
    top = modules[min(around, key=len)]
    if sum(_shapes(each) == _shapes(top) for each in modules.values()) > 1:
        return None
    what = f"{listed(sites)} got no gradient: the layers were called under torch.no_grad()"
    remedy = "Remove torch.no_grad() there. If the layers should not be trained, set requires_grad=False."
    return Fault(what, sites, {"layers": float(len(sites))}, is_note=True, remedy=remedy)


def _shapes(module: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, each.shape) for name, each in module.named_parameters())


def bypassed_layers(step: StepEvidence) -> tuple[str, ...]:
    """Return the attention layers without any gradient between modules that have one: their outputs are not used."""
    modules, called = dict(step.model.named_modules()), step.forward.called
    trained = {name: _matrices(modules[name]) for name in called}
    sites = sorted((site.name for site in find_sites(step.model) if trained.get(site.name)), key=called.index)
    reached = {name for name in called if any(each.grad is not None for each in trained[name])}
    last = max((called.index(name) for name in sites if name in reached), default=0)
    own = [name for name in called if any(each.grad is not None for each in _matrices(modules[name], recurse=False))]
    first = called.index(own[0]) if own else len(called)
    left_out = reached | after_last(sites, reached)
    return tuple(name for name in sites if name not in left_out and first < called.index(name) < last)


def _are_used_in_evaluation(step: StepEvidence, layers: Sequence[str]) -> bool:
    """Return whether the output depends on some of these layers in eval mode: training then skips layers at random."""
    return known(lambda: step.repeats.depends_on(map(step.model.get_submodule, layers)), False)


def unused_routers(step: StepEvidence) -> tuple[str, ...]:
    """Return the matrices of routers and gates between the attention layers on whose outputs nothing depends.

    That is so if only the choice of a router counts, but not its shares. Other modules may be used in another step, or
    in a later one.
    """
    called = step.forward.called
    sites = [called.index(site.name) for site in find_sites(step.model) if site.name in called]
    if not sites or not step.optimizers or not step.received:
        return ()
    between = [name for name in called[min(sites) : max(sites)] if _ROUTER.search(name)]
    unused = [name for name in between if name in step.graph.unused and _has_trained(step, name)]
    return tuple(
        f"{name}.{weight}"
        for name in unused
        for weight, each in step.model.get_submodule(name).named_parameters(recurse=False)
        if each.ndim > 1 and each.requires_grad and each.grad is None and each in step.held
    )


def _has_trained(step: StepEvidence, name: str) -> bool:
    """Return whether other matrices of the module that a module belongs to have a gradient."""
    parent = step.model.get_submodule(name.rpartition(".")[0])
    return any(each.grad is not None for each in _matrices(parent))


def _matrices(module: nn.Module, *, recurse: bool = True) -> list[nn.Parameter]:
    return [each for each in module.parameters(recurse) if each.requires_grad and each.ndim > 1]


def _attention_without_gradient(step: StepEvidence) -> tuple[str, ...]:
    """Return the attention layers with gradients if all these gradients are zero; otherwise nothing."""
    called = step.forward.called
    sites = {site.name: list(site.module.parameters()) for site in find_sites(step.model) if site.name in called}
    gradients = {
        name: [each.grad for each in weights if each.grad is not None and each.grad.layout is torch.strided]
        for name, weights in sites.items()
    }
    gradients = {name: each for name, each in gradients.items() if each}
    if not gradients:
        return ()
    norms = torch._foreach_norm([each for of_site in gradients.values() for each in of_site])
    return () if any(bool(norm) for norm in norms) else tuple(gradients)
