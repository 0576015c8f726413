"""Removes attention heads that do not matter, in the middle of a training."""

from attnwatch.pruning.checkpoints import load_pruned, save_pruned
from attnwatch.pruning.cut import Cut
from attnwatch.pruning.guard import Guard
from attnwatch.pruning.importance import HeadImportance, head_importance
from attnwatch.pruning.layouts import HeadLayout, register_layout
from attnwatch.pruning.plan import PruningPlan, prune_heads
from attnwatch.pruning.savings import Savings, savings
from attnwatch.pruning.selection import choose_heads
from attnwatch.pruning.state import accept_pruned_state
from attnwatch.pruning.trial import check_layout

__all__ = [
    "Cut",
    "Guard",
    "HeadImportance",
    "HeadLayout",
    "PruningPlan",
    "Savings",
    "accept_pruned_state",
    "check_layout",
    "choose_heads",
    "head_importance",
    "load_pruned",
    "prune_heads",
    "register_layout",
    "save_pruned",
    "savings",
]
