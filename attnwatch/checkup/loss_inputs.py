"""Logits that a forward pass passes to its loss function."""

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOSSES = frozenset({F.cross_entropy, F.nll_loss})


class LossInputs(TorchFunctionMode):
    """Mode that keeps the logits passed to `cross_entropy` or `nll_loss`, for models that return only their loss.

    Attributes:
        logits: logits of each call, [rows, classes] or [batch, tokens, classes].
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _LOSSES:
            logits = args[0] if args else (kwargs or {}).get("input")
            if isinstance(logits, Tensor):
                self.logits.append(logits.movedim(1, -1) if logits.ndim > 2 else logits)
        return func(*args, **(kwargs or {}))
