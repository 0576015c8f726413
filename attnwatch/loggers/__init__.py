"""Loggers, one file each: how a logger is recognised, and how numbers, images, text and alerts go there."""

from attnwatch.loggers.base import AlertLevel, Draw, Logger, Setting, logger_for

__all__ = ["AlertLevel", "Draw", "Logger", "Setting", "logger_for"]
