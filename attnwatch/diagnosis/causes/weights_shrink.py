"""Weight decay is too strong."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class WeightsShrink(CauseRule):
    """Weight decay is too strong."""

    name = "weights_shrink"
    title = "weight decay is so strong that the weights shrink"
    remedy = "Lower the weight decay: 0.01 to 0.1 is usual with AdamW, 1e-4 with SGD and Adam."
    prior = -0.4
    weights = signs(
        logits_vanish=3.2,
        weights_fall=3.2,
        logits_shrink=1.6,
        becomes_uniform=1.5,
        loss_rebounds=0.5,
        loss_nearly_gone=-1.0,
        updates_small=-1.0,
        updates_tiny=-1.5,
        attention_frozen=-2.0,
        logits_learn=-2.0,
        weights_keep_norm=-2.5,
        logits_steady=-3.0,
        logits_explode=-3.0,
        updates_overwrite=-4.0,
        weights_grow=-4.0,
        updates_zero=-4.0,
    )
