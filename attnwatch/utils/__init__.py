"""Helpers shared by several packages: messages, argument checks, files, states, processes."""
