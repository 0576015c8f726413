"""The initial weights are too large or too small."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class Initialisation(CauseRule):
    """The initial weights are too large or too small."""

    name = "initialisation"
    title = "the initial weights are too large or too small"
    remedy = (
        "Check the standard deviation of the weights (0.02, or 1/sqrt(width)), and that pretrained weights were loaded."
    )
    prior = 0.1
    weights = signs(
        loss_above_any_guess=3.0,
        logits_tiny_at_start=2.7,
        logits_large_at_start=2.4,
        states_grow_over_depth=2.0,
        states_tiny_at_start=2.0,
        sharp_from_start=1.6,
        loss_drops_at_once=1.2,
        logits_jump_at_once=1.0,
        logits_sizeable_at_start=0.3,
        logits_steady=-0.2,
        logits_explode=-0.5,
        attention_frozen=-0.8,
        updates_tiny=-1.0,
        updates_zero=-1.0,
    )
