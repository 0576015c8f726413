"""Token dropping as a callback of the transformers Trainer."""

from attnwatch.callbacks.tokens import Dropping
from attnwatch.trainers.transformers.hooks import Hooks, documented_for_transformers


@documented_for_transformers("TokenDropping(keep_ratio=0.5)")
class TokenDropping(Dropping, Hooks):
    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        super().on_init_end(args, state, control, model=model, **kwargs)
        self._attach_in_evaluation(model)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self._attach_in_evaluation(self._run.trainer.model)
