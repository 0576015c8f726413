"""Recorder of attention statistics during training, independent of any trainer."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from attnwatch.attention import Accumulator, AttentionInputs
from attnwatch.capture import Capture, ForwardPass
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.recorder.calls import SiteCalls
from attnwatch.recorder.growth import SiteGrowth
from attnwatch.recorder.history import AttentionHistory
from attnwatch.recorder.layers import LayerRecorder
from attnwatch.recorder.notices import Notices
from attnwatch.recorder.observed_steps import ObservedSteps
from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.pending import PendingSteps
from attnwatch.recorder.processes import Processes
from attnwatch.recorder.rows import QueryRows
from attnwatch.utils.arguments import as_optimizers, require_int, require_module
from attnwatch.utils.messages import warn
from attnwatch.utils.processes import has_other_processes
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1


class AttentionRecorder:
    """Record statistics of every attention head and of every layer of a model, at some of its training steps.

    ```python
    with AttentionRecorder(model) as recorder:
        for step, batch in enumerate(batches):
            with recorder.step(step):
                loss = model(**batch).loss
                loss.backward()
            optimizer.step()
        history = recorder.history()
    ```

    The recorder does not change outputs, gradients or random states. Statistics stay on the model's device and reach
    the host in occasional transfers.

    Args:
        model: any module; `coverage` says which of its attention layers are observed.
        every_n_steps: interval in optimizer steps: the first step at or after each multiple of it is observed.
        num_query_rows: number of stratified random query rows to read, drawn once for the run; None means all.
            `max_logit` is the maximum over these rows.
        sites: glob patterns of the sites to observe (`["*.layers.0.*"]`); None means all.
        flush_every: number of observed steps per transfer; None means as many as cover 50 steps, at least 5.
        max_history: number of observations to keep, each of 4 bytes per statistic and head, and per layer statistic and
            layer. The newest quarter is complete. Older ones are thinned to every second, fourth, … and
            stay evenly spread over the run.
        seed: seed of the random query rows, which depend only on it and on the number of queries. No other random state
            is touched.
        total_steps: number of steps that the run will have, which improves the diagnosis; None if unknown. The
            attribute of this name may be changed.
        across_processes: record one history for all processes of `torch.distributed`, the same on each. All processes
            must then create a recorder and call `step`, `flush` and `close` alike. A flush takes two collectives and
            everything else takes none, so `history` and `state_dict` contain only flushed observations. Statistics
            within a batch (`content_sensitivity`) are means over the batches of the processes.
        under_trainer: True if a trainer's callback owns the recorder, warns about sites that are not observed, and
            calls `read_parameters` and `follow`.
        optimizers: one or several optimizers that train the model; without them, `update_ratio` is nan.

    Raises:
        NoAttentionError: the code of the model shows that it has no attention, or none that can be read. If only its
            calls can show this, or under a trainer, a warning after the first observed step replaces the error.
        ConfigurationError: an argument is invalid, or another recorder observes this model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every_n_steps: int = 10,
        num_query_rows: int | None = 32,
        sites: Sequence[str] | None = None,
        flush_every: int | None = None,
        max_history: int = 512,
        seed: int = 0,
        total_steps: int | None = None,
        across_processes: bool = False,
        under_trainer: bool = False,
        optimizers: Optimizer | Sequence[Optimizer] = (),
    ):
        require_module("model", model)
        require_int("total_steps", total_steps, minimum=1, optional=True)
        self.total_steps = total_steps
        self._options = RecordingOptions(every_n_steps, num_query_rows, sites, flush_every, max_history, seed)
        self._steps = ObservedSteps(every_n_steps)
        self._has_loss = False
        self._notices = Notices(under_trainer=under_trainer)
        self._rows = QueryRows(seed, num_query_rows)
        self._capture = Capture(model, self._observe, sites=sites, may_grow=True, may_be_empty=under_trainer)
        accumulator = Accumulator(drop_failing=True)
        self._processes = None
        if across_processes and has_other_processes():
            self._processes = Processes(self._capture.sites, accumulator, str(self._options), self._adopt)
        self._pending = PendingSteps(self._capture.sites, accumulator, self._processes)
        self._group = SiteCalls(self._capture, accumulator, self._pending, self._rows)
        self._layers = LayerRecorder(
            model, self._capture, self._steps, self._pending, self._group, reads_itself=not under_trainer
        )
        self.follow(as_optimizers("optimizers", optimizers))
        self._calls_before_step = 0
        self._buffer = HistoryBuffer(self._capture.sites, accumulator.names, max_history)
        self._growth = SiteGrowth(self._capture, self._pending, self._buffer, self._processes)
        self.attach()

    def __enter__(self) -> "AttentionRecorder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def step(self, global_step: int) -> Iterator[None]:
        """Observe the forward and backward of one training step, or of one micro-batch of it.

        If the block or a forward of the model raises, its observations do not count.

        Args:
            global_step: number of the optimizer step, the same for all accumulated micro-batches. If it goes back, as
                after restoring a checkpoint, later observations are discarded.

        Raises:
            ConfigurationError: `global_step` is not an integer.
        """
        require_int("global_step", global_step, minimum=0)
        is_new = self._steps.begin(global_step)
        if not self._steps.is_observing:
            yield
            return
        if self._processes is not None:
            self._processes.check()
        if is_new:
            self._growth.look_no_longer_than_needed()
            self._rows.clear()
            self._pending.finish()
            self._layers.begin()
            self._calls_before_step = self._capture.num_calls
        self._pending.open(global_step)
        if len(self._pending) >= self._options.observations_per_flush:
            self.flush()
        undo = self._remember()
        try:
            with self._capture.arm(counts_forwards=True, remember=self._remember), self._layers.watching():
                yield
        except BaseException:
            undo()
            raise
        self._group.compute()
        self._layers.end()
        self._notices.of_silent_sites(self._capture.silent())
        if not self._capture.sites:
            self._notices.of_no_attention(self._capture.why_none(), self.coverage(), global_step)

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Observe the steps of these optimizers for `update_ratio`. Those already observed are ignored."""
        self._layers.follow(optimizers)

    def read_parameters(self, optimizer: Optimizer | None = None) -> None:
        """Read weights and gradients of an observed step now.

        In your own loop, the end of `step` does this, unless you called it within the step. Call it after
        `scaler.unscale_(optimizer)` if you use a gradient scaler, and before gradients are clipped.

        Args:
            optimizer: optimizer whose gradients are complete, if there are several.
        """
        self._layers.read_parameters(optimizer)

    def record_loss(self, loss: Tensor | float) -> None:
        """Record the training loss of this step if it is observed; several calls are averaged.

        Call this inside `with recorder.step(…)`, or after it and before the next step.
        """
        self._has_loss = True
        if self._steps.is_observing:
            self._pending.add_loss(loss)
        elif not self._steps.has_begun:
            self._notices.of_loss_outside_of_step()

    @property
    def is_observing(self) -> bool:
        """True if the current step, or else the last one, is observed, which depends on its number."""
        return self._steps.is_observing

    @property
    def has_seen_step(self) -> bool:
        """True if attention was called in the current step, or else in the last one."""
        self._group.compute()
        return self._pending.has_seen_sites or self._capture.num_calls > self._calls_before_step

    @property
    def has_silent_sites(self) -> bool:
        """True if the forward of a site ran without an attention call; `coverage` says why."""
        return bool(self._capture.silent())

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the observed sites. The calls of the first observed step may add some."""
        return self._capture.sites

    @property
    def num_tokens(self) -> int:
        """Number of keys in the longest observed sequence; 0 before the first."""
        return self._group.num_tokens

    @property
    def num_observations(self) -> int:
        """Number of observed steps that have reached the host."""
        return self._buffer.num_observations

    def flush(self, *, finish_step: bool = False) -> None:
        """Move finished observations to the host in one transfer.

        Args:
            finish_step: also finish the step that is being observed.
        """
        self._group.compute()
        if finish_step:
            self._steps.finish()
            self._pending.finish()
        try:
            observations = self._pending.take()
        except Exception as error:
            warn(f"the observations since the last flush are lost; training continues: {error!r}")
            return
        for observation in observations:
            self._buffer.append(observation)
        if not self._has_loss:
            self._notices.of_missing_loss(self._buffer.num_observations)

    def history(self, *, flushed_only: bool = False) -> AttentionHistory:
        """Return all observations.

        Args:
            flushed_only: True to return only the observations on the host, without a transfer.
        """
        if flushed_only or self._processes is not None:
            return self._buffer.history(self.coverage(), total_steps=self.total_steps)
        self.flush()
        return self._buffer.history(self.coverage(), self._pending.peek(), total_steps=self.total_steps)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a page about the run so far, with the verdict and all observations. An existing file is replaced.

        Args:
            path: path of the HTML file, which is self-contained.

        Raises:
            ConfigurationError: the path is a folder, or is in a folder that does not exist.
            ImportError: the extra `report` of attnwatch is not installed.
            OSError: the file can't be written.
        """
        from attnwatch.report.run import write_run_page
        from attnwatch.runs import RunRecord

        write_run_page([RunRecord(Path(path).stem, self.history())], path)

    def coverage(self) -> dict[str, str]:
        """Return `"observed"`, or the reason why it is not, for each attention site of the model."""
        return self._capture.coverage()

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the recording state as tensors, numbers and strings."""
        if self._processes is None:
            self.flush()
        self._group.compute()
        parts = {"history": self._buffer.state_dict(), "pending": self._pending.state_dict()}
        return with_format(_STATE_FORMAT, {**self._steps.state_dict(), **parts, "trained": sorted(self._group.trained)})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigurationError: the state is from another version, or from a model with other sites.
        """
        check_format(state, _STATE_FORMAT, "AttentionRecorder")
        self._group.clear()
        self._growth.adopt(state["history"]["sites"])
        self._buffer.load_state_dict(state["history"], new_sites=self._capture.sites_from_calls)
        self._pending.load_state_dict(state["pending"], state["history"]["statistics"])
        self._steps.load_state_dict(state)
        self._group.trained = set(state.get("trained", ()))
        self._layers.begin()

    def attach(self) -> None:
        """Observe the model again after `close`. A new recorder is already attached."""
        self._capture.attach()
        self._layers.attach()

    def close(self) -> None:
        """Detach from the model, leaving it as it was before. The history is kept."""
        self._capture.detach()
        self._layers.close()

    def _adopt(self, sites: Sequence[str]) -> Sequence[str]:
        return self._growth.adopt(sites)

    def _observe(self, site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        if site not in self._buffer.sites:
            self._growth.grow()
        if self._group.expects(site, of):
            self._group.add(site, of, inputs)

    def _remember(self) -> Callable[[], None]:
        """Return a function that undoes everything observed in the open step from now on."""
        self._group.compute()
        self._layers.compute()
        undo = contextlib.ExitStack()
        undo.callback(self._pending.remember())
        undo.callback(self._group.clear)
        undo.callback(self._layers.forget_outputs)
        return undo.close
