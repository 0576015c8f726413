"""Views of a history for loggers: tags, scalars, pictures and text, whichever logger shows them."""

from attnwatch.dashboard.scalars import TOTAL_STEPS_TAG, layer_scalars, run_scalars, run_tags, site_scalars

__all__ = ["TOTAL_STEPS_TAG", "layer_scalars", "run_scalars", "run_tags", "site_scalars"]
