"""Gradients accumulate from step to step."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class GradientsNotCleared(CauseRule):
    """Gradients accumulate from step to step."""

    name = "gradients_not_cleared"
    title = "gradients are not cleared between steps"
    remedy = "Call optimizer.zero_grad() once in each step."
    prior = -0.6
    weights = signs(
        loss_rebounds=1.6,
        gradients_grow=1.5,
        loss_above_start=0.7,
        loss_falls=0.3,
        logits_jump_at_once=-1.0,
        loss_nearly_gone=-1.0,
        logits_steady=-1.5,
        updates_tiny=-2.0,
        updates_zero=-2.5,
        attention_frozen=-3.0,
        gradients_zero=-3.0,
    )
