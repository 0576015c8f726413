"""Views of a history, independent of the logger that shows them: tags, scalars, pictures and text."""

from attnwatch.dashboard.scalars import (
    RISK_TAG,
    TOTAL_STEPS_TAG,
    extra_scalars,
    layer_scalars,
    run_scalars,
    run_tags,
    site_scalars,
)

__all__ = [
    "RISK_TAG",
    "TOTAL_STEPS_TAG",
    "extra_scalars",
    "layer_scalars",
    "run_scalars",
    "run_tags",
    "site_scalars",
]
