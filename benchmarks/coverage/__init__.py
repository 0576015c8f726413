"""Support of architectures: observation, correctness, pruning and dropping, measured on tiny models."""
