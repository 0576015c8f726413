"""Attention logits whose scale is far from 1/√head_dim."""

import math
from collections.abc import Mapping

from attnwatch.checkup.attention_scale import AttentionScale
from attnwatch.checkup.checks.base import CannotCheck, Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.weights import has_large_weights
from attnwatch.utils.messages import listed

# T5 and GPT-Neo use a scale of 1, which their projections account for.
_MOST = 1.5
# Maximal update parametrisation uses 1/head_dim.
_LEAST_TIMES_WIDTH = 0.5
# With logits between -1 and 1, a key gets at most 7 times the weight of another.
_LEAST_LARGEST = 1.0
# Logits with a standard deviation of 10 leave nearly all weight on one key. Cosines are multiplied by up to 100.
_SATURATED, _SATURATED_IF_NORMALISED = 10.0, 100.0

_NORMALISED = "Multiply logits of normalised queries and keys by about 10, or by a trained gain."
_OVER_KEYS = "Apply the softmax over the keys: dim=-1 for logits [..., queries, keys]."
_SATURATES = (
    "Check the scale of the logits, and the initialisation of the query and key projections and of their inputs."
)


@register
class WrongAttentionScale(Check):
    """The scale of attention logits is far from 1/√head_dim, or the softmax is saturated before anything is learned.

    The scales of the attention calls are read in a repeated forward pass. If attention is computed by hand, the logits
    at its softmax are compared with the products of queries and keys. A scale above 1.5 or below 0.5/head_dim is
    reported. So are a softmax over another axis than the keys, and logits with a standard deviation above 10 over the
    keys of a query while the loss is still that of a uniform guess. Layers that normalise queries or keys, or cap their
    products, may have any scale that lets the logits reach 1.
    """

    name = "wrong_attention_scale"
    decides = True
    severity = 0.6
    remedy = (
        "Divide the dot products by √head_dim exactly once, with the width of a head, not of the model; "
        "scaled_dot_product_attention does so by default."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        known = step.repeats.scales
        if not known:
            raise CannotCheck("no attention call could be read")
        weak = {name: each for name, each in known.items() if each.largest_logit < _LEAST_LARGEST}
        if weak:
            what = "attention stays nearly uniform: logits of normalised or capped products cannot exceed {largest:.3g}"
            return _fault(weak, what, remedy=_NORMALISED)
        across = {name: each for name, each in known.items() if each.axis != -1}
        if across:
            what = "the softmax runs over axis {axis} of the logits, so the weights of a query do not sum to 1"
            return _fault(across, what, remedy=_OVER_KEYS)
        scales = {name: each for name, each in known.items() if not each.is_normalised}
        wrong = {name: each for name, each in scales.items() if _is_wrong(each)}
        if wrong:
            return _fault(wrong, "the attention logits are scaled by {scale:.3g}; 1/√head_dim is {usual:.3g}")
        saturated = {name: each for name, each in known.items() if _is_saturated(each)}
        if len(saturated) <= len(known) / 2 or not step.is_untrained or has_large_weights(step.forward.module):
            return None
        what = "the softmax is saturated at the start: logits have a standard deviation of {std:.3g} over the keys"
        return _fault(saturated, what, remedy=_SATURATES)


def _is_wrong(of: AttentionScale) -> bool:
    return of.head_dim > 1 and (abs(of.scale) > _MOST or abs(of.scale) * of.head_dim < _LEAST_TIMES_WIDTH)


def _is_saturated(of: AttentionScale) -> bool:
    return of.logit_std > (_SATURATED_IF_NORMALISED if of.is_normalised else _SATURATED)


def _fault(wrong: Mapping[str, AttentionScale], what: str, *, remedy: str = "") -> Fault:
    of = next(iter(wrong.values()))
    numbers = {} if math.isnan(of.logit_std) else {"logit_std": of.logit_std}
    usual = 1 / math.sqrt(max(of.head_dim, 1))
    if of.head_dim:
        numbers |= {"scale": of.scale, "usual_scale": usual}
    said = what.format(scale=of.scale, usual=usual, std=of.logit_std, largest=of.largest_logit, axis=of.axis)
    return Fault(f"{said} ({listed(list(wrong), most=1)})", tuple(wrong), numbers, remedy=remedy)
