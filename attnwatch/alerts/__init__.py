"""Alerts about findings, to chats, mail and pagers through Apprise, and to loggers that support alerts."""

from attnwatch.alerts.alert import Alert
from attnwatch.alerts.alerts import Alerts

__all__ = ["Alert", "Alerts"]
