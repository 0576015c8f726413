"""Predictions of a model that change with later tokens."""

import torch
from torch import Tensor

from attnwatch.checkup.flow import Flow
from attnwatch.checkup.forward import known


def leaks(flow: Flow, is_scored: Tensor) -> tuple[Tensor, int]:
    """Return which of the scored predictions change with later tokens, bool [predictions], and from where on.

    Tokens are replaced from the middle on, and one token earlier in each further sequence, as a mask may be causal by
    blocks only. If no prediction before them is scored, tokens are replaced from the last scored one on.

    Args:
        flow: dependence of the outputs on the tokens.
        is_scored: mask of the predictions that count, bool [batch, tokens].

    Raises:
        CannotCheck: the forward can't be repeated.
    """
    before, place = known(lambda: _before_middle(flow), (flow.places < 0, 0))
    if not (is_scored & before).any():
        lasts = torch.where(is_scored, flow.places, 0).amax(1)
        before, place = flow.places < lasts[:, None], int(lasts.max())
    moved, counted = flow.moved_with(~before), is_scored & before
    if moved[counted].any() and (markers := _markers(flow)).any():
        moved = moved & flow.moved_with(~before & ~markers, keep=markers)
    return moved[counted], place


def _before_middle(flow: Flow) -> tuple[Tensor, int]:
    cuts = (flow.middle - torch.arange(flow.num_sequences, device=flow.tokens.values.device)).clamp(min=1)
    return flow.places < cuts[:, None], flow.middle


def _markers(flow: Flow) -> Tensor:
    """Return the tokens whose id is once in each sequence, such as a separator, which a mask may be made of."""
    values = flow.tokens.values
    if not flow.tokens.are_ids or flow.num_sequences < 2:
        return torch.zeros_like(flow.tokens.padding)
    markers = [kind for kind in values[0].unique() if bool(((values == kind).sum(1) == 1).all())]
    return torch.isin(values, torch.stack(markers)) if markers else torch.zeros_like(flow.tokens.padding)
