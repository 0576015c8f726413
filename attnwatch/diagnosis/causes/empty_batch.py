"""Batches have nothing to learn from."""

from attnwatch.diagnosis.causes.base import CauseRule, register


@register
class EmptyBatch(CauseRule):
    """Batches have nothing to learn from."""

    name = "empty_batch"
    title = "batches have no targets"
    remedy = "Count the labels that are not ignored."
    prior = -1.0
    weights = {  # noqa: RUF012
        "loss_never_finite": 4.5,
        "nan_from_start": 2.0,
        "loss_gone_at_once": 3.0,
        "logits_explode": -1.0,
        "loss_stuck": -1.0,
        "loss_flat": -0.5,
    }
