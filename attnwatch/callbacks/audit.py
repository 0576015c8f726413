"""What asks the model something now and then, on batches that it is not trained on."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from attnwatch.callbacks.loading import main_process_batches
from attnwatch.callbacks.part import TrainingPart
from attnwatch.callbacks.publisher import Publisher
from attnwatch.callbacks.run import TrainerRun
from attnwatch.errors import ConfigurationError
from attnwatch.explain.batches import Batch, as_batch
from attnwatch.explain.evaluated_model import EvaluatedModel, Forward
from attnwatch.utils.arguments import require_int
from attnwatch.utils.messages import WarnOnce, warn
from attnwatch.utils.processes import together
from attnwatch.utils.states import check_format, with_format

_STATE_FORMAT = 1
# Of models with more layers, so many have curves of their own: more can't be read.
MOST_LAYER_CURVES = 12


class Audit(TrainingPart):
    """Looks at a model every so many steps, and at the end.

    All processes ask the same, about the main process's batches, so that sharded models work too.

    Args:
        every_n_steps: audit after the first step at or after each multiple of it; None means at the end only.
        batches: to ask about, as the model takes them by name; None means the first of the validation data.
        num_batches: so many of them.
        forward: see `EvaluatedModel`.
    """

    _Found: type
    """A dataclass of tensors, numbers, strings, and lists and dicts of them."""
    _needs_batches = True

    results: list[tuple[int, Any]]
    """(global step, what was found), of each audit of this training."""

    def __init__(
        self,
        every_n_steps: int | None,
        batches: Iterable[Batch] | None,
        num_batches: int,
        forward: Forward | None,
    ):
        require_int("every_n_steps", every_n_steps, minimum=1, optional=True)
        require_int("num_batches", num_batches, minimum=1)
        if batches is not None and (isinstance(batches, Mapping) or not isinstance(batches, Iterable)):
            raise ConfigurationError(
                f"`batches` must be a list of batches, or a data loader; got a {type(batches).__name__}."
            )
        self._every_n_steps = every_n_steps
        self._given_batches = batches
        self._num_batches = num_batches
        self._forward = forward
        self._subject: EvaluatedModel | None = None
        self.results: list[tuple[int, Any]] = []

    def _audit(self, run: TrainerRun, subject: EvaluatedModel, batches: list[Batch]) -> Any:
        """What is found now, a `_Found`. Raises what is wrong with the model or the batches."""
        raise NotImplementedError

    def _numbers(self, found: Any) -> dict[str, float]:
        """Of what was found, to log by tag."""
        raise NotImplementedError

    def _drawn(self) -> dict[str, np.ndarray]:
        """Pictures of `results` by tag, each uint8 [height, width, 3]."""
        raise NotImplementedError

    def _texts(self, found: Any) -> dict[str, str]:
        """What to say of it, as markdown by tag."""
        return {}

    # What happens in a training.

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._detach()
        self.results = []
        self._publisher, self._warn_once = Publisher(), WarnOnce()
        self._subject = EvaluatedModel(model, self._forward)
        self._batches: list[Batch] | None = None
        self._given = self._own_batches(run) if self._given_batches is not None else None
        if self._needs_batches and self._given is None and not run.has_validation_data:
            raise ConfigurationError(
                f"{type(self).__name__} needs batches to ask about: give `batches`, or validation data to the trainer."
            )

    def _go_on(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        self._last_step = run.global_step
        self._audited_step = None
        if not state:
            return
        try:
            check_format(state, _STATE_FORMAT, type(self).__name__)
        except ConfigurationError as error:
            warn(f"the checkpoint's results of {type(self).__name__} are not continued: {error}")
        else:
            self.results = [(step, self._Found(**fields)) for step, fields in state["results"]]

    def _begin_batch(self, run: TrainerRun) -> None:
        pass

    def _end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        step, last, every = run.global_step, self._last_step, self._every_n_steps
        self._last_step = step
        if every is not None and step // every > last // every:
            self._look(run)

    def _end(self, run: TrainerRun) -> None:
        if self._audited_step != run.global_step:
            self._look(run)

    def _state(self) -> dict[str, Any]:
        return with_format(_STATE_FORMAT, {"results": [(step, dict(vars(found))) for step, found in self.results]})

    def _detach(self) -> None:
        self._batches = self._given = self._subject = None

    # What these share.

    def _look(self, run: TrainerRun) -> None:
        self._audited_step = run.global_step
        with self._never_fatal():
            if self._batches is None:
                raw = self._raw_batches(run)
                # Where one process has none, the others must ask with it again.
                self._batches = together(lambda: [run.to_device(as_batch(batch)) for batch in raw])
            found = self._audit(run, self._subject, self._batches)
            self.results.append((run.global_step, found))
            numbers = self._numbers(found)
            run.log(numbers, run.global_step)
            self._publisher.numbers(run.sinks, numbers, run.global_step)
            self._publisher.images(run.sinks, self._drawn, run.global_step)
            for tag, markdown in self._texts(found).items():
                self._publisher.text(run.sinks, tag, markdown, run.global_step)

    def _raw_batches(self, run: TrainerRun) -> list[Any]:
        if self._given is not None:
            return self._given
        return main_process_batches(run, run.validation_loader, self._num_batches) if self._needs_batches else []

    def _own_batches(self, run: TrainerRun) -> list[Any]:
        """Once, as what gives them may have no more."""
        given = self._given_batches
        self._given_batches = list(map(as_batch, main_process_batches(run, lambda: given, self._num_batches)))
        if not self._given_batches:
            raise ConfigurationError("`batches` is empty: give at least one.")
        return self._given_batches

    @contextlib.contextmanager
    def _never_fatal(self) -> Iterator[None]:
        """One warning for each kind of failure; the training goes on, and so do later audits."""
        try:
            yield
        except Exception as error:
            self._warn_once(f"{type(self).__name__} failed, training goes on: {type(error).__name__}: {error}")
