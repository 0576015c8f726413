"""What a TrainerCallback is not given: its trainer, and when a batch is trained on."""

import sys
from typing import Any, Protocol

from torch import Tensor
from transformers import Trainer, TrainerCallback

from attnwatch.errors import ConfigurationError


def trainer_of(callback: TrainerCallback) -> tuple[Trainer, str | None]:
    """The trainer that is calling a hook of this callback, and the checkpoint that it resumes from.

    Transformers hands neither to callbacks, though a callback is always called by its trainer: both are looked up in
    the calling frames.

    Raises:
        ConfigurationError: no trainer is calling.
    """
    checkpoint, frame = None, sys._getframe(1)
    while frame is not None:
        checkpoint = checkpoint or frame.f_locals.get("resume_from_checkpoint")
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and callback in caller.callback_handler.callbacks:
            return caller, checkpoint if isinstance(checkpoint, str) else None
        frame = frame.f_back
    raise ConfigurationError(
        f"{type(callback).__name__} must be among the `callbacks` of a transformers Trainer, which calls it."
    )


class BatchListener(Protocol):
    """Wants to know when a trainer trains on a batch."""

    def batch_begins(self) -> None: ...

    def batch_ends(self, loss: Tensor) -> None:
        """`loss` is the training step's: micro-batches add up to that of the step."""

    def batch_fails(self) -> None: ...


class _Tap:
    """Stands in for `training_step` of one trainer while somebody listens."""

    def __init__(self, trainer: Trainer):
        self.listeners: list[BatchListener] = []
        self._own = vars(trainer).get("training_step")
        self._training_step = trainer.training_step
        trainer.training_step = self.training_step

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        for listener in self.listeners:
            listener.batch_begins()
        try:
            loss = self._training_step(*args, **kwargs)
        except BaseException:
            for listener in list(self.listeners):
                listener.batch_fails()
            raise
        for listener in self.listeners:
            listener.batch_ends(loss)
        return loss

    def close(self, trainer: Trainer) -> None:
        del trainer.training_step
        if self._own is not None:
            trainer.training_step = self._own


def listen(trainer: Trainer, listener: BatchListener) -> None:
    """From now on `listener` hears of each batch; once, however often this is called."""
    tap = _tap_of(trainer) or _Tap(trainer)
    if listener not in tap.listeners:
        tap.listeners.append(listener)


def unlisten(trainer: Trainer, listener: BatchListener) -> None:
    """The trainer is as it was once nobody listens."""
    tap = _tap_of(trainer)
    if tap is not None and listener in tap.listeners:
        tap.listeners.remove(listener)
        if not tap.listeners:
            tap.close(trainer)


def _tap_of(trainer: Trainer) -> _Tap | None:
    owner = getattr(trainer.training_step, "__self__", None)
    return owner if isinstance(owner, _Tap) else None
