"""State dicts of attnwatch: the format number that each carries, and the file that they are kept in."""

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
    """Check that a state dict has the format that is read here.

    Args:
        state: as `with_format` returns it.
        number: the format that is read.
        owner: name of the class that wrote it.

    Raises:
        ConfigurationError: `state` is no such dict, or of another format.
    """
    if not isinstance(state, Mapping) or _FORMAT not in state:
        raise ConfigurationError(
            f"`state` must come from {owner}.state_dict(), whose format number it lacks; got "
            f"{sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__}."
        )
    if state[_FORMAT] != number:
        raise ConfigurationError(
            f"`state` has format {state[_FORMAT]!r}, expected {number}: it was written by another version of "
            f"attnwatch's {owner}. Resume with that version, or start anew."
        )
