"""Gradients are not finite."""

from attnwatch.diagnosis.causes.base import CauseRule, register, signs


@register
class NonfiniteGradient(CauseRule):
    """Gradients are not finite."""

    name = "nonfinite_gradient"
    title = "gradients are not finite, as in float16 without loss scaling, or where a row is fully masked"
    remedy = "Use bfloat16, or a GradScaler; look for a log or square root of 0, and for rows without a visible key."
    prior = -1.0
    weights = signs(
        nan_from_start=4.2,
        nan_later=2.5,
        loss_lost=2.2,
        lost_after_usual_updates=2.0,
        logits_explode=-1.0,
        updates_overwrite=-1.0,
        updates_large=-2.0,
    )
