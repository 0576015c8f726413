"""Views of a history for loggers: tags, scalars, pictures and text, whichever logger shows them."""

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
