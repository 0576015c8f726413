"""Options of a token dropper."""

from collections.abc import Sequence
from dataclasses import dataclass

from attnwatch.errors import ConfigurationError
from attnwatch.utils.arguments import require_int


@dataclass(frozen=True)
class ChoiceOptions:
    """Options of the choice of tokens; see `attnwatch.TokenDropper`.

    Raises:
        ConfigurationError: an option is invalid; the message names it.
    """

    min_tokens: int
    multiple_of: int
    protect_first: int
    protected_ids: Sequence[int]
    seed: int

    def __post_init__(self) -> None:
        require_int("min_tokens", self.min_tokens, minimum=1)
        require_int("multiple_of", self.multiple_of, minimum=1)
        require_int("protect_first", self.protect_first, minimum=0)
        require_int("seed", self.seed, minimum=0)
        ids = self.protected_ids
        is_sequence = isinstance(ids, Sequence) and not isinstance(ids, str)
        if not is_sequence or not all(
            isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids
        ):
            raise ConfigurationError(
                f"`protected_ids` must be a list of vocabulary ids, integers of at least 0; got {ids!r}."
            )


def check_drop_in_evaluation(protect_first: int, last_layer: int | None) -> None:
    """Raise a `ConfigurationError` if these options are incompatible with `drop_in_evaluation`."""
    if last_layer is not None:
        raise ConfigurationError("`last_layer` can't be set with `drop_in_evaluation`: dropped tokens never rejoin.")
    if not protect_first:
        raise ConfigurationError(
            "`protect_first` must be at least 1 with `drop_in_evaluation`: the result is read from that token."
        )
