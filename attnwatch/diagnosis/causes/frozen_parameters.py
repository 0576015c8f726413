"""Weights do not require gradients."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class FrozenParameters(CauseRule):
    """Weights do not require gradients."""

    name = "frozen_parameters"
    title = "weights of attention layers are frozen"
    remedy = "Look for requires_grad=False, and for modules that should have been unfrozen."
    prior = 0.3
    weights = signs(
        gradients_zero_in_some=1.8,
        logits_steady=1.6,
        layers_frozen=1.5,
        learns_without_attention=1.2,
        loss_falls=0.8,
        uniform_everywhere=0.6,
        attention_frozen=0.5,
        uniform_in_some=0.3,
        weights_stand_still=-0.5,
        loss_creeps=-0.6,
        logits_large_at_start=-0.8,
        loss_rebounds=-1.0,
        loss_above_start=-1.0,
        logits_tiny_at_start=-1.0,
        updates_small=-1.0,
        gradients_zero=-1.0,
        sharp_from_start=-1.1,
        attention_moves_for_nothing=-1.3,
        logits_grow_slowly=-1.3,
        logits_learn=-1.3,
        logits_jump_at_once=-2.0,
        logits_vanish=-2.0,
        updates_zero=-2.0,
        updates_tiny=-2.0,
        logits_explode=-4.0,
    )
