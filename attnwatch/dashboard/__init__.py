"""What loggers are shown of a history: tags, scalars, pictures and text, for any logger."""

from attnwatch.dashboard.scalars import RUN_TAGS, TOTAL_STEPS_TAG, run_scalars, site_scalars

__all__ = ["RUN_TAGS", "TOTAL_STEPS_TAG", "run_scalars", "site_scalars"]
