"""Labels do not belong to their inputs."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class LabelsUnrelated(CauseRule):
    """Labels do not belong to their inputs."""

    name = "labels_unrelated"
    title = "labels do not belong to their inputs"
    remedy = "Print a few inputs with their labels, as the loss sees them."
    prior = -0.3
    weights = signs(
        attention_moves_for_nothing=1.5,
        loss_stuck=1.2,
        loss_flat=0.4,
        logits_steady=-0.5,
        loss_rebounds=-0.5,
        logits_jump_at_once=-0.6,
        logits_large_at_start=-0.7,
        loss_above_start=-1.0,
        loss_creeps=-1.0,
        updates_large=-1.0,
        logits_vanish=-1.5,
        loss_falls_late=-1.5,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        updates_zero=-2.0,
        attention_frozen=-2.5,
        logits_explode=-2.5,
        loss_nearly_gone=-4.0,
    )
