"""Loggers, one file each: recognition of a logger, and output of numbers, images, text and alerts to it."""

from attnwatch.loggers.base import AlertLevel, Draw, Logger, Setting, logger_for

__all__ = ["AlertLevel", "Draw", "Logger", "Setting", "logger_for"]
