"""State of attnwatch in the checkpoints of the transformers Trainer: one file, and a mark that it must be there.

The Trainer writes a checkpoint file by file, `trainer_state.json` near the end. A checkpoint that it resumes from may
lack a file of ours. The mark travels in `trainer_state.json` itself.
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
    """A checkpoint lacks states that it should have. The message continues a sentence about the file."""


class AttnwatchMark(TrainerCallback):
    """Does nothing but to have the name of the mark's entry in `trainer_state.json`.

    With `restore_callback_states_from_checkpoint` the Trainer warns of each entry that has the name of no callback.
    """


_MARK = AttnwatchMark.__name__


@dataclass(frozen=True)
class Mark:
    """Entry of attnwatch in `trainer_state.json`.

    Attributes:
        run: tells the runs apart that write to one folder.
        keys: of the callbacks that take part in the training.
        until: checkpoints of steps up to this one were saved while they did; later ones of a run without them.
    """

    run: str
    keys: tuple[str, ...]
    until: int = 0

    @classmethod
    def in_state(cls, state: TrainerState) -> "Mark | None":
        """Return the mark of a state that was read from a checkpoint; None if attnwatch took no part."""
        found = _entries(state).get(_MARK)
        if found is None or found["until"] < state.global_step:
            return None
        return cls(found["run"], tuple(found["keys"]), found["until"])

    def put(self, state: TrainerState, until: int) -> None:
        """Put the mark into all checkpoints that are saved from now on."""
        _entries(state)[_MARK] = {"run": self.run, "keys": list(self.keys), "until": until}


def _entries(state: TrainerState) -> dict[str, Any]:
    """Return what callbacks keep in a state, by their names; transformers annotates what its constructor takes."""
    return cast(dict[str, Any], state.stateful_callbacks)


def checkpoint_folder(directory: str | Path, step: int) -> Path:
    """Return where the Trainer puts the checkpoint of a step."""
    return Path(directory, f"{PREFIX_CHECKPOINT_DIR}-{step}")


def write_states(folder: Path, states: States, mark: Mark, step: int) -> None:
    """Write the states of all callbacks to a checkpoint, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder is gone.
    """
    content = io.BytesIO()  # torch.save hides the error of a disk that is full
    torch.save(with_format(_FORMAT, {"run": mark.run, "step": step, "states": dict(states)}), content)
    with replaced_file(folder / STATE_FILE) as stream:
        stream.write(content.getbuffer())


def read_states(folder: Path, mark: Mark, step: int) -> States:
    """Read what `write_states` wrote when the checkpoint was saved.

    Raises:
        DamagedStateError: it is not there, not whole, or of another run.
    """
    content = _read(folder / STATE_FILE)
    try:
        check_format(content, _FORMAT, "callbacks")
    except ConfigurationError as error:
        raise DamagedStateError(f"can't be read: {error}") from error
    if (content["run"], content["step"]) != (mark.run, step):
        raise DamagedStateError("was written by another run, or at another step, than the checkpoint it lies in")
    missing = [key for key in mark.keys if key not in content["states"]]
    if missing:
        raise DamagedStateError(f"lacks the state of {', '.join(missing)}")
    return content["states"]


def newest_before(folder: Path, step: int) -> Path | None:
    """Return the newest checkpoint beside this one, of an earlier step, whose states are whole."""
    numbers = (each.name.rpartition("-")[2] for each in folder.resolve().parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    for number in sorted((int(each) for each in numbers if each.isdecimal() and int(each) < step), reverse=True):
        candidate = checkpoint_folder(folder.parent, number)
        if _is_whole(candidate):
            return candidate
    return None


def lost_states(folder: Path, step: int, names: Sequence[str], reason: str) -> str:
    """Return the message where a checkpoint can't be resumed from, with what to do instead."""
    before = newest_before(folder, step)
    remedy = f"Resume from the one before it, which is whole: trainer.train(resume_from_checkpoint={str(before)!r})."
    if before is None:
        remedy = (
            "No earlier checkpoint beside it is whole: train from the beginning, without `resume_from_checkpoint`. "
            "A `save_total_limit` of at least 2 keeps one."
        )
    return (
        f"the checkpoint {str(folder)!r} can't be resumed from: its {STATE_FILE}, with the state of "
        f"{', '.join(names)}, {reason}. Without it the run would go on as another one. {remedy}"
    )


def _read(file: Path) -> Any:
    """Return the content of a file of `torch.save`, whose checksums PyTorch does not check."""
    if not file.is_file():
        raise DamagedStateError("is missing: the process was killed, or the disk was full, when it was to be written")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedStateError(f"is damaged (checksum of {damaged!r})")
        return torch.load(file, weights_only=True, map_location="cpu")
    except DamagedStateError:
        raise
    except Exception as error:  # of whatever kind, depending on which byte is wrong
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
