"""Checks of a training step, one per file; `base.py` documents the declaration of a check."""

from attnwatch.checkup.checks.base import Check, Fault

__all__ = ["Check", "Fault"]
