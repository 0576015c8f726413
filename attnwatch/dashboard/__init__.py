"""What a history looks like on a dashboard: names, numbers, pictures and words, for any logger."""

from attnwatch.dashboard.scalars import evenly_spaced, run_scalars, site_labels, site_scalars

__all__ = ["evenly_spaced", "run_scalars", "site_labels", "site_scalars"]
