"""Where the tokens lie that a layer is computing, while others of the sequence are left out."""

import threading

from torch import Tensor


class _Thread(threading.local):
    """Of one thread: another one may run other layers meanwhile."""

    def __init__(self):
        self.kept: Tensor | None = None


_thread = _Thread()


def put_kept_positions(kept: Tensor | None) -> Tensor | None:
    """From now on the tokens that attention of this thread sees are at these positions: int64 [batch, tokens].

    None: they are all there. Returns what was said before.
    """
    before, _thread.kept = _thread.kept, kept
    return before


def kept_positions(num_tokens: int) -> Tensor | None:
    """Positions of so many tokens, or None where they are those of the whole sequence."""
    kept = _thread.kept
    return kept if kept is not None and kept.shape[1] == num_tokens else None
