"""What a TrainerCallback is not given: its trainer, when a batch is trained on, and when a checkpoint begins."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from attnwatch.errors import ConfigurationError
from attnwatch.trainers.transformers.checkpoints import checkpoint_folder
from attnwatch.utils.hooks import put

_TAP = "_attnwatch_tap"


def trainer_of(callback: TrainerCallback) -> tuple[Trainer, Path | None]:
    """Return the trainer that is calling a hook of this callback, and the checkpoint that it resumes from.

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
            return caller, Path(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
        frame = frame.f_back
    raise ConfigurationError(
        f"{type(callback).__name__} must be among the `callbacks` of a transformers Trainer, which calls it."
    )


class TrainerListener(Protocol):
    """What is called when a trainer trains on a batch, and when it saves a checkpoint."""

    def batch_begins(self) -> None: ...

    def batch_ends(self, loss: Tensor) -> None:
        """Take the training step's loss; those of micro-batches add up to that of the step."""

    def batch_fails(self) -> None:
        """Called after an error in the training step, or when the trainer fetched batches for it."""

    def model_is_saved(self, folder: Path) -> None:
        """Called when the model lies in the folder of the step's checkpoint, and nothing else yet."""

    def leave(self) -> None:
        """Stop to listen, and leave the model as it was."""


class _Tap:
    """Stands in for some methods of one trainer while somebody listens, and is known to the modules of its model."""

    _NAMES = ("get_batch_samples", "training_step", "save_model")

    def __init__(self, trainer: Trainer):
        self.listeners: list[TrainerListener] = []
        self._trainer = trainer
        self._own = {name: vars(trainer)[name] for name in self._NAMES if name in vars(trainer)}
        self._originals = {name: getattr(trainer, name) for name in self._NAMES}
        for name in self._NAMES:
            setattr(trainer, name, getattr(self, name))
        self._marks = [put(module, attributes={_TAP: self}) for module in trainer.model.modules()]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with self._telling_of_failure():
            return self._originals["get_batch_samples"](*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        for listener in self.listeners:
            listener.batch_begins()
        with self._telling_of_failure():
            loss = self._originals["training_step"](*args, **kwargs)
        for listener in self.listeners:
            listener.batch_ends(loss)
        return loss

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
        result = self._originals["save_model"](output_dir, *args, **kwargs)
        if output_dir is not None and self._is_checkpoint(Path(output_dir)):
            for listener in self.listeners:
                listener.model_is_saved(Path(output_dir))
        return result

    def close(self) -> None:
        for name in self._NAMES:
            delattr(self._trainer, name)
        vars(self._trainer).update(self._own)
        for remove in self._marks:
            remove()

    @contextlib.contextmanager
    def _telling_of_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for listener in list(self.listeners):
                listener.batch_fails()
            raise

    def _is_checkpoint(self, folder: Path) -> bool:
        return folder.name == checkpoint_folder("", self._trainer.state.global_step).name


def listen(trainer: Trainer, listener: TrainerListener) -> None:
    """Let `listener` hear of each batch and checkpoint from now on; once, however often this is called."""
    tap = _tap_of(trainer) or _Tap(trainer)
    if listener not in tap.listeners:
        tap.listeners.append(listener)


def unlisten(trainer: Trainer, listener: TrainerListener) -> None:
    """Undo `listen`. The trainer is as it was once nobody listens."""
    tap = _tap_of(trainer)
    if tap is not None and listener in tap.listeners:
        tap.listeners.remove(listener)
        if not tap.listeners:
            tap.close()


def release(model: nn.Module) -> None:
    """Take from a model what an earlier training has left there that ended by an error of which no callback heard."""
    taps = [vars(module)[_TAP] for module in model.modules() if _TAP in vars(module)]
    for tap in dict.fromkeys(taps):
        for listener in list(tap.listeners):
            listener.leave()


def _tap_of(trainer: Trainer) -> _Tap | None:
    owner = getattr(trainer.training_step, "__self__", None)
    return owner if isinstance(owner, _Tap) else None
