"""Padding among the targets of the loss, and among the outputs that it reads."""

from torch import Tensor

from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.forward import CannotCheck, is_encoder_decoder
from attnwatch.checkup.padding_marks import at_end, padding_id
from attnwatch.checkup.read_tokens import ReadTokens, read_of

_IGNORED = -100
NO_PADDING = (
    "no padding was recognised: padding is known from a mask argument such as `attention_mask`, or from the padding id "
    "in the model's config or in the `padding_idx` of an embedding"
)
"""Reason why a check of the padding can't be done."""
GUESSED = " (what looks like padding is one id, or zeros, at the ends of sequences)"
"""Remark on padding that is known only by its pattern."""


def padding_and_targets(step: StepEvidence) -> tuple[Tensor, Tensor]:
    """Return masks of the targets that are padding, and of the scored targets: bool [batch, tokens].

    Raises:
        CannotCheck: no targets are known, there is none for each token, or the padding is unknown.
    """
    targets = step.targets
    if targets.classes.ndim < 2:
        raise CannotCheck("there is one target per sequence, not per token")
    if is_encoder_decoder(step.forward.module):
        pad_id = padding_id(step.forward.module)
        if pad_id is None:
            raise CannotCheck("the model does not declare a padding id")
        return at_end(targets.classes.eq(pad_id) | ~targets.is_scored), targets.is_scored
    if targets.classes.shape != step.predicted_tokens.padding.shape:
        raise CannotCheck("the targets do not correspond to the tokens")
    return _padding_of_tokens(step), targets.is_scored


def padding_and_read(step: StepEvidence) -> tuple[Tensor, ReadTokens]:
    """Return a mask of the padding, bool [sequences, tokens], and the tokens whose outputs the loss reads.

    Only the first sequences of the batch are given.

    Raises:
        CannotCheck: there is no output for each token, none has a gradient, or the padding is unknown.
    """
    if step.forward.has_tokens_first:
        raise CannotCheck("the outputs are sequence-first, [tokens, batch, …], which this check does not support")
    padding = _padding_of_outputs(step)
    read = read_of(step.read, padding.shape[1])
    if read is None:
        raise CannotCheck("no output with one entry per token received a gradient")
    return padding[: len(read.has_gradient)].to(read.has_gradient.device), read


def _padding_of_outputs(step: StepEvidence) -> Tensor:
    if not is_encoder_decoder(step.forward.module):
        return _padding_of_tokens(step)
    labels, pad_id = step.forward.arguments.get("labels"), padding_id(step.forward.module)
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        raise CannotCheck("the decoder's padding is unknown")
    return at_end(labels.eq(_IGNORED) if pad_id is None else labels.eq(_IGNORED) | labels.eq(pad_id))


def _padding_of_tokens(step: StepEvidence) -> Tensor:
    tokens = step.predicted_tokens
    if tokens.mask_fault:
        raise CannotCheck(f"`{tokens.mask_name}` {tokens.mask_fault}")
    return tokens.padding


def sees_only_padding(step: StepEvidence) -> bool:
    """Return whether most attention layers hide the real tokens of padded sequences and show their padding.

    Raises:
        CannotCheck: the forward can't be repeated, or has no tokens.
    """
    padding = step.flow.tokens.padding
    padded = padding.any(1) & ~padding.all(1)
    if not padded.any():
        return False
    seen = [each.seen[padded] for each in step.repeats.scales.values() if each.seen.shape == padding.shape]
    inverted = [bool((each & padding[padded]).any() and not (each & ~padding[padded]).any()) for each in seen]
    return sum(inverted) > len(inverted) / 2
