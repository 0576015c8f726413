"""Lightning's EarlyStopping on a risk that is not known yet."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from attnwatch.trainers.lightning.api import is_one

RISK_TAG = "attention/risk"
_LOOK = "_evaluate_stopping_criteria"


@contextlib.contextmanager
def risk_may_be_unknown(callbacks: Sequence[object]) -> Iterator[None]:
    """Let those that stop on `attention/risk` overlook a nan, which means that the risk is not known yet.

    EarlyStopping takes nan for a loss that is lost, and stops (`check_finite`), or for one that has not improved, which
    it has patience with.
    """
    stopping = [each for each in callbacks if is_one(each, "EarlyStopping") and each.monitor == RISK_TAG]
    for each in stopping:
        vars(each)[_LOOK] = partial(_unless_unknown, getattr(each, _LOOK))
    try:
        yield
    finally:
        for each in stopping:
            del vars(each)[_LOOK]


def _unless_unknown(look: Callable[[Tensor], tuple[bool, str | None]], current: Tensor) -> tuple[bool, str | None]:
    return (False, None) if current.isnan() else look(current)
