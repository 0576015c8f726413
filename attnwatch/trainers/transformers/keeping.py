"""Saving of the states of a trainer's callbacks in its checkpoints, and their restoration."""

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer

from attnwatch.errors import ConfigurationError
from attnwatch.trainers.callback import PartCallback
from attnwatch.trainers.transformers.checkpoints import (
    DamagedStateError,
    Mark,
    States,
    checkpoint_folder,
    lost_states,
    read_states,
    write_states,
)
from attnwatch.utils.files import free_space
from attnwatch.utils.messages import WarnOnce, warn
from attnwatch.utils.states import STATE_FILE

# Space left for the optimizer's state, which the trainer writes after ours. For Adam, it has twice the size of the
# trained parameters in single precision.
_BYTES_PER_PARAMETER = 16


class Keeper:
    """Write the states of all callbacks of one trainer to its checkpoints, one file in each.

    The trainer saves the model first. If the disk has enough space, the states follow at once, before
    `trainer_state.json` is written and older checkpoints are deleted, so that a killed process leaves the old or the
    new checkpoint complete. Otherwise they are written last, so that they never take the space of the trainer's files.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[PartCallback[Any, Any]]):
        self._trainer = trainer
        self._callbacks = callbacks
        self._mark = Mark(uuid.uuid4().hex, tuple(each.state_key for each in callbacks))
        self._warn_once = WarnOnce()
        self._begun: _Checkpoint | None = None

    def mark(self, *, until: int) -> None:
        """Record that checkpoints of steps up to this one must have the file."""
        self._mark.put(self._trainer.state, until)

    def begin(self, folder: Path) -> None:
        """Begin a checkpoint in the folder to which the trainer has saved the model. All processes call it."""
        begun = self._begun = self._collect(folder)
        if not (self._trainer.args.should_save and self._has_room(folder)):
            return
        with contextlib.suppress(Exception):  # `finish` tries again, when older checkpoints may be deleted
            self._write(begun)
            if not self._has_room(folder):
                (folder / STATE_FILE).unlink()
                begun.is_written = False

    def finish(self) -> None:
        """Write the states that a checkpoint still lacks. All processes call it."""
        step, begun = self._trainer.state.global_step, self._begun
        if begun is None or begun.step != step:
            begun = self._collect(checkpoint_folder(self._trainer.args.output_dir or "", step))
        if self._trainer.args.should_save and not begun.is_written and begun.folder.is_dir():
            self._write_or_warn(begun)
        self._begun = None

    def _collect(self, folder: Path) -> "_Checkpoint":
        states = {each.state_key: each.state_dict() for each in self._callbacks}
        return _Checkpoint(self._trainer.state.global_step, folder, states)

    def _write_or_warn(self, begun: "_Checkpoint") -> None:
        try:
            self._write(begun)
        except Exception as error:
            consequence = "can't be resumed from with these callbacks" if _steer(self._callbacks) else "lacks them"
            self._warn_once(
                f"the states of {', '.join(each.state_key for each in self._callbacks)} could not be written; training "
                f"continues, but the checkpoint {consequence}. Free space on the disk",
                f" ({begun.folder / STATE_FILE}: {type(error).__name__}: {error})",
            )

    def _write(self, begun: "_Checkpoint") -> None:
        for each in self._callbacks:
            each.part.write_beside_checkpoint(begun.folder)
        write_states(begun.folder, begun.states, self._mark, begun.step)
        begun.is_written = True

    def _has_room(self, folder: Path) -> bool:
        trained = [each.numel() for each in cast(nn.Module, self._trainer.model).parameters() if each.requires_grad]
        return free_space(folder) > _BYTES_PER_PARAMETER * sum(trained)


@dataclass
class _Checkpoint:
    """Checkpoint that is being saved."""

    step: int
    folder: Path
    states: States
    is_written: bool = False


def restored_states(callbacks: Sequence[PartCallback[Any, Any]], checkpoint: Path | None, trainer: Trainer) -> States:
    """Return the states of these callbacks in a checkpoint, without those of callbacks that are new in the run.

    Raises:
        ConfigurationError: the checkpoint lacks the state of a callback that was in the training and steers it.
    """
    mark = None if checkpoint is None else Mark.in_state(trainer.state)
    known = [] if mark is None else [each for each in callbacks if each.state_key in mark.keys]
    if checkpoint is None or mark is None or not known:
        return {}
    step = trainer.state.global_step
    try:
        return read_states(checkpoint, mark, step)
    except DamagedStateError as error:
        reason, names = str(error), [each.state_key for each in known]
    if _steer(known):
        raise ConfigurationError(f"`resume_from_checkpoint`: {lost_states(checkpoint, step, names, reason)}")
    warn(
        f"{str(checkpoint / STATE_FILE)!r}, with the state of {', '.join(names)}, {reason}. Earlier observations are "
        "lost; the training itself is not affected."
    )
    return {}


def _steer(callbacks: Sequence[PartCallback[Any, Any]]) -> bool:
    return any(each.part.steers_training for each in callbacks)
