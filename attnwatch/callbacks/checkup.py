"""Training checkup that is run by the hooks of a trainer."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from attnwatch.checkup import Check, TrainingCheckup
from attnwatch.diagnosis import Finding
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import NonFatal


class _Skipped(Exception):
    """Signal that a batch is not trained on."""


class RunCheckup:
    """`TrainingCheckup` of one training, which does nothing if it is not enabled.

    Args:
        is_enabled: True to check the training.

    Attributes:
        findings: findings so far. Those from before the training was resumed stay until their check has a new answer.
        checkup: the checkup; None before the first step.
    """

    def __init__(self, *, is_enabled: bool):
        self._is_enabled = is_enabled
        self._step = contextlib.ExitStack()
        self._non_fatal = NonFatal()
        self.checkup: TrainingCheckup | None = None
        self._earlier: list[Finding] = []
        self.findings: list[Finding] = []

    @property
    def ruled_out(self) -> frozenset[str]:
        """Names of the faults that the model does not have."""
        return frozenset() if self.checkup is None else self.checkup.ruled_out

    @property
    def results(self) -> dict[str, str]:
        """Result of each check by name; empty before the first step, or without a checkup."""
        return {} if self.checkup is None else self.checkup.results

    def restart(self) -> None:
        """Begin anew, for another training."""
        self.close()
        self.checkup, self._earlier, self.findings = None, [], []

    def begin_batch(self, run: TrainerRun) -> None:
        """Observe the forward and backward that follow."""
        if self._is_enabled:
            with self._non_fatal("the checkup failed", key="checkup"):
                if self.checkup is None:  # optimizers may not exist yet when training starts
                    (_, optimizers), *_ = run.models_with_optimizers()
                    self.checkup = TrainingCheckup(
                        run.model,
                        optimizers=optimizers,
                        steps_per_epoch=run.steps_per_epoch,
                        total_steps=run.total_steps,
                    )
                self._step.enter_context(self.checkup.step(run.global_step))

    def skip_batch(self) -> None:
        """Discard a batch that has begun and is not trained on."""
        self._step.__exit__(_Skipped, _Skipped(), None)

    def end_backward(self) -> bool:
        """Check the observations since the batch began, once, and return whether there is a new finding."""
        with self._non_fatal("the checkup failed", key="checkup"):
            self._step.close()
        known = {(finding.kind, finding.is_note) for finding in self.findings}
        if self.checkup is not None:
            earlier = [each for each in self._earlier if each.kind.value not in self.checkup.answered]
            self.findings = self.checkup.findings + earlier
        return any((finding.kind, finding.is_note) not in known for finding in self.findings)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the findings as numbers and strings."""
        return [finding.as_json() for finding in self.findings]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue with the findings that `state_dict` returned, except those of checks that no longer exist."""
        known = [each for each in state if each["kind"] in Check.registry]
        self._earlier = list(map(Finding.from_json, known))
        self.findings = list(self._earlier)

    def close(self) -> None:
        """Remove the checkup from the model. An open batch is not checked."""
        self.skip_batch()
        if self.checkup is not None:
            self.checkup.close()
