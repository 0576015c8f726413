"""Callbacks for the transformers Trainer. Needs `pip install attnwatch[transformers]`."""

try:
    import accelerate  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "attnwatch.transformers needs transformers and accelerate: pip install 'attnwatch[transformers]'"
    ) from error

from attnwatch.trainers.transformers.confidence import ConfidenceProbe
from attnwatch.trainers.transformers.monitor import AttentionMonitor
from attnwatch.trainers.transformers.occlusion import OcclusionAudit
from attnwatch.trainers.transformers.probes import LayerProbe
from attnwatch.trainers.transformers.pruning import HeadPruning
from attnwatch.trainers.transformers.tokens import TokenDropping

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
