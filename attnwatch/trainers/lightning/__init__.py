"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`."""

from attnwatch.trainers.lightning.confidence import ConfidenceProbe
from attnwatch.trainers.lightning.monitor import AttentionMonitor
from attnwatch.trainers.lightning.occlusion import OcclusionAudit
from attnwatch.trainers.lightning.probes import LayerProbe
from attnwatch.trainers.lightning.pruning import HeadPruning
from attnwatch.trainers.lightning.tokens import TokenDropping

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
