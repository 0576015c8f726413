"""Weights do not require gradients."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class FrozenParameters(CauseRule):
    """Weights do not require gradients."""

    name = "frozen_parameters"
    title = "weights of attention are frozen"
    remedy = "Look for requires_grad = False, and for a part that should have been unfrozen."
    prior = 0.4
    weights = {  # noqa: RUF012
        "attention_frozen": 0.7,
        "logits_steady": 2.0,
        "loss_flat": -0.3,
        "loss_falls": 1.0,
        "layers_frozen": 1.3,
        "uniform_everywhere": 0.5,
        "uniform_in_some": 0.3,
        "logits_learn": -1.5,
        "logits_explode": -4.0,
        "loss_creeps": -0.5,
        "loss_above_start": -1.0,
        "loss_rebounds": -1.0,
        "logits_vanish": -2.0,
        "logits_jump_at_once": -2.0,
    }
