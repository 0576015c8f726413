"""Grouping of similar attention calls, so that their statistics are computed together."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from attnwatch.attention import Accumulator, AttentionInputs, at_rows, block_elements, joined, kind_of_call

Receive = Callable[[Any, Tensor], None]


class CallGroup:
    """Group of calls of neighbouring layers whose statistics are computed together.

    The statistics of a call take dozens of small kernels. On a GPU, launching them for each layer takes far longer than
    running them. A call with the heads of many layers takes as many launches as one with the heads of one layer.

    Args:
        accumulator: accumulator that computes the sums.
        receive: function that receives the name of a call and its sums [statistics, 2, heads].
        fail: function that receives the name of a call and the error, if its sums can't be computed.
    """

    def __init__(self, accumulator: Accumulator, receive: Receive, fail: Callable[[Any, Exception], None]):
        self._accumulator, self._receive, self._fail = accumulator, receive, fail
        self._kind: Hashable = None
        self._rows: Tensor | None = None
        self._calls: list[tuple[Any, AttentionInputs]] = []
        self._elements = 0

    def add(self, name: Any, inputs: AttentionInputs, rows: Tensor) -> None:
        """Add a call of which these query rows are read. It is copied unless it is computed at once."""
        kind = kind_of_call(inputs, rows) if inputs.keeps_its_masks else None
        elements = inputs.batch_size * inputs.num_heads * len(rows) * inputs.num_keys
        most = block_elements(inputs.key.device)
        if kind is None or kind != self._kind or self._elements + elements > most:
            self.compute()
        if kind is None or elements > most:
            self._receive(name, self._accumulator.sums(inputs, rows))
            return
        with torch.no_grad():
            first = self._calls[0][1] if self._calls else None
            self._calls.append((name, at_rows(inputs, rows, first)))
        self._kind, self._rows, self._elements = kind, rows, self._elements + elements

    def compute(self) -> None:
        """Compute the calls that were added."""
        calls, rows = self._calls, self._rows
        self.clear()
        if not calls or rows is None:
            return
        try:
            sums = self._accumulator.sums(joined([inputs for _, inputs in calls]), rows)
        except Exception as error:
            for name, _ in calls:
                self._fail(name, error)
            return
        parts = sums.split([inputs.num_heads for _, inputs in calls], dim=-1)
        for (name, _), part in zip(calls, parts, strict=True):
            try:
                self._receive(name, part)
            except Exception as error:
                self._fail(name, error)

    def clear(self) -> None:
        """Discard the calls that have not been computed yet."""
        self._kind, self._rows, self._calls, self._elements = None, None, [], 0
