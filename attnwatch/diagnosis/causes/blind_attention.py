"""Tokens see a single key."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class BlindAttention(CauseRule):
    """Tokens see a single key."""

    name = "blind_attention"
    title = "no token sees any other token"
    remedy = "Check the shape of the mask, the sliding window, and the document ids of packed sequences."
    prior = -0.5
    weights = signs(
        one_key=3.0,
        few_keys=0.5,
        logits_explode=-2.0,
    )
