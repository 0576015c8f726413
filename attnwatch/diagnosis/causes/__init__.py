"""Causes of findings: one file each, with the mistake that people make, its remedy, and the evidence for it."""
