"""Options of head pruning, checked before anything runs."""

from dataclasses import KW_ONLY, dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.heads.guard import Guard
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.importance import Criterion, Importance, find_criterion
from attnwatch.heads.plan import PruningPlan
from attnwatch.heads.selection import Grouping, Ranking, check_choice, choose_heads
from attnwatch.schedules import Schedule, find_schedule
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class PruningOptions:
    """Options of head pruning; see `attnwatch.lightning.HeadPruning`.

    Raises:
        ConfigurationError: an argument is invalid; the message names it.
    """

    target: float = 0.5
    _: KW_ONLY
    criterion: Criterion = "gate"
    start: int | float = 0.1
    end: int | float = 0.4
    num_cuts: int = 4
    schedule: str | Schedule = "linear"
    ranking: Ranking = "global"
    grouping: Grouping = "auto"
    min_heads: int = 1
    guard: Guard | None = Guard()  # noqa: RUF009
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.target, float) or not 0 < self.target < 1:
            raise ConfigurationError(
                f"`target` must be the fraction of the heads to remove, between 0 and 1; got {self.target!r}."
            )
        check_choice(target=self.target, ranking=self.ranking, grouping=self.grouping, min_heads=self.min_heads)
        find_criterion(self.criterion)
        find_schedule("schedule", self.schedule)
        require_int("num_cuts", self.num_cuts, minimum=1)
        require_int("seed", self.seed, minimum=0)
        for name, at in (("start", self.start), ("end", self.end)):
            if isinstance(at, bool) or not isinstance(at, int | float) or at < 0 or (isinstance(at, float) and at >= 1):
                raise ConfigurationError(
                    f"`{name}` must be a fraction of the run, below 1, or a number of steps, got {at!r}."
                )
        if type(self.start) is type(self.end) and self.start > self.end:
            raise ConfigurationError(f"`start` must not be after `end`, got {self.start!r} and {self.end!r}.")
        if self.guard is not None and not isinstance(self.guard, Guard):
            raise ConfigurationError(f"`guard` must be an attnwatch.Guard or None, got {self.guard!r}.")

    def choose(self, heads: HeadMap, importance: Importance, target: float) -> PruningPlan:
        """Choose heads so that the fraction `target` of all heads is removed; see `attnwatch.choose_heads`."""
        return choose_heads(
            heads,
            importance,
            target=target,
            ranking=self.ranking,
            grouping=self.grouping,
            min_heads=self.min_heads,
        )
