"""Outcome of a finished run, for comparison with other runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from attnwatch.dashboard.scalars import LOSS_TAG, RISK_TAG
from attnwatch.diagnosis import Diagnosis
from attnwatch.loggers import Setting
from attnwatch.recorder import RecordingOptions
from attnwatch.statistics import OVERVIEW, Statistic


@dataclass(frozen=True)
class RunOutcome:
    """Verdict on a finished run, with the settings of its training and recording.

    Attributes:
        diagnosis: the verdict.
        options: arguments of the recorder.
        hyperparameters: hyperparameters known to the trainer, by name.
    """

    diagnosis: Diagnosis
    options: RecordingOptions
    hyperparameters: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Setting]:
        """Verdict, hyperparameters of the trainer, and arguments of the recorder, by name.

        Values that are neither numbers nor strings are converted to strings; None is left out.
        """
        found = [finding.kind.value for finding in self.diagnosis.findings if not finding.is_note]
        status = self.diagnosis.status.value.replace("_", " ")
        verdict = {f"{OVERVIEW}/verdict": status, f"{OVERVIEW}/findings": ", ".join(found) or "none"}
        recorder = {f"monitor/{name}": value for name, value in asdict(self.options).items()}
        named = {**verdict, **self.hyperparameters, **recorder}
        return {name: _setting(value) for name, value in named.items() if value is not None}

    @property
    def metrics(self) -> list[str]:
        """Tags of the curves whose last values are the outcome."""
        return [RISK_TAG, LOSS_TAG, Statistic.registry["normalized_entropy"].tag]


def _setting(value: Any) -> Setting:
    return value if isinstance(value, str | bool | int | float) else str(value)
