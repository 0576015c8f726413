"""Tokens of decoders in models other than those of transformers."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from attnwatch.checkup.forward import RecordedForward, is_encoder_decoder
from attnwatch.checkup.padding_marks import padding_by_id
from attnwatch.checkup.targets import ScoredCall
from attnwatch.checkup.tokens import LABELS, Tokens, name_of_ids, names_of_ids


def decoder_tokens(
    forward: RecordedForward, encoder: Tokens, calls: Sequence[ScoredCall], read: Sequence[Tensor]
) -> Tokens | None:
    """Return the tokens of the decoder of a model that receives ids for an encoder too; None if there are none.

    They are the ids, other than the first, whose next ones are the targets. If there are no such ids, they are those
    that are scored against themselves, or against the token after the next. Their padding is known by its id only.

    Args:
        forward: recorded forward pass.
        encoder: tokens that would be those of the encoder.
        calls: calls of cross-entropy.
        read: masks of the outputs that losses read in the first sequences, bool [sequences, tokens].
    """
    if is_encoder_decoder(forward.module) or not encoder.are_ids or shifts(forward, encoder.values, calls, read):
        return None
    first = forward.has_tokens_first
    names = [name for name in names_of_ids(forward.arguments) if name != name_of_ids(forward.arguments)]
    others = {name: forward.arguments[name].transpose(0, 1 if first else 0) for name in names}
    found = {name: shifts(forward, values, calls, read) for name, values in others.items()}
    names = [name for name, ahead in found.items() if 1 in ahead]
    names += [name for name, ahead in found.items() if ahead and not any(part in name for part in LABELS)]
    if not names:
        return None
    values = others[names[0]]
    return Tokens(names[0], values, padding_by_id(forward.module, values), None, has_tokens_first=first)


def shifts(forward: RecordedForward, ids: Tensor, calls: Iterable[ScoredCall], read: Sequence[Tensor]) -> set[int]:
    """Return by how many positions the targets of the calls of cross-entropy are ahead of ids [batch, tokens]."""
    size, first = (forward.num_sequences, ids.shape[1]), forward.has_tokens_first
    targets = (call.targets(*size, has_tokens_first=first, read=read) for call in calls)
    return {shift for each in targets if each is not None and (shift := each.shift(ids)) is not None}
