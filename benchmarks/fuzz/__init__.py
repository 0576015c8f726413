"""Drawn attention calls, compared with float64."""
