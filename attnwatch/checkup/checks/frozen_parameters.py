"""Weights that are frozen while others of the same attention layer train."""

from attnwatch.capture import find_sites
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import is_of_adapter


@register
class FrozenParameters(Check):
    """Some weights of an attention layer are frozen while others train.

    Attention whose query and key weights are frozen can't learn where to look. Layers with adapters are left out, as
    their weights are frozen by design.
    """

    name = "frozen_parameters"
    severity = 0.5
    remedy = "Set requires_grad=True on these weights before creating the optimizer, or freeze the whole layer."

    def look(self, step: StepEvidence) -> Fault | None:
        frozen: list[str] = []
        sites = find_sites(step.model)
        if not sites:
            raise CannotCheck("no known attention was found in the model")
        for site in sites:
            weights = {name: each for name, each in site.module.named_parameters() if each.ndim > 1}
            has_adapters = any(map(is_of_adapter, weights))
            still = [name for name, each in weights.items() if not each.requires_grad]
            if still and len(still) < len(weights) and not has_adapters:
                frozen += [f"{site.name}.{name}" for name in still]
        if not frozen:
            return None
        more = f" and {len(frozen) - 2} more" if len(frozen) > 2 else ""
        what = f"some weights are frozen while others of the same layers train: {', '.join(frozen[:2])}{more}"
        return Fault(what, tuple(frozen), {"weights": float(len(frozen))})
