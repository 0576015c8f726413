"""What a person can do about each kind of finding."""

from attnwatch.diagnosis.verdict import FindingKind

REMEDIES = {
    FindingKind.UNIFORM_ATTENTION: (
        "Queries and keys are not learning, whatever the loss does: check that their projections are in the optimizer "
        "and get gradients, then learning rate, weight decay, attention scale and mask."
    ),
    FindingKind.ENTROPY_COLLAPSE: (
        "Gradients hardly reach queries and keys from there: lower the learning rate, lengthen the warm-up, or "
        "normalize queries and keys (QK-norm)."
    ),
    FindingKind.EXPLODING_LOGITS: (
        "Stable runs stay near 100: lower the learning rate, lengthen the warm-up, normalize queries and keys "
        "(QK-norm) or clip them (QK-clip)."
    ),
    FindingKind.FROZEN_ATTENTION: (
        "If these layers are meant to train, check requires_grad, the optimizer's parameters and the learning rate."
    ),
    FindingKind.UNPROMISING: (
        "Look at the learning rate (too low, too high, not warmed up), at what the optimizer is given, and whether "
        "labels and masks belong to their inputs; then compare with a run that you know is sound."
    ),
    FindingKind.NON_FINITE: (
        "Go back to a checkpoint before this step, lower the learning rate, clip gradients, and use bfloat16 "
        "instead of float16."
    ),
}
