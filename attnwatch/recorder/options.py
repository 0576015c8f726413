"""Arguments of a recorder, and their checks."""

from collections.abc import Sequence
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_int

# Default interval between flushes, in steps, and the minimum number of observations per flush.
_STEPS_PER_FLUSH = 50
_FEWEST_PER_FLUSH = 5


@dataclass(frozen=True)
class RecordingOptions:
    """Arguments of a recorder; see `AttentionRecorder`.

    Raises:
        ConfigurationError: an argument is invalid; the message names it.
    """

    every_n_steps: int
    num_query_rows: int | None
    sites: Sequence[str] | None
    flush_every: int | None
    max_history: int
    seed: int

    def __post_init__(self) -> None:
        require_int("every_n_steps", self.every_n_steps, minimum=1)
        require_int("num_query_rows", self.num_query_rows, minimum=1, optional=True)
        require_int("flush_every", self.flush_every, minimum=1, optional=True)
        require_int("max_history", self.max_history, minimum=16)
        require_int("seed", self.seed, minimum=0)
        if isinstance(self.sites, str):
            raise ConfigurationError(f"`sites` must be a list of glob patterns, got the string {self.sites!r}.")
        if self.sites is not None and not all(isinstance(pattern, str) for pattern in self.sites):
            raise ConfigurationError(f"`sites` must be a list of glob patterns (strings), got {self.sites!r}.")

    @property
    def observations_per_flush(self) -> int:
        """Number of observed steps per transfer to the host."""
        return self.flush_every or max(_FEWEST_PER_FLUSH, _STEPS_PER_FLUSH // self.every_n_steps)
