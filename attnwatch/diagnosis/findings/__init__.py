"""Findings: one file each, with the rule that finds it, its thresholds, its remedy and what it means for the run."""
