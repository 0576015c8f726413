"""Token dropping: layers in the middle of a model compute only some of the tokens during training."""

from attnwatch.tokens.batch import TokenBatch
from attnwatch.tokens.criteria import TokenCriterion
from attnwatch.tokens.dropper import TokenDropper
from attnwatch.tokens.layouts import TokenLayout
from attnwatch.tokens.schedule import KeepSchedule

__all__ = ["KeepSchedule", "TokenBatch", "TokenCriterion", "TokenDropper", "TokenLayout"]
