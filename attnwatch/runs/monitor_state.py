"""Runs read from the AttentionMonitor state in checkpoints."""

import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PosixPath
from typing import Any

import torch

from attnwatch.diagnosis import Finding, FindingKind
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.runs.record import RunRecord
from attnwatch.statistics import Statistic
from attnwatch.utils.files import UnreadableFileError

_HARMLESS = (Namespace, PosixPath)
"""Classes that occur in hyperparameters and whose construction runs no foreign code."""
_MOST_CHECKED_BYTES = 2**24
_OBSERVED = "observed"


def load_checkpoint(file: Path) -> Any:
    """Return the content of a `torch.save` file without running code in it. Weights are not read.

    Raises:
        UnreadableFileError: it is damaged, is not such a file, or holds objects other than tensors and numbers.
    """
    try:
        _check_sums(file)
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except (UnreadableFileError, OSError):
        raise
    except pickle.UnpicklingError as error:
        raise UnreadableFileError(_why_not_loaded(file, error)) from error
    except Exception as error:  # its type depends on which byte is wrong
        raise UnreadableFileError(f"is damaged, or is not a checkpoint ({_first_line(error)})") from error


def monitor_states(states: object) -> list[Mapping[str, Any]]:
    """Return the callback states of a checkpoint that an AttentionMonitor wrote."""
    found = states.values() if isinstance(states, Mapping) else ()
    return [each for each in found if isinstance(each, Mapping) and {"recorder", "findings"} <= each.keys()]


def run_of_state(name: str, state: Mapping[str, Any], *, source: str, total_steps: int | None = None) -> RunRecord:
    """Return the run recorded so far in an AttentionMonitor state.

    Args:
        name: short name of the run.
        state: one of `monitor_states`.
        source: kind of checkpoint, in words.
        total_steps: number of steps that the run will have, if the state does not hold it.

    Raises:
        UnreadableFileError: the state is damaged, or from another version of attnwatch.
    """
    try:
        history = _history(state["recorder"]["history"], state.get("total_steps") or total_steps)
        known = [each for each in state.get("checkup", ()) if each["kind"] in FindingKind]
        return RunRecord(name, history, checked=tuple(map(Finding.from_json, known)), source=source)
    except (ArithmeticError, AttributeError, ConfigurationError, LookupError, TypeError, ValueError) as error:
        raise UnreadableFileError(
            f"has an AttentionMonitor state that can't be read ({_first_line(error)}): it is damaged, or from another "
            "version of attnwatch"
        ) from error


def _history(state: dict[str, Any], total_steps: int | None) -> AttentionHistory:
    buffer = HistoryBuffer(state["sites"], tuple(Statistic.registry), max(len(state["steps"]), 1))
    buffer.load_state_dict(state)
    return buffer.history(dict.fromkeys(state["sites"], _OBSERVED), total_steps=total_steps)


def _check_sums(file: Path) -> None:
    """Verify the checksums, which PyTorch does not, of members small enough to be parts of a history."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.file_size <= _MOST_CHECKED_BYTES:
                archive.read(member)


def _why_not_loaded(file: Path, error: Exception) -> str:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if not names:
        return f"is damaged, or is not a checkpoint ({_first_line(error)})"
    return (
        f"holds objects of {', '.join(sorted(names)[:5])}, and reading them would run code; judge the run by its log, "
        "or keep such objects out of checkpoints (save_hyperparameters(ignore=[…]))"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
