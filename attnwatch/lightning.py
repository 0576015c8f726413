"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`."""

from attnwatch.trainers.lightning import (
    AttentionMonitor,
    ConfidenceProbe,
    HeadPruning,
    LayerProbe,
    OcclusionAudit,
    TokenDropping,
)

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
