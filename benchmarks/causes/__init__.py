"""Causes that `diagnose` names first, compared with the faults that were made."""
