"""Asking the model as a callback of the transformers Trainer."""

from attnwatch.callbacks.confidence import Asking
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers


@documented_for_transformers('ConfidenceProbe("questions.jsonl")')
class ConfidenceProbe(Asking, Hooks):
    pass
