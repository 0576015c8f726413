"""Parts of the callbacks of all trainers: a `TrainingPart` each, imported when it is first used.

`attnwatch.lightning` and `attnwatch.transformers` make their callbacks of these.
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
"""Modules in this folder by the names of the parts in them."""


def __getattr__(name: str) -> Any:
    if name not in CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{CALLBACKS[name]}"), name)
