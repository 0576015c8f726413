"""Models that ignore the order of the tokens."""

import re

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

_POSITIONS = re.compile(r"(^|[._])(pos|wpe)([._]|$)|pos_?emb|position|rotary|rope|alibi|relative", re.IGNORECASE)


@register
class OrderIgnored(Check):
    """The order of the tokens makes no difference.

    The tokens are reversed. The outputs must not be the original ones in reverse. Models without position modules may
    be intended to ignore order: the finding is then a note. A causal mask alone makes outputs depend on the order, so
    causal models without positions are not reported.
    """

    name = "order_ignored"
    severity = 0.7
    remedy = "Add positions to the token embeddings, or apply rotary embeddings to queries and keys before attention."

    def look(self, step: StepEvidence) -> Fault | None:
        flow = step.flow
        if not flow.tokens.are_ids:
            raise CannotCheck("the model is given features, which may contain positions")
        step.forward.require_weights()
        if flow.reordered.any():
            return None
        names = [name for name, _ in step.forward.module.named_modules()]
        names += [name for name, _ in step.forward.module.named_parameters()]
        unused = next((name for name in names if _POSITIONS.search(name)), None)
        where = "" if unused is None else f", although the model has {unused}"
        what = f"reversing a sequence changes none of its outputs except for their order{where}"
        return Fault(what, sites=(unused,) if unused else (), is_note=unused is None)
