"""Publication of the results of a training: verdicts and actions, curves, pictures, and the page."""

import math
from collections.abc import Mapping
from typing import Any

from attnwatch.callbacks.checkup import RunCheckup
from attnwatch.callbacks.pictures import Pictures
from attnwatch.callbacks.publisher import Publisher
from attnwatch.callbacks.run_report import RunReport
from attnwatch.callbacks.verdicts import Verdicts
from attnwatch.dashboard import TOTAL_STEPS_TAG, run_scalars, run_tags
from attnwatch.dashboard.card import RunCard
from attnwatch.dashboard.outcome import RunOutcome
from attnwatch.dashboard.scalars import RATE_TAG, RISK_TAG
from attnwatch.diagnosis import Diagnosis
from attnwatch.recorder import AttentionHistory, RecordingOptions
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import NonFatal


class Publication:
    """Judge a training and publish the results.

    Args:
        verdicts: verdicts on the run, and actions for its findings.
        checkup: checkup of the first steps.
        report: page about the run.
        options: arguments of the recorder.
        max_layer_curves, figures_every_n_steps: see `AttentionMonitor`.

    Attributes:
        num_observations: number of published observations.
    """

    def __init__(
        self,
        verdicts: Verdicts,
        checkup: RunCheckup,
        report: RunReport,
        options: RecordingOptions,
        *,
        max_layer_curves: int,
        figures_every_n_steps: int | None,
    ):
        self._verdicts, self._checkup, self._report, self._options = verdicts, checkup, report, options
        self._max_layer_curves, self._figures_every_n_steps = max_layer_curves, figures_every_n_steps
        self.restart()

    def restart(self) -> None:
        """Begin anew, for another training."""
        self._verdicts.restart()
        self._report.restart()
        self._non_fatal = NonFatal()
        self._shown_remarks: set[str] = set()
        self._step, self.num_observations = -1, 0
        self._total_steps: int | None = None
        self._publisher = Publisher(self._max_layer_curves)
        self._pictures = Pictures(self._figures_every_n_steps, self._publisher)

    def start(self, run: TrainerRun) -> None:
        """Tell the user which outputs will come less often than requested, or not at all."""
        self._pictures.check(run, self._options)
        self._report.start(run)

    def publish(self, run: TrainerRun, history: AttentionHistory, num_observations: int) -> None:
        """Publish new observations, and judge them.

        Args:
            run: the training.
            history: observations that have reached the host so far.
            num_observations: number of observations of the run, including those that the history does not keep.
        """
        diagnosis = self._judge(run, history, num_observations)
        numbers = dict.fromkeys(run_tags(), math.nan) | run_scalars(history, -1)
        run.log(numbers | {RISK_TAG: diagnosis.risk}, diagnosis.step)
        self._pictures.draw_if_due(run, history)
        for remark in [each for each in run.remarks if each not in self._shown_remarks]:
            self._shown_remarks.add(remark)
            run.inform(remark)

    def react_to_checkup(self, run: TrainerRun, history: AttentionHistory) -> None:
        """Judge the run again after the checkup found something."""
        self._verdicts.judge(history, self._checkup)
        self._react(run, history)

    def publish_rest(self, run: TrainerRun, history: AttentionHistory, num_observations: int) -> None:
        """Publish the remaining observations when a training ends; see `publish`."""
        if num_observations > self.num_observations:
            self._judge(run, history, num_observations)
        self._publish_card(run, history)

    def end(self, run: TrainerRun, history: AttentionHistory) -> None:
        """Publish the results of a finished training."""
        if (last := self._verdicts.last) is not None:
            self._publisher.outcome(run.loggers, RunOutcome(last, self._options, run.hyperparameters))
        if len(history):
            self._pictures.draw(run, history)
        self.write_page(run, history)
        if self._report.path is not None and self._report.path.exists():
            self._publisher.page(run.loggers, self._report.path)

    def write_page(self, run: TrainerRun, history: AttentionHistory) -> None:
        """Write the page about a finished or interrupted training."""
        if run.is_main_process and (last := self._verdicts.last) is not None:
            self._report.write(run, history, last, self._checkup)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs."""
        steps = {"published_step": self._step, "drawn_step": self._pictures.drawn_step}
        return {"findings": self._verdicts.state_dict(), "report": self._report.state_dict(), **steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            ConfigurationError: `state` is from another version.
        """
        self._verdicts.load_state_dict(state["findings"])
        self._report.load_state_dict(state["report"])
        self._step, self._pictures.drawn_step = state["published_step"], state["drawn_step"]

    def _judge(self, run: TrainerRun, history: AttentionHistory, num_observations: int) -> Diagnosis:
        self._publisher.history(run.loggers, history, after_step=self._step)
        self._step, self.num_observations = int(history.steps[-1]), num_observations
        diagnosis = self._verdicts.judge(history, self._checkup)
        numbers = {RISK_TAG: diagnosis.risk, RATE_TAG: run.learning_rate}
        numbers = {tag: number for tag, number in numbers.items() if not math.isnan(number)}  # drawn as triangles
        if history.total_steps != self._total_steps:
            self._total_steps = history.total_steps
            numbers |= {TOTAL_STEPS_TAG: history.total_steps or math.nan}
        self._publisher.scalars(run.loggers, numbers, diagnosis.step)
        self._report.note(run, diagnosis)
        self._react(run, history)
        return diagnosis

    def _react(self, run: TrainerRun, history: AttentionHistory) -> None:
        new = self._verdicts.news()
        if new:
            self._publish_card(run, history)
        if run.is_main_process and (last := self._verdicts.last) is not None:
            self._report.write_if_due(run, history, last, self._checkup, is_news=bool(new))
        for finding, action in new:
            with self._non_fatal("the monitor failed", key="monitor"):
                self._verdicts.act(action, finding, run, self._publisher)

    def _publish_card(self, run: TrainerRun, history: AttentionHistory) -> None:
        if (last := self._verdicts.last) is not None:
            card = RunCard(last, history, self._checkup.results, run.changes, run.remarks, self._report.path)
            self._publisher.card(run.loggers, card)
