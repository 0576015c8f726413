"""What loggers are shown of a history: tags, scalars, pictures and text, for any logger."""

from attnwatch.dashboard.scalars import TOTAL_STEPS_TAG, run_scalars, run_tags, site_scalars

__all__ = ["TOTAL_STEPS_TAG", "run_scalars", "run_tags", "site_scalars"]
