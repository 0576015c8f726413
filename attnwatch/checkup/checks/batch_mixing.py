"""Sequences that change one another's outputs."""

from torch import Tensor

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.flow import Flow
from attnwatch.checkup.library import is_as_it_comes


@register
class BatchMixing(Check):
    """The output of a sequence depends on the other sequences in its batch.

    The tokens of all sequences except the last are replaced. Outputs of the last one must not change. The finding is a
    note for unmodified transformers models, such as CLIP, which compares sequences with one another, for attention that
    is given all sequences as one, and for inputs that may be one sequence, such as the frames of a video.
    """

    name = "batch_mixing"
    decides = True
    remedy = (
        "Look for a reshape or transpose that swaps the batch and token axes (nn.TransformerEncoderLayer and "
        "nn.MultiheadAttention default to batch_first=False), and for norms or pooling over the batch."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        moved = mixed_tokens(step.flow)
        if not moved.any():
            return None
        step.flow.require_repeatable()
        share = float(moved.float().mean())
        what = f"{share:.0%} of the outputs of a sequence change when the other sequences in the batch are replaced"
        grid = step.tokens.grid
        is_one = grid is not None and not grid.is_batched
        is_note = is_one or is_as_it_comes(step.forward.module) or _attends_to_batch(step)
        return Fault(what, numbers={"share_that_moves": share}, is_note=is_note)


def _attends_to_batch(step: StepEvidence) -> bool:
    """Return whether an attention layer is given the sequences as the tokens of one sequence, as in SAINT."""
    size = step.flow.num_sequences
    return size > 1 and any(each.seen.shape == (1, size) for each in step.repeats.scales.values())


def mixed_tokens(flow: Flow) -> Tensor:
    """Return a bool mask of the outputs of the last sequence, without padding, that change with other sequences."""
    return flow.others if flow.others.ndim == 0 else flow.others[~flow.tokens.padding[-1]]
