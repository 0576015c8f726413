"""What a callback must know of a training, whichever trainer runs it."""

import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from attnwatch.heads.pruner import ModelWithOptimizers
from attnwatch.loggers.logger import Sink
from attnwatch.utils.messages import duration


class TrainerRun(Protocol):
    """One training as its trainer sees it now.

    Attributes:
        global_step: optimizer steps that are complete.
        total_steps: how far `global_step` will count; None where nobody knows.
        is_trial: whether it is too short for more than to see that it works.
        is_main_process: whether this process is the one that says things.
        has_validation_data: whether there is a `validation_loader`.
        metrics: names of the numbers that were logged.
        sinks: where numbers, pictures and words go.
        callbacks: of the trainer.
        tokenizer: of the model, where the trainer has it; None otherwise.
        arguments: what a user's function is called with, after its own first argument.
    """

    global_step: int
    total_steps: int | None
    is_trial: bool
    is_main_process: bool
    has_validation_data: bool
    metrics: Collection[str]
    sinks: Sequence[Sink]
    callbacks: Sequence[object]
    tokenizer: Any
    arguments: tuple[Any, ...]

    def log(self, numbers: Mapping[str, float], step: int, *, to_sinks: bool = False) -> None:
        """Give the trainer metrics that others can monitor, seen at `step`; and to its loggers too."""

    def tell(self, message: str) -> None:
        """Say something to the user, once for all processes, whatever loggers are configured: see `messages.tell`."""

    def is_true_anywhere(self, decision: bool) -> bool:
        """Whether it is true in some process; all of them must ask."""

    def agree(self, value: Any) -> Any:
        """The main process's value; all of them must ask."""

    def validation_loader(self) -> Iterable[Any]:
        """Of this process; where there are several, the first."""

    def to_device(self, batch: Any) -> Any:
        """The batch where the model is."""

    def stop(self) -> None:
        """End the training after this step."""

    def patients(self) -> list[ModelWithOptimizers]:
        """The model and its copies, which are cut alike, each with its optimizers."""

    def parameters_were_replaced(self) -> None:
        """Tell whoever holds parameters of the model."""


class StepClock:
    """Tells complete optimizer steps from micro-batches, and how long they took."""

    def __init__(self):
        self._step = 0
        self._began: float | None = None

    def start(self, step: int) -> None:
        """When training starts, after this step."""
        self._step = step
        self._began = None

    def batch_starts(self) -> None:
        if self._began is None:
            self._began = time.perf_counter()

    def batch_ends(self, step: int) -> float | None:
        """Seconds that the step took, all its micro-batches; None where it is not complete."""
        if step == self._step:
            return None
        seconds, self._began, self._step = time.perf_counter() - self._began, None, step
        return seconds


class StepTimes:
    """How long steps took, by the share of tokens that they computed and by what other callbacks left."""

    def __init__(self):
        self._seconds: dict[tuple[float, float], list[float]] = {}

    def add(self, seconds: float, *, keep_ratio: float, others: float) -> None:
        self._seconds.setdefault((keep_ratio, others), []).append(seconds)

    def words(self, ceiling: Callable[[float], float]) -> str:
        """What dropping tokens saved, with as much left by other callbacks; nothing where there are no such steps.

        Args:
            ceiling: for a share of the tokens, how much faster a step can get.
        """
        ratios = sorted({ratio for ratio, _ in self._seconds} - {1.0})
        return "".join(self._words_of(ratio, ceiling(ratio)) for ratio in ratios)

    def _words_of(self, ratio: float, ceiling: float) -> str:
        comparable = [others for of, others in self._seconds if of == ratio and (1.0, others) in self._seconds]
        if not comparable:
            is_one_model = len({others for _, others in self._seconds}) == 1
            return f"; {self._step(ratio, next(iter(self._seconds))[1])}" if is_one_model else ""
        others = max(comparable, key=lambda others: min(len(self._seconds[each, others]) for each in (ratio, 1.0)))
        whole, part = self._median(1.0, others), self._median(ratio, others)
        of_others = "" if others == 1 else f", with {others:.0%} left by other callbacks in both"
        return (
            f"; {self._step(ratio, others)}, {duration(whole)} with all: {whole / part:.2f} times as fast{of_others}; "
            f"{ceiling:.2f} if cost were linear in tokens"
        )

    def _step(self, ratio: float, others: float) -> str:
        return f"a step took {duration(self._median(ratio, others))} with {ratio:.0%} of them"

    def _median(self, ratio: float, others: float) -> float:
        return statistics.median(self._seconds[ratio, others])
