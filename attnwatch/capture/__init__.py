"""Where query and key are seen: finds the attention calls of a model and reads them without changing them."""

from attnwatch.capture.capture import OBSERVED, Capture, Observer
from attnwatch.capture.sites import Site, SiteKind, find_sites

__all__ = ["OBSERVED", "Capture", "Observer", "Site", "SiteKind", "find_sites"]
