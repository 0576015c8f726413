"""Loggers, one file each: how to recognise a logger, and how to send it numbers, images, text and alerts."""

from attnwatch.loggers.base import AlertLevel, Draw, Logger, Setting, logger_for

__all__ = ["AlertLevel", "Draw", "Logger", "Setting", "logger_for"]
