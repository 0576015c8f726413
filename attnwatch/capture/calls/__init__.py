"""Kinds of attention calls, one file each: how they are recognised, patched and read."""

from attnwatch.capture.calls.base import AttentionCall, FunctionCall

__all__ = ["AttentionCall", "FunctionCall"]
