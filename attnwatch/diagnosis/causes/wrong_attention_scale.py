"""The scale of the attention logits is wrong."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class WrongAttentionScale(CauseRule):
    """The scale of the attention logits is wrong."""

    name = "wrong_attention_scale"
    title = "the scale of the attention logits is wrong"
    remedy = "Divide the logits by the square root of the head width, exactly once."
    prior = -0.2
    weights = signs(
        logits_tiny_at_start=2.2,
        logits_large_at_start=2.1,
        sharp_from_start=1.7,
        logits_sizeable_at_start=1.2,
        loss_falls=0.9,
        uniform_everywhere=0.3,
        attention_frozen=-0.4,
        logits_jump_at_once=-0.9,
        updates_large=-1.0,
        loss_drops_at_once=-1.1,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        updates_zero=-2.0,
        loss_above_any_guess=-3.0,
    )
