"""Parameters are in no optimizer."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class NotInOptimizer(CauseRule):
    """Parameters are in no optimizer."""

    name = "not_in_optimizer"
    title = "weights of attention layers are in no optimizer"
    remedy = "Compare the parameters of the optimizer's groups with those of the model."
    prior = 0.8
    weights = signs(
        weights_stand_still=3.0,
        logits_steady=1.5,
        learns_without_attention=1.0,
        layers_frozen=0.9,
        loss_falls=0.9,
        nothing_moves=0.7,
        uniform_everywhere=0.7,
        attention_frozen=0.7,
        loss_flat=0.5,
        loss_creeps=-0.3,
        attention_stopped=-0.5,
        logits_large_at_start=-0.9,
        loss_rebounds=-1.0,
        loss_above_start=-1.0,
        logits_tiny_at_start=-1.0,
        updates_large=-1.0,
        sharp_from_start=-1.1,
        logits_grow_slowly=-1.2,
        updates_small=-1.2,
        logits_learn=-1.3,
        attention_moves_for_nothing=-1.4,
        gradients_zero_in_some=-1.5,
        logits_jump_at_once=-2.0,
        logits_vanish=-2.0,
        updates_tiny=-2.0,
        updates_zero=-2.5,
        gradients_zero=-2.5,
        logits_explode=-4.0,
    )
