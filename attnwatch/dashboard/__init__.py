"""What a history looks like on a dashboard: names, numbers, pictures and words, for any logger."""

from attnwatch.dashboard.scalars import RUN_TAGS, TOTAL_STEPS_TAG, evenly_spaced, run_scalars, site_labels, site_scalars

__all__ = ["RUN_TAGS", "TOTAL_STEPS_TAG", "evenly_spaced", "run_scalars", "site_labels", "site_scalars"]
