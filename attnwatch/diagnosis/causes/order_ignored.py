"""The model does not know the order of the tokens."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class OrderIgnored(CauseRule):
    """The model does not know the order of the tokens."""

    name = "order_ignored"
    title = "the model does not know the order of the tokens"
    remedy = "Check that positions are added, or rotary embeddings applied, and that positions differ between tokens."
    prior = -0.8
    weights = signs(
        loss_stuck=0.8,
        attention_moves=0.7,
        logits_learn=0.5,
        loss_falls=0.3,
        loss_flat=-0.4,
        loss_nearly_gone=-0.9,
        updates_large=-1.0,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        logits_explode=-2.0,
        updates_zero=-2.0,
        attention_frozen=-3.0,
    )
