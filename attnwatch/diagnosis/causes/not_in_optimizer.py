"""Parameters are in no optimizer."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class NotInOptimizer(CauseRule):
    """Parameters are in no optimizer."""

    name = "not_in_optimizer"
    title = "weights of attention are in no optimizer"
    remedy = "Compare the parameters of the optimizer's groups with those of the model."
    prior = 0.7
    weights = {  # noqa: RUF012
        "attention_frozen": 1.0,
        "logits_steady": 2.0,
        "loss_flat": 0.3,
        "loss_falls": 1.0,
        "layers_frozen": 1.0,
        "uniform_everywhere": 0.5,
        "logits_learn": -1.5,
        "logits_explode": -4.0,
        "loss_creeps": -0.5,
        "loss_above_start": -1.0,
        "loss_rebounds": -1.0,
        "logits_vanish": -2.0,
        "logits_jump_at_once": -2.0,
        "attention_stopped": -0.7,
    }
