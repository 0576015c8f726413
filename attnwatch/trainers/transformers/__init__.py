"""The Trainer of transformers."""

from attnwatch.plugins import register
from attnwatch.trainers.base import TrainerAdapter


@register
class TransformersAdapter(TrainerAdapter):
    """The transformers Trainer."""

    name = "transformers"
    title = "the transformers Trainer"
    module = "attnwatch.transformers"
    callback_base = "attnwatch.trainers.transformers.callback:TransformersCallback"
    # If a callback is added to a trainer later, `on_init_end` does not come first.
    first_hooks = ("on_init_end", "on_train_begin", "on_prediction_step", "on_evaluate", "on_predict", "on_log")
    example = """from transformers import Trainer
from attnwatch.transformers import {name}

trainer = Trainer(model, args, train_dataset=train_dataset, callbacks=[{call}])"""
