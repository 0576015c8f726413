"""Lightning callbacks, for `lightning` and `pytorch_lightning`. Needs `pip install attnwatch[lightning]`."""

from attnwatch.lightning.confidence import ConfidenceProbe
from attnwatch.lightning.monitor import AttentionMonitor
from attnwatch.lightning.occlusion import OcclusionAudit
from attnwatch.lightning.probes import LayerProbe
from attnwatch.lightning.pruning import HeadPruning
from attnwatch.lightning.tokens import TokenDropping

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
