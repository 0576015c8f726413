"""Benchmark of the checkup of a training."""
