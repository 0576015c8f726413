"""No gradient reaches the weights."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class NoGradient(CauseRule):
    """No gradient reaches the weights."""

    name = "no_gradient"
    title = "no gradient reaches the weights of attention"
    remedy = "Look for detach(), torch.no_grad(), and gradients that are cleared before the optimizer's step."
    prior = 0.2
    weights = {  # noqa: RUF012
        "attention_frozen": 1.0,
        "logits_steady": 1.7,
        "loss_flat": 0.5,
        "loss_falls": 0.7,
        "layers_frozen": 1.3,
        "uniform_everywhere": 0.5,
        "logits_learn": -1.5,
        "logits_explode": -4.0,
        "loss_creeps": -0.5,
        "loss_above_start": -1.0,
        "loss_rebounds": -1.0,
        "logits_vanish": -2.0,
        "logits_jump_at_once": -2.0,
    }
