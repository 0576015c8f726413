"""What a person can do about each kind of finding, and what to make of a note."""

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
    FindingKind.BLIND_ATTENTION: (
        "There no token depends on any other: check the attention mask (its shape, and whether True means visible), "
        "the sliding window, and the document ids of packed sequences."
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

NOTES = {
    FindingKind.UNIFORM_ATTENTION: "Sound runs have such layers too, above all early on: nothing needs to be done.",
    FindingKind.ENTROPY_COLLAPSE: "Sound runs have such layers too: nothing needs to be done.",
    FindingKind.FROZEN_ATTENTION: (
        "If these layers are meant to train, check requires_grad, the optimizer's parameters and the learning rate."
    ),
    FindingKind.BLIND_ATTENTION: "If these layers are meant to see more, check the attention mask that they are given.",
}
