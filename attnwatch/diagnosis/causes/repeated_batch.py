"""The same batches are repeated."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class RepeatedBatch(CauseRule):
    """The same batches are repeated."""

    name = "repeated_batch"
    title = "the same batch, or a few batches in turn, are repeated"
    remedy = "Take the next batch in each step, and check that the dataset uses the index it is given."
    prior = -0.2
    weights = signs(
        loss_comes_again=3.2,
        attention_without_noise=2.6,
        loss_nearly_gone=1.8,
        loss_falls=0.7,
        loss_smooth=0.6,
        loss_noisy=-0.9,
        loss_creeps=-1.0,
        updates_large=-1.0,
        logits_explode=-1.5,
        updates_tiny=-1.5,
        weights_stand_still=-1.5,
        gradients_zero=-1.5,
        attention_frozen=-2.0,
        loss_stuck=-2.0,
        loss_flat=-2.0,
        updates_zero=-2.0,
    )
