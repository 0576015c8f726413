"""Trainings of the transformers Trainer that are killed while they save a checkpoint, each at another point of it.

The Trainer is forked, so that the many trainings pay for their imports and their first steps once.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from attnwatch import ConfigurationError, Guard
from attnwatch.trainers.transformers import keeping
from attnwatch.transformers import AttentionMonitor, HeadPruning, TokenDropping
from tests.support.models import LAYERS
from tests.support.transformers_training import trainer

EARLIER, SAVED = "checkpoint-4", "checkpoint-8"
_SAVED_STEP = 8
_TEMPORARY = re.compile(r"\.[^.]+(?=\.tmp$)")
_FILE_CALLS = {"open", "write", "flush", "fsync", "close", "chmod", "replace", "unlink", "stat", "__exit__"}


class Events:
    """Numbers the calls of C functions from where attnwatch begins to write, and kills the process at one of them.

    Args:
        writer: method of the keeper that writes.
        kill_at: number of the call; None: of none.

    Attributes:
        count: of them so far.
        ours: numbers of those that attnwatch makes.
        of_files: numbers of those that touch a file.
    """

    def __init__(self, writer: str, kill_at: int | None = None):
        self.count, self.ours, self.of_files = 0, [], []
        self._writer, self._kill_at, self._is_writing, self._has_begun = writer, kill_at, False, False

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if code.co_filename == keeping.__file__ and code.co_name == self._writer and event in ("call", "return"):
            self._is_writing, self._has_begun = event == "call", True
        if event != "c_call" or not self._has_begun:
            return
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._is_writing:
            self.ours.append(self.count)
            if argument.__name__ in _FILE_CALLS:
                self.of_files.append(self.count)
        self.count += 1

    def points(self, number: int) -> list[int]:
        """Where to kill: a third of them at files of ours, a third elsewhere in what is ours, the rest anywhere."""
        draw = random.Random(0)
        points = {*draw.sample(self.of_files, number // 3), *draw.sample(self.ours, number // 3)}
        while len(points) < number:
            points.add(draw.randrange(self.count))
        return sorted(points)


class Killing(hf.TrainerCallback):
    """Before a checkpoint is saved, forks the training for each point at which it is to be killed."""

    def __init__(self, directory: Path, number: int, writer: str):
        self._directory, self._number, self._writer = directory, number, writer
        self._events: Events | None = None
        self.folders: list[Path] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step != _SAVED_STEP:
            return
        if self._is_child(args, Events(self._writer), "counted"):
            return
        points = json.loads((self._directory / "points.json").read_text())
        assert len(points) == self._number
        for point in points:
            if self._is_child(args, Events(self._writer, point), f"killed-{point}"):
                return

    def on_save(self, args, state, control, **kwargs) -> None:
        if self._events is not None:
            sys.setprofile(None)
            (self._directory / "points.json").write_text(json.dumps(self._events.points(self._number)))
            os._exit(0)

    def _is_child(self, args: hf.TrainingArguments, events: Events, name: str) -> bool:
        folder = self._directory / name
        shutil.copytree(Path(args.output_dir, EARLIER), folder / EARLIER)
        child = os.fork()
        if child == 0:
            args.output_dir, self._events = str(folder), events
            sys.setprofile(events)
            return True
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) == (name != "counted"), f"{name} ended with {status}"
        self.folders.append(folder)
        return False


def training(directory: Path, *more: hf.TrainerCallback, resume: str | None = None) -> dict[str, Any]:
    """What a training comes to; all of it must be the same after it was resumed."""
    monitor = AttentionMonitor(every_n_steps=3)
    pruning = HeadPruning(0.5, start=5, end=10, num_cuts=2, guard=Guard(tolerance=10.0, window=2))
    dropping = TokenDropping(0.5, min_tokens=4, first_layer=0, last_layer=LAYERS - 1)
    run = trainer(
        *(monitor, pruning, dropping, *more), directory=directory, max_steps=14, save_strategy="steps", save_steps=4
    )
    run.train(resume_from_checkpoint=resume)
    history = monitor.history
    return {
        "losses": run.losses[-6:],
        "weights": {name: value.clone() for name, value in run.model.state_dict().items()},
        "heads": [cut.plan.heads for cut in pruning.cuts],
        "tokens": dropping.dropper.layer_tokens,
        "steps": history.steps.tolist(),
        "entropy": torch.from_numpy(history["entropy"]),
    }


def outcome(folder: Path, expected: dict[str, Any]) -> str:
    """What comes of resuming a killed training: "equal", "different: WHAT" or "refused: MESSAGE".

    Where it is refused, the checkpoint before it is tried.
    """
    try:
        found = training(folder, resume=str(folder / SAVED))
    except (ConfigurationError, FileNotFoundError) as error:
        again = _compared(training(folder, resume=str(folder / EARLIER)), expected)
        return f"refused: {error}\nfrom the one before: {again}"
    return _compared(found, expected)


def _compared(found: dict[str, Any], expected: dict[str, Any]) -> str:
    different = [name for name, value in found.items() if not _equal(value, expected[name])]
    return f"different: {different}" if different else "equal"


def killed_and_resumed(directory: Path, number: int, writer: str) -> dict[str, list]:
    """Kill so many trainings while a method of the keeper writes, and resume them.

    Of those that left files of the same names, one is resumed.

    Returns:
        Name of a training to [names of the files in its checkpoint, its outcome].
    """
    directory.mkdir()
    killing = Killing(directory, number, writer)
    expected = training(directory / "whole", killing)
    outcomes: dict[tuple[str, ...], list] = {}
    for folder in killing.folders:
        names = tuple(sorted(_TEMPORARY.sub("", file.name) for file in (folder / SAVED).iterdir()))
        if names not in outcomes:
            outcomes[names] = [folder.name, _in_child(folder, expected)]
    return {name: [names, of_name] for names, (name, of_name) in outcomes.items()}


def main(directory: Path) -> None:
    """Write to outcomes.json what came of trainings with a disk that has room and with one that is almost full."""
    with_room = killed_and_resumed(directory / "room", 10, "begin")
    keeping._BYTES_PER_PARAMETER = float("inf")
    almost_full = killed_and_resumed(directory / "almost full", 30, "finish")
    (directory / "outcomes.json").write_text(json.dumps({"room": with_room, "almost full": almost_full}))


def _in_child(folder: Path, expected: dict[str, Any]) -> str:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            text = outcome(folder, expected)
        except BaseException:
            text = traceback.format_exc()
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        text = stream.read().decode()
    os.wait()
    return text


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and first.keys() == second.keys():
        return all(_equal(first[name], second[name]) for name in first)
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.equal(first.nan_to_num(9.0), second.nan_to_num(9.0))
    return first == second
