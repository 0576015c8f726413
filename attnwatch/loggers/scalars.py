"""Loggers that no other file recognises."""

from attnwatch.loggers.base import Logger
from attnwatch.plugins import register


@register
class ScalarLogger(Logger):
    """A logger of an unknown kind: it is given scalars, in the way that its trainer gives it some."""

    name = "scalar"
