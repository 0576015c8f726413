"""Calls of some functions of PyTorch in a repeated forward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOSSES = frozenset({F.cross_entropy, F.nll_loss})
_READS = frozenset({Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__})


class FunctionCalls(TorchFunctionMode):
    """Mode that keeps what a forward pass gives to its loss, and which parameters it reads as numbers.

    Attributes:
        logits: arguments of `cross_entropy` and `nll_loss`, [rows, classes] or [batch, tokens, classes], for models
            that return only their loss.
        read: scalar parameters that were converted to numbers, themselves or after operations such as `exp`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []
        self.read: list[nn.Parameter] = []
        self._derived: dict[int, tuple[Tensor, nn.Parameter]] = {}  # by the address of the tensor

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
        result = func(*args, **(kwargs or {}))
        parameter = self._scalar_behind(args[0]) if args else None
        if parameter is not None and func in _READS:
            self.read.append(parameter)
        elif parameter is not None and isinstance(result, Tensor) and result.numel() == 1:
            self._derived[id(result)] = result, parameter
        return result

    def _scalar_behind(self, value: Any) -> nn.Parameter | None:
        """Return the scalar parameter that a value is or was computed from; None for other values."""
        if isinstance(value, nn.Parameter):
            return value if value.numel() == 1 else None
        return self._derived[id(value)][1] if id(value) in self._derived else None
