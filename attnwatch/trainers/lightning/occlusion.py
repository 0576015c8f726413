"""Occlusion as a Lightning callback."""

from attnwatch.callbacks.occlusion import Occluding
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning


@documented_for_lightning("OcclusionAudit(every_n_steps=500)")
class OcclusionAudit(Occluding, Hooks):
    pass
