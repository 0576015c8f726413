"""A bar for who waits."""

from collections.abc import Sequence
from typing import Any

# A moment.
_DELAY_SECONDS = 2.0


def progress(steps: Sequence[Any], is_shown: bool) -> Any:
    """`steps`, with a bar where tqdm is installed and they take more than a moment."""
    if not is_shown:
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, delay=_DELAY_SECONDS, leave=False, unit="forward")
