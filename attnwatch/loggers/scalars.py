"""Loggers that no other file in this folder recognises."""

from attnwatch.loggers.base import Logger
from attnwatch.plugins import register


@register
class ScalarLogger(Logger):
    """Logger of an unknown kind, which receives scalars through its trainer."""

    name = "scalar"
