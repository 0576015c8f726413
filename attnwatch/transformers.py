"""Callbacks of the transformers Trainer. Needs `pip install attnwatch[transformers]`."""

from attnwatch.trainers.transformers import (
    AttentionMonitor,
    ConfidenceProbe,
    HeadPruning,
    LayerProbe,
    OcclusionAudit,
    TokenDropping,
)

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
