"""Adapters for trainers: when each calls what the callbacks share, and what its `TrainerRun` is."""
