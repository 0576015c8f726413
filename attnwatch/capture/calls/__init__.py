"""Kinds of attention calls, one file each, with their recognition, patching and reading."""

from attnwatch.capture.calls.base import AttentionCall, FunctionCall

__all__ = ["AttentionCall", "FunctionCall"]
