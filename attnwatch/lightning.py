"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`.

Callbacks that explain a model are imported when they are used, and need `pip install attnwatch[explain]`.
"""

from typing import TYPE_CHECKING

from attnwatch.trainers.lightning import AttentionMonitor, HeadPruning, TokenDropping
from attnwatch.utils.extras import lazy_attributes

if TYPE_CHECKING:
    from attnwatch.trainers.lightning import ConfidenceProbe, LayerProbe, OcclusionAudit

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]

_LAZY = dict.fromkeys(("ConfidenceProbe", "LayerProbe", "OcclusionAudit"), "attnwatch.trainers.lightning")
__getattr__ = lazy_attributes(__name__, _LAZY)
