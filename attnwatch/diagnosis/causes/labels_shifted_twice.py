"""Labels are shifted by two tokens."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class LabelsShiftedTwice(CauseRule):
    """Labels are shifted by two tokens."""

    name = "labels_shifted_twice"
    title = "labels are shifted twice"
    remedy = "Shift them either in the data or in the loss, not in both."
    prior = -1.6
    weights = signs(
        loss_falls=0.5,
        logits_learn=0.5,
        updates_large=-1.0,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        logits_explode=-2.0,
        loss_nearly_gone=-2.0,
        updates_zero=-2.0,
        attention_frozen=-3.0,
    )
