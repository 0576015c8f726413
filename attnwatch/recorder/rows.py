"""Query rows that a recorder reads."""

import torch
from torch import Tensor

from attnwatch.attention import AttentionInputs, stratified_rows


class QueryRows:
    """Stratified random query rows, drawn once for a whole run.

    For sequences of the same length, the rows are the same for all sites and steps, also in a resumed run and in every
    process. For other lengths, they are at the same shares of the sequence. So attention or the batch changes from step
    to step, but never the choice of the rows. The mean over them differs from that over all rows by a constant; its
    standard error is that of a random choice of rows.

    Args:
        seed: seed of the rows, which depend only on it and on the number of queries.
        number: number of rows; None means all.
    """

    def __init__(self, seed: int, number: int | None):
        self._seed, self._number = seed, number
        self._rows: dict[tuple[int, torch.device], Tensor] = {}

    def clear(self) -> None:
        """Discard the tensors on the device, which are recreated when needed."""
        self._rows.clear()

    def of(self, inputs: AttentionInputs) -> Tensor:
        """Return the rows for a call: int64 [rows], ascending, on the device of the query."""
        key = (inputs.num_queries, inputs.query.device)
        if key not in self._rows:
            rows = stratified_rows(inputs.num_queries, self._number, torch.Generator().manual_seed(self._seed % 2**63))
            self._rows[key] = rows.to(inputs.query.device, non_blocking=True)
        return self._rows[key]
