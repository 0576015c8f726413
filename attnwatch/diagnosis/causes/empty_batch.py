"""Batches have nothing to learn from."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class EmptyBatch(CauseRule):
    """Batches have nothing to learn from."""

    name = "empty_batch"
    title = "batches have no targets"
    remedy = "Count the labels that are not ignored."
    prior = -0.5
    weights = signs(
        loss_gone_at_once=3.1,
        loss_never_finite=2.9,
        gradients_zero=2.2,
        nan_from_start=2.0,
        attention_frozen=1.8,
        loss_flat=-0.6,
        logits_explode=-1.0,
        loss_stuck=-1.0,
        loss_lost=-2.0,
        loss_explodes=-2.0,
        updates_large=-2.0,
    )
