"""Models that give a sequence in another order the same outputs."""

import re

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

_POSITIONS = re.compile(r"(^|[._])(pos|wpe)([._]|$)|pos_?emb|position|rotary|rope|alibi|relative", re.IGNORECASE)


@register
class OrderIgnored(Check):
    """The order of the tokens makes no difference.

    The tokens are reversed. The outputs must not be the same ones in reverse. Models that have no modules for positions
    may be meant so: the finding is then a note. A causal mask tells orders apart by itself, so that causal models
    without positions are not found.
    """

    name = "order_ignored"
    severity = 0.7
    remedy = "Add the positions to the embeddings, or apply the rotary embedding to queries and keys, before attention."

    def look(self, step: StepEvidence) -> Fault | None:
        flow = step.flow
        if not flow.tokens.are_ids:
            raise CannotCheck("the model is given features, which may hold the positions")
        step.forward.require_weights()
        if flow.reordered.any():
            return None
        names = [name for name, _ in step.forward.module.named_modules()]
        names += [name for name, _ in step.forward.module.named_parameters()]
        unused = next((name for name in names if _POSITIONS.search(name)), None)
        where = "" if unused is None else f", although the model has {unused}"
        what = f"the outputs of a sequence in reverse order are the same ones in reverse{where}"
        return Fault(what, sites=(unused,) if unused else (), is_note=unused is None)
