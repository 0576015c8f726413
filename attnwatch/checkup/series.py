"""Series of numbers whose next values a model predicts."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnwatch.checkup.forward import RecordedForward
from attnwatch.checkup.losses import LossCall
from attnwatch.checkup.token_layouts import Layout
from attnwatch.checkup.tokens import Tokens

_LEAST_VALUES = 4


@dataclass(frozen=True)
class Series:
    """Argument of a forward pass whose values are the targets of the loss.

    Attributes:
        tokens: the argument.
        shift: number of places that the targets are ahead: 1 for the next values, 0 for the values themselves.
    """

    tokens: Tokens
    shift: int


def series_of(forward: RecordedForward, calls: Iterable[LossCall]) -> Series | None:
    """Return the argument [batch, tokens] or [batch, tokens, features] whose values are targets; None without any."""
    for call in calls:
        for name, value in forward.arguments.items():
            if not isinstance(value, Tensor) or value.ndim not in (2, 3) or not value.is_floating_point():
                continue
            values = value[..., None] if value.ndim == 2 else value
            shift = _shift(values.detach()[: len(call.targets)].float(), call.targets)
            if shift is not None:
                layout = Layout(value.shape[1:]) if value.ndim == 2 else None
                no_padding = torch.zeros(values.shape[:2], dtype=torch.bool, device=values.device)
                return Series(Tokens(name, values, no_padding, None, layout), shift)
    return None


def _shift(values: Tensor, targets: Tensor) -> int | None:
    """Return by how many places targets are ahead of values [sequences, tokens, features]; None if they differ."""
    if targets.numel() != values.numel() or values.shape[1] < _LEAST_VALUES or values.device != targets.device:
        return None
    targets = targets.reshape(values.shape)
    if bool((values == values[:, :1]).all()):
        return None
    if torch.equal(values[:, 1:], targets[:, :-1]):
        return 1
    return 0 if torch.equal(values, targets) else None
