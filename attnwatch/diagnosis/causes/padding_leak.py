"""Padding is visible."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class PaddingLeak(CauseRule):
    """Padding is visible."""

    name = "padding_leak"
    title = "padding is visible to attention"
    remedy = "Give attention the mask of the padding."
    prior = -1.5
    weights = {  # noqa: RUF012
        "same_keys_each_time": 0.5,
        "keys_vary": -3.0,
        "logits_explode": -2.0,
        "attention_frozen": -2.0,
    }
