"""Occlusion as a callback of the transformers Trainer."""

import dataclasses

from torch import nn

from attnwatch.callbacks.occlusion import Occluding
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers
from attnwatch.trainers.transformers.run import TransformersRun


@documented_for_transformers("OcclusionAudit(every_n_steps=500)")
class OcclusionAudit(Occluding, Hooks):
    def _start(self, run: TransformersRun, model: nn.Module) -> None:
        """The trainer's tokenizer is used where none was given."""
        processing = getattr(run.trainer, "processing_class", None)
        if self._options.tokenizer is None and hasattr(processing, "all_special_ids"):
            self._options = dataclasses.replace(self._options, tokenizer=processing)
        super()._start(run, model)
