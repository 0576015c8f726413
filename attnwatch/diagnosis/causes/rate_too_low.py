"""The learning rate is too low, or its schedule ends too early."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class RateTooLow(CauseRule):
    """The learning rate is too low, or its schedule ends too early."""

    name = "rate_too_low"
    title = "the learning rate is too low, or its schedule falls to zero too early"
    remedy = "Raise it, and print what the scheduler makes of it."
    prior = 1.0
    weights = {  # noqa: RUF012
        "attention_frozen": 1.0,
        "logits_steady": 1.5,
        "loss_flat": 1.0,
        "loss_creeps": 2.0,
        "attention_stopped": 1.5,
        "loss_falls": -1.0,
        "logits_learn": -2.5,
        "logits_explode": -4.0,
        "loss_above_start": -1.0,
        "loss_rebounds": -1.5,
        "logits_vanish": -2.0,
        "loss_nearly_gone": -3.0,
        "layers_frozen": -1.5,
        "logits_jump_at_once": -2.0,
        "loss_stuck": -1.0,
    }
