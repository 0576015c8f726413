"""Padding is visible."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class PaddingLeak(CauseRule):
    """Padding is visible."""

    name = "padding_leak"
    title = "padding is visible to attention"
    remedy = "Pass the padding mask to attention."
    prior = -1.1
    weights = signs(
        same_keys_each_time=0.6,
        updates_large=-1.0,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        attention_frozen=-2.0,
        logits_explode=-2.0,
        updates_zero=-2.0,
        keys_vary=-2.9,
    )
