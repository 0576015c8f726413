"""Random query rows of a step."""

import torch
from torch import Tensor

from attnwatch.attention import AttentionInputs, stratified_rows


class QueryRows:
    """Random query rows: the same for all sites of equal length, and the same in a resumed run.

    Args:
        seed: seed of the rows, which depend on it and on the step only.
        number: number of rows; None means all.
    """

    def __init__(self, seed: int, number: int | None):
        self._seed, self._number = seed, number
        self._step: int | None = None
        self._rows: dict[tuple[int, torch.device], Tensor] = {}

    def begin(self, step: int | None) -> None:
        """Draw the rows of another step from now on."""
        self._step = step
        self._rows.clear()

    def of(self, inputs: AttentionInputs) -> Tensor:
        """Return the rows for a call: int64 [rows], ascending, on the device of the query."""
        key = (inputs.num_queries, inputs.query.device)
        if key not in self._rows:
            generator = torch.Generator().manual_seed(hash((self._seed, self._step, inputs.num_queries)) % 2**63)
            rows = stratified_rows(inputs.num_queries, self._number, generator)
            self._rows[key] = rows.to(inputs.query.device, non_blocking=True)
        return self._rows[key]
