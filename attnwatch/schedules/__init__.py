"""Schedules, one file each: how far something has gone when a share of its time is over."""

from attnwatch.schedules.base import Schedule, find_schedule

__all__ = ["Schedule", "find_schedule"]
