"""Signs that combine loss and attention."""

import numpy as np

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs import attention, logits, loss
from attnwatch.diagnosis.signs.base import sign


@sign
def nothing_moves(run: RunCourse) -> str | None:
    """Neither the loss nor attention changes."""
    if loss.loss_flat(run) is None or attention.attention_frozen(run) is None:
        return None
    return "neither the loss nor attention changes beyond noise"


@sign
def learns_without_attention(run: RunCourse) -> str | None:
    """The loss falls while queries and keys stay as they were."""
    falls = loss.loss_falls(run) is not None or loss.loss_creeps(run) is not None
    stays = logits.logits_steady(run) is not None or attention.attention_frozen(run) is not None
    if not (falls and stays) or logits.logits_grow_slowly(run) is not None:
        return None
    return "the loss falls while queries and keys stay as they were"


@sign
def attention_moves_for_nothing(run: RunCourse) -> str | None:
    """Attention changes a lot while the loss does not fall."""
    spread = run.spread
    no_gain = loss.loss_flat(run) is not None or loss.loss_stuck(run) is not None
    if spread is None or not no_gain or np.abs(spread.smooth - spread.start).max() < np.log(2.5):
        return None
    factor = np.exp(np.abs(spread.smooth - spread.start).max())
    return f"attention changes (the spread of the logits {factor:.2g}-fold) while the loss does not improve"
