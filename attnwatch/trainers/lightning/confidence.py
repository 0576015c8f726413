"""Asking the model as a Lightning callback."""

from attnwatch.callbacks.confidence import Asking
from attnwatch.trainers.lightning.hooks import Hooks, documented_for_lightning


@documented_for_lightning('ConfidenceProbe("questions.jsonl", tokenizer=tokenizer)')
class ConfidenceProbe(Asking, Hooks):
    pass
