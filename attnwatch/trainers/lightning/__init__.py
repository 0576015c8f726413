"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`.

Callbacks that explain a model are imported when they are used, and need `pip install attnwatch[explain]`.
"""

from typing import TYPE_CHECKING

from attnwatch.trainers.lightning.monitor import AttentionMonitor
from attnwatch.trainers.lightning.pruning import HeadPruning
from attnwatch.trainers.lightning.tokens import TokenDropping
from attnwatch.utils.extras import lazy_attributes

if TYPE_CHECKING:
    from attnwatch.trainers.lightning.confidence import ConfidenceProbe
    from attnwatch.trainers.lightning.occlusion import OcclusionAudit
    from attnwatch.trainers.lightning.probes import LayerProbe

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ConfidenceProbe": "attnwatch.trainers.lightning.confidence",
        "LayerProbe": "attnwatch.trainers.lightning.probes",
        "OcclusionAudit": "attnwatch.trainers.lightning.occlusion",
    },
)
