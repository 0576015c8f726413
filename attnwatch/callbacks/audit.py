"""Base class of the parts that examine a model during training, on batches that it is not trained on."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from attnwatch.callbacks.loading import main_process_batches
from attnwatch.callbacks.part import TrainingPart
from attnwatch.callbacks.publisher import Publisher
from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, as_batch
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.trainers.base import TrainerRun
from attnwatch.utils.arguments import require_int
from attnwatch.utils.messages import NonFatal, WarnOnce, warn
from attnwatch.utils.processes import together
from attnwatch.utils.states import check_format, with_format

ResultT = TypeVar("ResultT")
_STATE_FORMAT = 1
# Maximum number of layers with a curve each. Charts with more curves can't be read.
MOST_LAYER_CURVES = 12


class Audit(TrainingPart, Generic[ResultT]):
    """Examine a model at a regular interval and at the end of training.

    All processes examine it on the batches of the main process, so that sharded models work too.

    Args:
        every_n_steps: interval in optimizer steps: an audit follows the first step at or after each multiple of it.
            None means at the end only.
        batches: batches, each with the model's arguments by name; None means the first validation batches.
        num_batches: maximum number of batches.
        forward: see `EvaluatedModel`.
        tokenizer: tokenizer of the model; None means the trainer's.

    Attributes:
        results: (global step, result) of each audit in this training.
    """

    _Result: type[ResultT]
    """Dataclass whose fields are tensors, numbers, strings, and lists and dicts of these."""
    _needs_batches = True

    results: list[tuple[int, ResultT]]

    def __init__(
        self,
        every_n_steps: int | None,
        batches: Iterable[Batch] | None,
        num_batches: int,
        forward: Forward | None,
        tokenizer: Any = None,
    ):
        require_int("every_n_steps", every_n_steps, minimum=1, optional=True)
        require_int("num_batches", num_batches, minimum=1)
        if batches is not None and (isinstance(batches, Mapping) or not isinstance(batches, Iterable)):
            raise ConfigurationError(
                f"`batches` must be a list of batches or a data loader; got a {type(batches).__name__}."
            )
        self._every_n_steps = every_n_steps
        self._given_batches = batches
        self._num_batches = num_batches
        self._forward = forward
        self._given_tokenizer = self._tokenizer = tokenizer
        self._model: EvaluatedModel | None = None
        self.results = []

    @abstractmethod
    def _audit(self, run: TrainerRun, subject: EvaluatedModel, batches: list[Batch]) -> ResultT:
        """Return the result of one audit; raise an error if the model or the batches are unsuitable."""

    @abstractmethod
    def _numbers(self, result: ResultT) -> dict[str, float]:
        """Return the numbers to log for a result, by tag."""

    @abstractmethod
    def _draw(self) -> dict[str, np.ndarray]:
        """Return pictures of `results` by tag, each uint8 [height, width, 3]."""

    def _texts(self, result: ResultT) -> dict[str, str]:
        """Return markdown texts about a result, by tag."""
        return {}

    # Training hooks.

    def start(self, run: TrainerRun) -> None:
        self.detach()
        self.results = []
        self._publisher, self._warn_once, self._non_fatal = Publisher(), WarnOnce(), NonFatal()
        self._tokenizer = run.tokenizer if self._given_tokenizer is None else self._given_tokenizer
        self._model = EvaluatedModel(run.model, self._forward)
        self._batches: list[Batch] | None = None
        self._given = None if self._given_batches is None else self._own_batches(run, self._given_batches)
        if self._needs_batches and self._given is None and not run.has_validation_data:
            raise ConfigurationError(
                f"{type(self).__name__} needs batches: give `batches`, or give the trainer validation data."
            )

    def resume(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        self._last_step = run.global_step
        self._audited_step: int | None = None
        if not state:
            return
        try:
            check_format(state, _STATE_FORMAT, type(self).__name__)
        except ConfigurationError as error:
            warn(f"{type(self).__name__} can't restore its results from the checkpoint and begins anew: {error}")
        else:
            self.results = [(step, self._Result(**fields)) for step, fields in state["results"]]

    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        step, last, every = run.global_step, self._last_step, self._every_n_steps
        self._last_step = step
        if every is not None and step // every > last // every:
            self._examine(run)

    def end(self, run: TrainerRun) -> None:
        if self._audited_step != run.global_step:
            self._examine(run)

    def state_dict(self) -> dict[str, Any]:
        return with_format(_STATE_FORMAT, {"results": [(step, dict(vars(result))) for step, result in self.results]})

    def detach(self) -> None:
        self._batches = self._given = self._model = None

    # Helpers.

    @property
    def _subject(self) -> EvaluatedModel:
        if self._model is None:
            raise ConfigurationError(f"{type(self).__name__} has no model: no training has started.")
        return self._model

    def _examine(self, run: TrainerRun) -> None:
        self._audited_step = run.global_step
        with self._non_fatal(f"{type(self).__name__} failed"):
            if self._batches is None:
                raw = self._given or []
                if self._given is None and self._needs_batches:
                    raw = main_process_batches(run, run.validation_loader, self._num_batches)
                # A failure on one process is raised on all, so that all of them try again at the next audit.
                self._batches = together(lambda: [run.to_device(as_batch(batch)) for batch in raw])
            result = self._audit(run, self._subject, self._batches)
            self.results.append((run.global_step, result))
            numbers = self._numbers(result)
            run.log(numbers, run.global_step)
            self._publisher.scalars(run.loggers, numbers, run.global_step)
            self._publisher.images(run.loggers, self._draw, run.global_step)
            for tag, markdown in self._texts(result).items():
                self._publisher.text(run.loggers, tag, markdown, run.global_step)

    def _own_batches(self, run: TrainerRun, given: Iterable[Batch]) -> list[Batch]:
        """Return the user's batches. They are read only once, since an iterable may be exhausted afterwards."""
        taken = list(map(as_batch, main_process_batches(run, lambda: given, self._num_batches)))
        if not taken:
            raise ConfigurationError("`batches` is empty: give at least one batch.")
        self._given_batches = taken
        return taken
