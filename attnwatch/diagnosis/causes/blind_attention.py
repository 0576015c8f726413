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
        updates_large=-1.0,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        logits_explode=-2.0,
        updates_zero=-2.0,
    )
