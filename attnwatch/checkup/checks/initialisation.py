"""Weights whose size at the start is wrong, and first losses that show it."""

import math

from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.weights import LEAST_GAIN, gains, linear_weights

# A model that knows nothing and says so has log(classes). Pretrained models on foreign data stay below twice that.
_MOST_LOSS = 3.0
# Initialisers have gains of 0.1 to 2; trained matrices of GPT-2 have 4.
_MOST_GAIN = 8.0
# Standard deviation of torch.randn, and of embeddings that no initialiser has scaled down.
_RANDN, _TOLERANCE, _LEAST_INPUTS = 1.0, 0.05, 16
_MOST_OF_EMBEDDING = 10.0


@register
class Initialisation(Check):
    """The weights are far too large or too small at the start.

    The cross-entropy of a uniform guess is the log of the number of classes: a first loss of three times as much is
    confident in wrong answers, and its softmax lets hardly any gradient through. The weight matrices are measured too:
    the root mean square times √inputs is 0.1 to 2 for the usual initialisers.
    """

    name = "initialisation"
    severity = 0.6
    remedy = (
        "Check the initialisation (a standard deviation near 0.02, or 1/sqrt(width)), the scale of tied embeddings and "
        "the norm before the last layer; for a pretrained model, that its weights were loaded and match the tokenizer."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        if step.num_steps:
            raise CannotCheck("the first step was not seen")
        return _of_small_weights(step) or _of_loss(step) or (_of_large_weights(step) if step.is_untrained else None)


def _of_loss(step: StepEvidence) -> Fault | None:
    targets, uniform = step.targets, math.log(step.targets.num_classes)
    if not targets.is_scored.any():
        raise CannotCheck("the first step has no loss")
    loss = float(targets.loss)
    if not loss > _MOST_LOSS * uniform:
        return None
    what = f"the first loss is {loss:.3g}; a uniform guess over {targets.num_classes} classes has {uniform:.3g}"
    return Fault(what, numbers={"loss": loss, "uniform": uniform})


def _of_small_weights(step: StepEvidence) -> Fault | None:
    sizes = gains(step.forward.module)
    small = tuple(name for name, gain in sizes.items() if gain < LEAST_GAIN)
    if not small or len(small) <= len(sizes) / 2:
        return None
    what = f"{len(small)} of {len(sizes)} weight matrices are almost zero, {small[0]} for one"
    return Fault(f"{what} (standard deviation × √inputs {sizes[small[0]]:.2g})", small, {"gain": sizes[small[0]]})


def _of_large_weights(step: StepEvidence) -> Fault | None:
    module = step.forward.module
    sizes = gains(module)
    inputs = {name: number for name, _, number in linear_weights(module)}
    large = tuple(name for name, gain in sizes.items() if _is_large(gain, inputs[name]))
    if len(large) > len(sizes) / 2:
        what = f"{len(large)} of {len(sizes)} weight matrices are large, {large[0]} for one"
        return Fault(f"{what} (standard deviation × √inputs {sizes[large[0]]:.2g})", large, {"gain": sizes[large[0]]})
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and part.weight.numel():
            size = float(part.weight.detach().float().square().mean().sqrt())
            if size > _MOST_OF_EMBEDDING:
                what = f"the embeddings of {name} have a root mean square of {size:.3g}; 0.02 to 1 is usual"
                return Fault(what, (name,), {"root_mean_square": size})
    return None


def _is_large(gain: float, inputs: int) -> bool:
    is_randn = inputs >= _LEAST_INPUTS and abs(gain / inputs**0.5 - _RANDN) < _TOLERANCE
    return is_randn or gain > _MOST_GAIN
