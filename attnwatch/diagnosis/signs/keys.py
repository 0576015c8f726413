"""Signs in the keys that queries see, and in logits that are not finite."""

import numpy as np

from attnwatch.diagnosis.course import RunCourse
from attnwatch.diagnosis.signs.base import sign


@sign
def same_keys_each_time(run: RunCourse) -> str | None:
    """All queries see the same number of keys at each observation: there is no causal mask and no padding."""
    keys = _visible_keys(run)
    if keys is None or keys.std() > 1e-3 * keys.mean() or abs(keys.mean() - round(keys.mean())) > 0.01:
        return None
    return f"every query sees {keys.mean():.0f} keys at each observation: there is no causal mask and no padding"


@sign
def keys_vary(run: RunCourse) -> str | None:
    """The number of visible keys varies: there is padding."""
    keys = _visible_keys(run)
    if keys is None or keys.std() < 5e-3 * keys.mean():
        return None
    return f"the number of visible keys varies with the batch ({keys.min():.1f} to {keys.max():.1f}): there is padding"


@sign
def keys_vary_much(run: RunCourse) -> str | None:
    """The number of visible keys varies a lot, as the small number of padding tokens does."""
    keys = _visible_keys(run)
    if keys is None or keys.std() < 0.12 * keys.mean():
        return None
    return f"the number of visible keys varies by {keys.std() / keys.mean():.0%} from batch to batch"


@sign
def few_keys(run: RunCourse) -> str | None:
    """Queries see few keys."""
    keys = _visible_keys(run)
    if keys is None or keys.mean() > 4:
        return None
    return f"queries see only {keys.mean():.1f} keys on average"


@sign
def one_key(run: RunCourse) -> str | None:
    """Queries see a single key: entropy is unknown although logits are finite."""
    nonfinite = run.evidence.mean("nonfinite")
    entropy = run.evidence.mean("normalized_entropy")
    blind = (np.nan_to_num(nonfinite, nan=1.0) == 0) & np.isnan(entropy)
    if not len(blind) or not blind.all(0).any():
        return None
    return f"queries see a single key in {blind.all(0).sum()} of {blind.shape[1]} layers"


@sign
def nan_from_start(run: RunCourse) -> str | None:
    """Logits are not finite in the first observations."""
    bad = np.flatnonzero(run.nonfinite > 0)
    if not len(bad) or bad[0] > 2:
        return None
    return f"logits are not finite as early as step {run.evidence.steps[bad[0]]}"


@sign
def nan_later(run: RunCourse) -> str | None:
    """Logits stopped being finite after a while."""
    bad = np.flatnonzero(run.nonfinite > 0)
    if not len(bad) or bad[0] <= 2:
        return None
    return f"logits have not been finite since step {run.evidence.steps[bad[0]]}"


def _visible_keys(run: RunCourse) -> np.ndarray | None:
    """Return the geometric mean of the number of visible keys at each observation."""
    return None if run.max_entropy is None else np.exp(run.max_entropy.values.mean(1))
