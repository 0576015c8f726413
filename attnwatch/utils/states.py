"""Format number of attnwatch's state dicts, and name of the file that holds them."""

from collections.abc import Mapping
from typing import Any

from attnwatch.errors import ConfigurationError

STATE_FILE = "attnwatch.pt"
"""Name of the file of the callbacks' states in a checkpoint of the transformers Trainer."""
_FORMAT = "format"


def with_format(number: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with its format number.

    Example:
        >>> with_format(1, {"step": 3})
        {'format': 1, 'step': 3}
    """
    return {_FORMAT: number, **state}


def check_format(state: Any, number: int, owner: str) -> None:
    """Check that a state dict has the expected format.

    Args:
        state: state dict as returned by `with_format`.
        number: expected format number.
        owner: name of the class that wrote it.

    Raises:
        ConfigurationError: `state` is not such a dict, or has another format.
    """
    if not isinstance(state, Mapping) or _FORMAT not in state:
        raise ConfigurationError(
            f"`state` must come from {owner}.state_dict(), but has no format number; got "
            f"{sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__}."
        )
    if state[_FORMAT] != number:
        raise ConfigurationError(
            f"`state` has format {state[_FORMAT]!r}, expected {number}: it was written by another version of "
            f"attnwatch's {owner}. Resume with that version, or start a new run."
        )
