"""Loggers: one file for each kind."""
