"""Trackio."""

from attnwatch.loggers.base import AlertLevel, Logger
from attnwatch.plugins import register


@register
class TrackioLogger(Logger):
    """Trackio: numbers, and alerts on its dashboard, in the terminal and to its webhook."""

    name = "trackio"
    class_names = ("TrackioCallback",)

    def log_alert(self, title: str, text: str, level: AlertLevel) -> None:
        import trackio

        trackio.alert(title, text, level=trackio.AlertLevel.ERROR if level == "error" else trackio.AlertLevel.WARN)
