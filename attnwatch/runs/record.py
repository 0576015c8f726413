"""Record of a training run: its history and its events."""

import contextlib
import os
import zipfile
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnwatch.diagnosis import Diagnosis, Finding, FindingKind, diagnose
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory
from attnwatch.recorder.history import read_history, write_history

RISK_CURVE, RATE_CURVE = "risk", "learning_rate"
"""Names of the risk and learning-rate curves."""
_PASSED = "The length of the run is unknown: it has more steps than planned."
_HEADER_KEY = "run"
# Observations of which the loss is averaged, as single losses are noisy.
NUM_AVERAGED_LOSSES = 5
_MEMBERS = {"header.npy", "steps.npy", "loss.npy"}


class Curve(NamedTuple):
    """Values of one quantity at some steps of a run.

    Attributes:
        steps: int64 [points], ascending.
        values: float64 [points].
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class RunEvent:
    """Change to a training run or to its model.

    Attributes:
        step: number of complete optimizer steps at the change.
        kind: "heads", "tokens", "resume", or a name given by a callback.
        label: a few words for a mark on a timeline.
        text: what happened, in sentences.
        details: facts and numbers by name.
    """

    step: int
    kind: str
    label: str
    text: str = ""
    details: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """Complete record of a training run, finished or not.

    Attributes:
        name: short name of the run, such as the name of its folder.
        history: observations; it has no sites if no attention was recorded.
        curves: learning rate, metrics and other numbers from the trainer by name, each at its own steps.
        events: changes in order of steps.
        checked: findings of the checkup.
        ruled_out: names of faults that the checkup ruled out.
        checkup: result of each check in words, by the check's name; empty without a checkup.
        settings: arguments of the callbacks and of the trainer by name, as text.
        environment: versions and hardware by name, as text.
        source: kind of log that the record was read from, in words; empty if attnwatch recorded the run itself.
        outcomes: sentences on what callbacks have done to the training.
        remarks: sentences in markdown that explain how to read the record.
        judged: last verdict during training; None if there was none.
    """

    name: str
    history: AttentionHistory
    curves: Mapping[str, Curve] = field(default_factory=dict)
    events: tuple[RunEvent, ...] = ()
    checked: tuple[Finding, ...] = ()
    ruled_out: frozenset[str] = frozenset()
    checkup: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    outcomes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    judged: Diagnosis | None = None

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Verdict on the run at its last observation: the one given during training, or else a new one."""
        if self.judged is not None:
            return self.judged
        return diagnose(self.history, checked=self.checked, ruled_out=self.ruled_out)

    def is_from_checkup(self, finding: Finding) -> bool:
        """Return whether the checkup has found this."""
        return _key_of(finding) in self._keys_of_checked

    @cached_property
    def _keys_of_checked(self) -> frozenset[Hashable]:
        return frozenset(map(_key_of, self.checked))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file, which `AttentionHistory.load` reads too. It replaces an existing file once it is complete.

        Raises:
            OSError: the file can't be written.
        """
        write_history(self.history, path, extra={_HEADER_KEY: self._as_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RunRecord":
        """Read a file written by `save`, or by `AttentionHistory.save`, which stores no events.

        Raises:
            ConfigurationError: the file is neither, is damaged, or is from a newer version.
            FileNotFoundError: there is no such file.
        """
        history, header = read_history(path)
        name = os.path.basename(os.fspath(path)).removesuffix(".npz")
        if _HEADER_KEY not in header:
            return cls(name, history)
        try:
            return _from_json(header[_HEADER_KEY], history)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"`path`: the record of the run in {os.fspath(path)!r} is damaged ({type(error).__name__}: {error}); "
                "its history can still be read: AttentionHistory.load."
            ) from error

    def _as_json(self) -> dict[str, Any]:
        curves = {name: [each.tolist() for each in curve] for name, curve in self.curves.items()}
        texts = {each: dict(getattr(self, each)) for each in ("checkup", "settings", "environment")}
        return {
            "name": self.name,
            "curves": curves,
            "events": [asdict(event) for event in self.events],
            "checked": [finding.as_json() for finding in self.checked],
            "ruled_out": sorted(self.ruled_out),
            "source": self.source,
            "outcomes": list(self.outcomes),
            "remarks": list(self.remarks),
            "judged": None if self.judged is None else self.judged.as_json(),
            **texts,
        }


def is_saved_run(file: Path) -> bool:
    """Return whether a file is one of `RunRecord.save` or `AttentionHistory.save`, by the names of its parts."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return set(archive.namelist()) >= _MEMBERS
    return False


def of_possible_length(record: RunRecord) -> RunRecord:
    """Return a run that has more steps than it was to have as one of unknown length, which is judged anew."""
    history = record.history
    if not len(history) or history.total_steps is None or history.total_steps > history.steps[-1]:
        return record
    remarks = (*record.remarks, _PASSED)
    return replace(record, history=replace(history, total_steps=None), judged=None, remarks=remarks)


def loss_at_ends(history: AttentionHistory) -> tuple[float, float] | None:
    """Return the first finite loss, and the mean of the last five, as single losses are noisy; None without any."""
    loss = history.loss[np.isfinite(history.loss)]
    return (float(loss[0]), float(loss[-NUM_AVERAGED_LOSSES:].mean())) if len(loss) else None


def _key_of(finding: Finding) -> Hashable:
    return finding.kind, finding.sites, finding.step, finding.message


def _from_json(stored: Mapping[str, Any], history: AttentionHistory) -> RunRecord:
    """Rebuild a record from `RunRecord._as_json`. Findings of unregistered kinds are left out."""
    return RunRecord(
        name=str(stored["name"]),
        history=history,
        curves={
            name: Curve(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))
            for name, (steps, values) in stored["curves"].items()
        },
        events=tuple(map(_event, stored["events"])),
        checked=tuple(Finding.from_json(each) for each in stored["checked"] if each["kind"] in FindingKind),
        ruled_out=frozenset(stored["ruled_out"]),
        source=str(stored["source"]),
        outcomes=tuple(map(str, stored["outcomes"])),
        remarks=tuple(map(str, stored["remarks"])),
        judged=None if stored["judged"] is None else Diagnosis.from_json(stored["judged"]),
        **{each: _texts(stored[each]) for each in ("checkup", "settings", "environment")},
    )


def _event(stored: Mapping[str, Any]) -> RunEvent:
    event = RunEvent(**stored)
    details = {name: each if isinstance(each, str) else float(each) for name, each in event.details.items()}
    return RunEvent(int(event.step), str(event.kind), str(event.label), str(event.text), details)


def _texts(stored: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(text) for name, text in stored.items()}
