"""Optimizers that step without gradients, and attention whose gradients are zero."""

import torch

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence


@register
class NoGradient(Check):
    """The optimizers find no gradients when they step, or the gradients of all attention layers are zero.

    Weight matrices are checked in the first six steps. Individual matrices without a gradient, as in unused modules,
    are not reported.
    """

    name = "no_gradient"
    decides = True
    severity = 1.0
    remedy = (
        "Call backward before optimizer.step() and zero_grad() after it, and check that the loss is computed from the "
        "model's output with gradients: no detach(), .item(), argmax or torch.no_grad() in between, and no factor of 0."
    )

    def __init__(self) -> None:
        self._zero: dict[int, tuple[str, ...]] = {}

    def look(self, step: StepEvidence) -> Fault | None:
        self._zero[step.global_step] = _attention_without_gradient(step)
        step.require_updates()
        if not any(step.updates):
            return Fault(f"no weight matrix had a gradient in the first {len(step.updates)} optimizer steps")
        if not all(self._zero.values()):
            return None
        sites = self._zero[step.global_step]
        return Fault(f"the gradients of all {len(sites)} attention layers are zero in each step", sites)


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
