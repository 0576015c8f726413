"""The monitor as a callback of the transformers Trainer."""

from attnwatch.callbacks.monitor import Monitor
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers


@documented_for_transformers("AttentionMonitor()")
class AttentionMonitor(Monitor, Hooks):
    pass
