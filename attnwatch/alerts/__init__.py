"""Alerts about findings: to chats, mail and pagers by Apprise, and to loggers that have alerts."""

from attnwatch.alerts.alert import Alert
from attnwatch.alerts.alerts import Alerts

__all__ = ["Alert", "Alerts"]
