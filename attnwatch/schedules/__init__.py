"""Schedules, one file each, which map the elapsed share of the time to a value from 0 to 1."""

from attnwatch.schedules.base import Schedule, find_schedule

__all__ = ["Schedule", "find_schedule"]
