"""Correctness and cost of explanations."""
