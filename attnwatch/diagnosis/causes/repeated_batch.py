"""The same batches come again."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class RepeatedBatch(CauseRule):
    """The same batches come again."""

    name = "repeated_batch"
    title = "the same batch, or a few in turn, come again and again"
    remedy = "Take the next batch in each step, and check that the dataset uses the index it is given."
    prior = -0.3
    weights = {  # noqa: RUF012
        "loss_nearly_gone": 1.7,
        "loss_smooth": 1.0,
        "attention_without_noise": 3.0,
        "loss_comes_again": 3.0,
        "loss_falls": 0.5,
        "loss_noisy": -1.0,
        "loss_flat": -2.0,
        "loss_stuck": -2.0,
        "logits_explode": -1.5,
        "attention_frozen": -2.0,
        "loss_creeps": -1.0,
    }
