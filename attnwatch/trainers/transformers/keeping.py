"""Writes the states of a trainer's callbacks to its checkpoints, and reads them back."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from attnwatch.errors import ConfigurationError
from attnwatch.trainers.callback import PartCallback
from attnwatch.trainers.transformers.checkpoints import (
    STATE_FILE,
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

# The trainer writes the optimizer's state after ours: for Adam twice the parameters that train, in single precision.
_BYTES_PER_PARAMETER = 16


class Keeper:
    """Writes the states of all callbacks of one trainer to its checkpoints, one file in each.

    The trainer saves the model first. Where the disk has room the states follow at once, before `trainer_state.json`
    and before older checkpoints are deleted: a process that is killed leaves the old checkpoint or the new one whole.
    Else they come last, so that they never take the room of what the trainer writes.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[PartCallback[Any]]):
        self._trainer = trainer
        self._callbacks = callbacks
        self._mark = Mark.of_new_run(each.state_key for each in callbacks)
        self._warn_once = WarnOnce()
        self._begun: tuple[int, Path, States] | None = None
        self._is_written = False

    def mark(self, *, until: int) -> None:
        """Note that checkpoints of steps up to this one must have the file."""
        self._mark.put(self._trainer.state, until)

    def begin(self, folder: Path) -> None:
        """Begin a checkpoint, to whose folder the trainer has saved the model. All processes call it."""
        self._collect(folder)
        if not (self._trainer.args.should_save and self._has_room(folder)):
            return
        with contextlib.suppress(Exception):  # the trainer may delete older checkpoints first: `finish` tries again
            self._write()
            if not self._has_room(folder):
                (folder / STATE_FILE).unlink()
                self._is_written = False

    def finish(self) -> None:
        """Complete a checkpoint with what could not be written yet. All processes call it."""
        step = self._trainer.state.global_step
        if self._begun is None or self._begun[0] != step:
            self._collect(checkpoint_folder(self._trainer.args.output_dir, step))
        if self._trainer.args.should_save and not self._is_written and self._begun[1].is_dir():
            self._write_or_warn()
        self._begun = None

    def _collect(self, folder: Path) -> None:
        states = {each.state_key: each.state_dict() for each in self._callbacks}
        self._begun, self._is_written = (self._trainer.state.global_step, folder, states), False

    def _write_or_warn(self) -> None:
        try:
            self._write()
        except Exception as error:
            consequence = "can't be resumed from with these callbacks" if _steer(self._callbacks) else "lacks them"
            self._warn_once(
                f"the states of {', '.join(each.state_key for each in self._callbacks)} could not be written, training "
                f"goes on; a checkpoint without them {consequence}. Make room on the disk",
                f" ({self._begun[1] / STATE_FILE}: {type(error).__name__}: {error})",
            )

    def _write(self) -> None:
        step, folder, states = self._begun
        for each in self._callbacks:
            each.part.write_beside_checkpoint(folder)
        write_states(folder, states, self._mark, step)
        self._is_written = True

    def _has_room(self, folder: Path) -> bool:
        parameters = self._trainer.model.parameters()
        return free_space(folder) > _BYTES_PER_PARAMETER * sum(
            each.numel() for each in parameters if each.requires_grad
        )


def restored_states(callbacks: Sequence[PartCallback[Any]], checkpoint: Path | None, trainer: Trainer) -> States:
    """Return the states that a checkpoint has of these callbacks; of some of them, where others are new in the run.

    Raises:
        ConfigurationError: the checkpoint should have the state of a callback that steers the training, and has not.
    """
    mark = None if checkpoint is None else Mark.in_state(trainer.state)
    known = [each for each in callbacks if mark is not None and each.state_key in mark.keys]
    if not known:
        return {}
    step = trainer.state.global_step
    try:
        return read_states(checkpoint, mark, step)
    except DamagedStateError as error:
        reason, names = str(error), [each.state_key for each in known]
    if _steer(known):
        raise ConfigurationError(f"`resume_from_checkpoint`: {lost_states(checkpoint, step, names, reason)}")
    warn(
        f"{str(checkpoint / STATE_FILE)!r}, with the state of {', '.join(names)}, {reason}. What was watched before is "
        "lost; the training goes on as it would have."
    )
    return {}


def _steer(callbacks: Sequence[PartCallback[Any]]) -> bool:
    return any(each.part.steers_training for each in callbacks)
