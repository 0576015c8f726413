"""Token dropping as a callback of the transformers Trainer."""

from attnwatch.callbacks.tokens import Dropping
from attnwatch.transformers.hooks import Hooks


class TokenDropping(Dropping, Hooks):
    # Its documentation is that of `Dropping`.

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        self._attach_for_good(model)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self._attach_for_good(self._run.trainer.model)
