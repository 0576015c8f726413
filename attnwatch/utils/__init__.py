"""Helpers that several packages share: messages, argument checks, files, states, processes."""
