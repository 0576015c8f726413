"""The scale of the attention logits is wrong."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class WrongAttentionScale(CauseRule):
    """The scale of the attention logits is wrong."""

    name = "wrong_attention_scale"
    title = "the scale of the attention logits is wrong"
    remedy = "Logits are divided by the root of the heads' width, once."
    prior = -0.5
    weights = {  # noqa: RUF012
        "logits_large_at_start": 2.0,
        "logits_tiny_at_start": 2.0,
        "sharp_from_start": 1.5,
        "loss_above_any_guess": -3.0,
        "loss_drops_at_once": -1.0,
        "logits_jump_at_once": -1.0,
        "loss_falls": 0.5,
        "uniform_everywhere": 0.5,
    }
