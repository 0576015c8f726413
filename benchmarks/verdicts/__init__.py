"""Correctness of verdicts: short trainings with known outcomes, and how well their outcomes are predicted."""
