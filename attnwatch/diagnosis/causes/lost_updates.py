"""Updates are too small for the precision of the weights."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class LostUpdates(CauseRule):
    """Updates are too small for the precision of the weights."""

    name = "lost_updates"
    title = "updates are too small for the precision of the weights"
    remedy = "Keep the weights in float32, and use autocast for the rest."
    prior = -0.4
    weights = signs(
        logits_steady=1.6,
        loss_creeps=1.4,
        updates_small=1.2,
        updates_tiny=1.0,
        nothing_moves=0.9,
        loss_flat=0.9,
        attention_frozen=0.8,
        updates_zero=0.8,
        logits_grow_slowly=0.4,
        loss_stuck=-1.0,
        gradients_zero_in_some=-1.0,
        loss_rebounds=-1.5,
        loss_above_start=-1.5,
        loss_falls=-1.5,
        logits_jump_at_once=-2.0,
        layers_frozen=-2.0,
        logits_vanish=-2.0,
        attention_moves_for_nothing=-2.0,
        weights_grow=-2.0,
        gradients_zero=-2.0,
        loss_nearly_gone=-3.0,
        logits_learn=-3.0,
        updates_large=-3.0,
        logits_explode=-4.0,
    )
