"""What a token dropper can be asked for."""

from collections.abc import Sequence
from typing import Any

from attnwatch.errors import ConfigurationError
from attnwatch.tokens.stacks import Stack
from attnwatch.utils.arguments import require_int


def check_choice(*, min_tokens: int, multiple_of: int, protect_first: int, protected_ids: Any, seed: int) -> None:
    """Raises a `ConfigurationError` that names the one that can't be."""
    require_int("min_tokens", min_tokens, minimum=1)
    require_int("multiple_of", multiple_of, minimum=1)
    require_int("protect_first", protect_first, minimum=0)
    require_int("seed", seed, minimum=0)
    is_sequence = isinstance(protected_ids, Sequence) and not isinstance(protected_ids, str)
    if not is_sequence or not all(
        isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in protected_ids
    ):
        raise ConfigurationError(
            f"`protected_ids` must be a list of vocabulary ids, integers of at least 0; got {protected_ids!r}."
        )


def check_for_good(stack: Stack, protect_first: int, last_layer: int | None) -> None:
    """Raises a `ConfigurationError` if tokens of this stack can't be dropped for good."""
    if stack.says_something_of_each_token:
        raise ConfigurationError(
            "`for_good` is for models that read their result off the first token, and this one says something of each; "
            "leave it out."
        )
    if last_layer is not None:
        raise ConfigurationError("`last_layer` must be left out with `for_good`: the tokens never come back.")
    if not protect_first:
        raise ConfigurationError(
            "`protect_first` must be at least 1 with `for_good`: the result is read off that token."
        )
