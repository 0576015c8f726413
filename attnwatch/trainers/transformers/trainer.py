"""Facts that a TrainerCallback is not told: its trainer, when a batch is trained on, and when a checkpoint begins."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from attnwatch.errors import ConfigurationError
from attnwatch.trainers.transformers.checkpoints import checkpoint_folder
from attnwatch.utils.hooks import put

if TYPE_CHECKING:
    from attnwatch.trainers.transformers.callback import TransformersCallback

_TAP = "_attnwatch_tap"


def trainer_of(callback: TrainerCallback) -> tuple[Trainer, Path | None]:
    """Return the trainer that is calling a hook of this callback, and the checkpoint that it resumes from.

    Transformers passes neither to callbacks. Since a callback is always called by its trainer, both are looked up in
    the calling frames.

    Raises:
        ConfigurationError: no trainer is calling.
    """
    frame: FrameType | None = sys._getframe(1)
    checkpoint = None
    while frame is not None:
        checkpoint = checkpoint or frame.f_locals.get("resume_from_checkpoint")
        caller = frame.f_locals.get("self")
        handler = getattr(caller, "callback_handler", None)  # a trainer under construction may have none yet
        if isinstance(caller, Trainer) and handler is not None and callback in handler.callbacks:
            return caller, Path(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
        frame = frame.f_back
    raise ConfigurationError(
        f"{type(callback).__name__} must be among the `callbacks` of a transformers Trainer, which calls it."
    )


class Tap:
    """Replacement of some methods of a trainer while there are listeners. The modules of its model refer to it."""

    _NAMES = ("get_batch_samples", "training_step", "save_model")

    def __init__(self, trainer: Trainer):
        self.listeners: list[TransformersCallback[Any]] = []
        self._trainer = trainer
        self._own = {name: vars(trainer)[name] for name in self._NAMES if name in vars(trainer)}
        self._originals = {name: getattr(trainer, name) for name in self._NAMES}
        for name in self._NAMES:
            setattr(trainer, name, getattr(self, name))
        self._marks = [put(module, attributes={_TAP: self}) for module in cast(nn.Module, trainer.model).modules()]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with self._failure_is_heard():
            return self._originals["get_batch_samples"](*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        for listener in self.listeners:
            listener.batch_begins()
        with self._failure_is_heard():
            loss = self._originals["training_step"](*args, **kwargs)
        for listener in self.listeners:
            listener.batch_ends(loss)
        return loss

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
        result = self._originals["save_model"](output_dir, *args, **kwargs)
        checkpoint = checkpoint_folder("", self._trainer.state.global_step)
        if output_dir is not None and Path(output_dir).name == checkpoint.name:
            for listener in self.listeners:
                listener.model_is_saved(Path(output_dir))
        return result

    def add(self, listener: "TransformersCallback[Any]") -> None:
        """Notify `listener` of each batch and checkpoint; repeated calls have no effect."""
        if listener not in self.listeners:
            self.listeners.append(listener)

    def remove(self, listener: "TransformersCallback[Any]") -> None:
        """Undo `add`. The trainer's methods are restored with the last listener."""
        if listener in self.listeners:
            self.listeners.remove(listener)
            if not self.listeners:
                self._close()

    def _close(self) -> None:
        for name in self._NAMES:
            delattr(self._trainer, name)
        vars(self._trainer).update(self._own)
        for remove in self._marks:
            remove()

    @contextlib.contextmanager
    def _failure_is_heard(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for listener in list(self.listeners):
                listener.batch_fails()
            raise


def tap_of(trainer: Trainer) -> Tap | None:
    """Return the tap of a trainer; None if it has no listeners."""
    owner = getattr(trainer.training_step, "__self__", None)
    return owner if isinstance(owner, Tap) else None


def release(model: nn.Module) -> None:
    """Detach the callbacks of an earlier training that ended with an error of which they were not notified."""
    taps = [vars(module)[_TAP] for module in model.modules() if _TAP in vars(module)]
    for listener in [listener for tap in dict.fromkeys(taps) for listener in tap.listeners]:
        listener.leave()
