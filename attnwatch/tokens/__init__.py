"""Computes only some of the tokens between two layers, in training."""

from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.dropper import TokenDropper
from attnwatch.tokens.layouts import TokenLayout, register_token_layout
from attnwatch.tokens.schedule import KeepSchedule

__all__ = ["KeepSchedule", "TokenBatch", "TokenDropper", "TokenLayout", "register_token_layout"]
