"""Scale of the logits of an attention call."""

import math
from dataclasses import dataclass

from torch import Tensor

NUM_ROWS = 16
"""Number of evenly spaced queries whose logits are read."""
# Vectors count as normalised if the relative spread of their norms is smaller. Random vectors of 64 features have 10%.
_SAME_NORM = 1e-3
# Vectors share one direction if the norm of their mean exceeds this share of their norm. Equal norms then say nothing.
_SAME_DIRECTION = 0.99


@dataclass(frozen=True)
class AttentionScale:
    """Scale of the logits of one attention call.

    Attributes:
        scale: factor applied to the dot products; nan if unknown.
        head_dim: number of features of a query; 0 if unknown.
        logit_std: standard deviation of the logits of a query over the keys that it sees, averaged over queries; nan if
            unknown.
        is_normalised: True if queries or keys are normalised, so that the scale may have any value.
        largest_logit: upper bound of the logits if queries and keys are normalised, or if their products are capped;
            infinite otherwise.
        seen: keys that the query of another token sees: bool [batch, keys].
        axis: axis of the softmax, if it is not that of the keys although the weights are used as if it were; otherwise
            -1.
    """

    scale: float
    head_dim: int
    logit_std: float
    is_normalised: bool
    largest_logit: float
    seen: Tensor
    axis: int = -1


def spread(logits: Tensor) -> float:
    """Return the standard deviation of the logits of a query, ignoring nan, averaged over queries."""
    centred = logits - logits.nanmean(-1, keepdim=True)
    return float(centred.square().nanmean(-1).sqrt().nanmean())


def norm_of_all(vectors: Tensor) -> float:
    """Return the norm that all vectors share; infinite if their norms differ."""
    return float(vectors.float().norm(dim=-1).mean()) if have_same_norm(vectors) else math.inf


def have_same_norm(vectors: Tensor) -> bool:
    """Return whether vectors [..., features] of different directions share one norm, apart from rounding."""
    norms = vectors.float().norm(dim=-1)
    if norms.numel() < 2 or not bool(norms.std() < _SAME_NORM * norms.mean()):
        return False
    mean = vectors.float().flatten(0, -2).mean(0)
    return bool(mean.norm() < _SAME_DIRECTION * norms.mean())
