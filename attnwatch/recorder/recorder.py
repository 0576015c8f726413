"""Records attention statistics during training, without knowing any trainer."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch.distributed as dist
from torch import Tensor, nn

from attnwatch.attention import AttentionInputs
from attnwatch.capture import (
    Capture,
    ForwardPass,
    HeadShard,
    at_all_heads,
    at_unpruned_heads,
    has_processes,
    head_shard,
)
from attnwatch.errors import ConfigurationError
from attnwatch.recorder.buffer import HistoryBuffer
from attnwatch.recorder.grouping import CallGroup
from attnwatch.recorder.history import AttentionHistory
from attnwatch.recorder.notices import Notices
from attnwatch.recorder.options import RecordingOptions
from attnwatch.recorder.pending import PendingSteps
from attnwatch.recorder.processes import Processes
from attnwatch.recorder.rows import QueryRows
from attnwatch.utils.arguments import require_int
from attnwatch.utils.messages import warn
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1
# For how many observed steps calls may show where attention is, if none has come before.
_MOST_STEPS_TO_LOOK = 5


class AttentionRecorder:
    """Watches a model: the statistics of every attention layer and head, at some of the training steps.

    ```python
    with AttentionRecorder(model) as recorder:
        for step, batch in enumerate(batches):
            with recorder.step(step):
                loss = model(**batch).loss
                loss.backward()
            optimizer.step()
        history = recorder.history()
    ```

    Watching changes nothing: outputs, gradients and random states are those of the run without it. Statistics stay
    on the model's device; now and then they come to the host in one transfer.

    Args:
        model: any module; see `coverage` for what of it is observed.
        every_n_steps: observe the first step at or after each multiple of it.
        num_query_rows: how many stratified random query rows are looked at; None means all. `max_logit` is the
            maximum over these rows.
        sites: glob patterns of the sites to watch (`["*.layers.0.*"]`); None means all.
        flush_every: observed steps per transfer; None means as many as cover 50 steps, at least 5.
        max_history: how many observations are kept, each 48 bytes per head (and the step that is still open). The
            newest quarter is complete, older ones are thinned to every second, fourth, … and stay evenly spread
            over the run.
        seed: of the random query rows, which depend on it and the step only; no other random state is touched.
        total_steps: that the run will have, which the history keeps for whoever judges it: more is foreseen then. None
            where nobody knows.
        under_trainer: a trainer's callback makes the calls, which says itself what is not observed. Otherwise the
            recorder says once which sites are silent although their forward ran, and why.
        across_processes: the history is that of all processes of `torch.distributed`, the same on each. All of them
            must then make a recorder and call `step`, `flush` and `close` alike; a flush is two collectives
            (`attnwatch.recorder.processes`), everything else none, so that `history` and `state_dict` know what was
            flushed. Statistics within a batch (`content_sensitivity`) are means over the processes' batches.

    Attributes:
        total_steps: as above; may be changed.

    Raises:
        NoAttentionError: the code of the model shows that it has no attention, or none that can be read. Where only
            its calls can tell, a warning comes after the first observed step.
        ConfigurationError: an argument is wrong, or another recorder watches this model.
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
    ):
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
        require_int("total_steps", total_steps, minimum=1, optional=True)
        self.total_steps = total_steps
        self._options = RecordingOptions(every_n_steps, num_query_rows, sites, flush_every, max_history, seed)
        self._last_step: int | None = None
        self._last_due: int | None = None
        self._observing = False
        self._has_step = False
        self._has_loss = False
        self._notices = Notices(under_trainer=under_trainer)
        self._steps_looked = 0
        self._rows = QueryRows(seed, num_query_rows)
        self._capture = Capture(model, self._observe, sites=sites, may_grow=True)
        self._processes = self._processes_of(self._capture.sites) if across_processes else None
        self._pending = PendingSteps(self._capture.sites, self._processes)
        self._group = CallGroup(self._receive, self._fail)
        self._calls_before_step = 0
        self._trained: set[str] = set()  # sites whose calls without gradient are none of their training
        self._shards: dict[str, HeadShard] = {}
        self._buffer = HistoryBuffer(self._capture.sites, max_history)
        self.attach()

    def __enter__(self) -> "AttentionRecorder":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @contextlib.contextmanager
    def step(self, global_step: int) -> Iterator[None]:
        """Around forward and backward of one training step; several times per step with gradient accumulation.

        What was seen in it is taken back where it raises, and what was seen in a forward of the model that raises.

        Args:
            global_step: number of the optimizer's step, the same for all micro-batches that it accumulates. Where it
                goes back, as after restoring a checkpoint, what was observed from there on is forgotten.

        Raises:
            ConfigurationError: `global_step` is not an integer.
        """
        require_int("global_step", global_step, minimum=0)
        is_new = global_step != self._last_step
        self._observing = self._options.is_due(global_step, self._last_step, self._last_due)
        self._last_step, self._has_step = global_step, True
        if not self._observing:
            yield
            return
        if self._processes is not None:
            self._processes.check()
        if is_new:
            self._look_no_longer_than_needed()
            self._last_due = global_step
            self._rows.begin(global_step)
            self._pending.finish()
            self._calls_before_step = self._capture.num_calls
        self._pending.open(global_step)
        if len(self._pending) >= self._options.observations_per_flush:
            self.flush()
        take_back = self._remember()
        try:
            with self._capture.arm(counts_forwards=True, remember=self._remember):
                yield
        except BaseException:
            take_back()
            raise
        self._group.compute()
        self._notices.of_silent_sites(self._capture.silent())
        if not self._capture.sites:
            self._notices.of_no_attention(self._capture.why_none(), self.coverage(), global_step)

    def record_loss(self, loss: Tensor | float) -> None:
        """Keep the training loss of this step, if it is observed (the mean, if called several times in it).

        Call it inside `with recorder.step(…)`, or behind it and before the next one.
        """
        self._has_loss = True
        if self._observing:
            self._pending.add_loss(loss)
        elif not self._has_step:
            self._notices.of_loss_outside_of_step()

    @property
    def is_observing(self) -> bool:
        """Whether the present step, or the last one, is observed: decided by its number alone."""
        return self._observing

    @property
    def has_seen_step(self) -> bool:
        """Whether a call of attention came in the present step, or the last one; also one that does not count."""
        self._group.compute()
        return self._pending.has_seen_sites or self._capture.num_calls > self._calls_before_step

    @property
    def has_silent_sites(self) -> bool:
        """Whether a site's forward ran although no call of attention came from it; `coverage` says why."""
        return bool(self._capture.silent())

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites of the history: calls of a first observed step may show more than the code."""
        return self._capture.sites

    @property
    def num_observations(self) -> int:
        """How many observed steps have come to the host so far."""
        return self._buffer.num_observations

    def flush(self, *, finish_step: bool = False) -> None:
        """Bring finished observations to the host, in one transfer.

        Args:
            finish_step: the step that is observed now is complete and comes along.
        """
        self._group.compute()
        if finish_step:
            self._observing = self._has_step = False
            self._pending.finish()
        try:
            observations = self._pending.take()
        except Exception as error:
            warn(f"the observations since the last flush are lost, training goes on: {error!r}")
            return
        for observation in observations:
            self._buffer.append(observation)
        if not self._has_loss:
            self._notices.of_missing_loss(self._buffer.num_observations)

    def history(self, *, flushed_only: bool = False) -> AttentionHistory:
        """Everything observed so far; or only what has come to the host already, without a transfer."""
        if flushed_only or self._processes is not None:
            return self._buffer.history(self.coverage(), total_steps=self.total_steps)
        self.flush()
        return self._buffer.history(self.coverage(), self._pending.peek(), total_steps=self.total_steps)

    def coverage(self) -> dict[str, str]:
        """For every attention site of the model `"observed"` or the reason why it is not."""
        return self._capture.coverage()

    def state_dict(self) -> dict:
        """The history and where recording stands: tensors, numbers and strings."""
        if self._processes is None:
            self.flush()
        self._group.compute()
        state = {
            "last_step": self._last_step,
            "last_due": self._last_due,
            "history": self._buffer.state_dict(),
            "pending": self._pending.state_dict(),
            "trained": sorted(self._trained),
        }
        return with_format(_STATE_FORMAT, state)

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigurationError: the state is of another version or of a model with other sites.
        """
        check_format(state, _STATE_FORMAT, "AttentionRecorder")
        self._group.clear()
        self._adopt(state["history"]["sites"])
        self._buffer.load_state_dict(state["history"], new_sites=self._capture.sites_from_calls)
        self._pending.load_state_dict(state["pending"])
        self._last_step, self._last_due = state["last_step"], state["last_due"]
        self._trained = set(state.get("trained", ()))
        self._observing = False
        self._rows.begin(self._last_due)

    def attach(self) -> None:
        """See the model's calls again after `close`. A new recorder is attached already."""
        self._capture.attach()

    def close(self) -> None:
        """Detach from the model and leave it as it was; the history stays."""
        self._capture.detach()

    def _look_no_longer_than_needed(self) -> None:
        """A first step in which attention was called tells where it is; of processes, a first flush."""
        self._steps_looked += 1
        is_settled = self._capture.has_seen_any if self._processes is None else self._processes.has_agreed
        if is_settled or self._steps_looked > _MOST_STEPS_TO_LOOK:
            self._capture.stop_looking()

    def _adopt(self, sites: Sequence[str]) -> Sequence[str]:
        """Sites that calls have shown elsewhere. Returns all, in module order."""
        self._capture.adopt(sites)
        self._grow()
        return self._capture.sites

    def _grow(self) -> None:
        sites = self._capture.sites
        if sites == self._buffer.sites:
            return
        self._buffer.grow(sites)
        self._pending.grow(sites)
        if self._processes is not None:
            self._processes.grow(sites)

    def _processes_of(self, sites: Sequence[str]) -> Processes | None:
        """None where there is only one."""
        if not (has_processes() and dist.get_world_size() > 1):
            return None
        return Processes(sites, str(self._options), self._adopt)

    def _observe(self, site: str, inputs: AttentionInputs, of: ForwardPass) -> None:
        if site not in self._buffer.sites:
            self._grow()
        if of.gradient:
            self._trained.add(site)
        elif site in self._trained:
            return
        if not self._pending.expects(site, of):
            return
        self._shards[site] = head_shard(self._capture.module(site), inputs.num_heads)
        self._group.add((site, of), inputs, self._rows.of(inputs))

    def _remember(self) -> Callable[[], None]:
        """Returns what takes back everything that is seen in the open step from now on."""
        self._group.compute()
        forget = self._pending.remember()

        def take_back() -> None:
            self._group.clear()
            forget()

        return take_back

    def _receive(self, call: tuple[str, ForwardPass], sums: Tensor) -> None:
        site, of = call
        sums = at_all_heads(at_unpruned_heads(sums, self._capture.module(site)), self._shards[site])
        self._pending.add(site, sums, of)

    def _fail(self, call: tuple[str, ForwardPass], error: Exception) -> None:
        self._capture.fail(call[0], error)
