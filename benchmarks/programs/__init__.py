"""Faults of one edit each in complete training programs, and what the checkup says about them."""
