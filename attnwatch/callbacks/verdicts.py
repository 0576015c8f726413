"""Verdicts on one training, and the user's actions for new findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from attnwatch.alerts import Alert, Alerts
from attnwatch.callbacks.checkup import RunCheckup
from attnwatch.callbacks.publisher import Publisher
from attnwatch.diagnosis import Action, Diagnosis, Finding, FindingActions, FindingRule, RuleSet, Thresholds, diagnose
from attnwatch.recorder import AttentionHistory
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.arguments import require_instance
from attnwatch.utils.messages import warn


class Verdicts:
    """Verdicts on a training run.

    Args:
        on_finding, thresholds, rules, alert: see `AttentionMonitor`.

    Attributes:
        last: the last verdict; None before the first.
        want_to_stop: True once a finding should stop the training.

    Raises:
        ConfigurationError: an argument is invalid.
        ImportError: `alert` is given, but Apprise is not installed.
    """

    def __init__(
        self,
        on_finding: Action | Mapping[str, Action],
        thresholds: Thresholds | None,
        rules: Sequence[FindingRule],
        alert: str | Sequence[str] | None = None,
    ):
        require_instance("thresholds", thresholds, Thresholds)
        self._actions = FindingActions(on_finding)
        self._alerts = Alerts(alert)
        self._thresholds, self._rules = thresholds, RuleSet(rules)
        self.last: Diagnosis | None = None
        self.want_to_stop = False

    @property
    def may_act(self) -> bool:
        """True if some kind of finding does more than warn."""
        return self._actions.may_act

    @property
    def may_stop(self) -> bool:
        """True if some kind of finding stops the training."""
        return self._actions.may_stop

    def restart(self) -> None:
        """Begin anew, for another training."""
        self.last, self.want_to_stop = None, False
        self._actions.reset()
        self._rules.reset()
        self._alerts.restart()

    def of(self, history: AttentionHistory, checkup: RunCheckup) -> Diagnosis:
        """Return the verdict on a history and the findings of a checkup."""
        return diagnose(
            history,
            thresholds=self._thresholds,
            rules=self._rules,
            checked=checkup.findings,
            ruled_out=checkup.ruled_out,
        )

    def judge(self, history: AttentionHistory, checkup: RunCheckup) -> Diagnosis:
        """Judge a history and a checkup, and keep the verdict as the last one."""
        self.last = self.of(history, checkup)
        return self.last

    def news(self) -> list[tuple[Finding, Action]]:
        """Return the new findings of the last verdict, once, each with the action that the user chose."""
        return [] if self.last is None else self._actions.new_findings(self.last)

    def finish(self) -> None:
        """Wait a few seconds for pending alerts."""
        self._alerts.finish()

    def act(self, action: Action, finding: Finding, run: TrainerRun, publisher: Publisher) -> None:
        """Carry out the user's action for a finding, and send an alert unless the finding is ignored or a note.

        Args:
            action, finding: one of `news`.
            run: the training.
            publisher: publisher of the alert.
        """
        if action != "ignore" and not finding.is_note and run.is_main_process:
            alert = Alert.of(finding)
            publisher.alert(run.loggers, alert)
            self._alerts.send(alert)
        if callable(action):
            action(finding, run.trainer, run.model)
        elif action != "ignore":
            self.want_to_stop |= action == "stop"
            warn(str(finding), always=True, once_for_all=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the findings that currently hold."""
        return self._actions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            ConfigurationError: `state` is from another version.
        """
        self._actions.load_state_dict(state)
