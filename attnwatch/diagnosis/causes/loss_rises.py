"""The loss is maximised."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class LossRises(CauseRule):
    """The loss is maximised."""

    name = "loss_rises"
    title = "the sign of the loss or of the update is wrong"
    remedy = "Check the sign of the loss, and that the optimizer minimises."
    prior = -0.9
    weights = signs(
        loss_negative=5.2,
        loss_explodes=1.0,
        loss_above_start=1.0,
        loss_rebounds=-1.0,
        updates_large=-1.0,
        loss_falls=-1.3,
        loss_stuck=-1.5,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        loss_creeps=-2.0,
        updates_zero=-2.0,
        attention_frozen=-3.0,
        loss_flat=-3.0,
    )
