"""Schedules, one file each: a value from 0 to 1 for each share of the time that is over."""

from attnwatch.schedules.base import Schedule, find_schedule

__all__ = ["Schedule", "find_schedule"]
