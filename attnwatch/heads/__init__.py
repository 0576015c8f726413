"""Removal of unimportant attention heads, also during training."""

from attnwatch.heads.checkpoints import load_pruned, save_pruned
from attnwatch.heads.criteria import HeadCriterion, HeadData
from attnwatch.heads.cut import Cut
from attnwatch.heads.guard import Guard
from attnwatch.heads.head_map import HeadMap
from attnwatch.heads.importance import HeadImportance, head_importance
from attnwatch.heads.layout import HeadLayout
from attnwatch.heads.layout_check import check_layout
from attnwatch.heads.plan import PruningPlan, prune_heads
from attnwatch.heads.savings import Savings, savings
from attnwatch.heads.selection import choose_heads
from attnwatch.heads.state import accept_pruned_state

__all__ = [
    "Cut",
    "Guard",
    "HeadCriterion",
    "HeadData",
    "HeadImportance",
    "HeadLayout",
    "HeadMap",
    "PruningPlan",
    "Savings",
    "accept_pruned_state",
    "check_layout",
    "choose_heads",
    "head_importance",
    "load_pruned",
    "prune_heads",
    "save_pruned",
    "savings",
]
