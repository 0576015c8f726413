"""Initial weights with the wrong scale, and first losses that reveal them."""

import itertools
import math

from torch import nn

from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.weights import (
    LEAST_GAIN,
    equal_weights,
    gains,
    has_random_scale,
    large_weights,
    one_sided_weights,
    require_weights,
)
from attnwatch.utils.messages import listed

# The loss of a uniform guess is log(classes). Pretrained models on unfamiliar data stay below twice that.
_MOST_LOSS = 3.0
_MOST_OF_EMBEDDING = 10.0
# The variance of states is seldom below 1e-3, and epsilons are not above it.
_MOST_EPSILON = 0.1


@register
class Initialisation(Check):
    """The weights are far too large or too small at the start.

    The cross-entropy of a uniform guess is the log of the number of classes. A model whose first loss is three times as
    high is confident in wrong answers, and its softmax passes hardly any gradient. The weight matrices are measured
    too: their root mean square times √inputs is 0.1 to 2 with the usual initialisers. Outputs that are the same for all
    tokens, as in deep models without residual connections, are also reported. So are matrices whose entries are all
    equal or of one sign, and norms that do not normalise, because their epsilon is large or their outputs are unused.
    """

    name = "initialisation"
    severity = 0.6
    remedy = (
        "Check the initialisation (a standard deviation near 0.02, or 1/sqrt(width)), the scale of tied embeddings, "
        "and that there is a norm before the last layer; for a pretrained model, that its weights were loaded and "
        "match the tokenizer."
    )

    def __init__(self) -> None:
        self._reason = "the first step was not seen"

    def look(self, step: StepEvidence) -> Fault | None:
        if fault := _of_norms(step):
            return fault
        if step.num_steps:
            raise CannotCheck(self._reason)
        try:
            return _of_first_step(step)
        except CannotCheck as error:
            self._reason = str(error)
            raise


def _of_first_step(step: StepEvidence) -> Fault | None:
    found = _of_equal_weights(step) or _of_small_weights(step) or _of_vanishing_states(step) or _of_loss(step)
    return found or ((_of_large_weights(step) or _of_one_sided_weights(step)) if step.is_untrained else None)


def _of_norms(step: StepEvidence) -> Fault | None:
    """Return the fault for norms that do not normalise the states."""
    prefix = f"{step.forward.name}." if step.forward.name else ""
    norms = {f"{prefix}{name}": part for name, part in step.forward.module.named_modules() if _is_norm(part)}
    for name, part in norms.items():
        epsilon = getattr(part, "eps", None) or getattr(part, "variance_epsilon", None) or 0.0
        if isinstance(epsilon, float) and epsilon >= _MOST_EPSILON:
            what, remedy = f"{name} has an epsilon of {epsilon:g}; 1e-5 is usual", "Lower the epsilon of the norms."
            return Fault(what, (name,), {"epsilon": epsilon}, remedy=remedy)
    drawn = [] if step.num_steps else [name for name, part in norms.items() if has_random_scale(part)]
    if drawn and len(drawn) > len(norms) / 2:
        what = f"{len(drawn)} of {len(norms)} norms scale their outputs by random numbers around 0, such as {drawn[0]}"
        return Fault(
            what, tuple(drawn), remedy="Leave the weights of norms at their initial value, which is 1 for most."
        )
    called = [name for name in norms if name in step.forward.called and not _is_in_unused(name, step)]
    unused = tuple(name for name in called if name in step.graph.unused)
    if len(unused) <= len(called) / 2:
        return None
    what = f"the outputs of {len(unused)} of {len(called)} norms are unused, such as that of {unused[0]}"
    return Fault(what, unused, remedy="Use what the norms return: x = norm(x).")


def _is_in_unused(name: str, step: StepEvidence) -> bool:
    """Return whether the output of a module that contains this one is unused too."""
    around = itertools.accumulate(name.split(".")[:-1], "{}.{}".format)
    return any(path in step.graph.unused for path in around)


def _is_norm(part: nn.Module) -> bool:
    return type(part).__name__.endswith("Norm") and next(part.children(), None) is None


def _of_loss(step: StepEvidence) -> Fault | None:
    targets, uniform = step.targets, math.log(step.targets.num_classes)
    if not targets.is_scored.any():
        raise CannotCheck("the first step has no loss")
    loss = float(targets.loss)
    if not loss > _MOST_LOSS * uniform:
        return None
    what = f"the first loss is {loss:.3g}; a uniform guess over {targets.num_classes} classes gives {uniform:.3g}"
    return Fault(what, numbers={"loss": loss, "uniform": uniform})


def _of_equal_weights(step: StepEvidence) -> Fault | None:
    equal = equal_weights(step.forward.module)
    if not equal:
        return None
    what = f"all entries of the weights {listed(equal, most=1)} are the same number"
    what += ": their output features stay equal, because their gradients are equal"
    return Fault(what, equal, remedy="Draw the weights at random, as nn.init.normal_(weight, std=0.02) does.")


def _of_one_sided_weights(step: StepEvidence) -> Fault | None:
    shares = one_sided_weights(step.forward.module)
    if not shares:
        return None
    share = next(iter(shares.values()))
    what = f"the entries of {listed(list(shares), most=1)} are far from zero on average"
    what += f" (mean / root mean square {share:.2f})"
    remedy = "Draw the weights with a mean of zero, as torch.randn does; torch.rand draws from 0 to 1."
    return Fault(what, tuple(shares), {"share_of_mean": share}, remedy=remedy)


def _of_small_weights(step: StepEvidence) -> Fault | None:
    sizes = gains(step.forward.module)
    small = tuple(name for name, gain in sizes.items() if gain < LEAST_GAIN)
    if not small or len(small) <= len(sizes) / 2:
        return None
    what = f"{len(small)} of {len(sizes)} weight matrices are almost zero, such as {small[0]}"
    return Fault(f"{what} (standard deviation × √inputs {sizes[small[0]]:.2g})", small, {"gain": sizes[small[0]]})


def _of_vanishing_states(step: StepEvidence) -> Fault | None:
    try:
        flow = step.flow
        require_weights(step.forward.module)
        has_vanished = flow.has_outputs_of_tokens and flow.is_constant
    except CannotCheck:
        return None
    if not has_vanished:
        return None
    return Fault("the outputs are the same for all tokens: the states vanish as they pass through the layers")


def _of_large_weights(step: StepEvidence) -> Fault | None:
    module = step.forward.module
    large, number = large_weights(module), len(gains(module))
    if len(large) > number / 2:
        name, gain = next(iter(large.items()))
        what = f"{len(large)} of {number} weight matrices are too large, such as {name}"
        return Fault(f"{what} (standard deviation × √inputs {gain:.2g})", tuple(large), {"gain": gain})
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and part.weight.numel():
            size = float(part.weight.detach().abs().float().square().mean().sqrt())
            if size > _MOST_OF_EMBEDDING:
                what = f"the embeddings of {name} have a root mean square of {size:.3g}; 0.02 to 1 is usual"
                return Fault(what, (name,), {"root_mean_square": size})
    return None
