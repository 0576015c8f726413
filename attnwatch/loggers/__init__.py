"""Loggers, one file each: how a logger of any trainer is recognised, and how numbers, images and text go there."""

from attnwatch.loggers.base import Draw, Logger, Setting, logger_for

__all__ = ["Draw", "Logger", "Setting", "logger_for"]
