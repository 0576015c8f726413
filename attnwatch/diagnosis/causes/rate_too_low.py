"""The learning rate is too low, or its schedule ends too early."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class RateTooLow(CauseRule):
    """The learning rate is too low, or its schedule ends too early."""

    name = "rate_too_low"
    title = "the learning rate is too low, or its schedule falls to zero too early"
    remedy = "Raise it, and print the rate that the scheduler sets in each step."
    prior = 1.0
    weights = signs(
        updates_tiny=3.5,
        updates_end=2.5,
        loss_creeps=2.1,
        updates_small=2.0,
        logits_steady=1.7,
        attention_stopped=1.4,
        logits_grow_slowly=1.2,
        updates_zero=1.2,
        nothing_moves=1.1,
        attention_frozen=1.1,
        loss_flat=0.7,
        weights_stand_still=-0.5,
        loss_falls=-0.6,
        learns_without_attention=-0.6,
        logits_large_at_start=-0.8,
        loss_stuck=-0.9,
        loss_above_start=-1.0,
        sharp_from_start=-1.0,
        layers_frozen=-1.4,
        loss_rebounds=-1.5,
        gradients_zero_in_some=-1.5,
        logits_jump_at_once=-2.0,
        logits_vanish=-2.0,
        attention_moves_for_nothing=-2.0,
        updates_usual=-2.0,
        gradients_zero=-2.0,
        logits_learn=-2.4,
        loss_nearly_gone=-3.0,
        weights_grow=-3.0,
        logits_explode=-4.0,
        updates_large=-4.0,
    )
