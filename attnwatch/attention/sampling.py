"""Sampling of the observed query rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnwatch.attention.inputs import AttentionInputs

# Number of logits held at once. Larger blocks exceed a CPU's cache; smaller blocks need too many kernel launches on
# other devices.
_CPU_ELEMENTS, _DEVICE_ELEMENTS = 2**20, 2**24


def stratified_rows(num_queries: int, num_rows: int | None, generator: torch.Generator | None = None) -> Tensor:
    """Draw one random row from each of `num_rows` equal strata of the queries: int64 [rows] on the CPU, ascending.

    Stratified because entropy depends on the position: a causal row i sees i + 1 keys. Each row is expected
    num_rows / num_queries times, so that means over the sample are unbiased. Returns all rows if `num_rows` is None
    or not less than `num_queries`.
    """
    if num_rows is None or num_rows >= num_queries:
        return torch.arange(num_queries, device="cpu")
    offsets = torch.rand(num_rows, generator=generator, dtype=torch.float64, device="cpu")
    rows = ((torch.arange(num_rows, device="cpu") + offsets) * (num_queries / num_rows)).long()
    return rows.clamp_(max=num_queries - 1)


def block_elements(device: torch.device) -> int:
    """Return the number of logits held at once in float32: 4 MiB on a CPU, 64 MiB elsewhere."""
    return _CPU_ELEMENTS if device.type == "cpu" else _DEVICE_ELEMENTS


def row_blocks(inputs: AttentionInputs, rows: Tensor) -> Iterator[Tensor]:
    """Split `rows` into blocks whose logits fit into `block_elements`, so that memory is linear in the keys."""
    elements_per_row = max(1, inputs.batch_size * inputs.num_heads * inputs.num_keys)
    return iter(rows.split(max(1, block_elements(rows.device) // elements_per_row)))
