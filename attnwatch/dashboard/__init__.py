"""What a history looks like on a dashboard: names, numbers, pictures and words, for any logger."""

from attnwatch.dashboard.scalars import TOTAL_STEPS_TAG, evenly_spaced, run_scalars, run_tags, site_labels, site_scalars

__all__ = ["TOTAL_STEPS_TAG", "evenly_spaced", "run_scalars", "run_tags", "site_labels", "site_scalars"]
