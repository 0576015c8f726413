"""Callbacks for the transformers Trainer. Needs `pip install attnwatch[transformers]`."""

try:
    import accelerate  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "attnwatch.transformers needs transformers and accelerate: pip install 'attnwatch[transformers]'"
    ) from error

from attnwatch.transformers.confidence import ConfidenceProbe
from attnwatch.transformers.monitor import AttentionMonitor
from attnwatch.transformers.occlusion import OcclusionAudit
from attnwatch.transformers.probes import LayerProbe
from attnwatch.transformers.pruning import HeadPruning
from attnwatch.transformers.tokens import TokenDropping

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]
