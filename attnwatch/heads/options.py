"""What is asked of a pruning, checked before anything runs."""

from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.heads.guard import Guard
from attnwatch.heads.importance import Criterion, check_criterion
from attnwatch.heads.selection import check_choice
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class PruningOptions:
    """See `attnwatch.lightning.HeadPruning`.

    Raises:
        ConfigurationError: an argument is wrong; the message names it.
    """

    target: float
    criterion: Criterion
    start: int | float
    end: int | float
    num_cuts: int
    ranking: str
    grouping: str
    min_heads: int
    guard: Guard | None
    seed: int

    def __post_init__(self):
        if not isinstance(self.target, float) or not 0 < self.target < 1:
            raise ConfigurationError(
                f"`target` must be the fraction of the heads that goes, between 0 and 1; got {self.target!r}."
            )
        check_choice(target=self.target, ranking=self.ranking, grouping=self.grouping, min_heads=self.min_heads)
        check_criterion(self.criterion)
        require_int("num_cuts", self.num_cuts, minimum=1)
        require_int("seed", self.seed, minimum=0)
        for name, at in (("start", self.start), ("end", self.end)):
            if isinstance(at, bool) or not isinstance(at, int | float) or at < 0 or (isinstance(at, float) and at >= 1):
                raise ConfigurationError(
                    f"`{name}` must be a fraction of the run below 1 or a number of steps, got {at!r}."
                )
        if type(self.start) is type(self.end) and self.start > self.end:
            raise ConfigurationError(f"`start` must not be after `end`, got {self.start!r} and {self.end!r}.")
        if self.guard is not None and not isinstance(self.guard, Guard):
            raise ConfigurationError(f"`guard` must be an attnwatch.Guard or None, got {self.guard!r}.")
