"""Models whose first loss is far above that of a uniform guess."""

import math

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence

# A model that knows nothing and says so has log(classes). Pretrained models on foreign data stay below twice that.
_MOST = 3.0


@register
class Initialisation(Check):
    """The first loss is far above that of a uniform guess.

    The cross-entropy of a uniform guess is the log of the number of classes. A model whose initial weights are too
    large is confident in wrong answers, and its softmax lets hardly any gradient through.
    """

    name = "initialisation"
    severity = 0.6
    remedy = (
        "Check the initialisation (a standard deviation near 0.02, or 1/sqrt(width)), the scale of tied embeddings and "
        "the norm before the last layer; for a pretrained model, that its weights were loaded and match the tokenizer."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        targets, uniform = step.targets, math.log(step.targets.num_classes)
        if step.num_steps or not targets.is_scored.any():
            raise CannotCheck("the first step has no loss")
        loss = float(targets.loss)
        if not loss > _MOST * uniform:
            return None
        what = f"the first loss is {loss:.3g}; a uniform guess over {targets.num_classes} classes has {uniform:.3g}"
        return Fault(what, numbers={"loss": loss, "uniform": uniform})
