"""The learning rate is too high, rises, or is not warmed up."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class RateTooHigh(CauseRule):
    """The learning rate is too high, rises, or is not warmed up."""

    name = "rate_too_high"
    title = "the learning rate is too high or not warmed up"
    remedy = "Lower it by a factor of 10, or warm it up over a few hundred steps."
    prior = 0.4
    weights = signs(
        logits_explode=2.8,
        updates_large=2.5,
        loss_explodes=2.0,
        loss_above_start=1.5,
        loss_rebounds=1.5,
        updates_overwrite=1.5,
        weights_grow=1.5,
        logits_jump_at_once=1.4,
        loss_unsteady=0.8,
        becomes_sharp=0.7,
        becomes_uniform=0.5,
        nan_later=0.5,
        loss_stuck=0.5,
        gradients_grow=0.3,
        weights_keep_norm=-0.7,
        loss_falls_late=-0.8,
        sharp_from_start=-1.0,
        loss_negative=-1.0,
        loss_creeps=-1.0,
        loss_nearly_gone=-1.5,
        updates_usual=-1.5,
        lost_after_usual_updates=-1.5,
        gradients_zero=-1.5,
        logits_vanish=-2.0,
        updates_small=-2.5,
        logits_steady=-3.0,
        attention_frozen=-4.0,
        updates_tiny=-4.0,
        updates_zero=-4.0,
        weights_stand_still=-4.0,
    )
