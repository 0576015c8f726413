"""Checkpoints of the transformers Trainer, and their log."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnwatch.plugins import register
from attnwatch.runs.logged import Points, logged_run, others
from attnwatch.runs.monitor_state import load_checkpoint, monitor_states, run_of_state
from attnwatch.runs.readers.base import RunReader
from attnwatch.runs.record import Curve, RunRecord
from attnwatch.utils.files import UnreadableFileError, read_json
from attnwatch.utils.states import STATE_FILE

_LOG = "trainer_state.json"
_CHECKPOINTS = f"checkpoint-*/{_LOG}"
_STEP = "step"
_MOST_BYTES = 2**30


@register
class TransformersCheckpointReader(RunReader):
    """Reader of a transformers Trainer checkpoint, its `trainer_state.json`, or an output folder with checkpoints."""

    name = "transformers"
    title = "transformers Trainer checkpoint"
    gives = (
        "everything that an AttentionMonitor recorded, for every head, and what the checkup found; the loss and other "
        "numbers from the Trainer's log. From `trainer_state.json` alone: the numbers of the whole model"
    )
    precedence = 1

    def find(self, path: Path) -> Sequence[Path]:
        if not path.is_dir():
            return [path] if path.name == _LOG and path.is_file() else []
        logs = [log for log in (path / _LOG, *path.glob(_CHECKPOINTS)) if log.is_file()]
        return [max(logs, key=_number)] if logs else []

    def read(self, place: Path, *, loss_tag: str | None = None) -> RunRecord:
        log = read_json(place, most_bytes=_MOST_BYTES)
        if not isinstance(log, Mapping) or not isinstance(log.get("log_history"), list):
            raise UnreadableFileError("is not a Trainer state: it has no log_history")
        name, total_steps = _name(place), _total_steps(log.get("max_steps"))
        curves = _curves(log["log_history"])
        state = _state_beside(place, log.get("global_step"))
        if state is None or loss_tag is not None:
            title = "transformers Trainer log"
            return logged_run(name, curves, source=title, loss_tag=loss_tag, total_steps=total_steps)
        record = run_of_state(name, state, source=self.title, total_steps=total_steps)
        return replace(record, curves=others(curves))


def _number(log: Path) -> int:
    """Return the step in the name of a checkpoint; -1 for the log of the output folder."""
    number = log.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and log.parent.match("checkpoint-*") else -1


def _name(log: Path) -> str:
    folder = log.absolute().parent
    return f"{folder.parent.name}/{folder.name}" if folder.match("checkpoint-*") else folder.name


def _total_steps(max_steps: object) -> int | None:
    return max_steps if type(max_steps) is int and 0 < max_steps <= 2**53 else None


def _curves(entries: Sequence[Any]) -> dict[str, Curve]:
    points = Points()
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or type(entry.get(_STEP)) is not int:
            raise UnreadableFileError(f"is damaged: entry {number} of its log_history has no step")
        points.add_row(entry[_STEP], {name: value for name, value in entry.items() if name != _STEP})
    return points.curves()


def _state_beside(log: Path, step: object) -> Mapping[str, Any] | None:
    """Return the AttentionMonitor state in a checkpoint; None if the training had no monitor."""
    file = log.parent / STATE_FILE
    if not file.is_file():
        return None
    content = load_checkpoint(file)
    if not isinstance(content, Mapping) or content.get("step") != step:
        raise UnreadableFileError(
            f"has a {STATE_FILE} from another step or run beside it: move that file away to judge the log alone"
        )
    states = monitor_states(content.get("states"))
    return states[0] if states else None
