"""Timing of the pictures of a history."""

import dataclasses
import time

from torch import nn

from attnwatch.callbacks.publisher import Publisher
from attnwatch.capture import UNPRUNED_HEADS, kept_heads, site_name
from attnwatch.recorder import AttentionHistory, RecordingOptions
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.messages import duration

_SHARE_OF_TIME = 0.005


class Pictures:
    """Draw pictures as often as requested, time permitting, and inform the user if they come less often.

    Args:
        every_n_steps: minimum number of steps between pictures; None draws only when `draw` is called.
        publisher: publisher of the pictures.

    Attributes:
        drawn_step: step of the last observation that was drawn during the training.
    """

    def __init__(self, every_n_steps: int | None, publisher: Publisher):
        self.drawn_step = 0
        self._every_n_steps = every_n_steps
        self._publisher = publisher
        self._next_time = self._seconds = 0.0
        self._has_informed = False
        self._shown_step: int | None = None

    def check(self, run: TrainerRun, options: RecordingOptions) -> None:
        """Inform the user, before training, if observations are transferred less often than pictures are requested."""
        every, transfers = self._every_n_steps, options.observations_per_flush
        if every is not None and every < transfers * options.every_n_steps:
            run.inform(
                f"pictures come every {transfers * options.every_n_steps} steps, not every {every} "
                f"(`figures_every_n_steps`): observations leave the device after every {transfers} observed steps "
                f"(`flush_every`), which are {options.every_n_steps} steps apart (`every_n_steps`). Lower these."
            )

    def draw_if_due(self, run: TrainerRun, history: AttentionHistory) -> None:
        """Draw if enough steps and enough time have passed since the last pictures."""
        step, every = int(history.steps[-1]), self._every_n_steps
        if every is None or step < self.drawn_step + every:
            return
        begin = time.monotonic()
        if begin < self._next_time:
            self._inform(run)
            return
        self.draw(run, history)
        self.drawn_step = step
        self._seconds = time.monotonic() - begin
        self._next_time = begin + self._seconds / _SHARE_OF_TIME

    def draw(self, run: TrainerRun, history: AttentionHistory) -> None:
        """Draw now, however long it takes, unless the last pictures are recent enough."""
        if not history.sites or self._is_shown(int(history.steps[-1])):
            return
        self._shown_step = int(history.steps[-1])
        self._publisher.figures(run.loggers, history, run.changes, _removed_heads(run.model))

    def _is_shown(self, step: int) -> bool:
        """Return whether pictures were drawn at a step, or less than half the interval of pictures before it."""
        if self._shown_step is None:
            return False
        return self._shown_step == step or 2 * (step - self._shown_step) < (self._every_n_steps or 0)

    def _inform(self, run: TrainerRun) -> None:
        if not self._has_informed:
            self._has_informed = True
            run.inform(
                f"pictures come less often than every {self._every_n_steps} steps (`figures_every_n_steps`): the last "
                f"took {duration(self._seconds)} to draw, and drawing may take {_SHARE_OF_TIME:.1%} of the time, so "
                f"the next come {duration(self._seconds / _SHARE_OF_TIME)} later. Give a larger "
                "`figures_every_n_steps`, or None for pictures at the end only; the history has every observation."
            )


def _removed_heads(model: nn.Module) -> dict[str, set[int]]:
    """Return the removed heads of each attention module, numbered as in the unpruned model, by site."""
    removed = {}
    for path, module in model.named_modules():
        if (kept := kept_heads(module)) is not None:
            unpruned = range(getattr(module, UNPRUNED_HEADS)[0])
            removed[site_name(path, module)] = set(unpruned) - set(kept.tolist())
    return removed


def flushed_for_pictures(options: RecordingOptions, every_n_steps: int | None) -> RecordingOptions:
    """Return options with transfers as often as pictures are requested, unless the user has set `flush_every`."""
    if options.flush_every is not None or every_n_steps is None:
        return options
    wanted = max(every_n_steps // options.every_n_steps, 1)
    return dataclasses.replace(options, flush_every=min(wanted, options.observations_per_flush))
