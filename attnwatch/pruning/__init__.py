"""Removes attention heads that do not matter, in the middle of a training."""

from attnwatch.pruning.checkpoints import accept_pruned_state, load_pruned, save_pruned
from attnwatch.pruning.guard import Guard
from attnwatch.pruning.importance import HeadImportance, head_importance
from attnwatch.pruning.layouts import HeadLayout, register_layout
from attnwatch.pruning.plan import PruningPlan, prune_heads
from attnwatch.pruning.pruner import Cut
from attnwatch.pruning.savings import Savings, savings
from attnwatch.pruning.selection import choose_heads

__all__ = [
    "Cut",
    "Guard",
    "HeadImportance",
    "HeadLayout",
    "PruningPlan",
    "Savings",
    "accept_pruned_state",
    "choose_heads",
    "head_importance",
    "load_pruned",
    "prune_heads",
    "register_layout",
    "save_pruned",
    "savings",
]
