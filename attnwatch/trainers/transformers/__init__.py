"""Callbacks of the transformers Trainer. Needs `pip install attnwatch[transformers]`.

Callbacks that explain a model are imported when they are used, and need `pip install attnwatch[explain]`.
"""

from typing import TYPE_CHECKING

try:
    import accelerate  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "attnwatch.transformers needs transformers and accelerate: pip install 'attnwatch[transformers]'"
    ) from error

from attnwatch.trainers.transformers.monitor import AttentionMonitor
from attnwatch.trainers.transformers.pruning import HeadPruning
from attnwatch.trainers.transformers.tokens import TokenDropping
from attnwatch.utils.extras import lazy_attributes

if TYPE_CHECKING:
    from attnwatch.trainers.transformers.confidence import ConfidenceProbe
    from attnwatch.trainers.transformers.occlusion import OcclusionAudit
    from attnwatch.trainers.transformers.probes import LayerProbe

__all__ = ["AttentionMonitor", "ConfidenceProbe", "HeadPruning", "LayerProbe", "OcclusionAudit", "TokenDropping"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "ConfidenceProbe": "attnwatch.trainers.transformers.confidence",
        "LayerProbe": "attnwatch.trainers.transformers.probes",
        "OcclusionAudit": "attnwatch.trainers.transformers.occlusion",
    },
)
