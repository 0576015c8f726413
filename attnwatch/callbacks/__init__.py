"""Parts of the callbacks for all trainers, each a `TrainingPart` that is imported at first use.

`attnwatch.lightning` and `attnwatch.transformers` build their callbacks from these.
"""

import importlib
from typing import TYPE_CHECKING, Any

from attnwatch.callbacks.part import TrainingPart as TrainingPart

if TYPE_CHECKING:
    from attnwatch.callbacks.confidence import ConfidenceProbe as ConfidenceProbe
    from attnwatch.callbacks.monitor import AttentionMonitor as AttentionMonitor
    from attnwatch.callbacks.occlusion import OcclusionAudit as OcclusionAudit
    from attnwatch.callbacks.probes import LayerProbe as LayerProbe
    from attnwatch.callbacks.pruning import HeadPruning as HeadPruning
    from attnwatch.callbacks.tokens import TokenDropping as TokenDropping

CALLBACKS = {
    "AttentionMonitor": "monitor",
    "ConfidenceProbe": "confidence",
    "HeadPruning": "pruning",
    "LayerProbe": "probes",
    "OcclusionAudit": "occlusion",
    "TokenDropping": "tokens",
}
"""Module in this folder that defines each part, by the name of the part."""


def __getattr__(name: str) -> Any:
    if name not in CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{CALLBACKS[name]}"), name)
