"""Calls of sites in the open step, whose statistics are computed in groups."""

from torch import Tensor

from attnwatch.attention import Accumulator, AttentionInputs
from attnwatch.capture import Capture, ForwardPass, HeadShard, at_all_heads, at_unpruned_heads, head_shard
from attnwatch.recorder.grouping import CallGroup
from attnwatch.recorder.pending import PendingSteps
from attnwatch.recorder.rows import QueryRows


class SiteCalls:
    """Add the statistics of calls to the open step, at all heads of the unpruned and unsplit model.

    Args:
        capture: sites of the model.
        accumulator: accumulator that computes the sums.
        pending: steps on the device, including the open one.
        rows: query rows that are read.

    Attributes:
        trained: sites that are trained, whose calls without gradients do not count.
        num_tokens: number of keys in the longest sequence of a call so far; 0 before the first.
    """

    def __init__(self, capture: Capture, accumulator: Accumulator, pending: PendingSteps, rows: QueryRows):
        self._capture, self._pending, self._rows = capture, pending, rows
        self.trained: set[str] = set()
        self.num_tokens = 0
        self._shards: dict[str, HeadShard] = {}
        self._group = CallGroup(accumulator, self._receive, lambda call, error: capture.fail(call[0], error))

    def expects(self, site: str, of: ForwardPass) -> bool:
        """Return whether a call from a forward of this kind counts."""
        if of.gradient:
            self.trained.add(site)
        elif site in self.trained:
            return False
        return self._pending.expects(site, of)

    def add(self, site: str, of: ForwardPass, inputs: AttentionInputs) -> None:
        """Add a call, which may be computed later."""
        self.num_tokens = max(self.num_tokens, inputs.key.shape[-2])
        self._shards[site] = head_shard(self._capture.module(site), inputs.num_heads)
        self._group.add((site, of), inputs, self._rows.of(inputs))

    def compute(self) -> None:
        """Compute the statistics of the calls that were added."""
        self._group.compute()

    def clear(self) -> None:
        """Discard the calls that have not been computed yet."""
        self._group.clear()

    def _receive(self, call: tuple[str, ForwardPass], sums: Tensor) -> None:
        site, of = call
        sums = at_all_heads(at_unpruned_heads(sums, self._capture.module(site)), self._shards[site])
        self._pending.add(site, sums, of)
