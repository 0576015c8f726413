"""The tokens to be predicted are visible."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class FutureLeak(CauseRule):
    """The tokens to be predicted are visible."""

    name = "future_leak"
    title = "the tokens to be predicted are visible"
    remedy = "Check the causal mask: its shape, its diagonal, and whether True means visible."
    prior = -0.5
    weights = signs(
        loss_nearly_gone=2.2,
        same_keys_each_time=0.6,
        loss_noisy=0.4,
        loss_falls=0.3,
        updates_large=-1.0,
        loss_smooth=-1.1,
        logits_steady=-1.5,
        logits_explode=-1.5,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        attention_frozen=-2.0,
        loss_creeps=-2.0,
        loss_comes_again=-2.0,
        loss_stuck=-2.0,
        updates_zero=-2.0,
        attention_without_noise=-3.0,
        loss_flat=-3.0,
    )
