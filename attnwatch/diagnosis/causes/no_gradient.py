"""No gradient reaches the weights."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class NoGradient(CauseRule):
    """No gradient reaches the weights."""

    name = "no_gradient"
    title = "no gradient reaches the weights of attention layers"
    remedy = "Look for detach(), torch.no_grad(), and gradients that are cleared before the optimizer's step."
    prior = 0.3
    weights = signs(
        gradients_zero=3.0,
        gradients_zero_in_some=2.2,
        layers_frozen=1.7,
        updates_zero=1.5,
        logits_steady=1.4,
        learns_without_attention=1.1,
        loss_flat=0.7,
        loss_falls=0.7,
        attention_frozen=0.6,
        uniform_everywhere=0.6,
        nothing_moves=0.5,
        loss_creeps=-0.5,
        weights_stand_still=-0.5,
        logits_large_at_start=-0.8,
        logits_learn=-1.0,
        loss_rebounds=-1.0,
        loss_above_start=-1.0,
        logits_tiny_at_start=-1.0,
        sharp_from_start=-1.0,
        updates_small=-1.0,
        attention_moves_for_nothing=-1.1,
        logits_grow_slowly=-1.5,
        updates_large=-1.5,
        logits_jump_at_once=-2.0,
        logits_vanish=-2.0,
        updates_tiny=-2.0,
        logits_explode=-4.0,
    )
