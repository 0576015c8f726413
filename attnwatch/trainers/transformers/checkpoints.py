"""State of attnwatch in the checkpoints of the transformers Trainer: one file, and a mark that the file must exist.

The Trainer writes a checkpoint file by file, `trainer_state.json` near the end, and may resume from a checkpoint that
lacks our file. The mark is in `trainer_state.json` itself.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from attnwatch.errors import ConfigurationError
from attnwatch.utils.files import replaced_file
from attnwatch.utils.states import STATE_FILE, check_format, with_format

_FORMAT = 1

States = Mapping[str, Mapping[str, Any]]
"""States of callbacks by their keys."""


class DamagedStateError(Exception):
    """Error for a checkpoint that lacks states. The message continues a sentence about the file."""


class AttnwatchMark(TrainerCallback):
    """Callback without hooks, with the name of the mark's entry in `trainer_state.json`.

    With `restore_callback_states_from_checkpoint`, the Trainer warns about each entry that no callback is named after.
    """


_MARK = AttnwatchMark.__name__


@dataclass(frozen=True)
class Mark:
    """Entry of attnwatch in `trainer_state.json`.

    Attributes:
        run: identifier of the run among those that write to one folder.
        keys: keys of the callbacks that take part in the training.
        until: last step whose checkpoint was saved with these callbacks; later ones are from a run without them.
    """

    run: str
    keys: tuple[str, ...]
    until: int = 0

    @classmethod
    def in_state(cls, state: TrainerState) -> "Mark | None":
        """Return the mark of a state that was read from a checkpoint; None if attnwatch did not take part."""
        found = _entries(state).get(_MARK)
        if found is None or found["until"] < state.global_step:
            return None
        return cls(found["run"], tuple(found["keys"]), found["until"])

    def put(self, state: TrainerState, until: int) -> None:
        """Add the mark to all checkpoints that are saved from now on."""
        _entries(state)[_MARK] = {"run": self.run, "keys": list(self.keys), "until": until}


def _entries(state: TrainerState) -> dict[str, Any]:
    """Return the entries of callbacks in a state by name; transformers annotates the constructor's argument instead."""
    return cast(dict[str, Any], state.stateful_callbacks)


def checkpoint_folder(directory: str | Path, step: int) -> Path:
    """Return the folder in which the Trainer saves the checkpoint of a step."""
    return Path(directory, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def write_states(folder: Path, states: States, mark: Mark, step: int) -> None:
    """Write the states of all callbacks to a checkpoint, completely or not at all.

    Raises:
        OSError: the disk is full, or the folder is gone.
    """
    content = io.BytesIO()  # torch.save hides the error of a full disk
    torch.save(with_format(_FORMAT, {"run": mark.run, "step": step, "states": dict(states)}), content)
    with replaced_file(folder / STATE_FILE) as stream:
        stream.write(content.getbuffer())


def read_states(folder: Path, mark: Mark, step: int) -> States:
    """Read the states that `write_states` wrote when the checkpoint was saved.

    Raises:
        DamagedStateError: the file is missing, incomplete, or from another run.
    """
    content = _read(folder / STATE_FILE)
    try:
        check_format(content, _FORMAT, "callbacks")
    except ConfigurationError as error:
        raise DamagedStateError(f"can't be read: {error}") from error
    if (content["run"], content["step"]) != (mark.run, step):
        raise DamagedStateError("was written by another run, or at another step, than its checkpoint")
    missing = [key for key in mark.keys if key not in content["states"]]
    if missing:
        raise DamagedStateError(f"lacks the state of {', '.join(missing)}")
    return content["states"]


def newest_before(folder: Path, step: int) -> Path | None:
    """Return the newest checkpoint beside this one with an earlier step and complete states; None if there is none."""
    numbers = (each.name.rpartition("-")[2] for each in folder.resolve().parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    for number in sorted((int(each) for each in numbers if each.isdecimal() and int(each) < step), reverse=True):
        candidate = checkpoint_folder(folder.parent, number)
        if _is_whole(candidate):
            return candidate
    return None


def lost_states(folder: Path, step: int, names: Sequence[str], reason: str) -> str:
    """Return the message for a checkpoint that can't be resumed from, including what to do instead."""
    before = newest_before(folder, step)
    remedy = f"Resume from the last complete one before it: trainer.train(resume_from_checkpoint={str(before)!r})."
    if before is None:
        remedy = (
            "No earlier checkpoint beside it is complete: train from the beginning, without `resume_from_checkpoint`. "
            "A `save_total_limit` of at least 2 keeps an earlier one."
        )
    return (
        f"the checkpoint {str(folder)!r} can't be resumed from: its {STATE_FILE}, with the state of "
        f"{', '.join(names)}, {reason}. Without it, training would continue as a different run. {remedy}"
    )


def _read(file: Path) -> Any:
    """Return the content of a `torch.save` file, after verifying its checksums, which PyTorch does not."""
    if not file.is_file():
        raise DamagedStateError("is missing: the process was killed, or the disk was full, before it was written")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedStateError(f"is damaged (checksum of {damaged!r})")
        return torch.load(file, weights_only=True, map_location="cpu")
    except DamagedStateError:
        raise
    except Exception as error:  # its type depends on which byte is wrong
        raise DamagedStateError(f"is damaged ({type(error).__name__}: {str(error).partition(chr(10))[0]})") from error


def _is_whole(folder: Path) -> bool:
    try:
        state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        mark = Mark.in_state(state)
        if mark is not None:
            read_states(folder, mark, state.global_step)
    except (OSError, ValueError, TypeError, KeyError, DamagedStateError):
        return False
    return True
