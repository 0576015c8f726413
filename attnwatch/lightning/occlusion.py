"""Occlusion as a Lightning callback."""

from attnwatch.callbacks.occlusion import Occluding
from attnwatch.lightning.hooks import Hooks


class OcclusionAudit(Occluding, Hooks):
    # Its documentation is that of `Occluding`.
    pass
