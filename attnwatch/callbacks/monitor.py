"""Attention monitor: a thin layer over the recorder and the diagnosis."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from attnwatch.callbacks.checkup import RunCheckup
from attnwatch.callbacks.part import TrainingPart
from attnwatch.callbacks.pictures import flushed_for_pictures
from attnwatch.callbacks.publication import Publication
from attnwatch.callbacks.run_report import RunReport
from attnwatch.callbacks.unobserved import UnobservedAttention
from attnwatch.callbacks.verdicts import Verdicts
from attnwatch.checkup import TrainingCheckup
from attnwatch.dashboard import RISK_TAG
from attnwatch.diagnosis import Action, Diagnosis, FindingRule, Thresholds
from attnwatch.errors import ConfigurationError
from attnwatch.recorder import AttentionHistory, AttentionRecorder, RecordingOptions
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.arguments import require_int
from attnwatch.utils.messages import NonFatal, warn
from attnwatch.utils.processes import has_other_processes
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1


class AttentionMonitor(TrainingPart):
    """Record attention entropy and uniformity of every layer and head while a model trains, and judge the run.

    All loggers of the trainer receive scalars. TensorBoard also receives heatmaps, charts of several curves, the
    verdict as text and a row in HParams; Weights & Biases and MLflow also receive the heatmaps. Norms of gradients,
    weights and outputs and other layer statistics (`AttentionHistory.layers`) are recorded too, one number per layer.
    Numbers of the whole model (`attention/normalized_entropy`, `attention/risk`, …) are among the trainer's metrics. In
    Lightning's `trainer.callback_metrics`, for `EarlyStopping` and `ModelCheckpoint`, they are nan if nothing was
    observed or the risk is not known yet; in the `trainer.state.log_history` of transformers, they are then left out.
    `EarlyStopping("attention/risk")` ignores nan while this monitor is attached. Checkpoints contain the history. If no
    attention of the model can be read, a warning says so after the first observed step; training and the checkup
    continue.

    Args:
        every_n_steps: interval in optimizer steps: the first step at or after each multiple of it is observed.
        num_query_rows: number of query rows to read; None means all. See `attention_statistics`.
        sites: glob patterns of the sites to observe; None means all.
        on_finding: action for a finding, once each time it appears: `"warn"`, `"stop"` (warn and stop training),
            `"ignore"` (only show it on the dashboard), a function of (finding, trainer, model), where Lightning's model
            is the LightningModule, or a mapping from kinds to one of these; kinds that are not in it warn. A resumed
            run continues past the finding that stopped it. Notes (`Finding.is_note`) neither warn nor stop; a function
            receives them only if a mapping gives it for their kind.
        thresholds: amount of evidence that a finding requires; None means the defaults.
        checkup: check the first steps, and a few later ones, for faults; see `TrainingCheckup`.
        alert: Apprise URL of a chat, mail address or pager that receives new findings, such as "slack://A/B/C", or a
            list of URLs; "$NAME" stands for the URL in an environment variable. Ignored findings are not sent.
        rules: rules with other thresholds, such as `[UniformAttention(enter=0.98)]`, or switched off; see `diagnose`.
        max_layer_curves: maximum number of curves per statistic; the layers are evenly spaced.
        figures_every_n_steps: minimum number of steps between pictures, which take at most 0.5% of the time; the last
            ones are drawn at the end. None means at the end only.
        flush_every: number of observed steps per transfer from the device, after which dashboards and findings are
            updated; None means as many as cover 50 steps, at least 5, but no more than `figures_every_n_steps` covers.
        max_history: maximum number of observations to keep; see `AttentionRecorder`.
        seed: seed of the random query rows.
        report: write a page about the run, `attnwatch-run.html` in the folder of the trainer's logs, and its data as
            `attnwatch-run.npz` for `attnwatch report` and `judge`. The page is written when there is a new finding, at
            the end, and in between as long as writing takes at most 0.3% of the time. False writes none; a path
            replaces that of the page.

    Attributes:
        history: observations so far, also of an interrupted training. It continues if a trainer continues (a second
            `fit` of the same Lightning trainer, a resumed run); a new run begins a new history.
        diagnosis: verdict on the observations so far; None before the first.
        checkup: the `TrainingCheckup`, which prints as a table; None before the first step.
        report_path: path of the page; None if there is none.

    Raises:
        ConfigurationError: an argument is invalid.
    """

    example = "AttentionMonitor()"

    def __init__(
        self,
        *,
        every_n_steps: int = 10,
        num_query_rows: int | None = 32,
        sites: Sequence[str] | None = None,
        on_finding: Action | Mapping[str, Action] = "warn",
        thresholds: Thresholds | None = None,
        checkup: bool = True,
        rules: Sequence[FindingRule] = (),
        alert: str | Sequence[str] | None = None,
        max_layer_curves: int = 12,
        figures_every_n_steps: int | None = None,
        flush_every: int | None = None,
        max_history: int = 512,
        seed: int = 0,
        report: bool | str | os.PathLike[str] = True,
    ):
        require_int("max_layer_curves", max_layer_curves, minimum=0)
        require_int("figures_every_n_steps", figures_every_n_steps, minimum=1, optional=True)
        options = RecordingOptions(every_n_steps, num_query_rows, sites, flush_every, max_history, seed)
        self._options = flushed_for_pictures(options, figures_every_n_steps)
        self._verdicts = Verdicts(on_finding, thresholds, rules, alert)
        self.steers_training = self._verdicts.may_act
        self._checkup = RunCheckup(is_enabled=checkup)
        settings = {name: str(value) for name, value in vars(self._options).items()}
        self._report = RunReport(report, settings | {"checkup": str(checkup), "rules": str(list(rules))})
        self._publication = Publication(
            self._verdicts,
            self._checkup,
            self._report,
            self._options,
            max_layer_curves=max_layer_curves,
            figures_every_n_steps=figures_every_n_steps,
        )
        self._known_recorder: AttentionRecorder | None = None
        self._batch, self._training = contextlib.ExitStack(), contextlib.ExitStack()
        self._start_anew()

    def _start_anew(self) -> None:
        self._publication.restart()
        self._checkup.restart()
        self._non_fatal = NonFatal()
        self._unobserved = UnobservedAttention()
        self._has_flushed = self._has_news = False

    @property
    def history(self) -> AttentionHistory:
        """Observations so far."""
        return self._recorder_of("history").history()

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Verdict on the observations so far; None before the first."""
        if self._known_recorder is None:
            return None
        history, known = self._recorder.history(), self._verdicts.last
        if len(history) and (known is None or known.step < history.steps[-1]):
            return self._verdicts.of(history, self._checkup)
        return known

    @property
    def num_tokens(self) -> int:
        """Number of keys in the longest sequence that was observed; 0 before the first."""
        return 0 if self._known_recorder is None else self._known_recorder.num_tokens

    @property
    def checkup(self) -> TrainingCheckup | None:
        """Checkup of the training; None before its first step."""
        return self._checkup.checkup

    @property
    def description(self) -> str:
        page = "" if self.report_path is None else f"page: {self.report_path}"
        return "\n\n".join(str(each) for each in (self.diagnosis, self.checkup, page) if each)

    @property
    def report_path(self) -> Path | None:
        """Path of the page about the run; None if none is written."""
        return self._report.path

    def coverage(self) -> dict[str, str]:
        """Return `"observed"`, or the reason why it is not, for each attention site of the model."""
        return self._recorder_of("coverage").coverage()

    # Training hooks.

    def start(self, run: TrainerRun) -> None:
        self.detach()
        self._start_anew()
        self._known_recorder = recorder = AttentionRecorder(
            run.model, **vars(self._options), across_processes=True, under_trainer=True
        )
        self._training.callback(recorder.close)
        self._training.callback(self._checkup.close)
        self._publication.start(run)
        self._training.enter_context(run.unknown_is_no_alarm(RISK_TAG))

    def resume(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        self._recorder.total_steps = run.total_steps
        if not state:
            return
        try:
            check_format(state, _STATE_FORMAT, type(self).__name__)
            self._recorder.load_state_dict(state["recorder"])
            self._publication.load_state_dict(state)
            self._checkup.load_state_dict(state["checkup"])
        except ConfigurationError as error:
            warn(f"the history in the checkpoint can't be continued, a new one begins: {error}", once_for_all=True)
            return
        self._publication.num_observations = self._recorder.num_observations
        self._report.resume(run.global_step)

    def begin_batch(self, run: TrainerRun) -> None:
        with self._report.timing():
            self._begin_batch(run)

    def _begin_batch(self, run: TrainerRun) -> None:
        self._batch_step = run.global_step
        self._batch.enter_context(self._recorder.step(run.global_step))
        if self._recorder.is_observing:  # optimizers may not exist yet when training starts
            with self._non_fatal("weight updates are not recorded", key="optimizers"):
                self._recorder.follow(run.models_with_optimizers()[0][1])
        self._checkup.begin_batch(run)

    def skip_batch(self) -> None:
        self._batch.close()
        self._checkup.skip_batch()

    def before_optimizer_step(self, optimizer: Optimizer | None) -> None:
        with self._report.timing():
            self._recorder.read_parameters(optimizer)
            self._has_news |= self._checkup.end_backward()

    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        with self._report.timing():
            self._end_batch(run, loss, is_last=is_last)

    def _end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        self._batch.close()
        self._has_news |= self._checkup.end_backward()  # of a micro-batch, which no optimizer step follows
        is_observing = self._recorder.is_observing
        if loss is not None:
            self._recorder.record_loss(loss)
        self._unobserved.check_step(self._recorder, self._batch_step)
        # Callbacks that monitor a metric find it from the first step on, and up to date whenever they read it. All
        # processes flush at the same steps, whatever each has observed.
        if run.global_step != self._batch_step and (is_last or not self._has_flushed):
            self._has_flushed = True
            self._recorder.flush(finish_step=True)
        with self._non_fatal("the monitor failed", key="monitor"):
            if is_observing and run.is_main_process:
                self._unobserved.check_sites(self._recorder)
            is_new = self._recorder.num_observations > self._publication.num_observations
            is_restored = self._verdicts.last is None and self._recorder.num_observations > 0
            if is_new or is_restored:
                self._publication.publish(run, self._flushed_history(run), self._recorder.num_observations)
            elif self._has_news:
                self._publication.react_to_checkup(run, self._flushed_history(run))
            self._has_news = False
        # Observed steps are the same on all processes, so they all take part in the decision, whatever each observed.
        if is_observing and self._verdicts.may_stop and run.is_true_anywhere(self._verdicts.want_to_stop):
            run.stop()

    def note_metrics(self, run: TrainerRun) -> None:
        with self._non_fatal("the monitor failed", key="monitor"):
            self._report.note_metrics(run, run.global_step)

    def end(self, run: TrainerRun) -> None:
        self._recorder.flush(finish_step=True)
        with self._non_fatal("the monitor failed", key="monitor"):
            history = self._flushed_history(run)
            self._publication.publish_rest(run, history, self._recorder.num_observations)
            self._publication.end(run, history)

    def interrupt(self, run: TrainerRun) -> None:
        if self._known_recorder is None:
            return
        self._batch.close()
        with self._non_fatal("the monitor failed", key="monitor"), contextlib.suppress(KeyboardInterrupt):
            # The exception that ended the training propagates, not a second Ctrl-C.
            if not has_other_processes():
                self._recorder.flush(finish_step=True)
            history = self._flushed_history(run)
            self._publication.publish_rest(run, history, self._recorder.num_observations)
            self._publication.write_page(run, history)

    def state_dict(self) -> dict[str, Any]:
        if self._known_recorder is None:
            return {}
        self._recorder.flush()
        parts: dict[str, Any] = {"recorder": self._recorder.state_dict(), "checkup": self._checkup.state_dict()}
        parts |= {"total_steps": self._recorder.total_steps}
        return with_format(_STATE_FORMAT, parts | self._publication.state_dict())

    def detach(self) -> None:
        self._batch.close()
        self._training.close()
        self._verdicts.finish()

    def _flushed_history(self, run: TrainerRun) -> AttentionHistory:
        self._recorder.total_steps = run.total_steps
        return self._recorder.history(flushed_only=True)

    @property
    def _recorder(self) -> AttentionRecorder:
        return self._recorder_of("history")

    def _recorder_of(self, name: str) -> AttentionRecorder:
        if self._known_recorder is None:
            raise ConfigurationError(f"`{name}`: nothing has been observed yet; train with this callback first.")
        return self._known_recorder
