"""Measurements of what people see of a run: its page, and the noise of its curves."""
