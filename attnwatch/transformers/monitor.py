"""The monitor as a callback of the transformers Trainer."""

from attnwatch.callbacks.monitor import Monitor
from attnwatch.transformers.hooks import Hooks


class AttentionMonitor(Monitor, Hooks):
    # Its documentation is that of `Monitor`.
    pass
