"""Models that ignore the order of the tokens."""

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.checks.future_leak import leaking_predictions
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import POSITIONS
from attnwatch.checkup.weights import require_weights


@register
class OrderIgnored(Check):
    """The order of the tokens makes no difference.

    The tokens are reversed; the outputs must not be the original ones in reverse. The finding is a note for models
    without position modules, which may be meant to ignore order. A causal mask alone makes outputs depend on the order,
    so causal models without positions are not reported. Position ids that are the same for all tokens are reported.
    """

    name = "order_ignored"
    decides = True
    severity = 0.7
    remedy = "Add positions to the token embeddings, or apply rotary embeddings to queries and keys before attention."

    def look(self, step: StepEvidence) -> Fault | None:
        for name, ids in step.forward.positions.items():
            if ids.ndim and ids.shape[-1] > 1 and bool((ids == ids[..., :1]).all()):
                return Fault(f"{name} was given position {int(ids.flatten()[0])} for all tokens", (name.strip("`"),))
        for name, table in step.forward.module.named_parameters():
            is_empty = table.ndim > 1 and not table.requires_grad and not table.any()
            if is_empty and POSITIONS.search(name) and "relative" not in name:
                return Fault(f"{name} is zero and frozen, so all positions are the same", (name,))
        flow = step.flow
        if not flow.tokens.are_ids and flow.tokens.grid is None:
            raise CannotCheck("the model receives features, which may contain positions")
        require_weights(step.forward.module)
        if step.sees_only_padding:
            raise CannotCheck("attention sees only the padding")
        if _is_causal(step) or flow.reordered.any():
            return None
        names = [name for name, _ in step.forward.module.named_modules()]
        names += [name for name, _ in step.forward.module.named_parameters()]
        unused = next((name for name in names if POSITIONS.search(name)), None)
        where = "" if unused is None else f", although the model has {unused}"
        what = f"reversing a sequence only reverses its outputs{where}"
        return Fault(what, sites=(unused,) if unused else (), is_note=unused is None)


def _is_causal(step: StepEvidence) -> bool:
    """Return whether predictions do not change with later tokens, so that the order of the tokens matters."""
    try:
        return not bool(leaking_predictions(step).any())
    except CannotCheck:
        return False
