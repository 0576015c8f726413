"""Positions of the tokens that a layer computes while others of the sequence are left out."""

import threading

from torch import Tensor


class _Thread(threading.local):
    """State of one thread: another one may run other layers meanwhile."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None


_thread = _Thread()


def put_kept_positions(kept: Tensor | None) -> Tensor | None:
    """Declare where the tokens lie that attention of this thread sees from now on, and return what was declared.

    Args:
        kept: int64 [batch, tokens]; None: all tokens are there.
    """
    before, _thread.kept = _thread.kept, kept
    return before


def kept_positions(num_tokens: int) -> Tensor | None:
    """Return the positions of so many tokens; None if they are those of the whole sequence."""
    kept = _thread.kept
    return kept if kept is not None and kept.shape[1] == num_tokens else None
