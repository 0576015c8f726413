"""The attention mask is inverted."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class MaskInverted(CauseRule):
    """The attention mask is inverted."""

    name = "mask_inverted"
    title = "the attention mask is inverted"
    remedy = "Check whether True means visible or hidden in the mask that is passed to attention."
    prior = -0.1
    weights = signs(
        few_keys=2.2,
        one_key=1.5,
        keys_vary_much=1.3,
        uniform_everywhere=0.6,
        loss_stuck=0.5,
        attention_frozen=-1.0,
        updates_large=-1.0,
        logits_explode=-1.5,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        loss_nearly_gone=-2.0,
        updates_zero=-2.0,
        same_keys_each_time=-4.0,
    )
