"""Where the tokens lie that a layer is computing, while others of the sequence are left out."""

from torch import Tensor

_kept: Tensor | None = None


def put_kept_positions(kept: Tensor | None) -> Tensor | None:
    """From now on the tokens that attention sees are at these positions of their sequences: int64 [batch, tokens].

    None: they are all there. Returns what was said before.
    """
    global _kept
    before, _kept = _kept, kept
    return before


def kept_positions(num_tokens: int) -> Tensor | None:
    """Positions of so many tokens, or None where they are those of the whole sequence."""
    return _kept if _kept is not None and _kept.shape[1] == num_tokens else None
