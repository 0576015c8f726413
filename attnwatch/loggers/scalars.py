"""Loggers that no other file recognises."""

from attnwatch.loggers.base import Logger
from attnwatch.plugins import register


@register
class ScalarLogger(Logger):
    """Logger of an unknown kind, which gets scalars through its trainer."""

    name = "scalar"
