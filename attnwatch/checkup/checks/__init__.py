"""Checks of a training step, one in each file; `base.py` has what a check declares."""

from attnwatch.checkup.checks.base import Check, Fault

__all__ = ["Check", "Fault"]
