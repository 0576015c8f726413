"""Lightning's EarlyStopping on a risk that is not known yet."""

import contextlib
from collections.abc import Iterator, Sequence

from attnwatch.lightning.api import is_one

RISK_TAG = "attention/risk"


@contextlib.contextmanager
def risk_may_be_unknown(callbacks: Sequence[object]) -> Iterator[None]:
    """Let those that stop on `attention/risk` go on while it is nan, which means that it is not known yet.

    By default EarlyStopping takes nan for a loss that is lost, and stops (`check_finite`).
    """
    stopping = [each for each in callbacks if is_one(each, "EarlyStopping") and each.monitor == RISK_TAG]
    before = [each.check_finite for each in stopping]
    for each in stopping:
        each.check_finite = False
    try:
        yield
    finally:
        for each, check_finite in zip(stopping, before, strict=True):
            each.check_finite = check_finite
