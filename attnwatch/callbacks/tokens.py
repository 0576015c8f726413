"""Token dropping as a callback, without the hooks that call it: a thin layer over the token dropper."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from attnwatch.callbacks.part import TrainingPart
from attnwatch.callbacks.run import StepClock, TrainerRun
from attnwatch.errors import ConfigurationError
from attnwatch.tokens import KeepSchedule, TokenDropper
from attnwatch.tokens.criteria import Criterion


class Dropping(TrainingPart):
    """Computes only some of the tokens in the middle layers while a model trains, so that its steps get faster.

    ```python
    trainer = Trainer(callbacks=[TokenDropping(keep_ratio=0.5)])
    ```

    Logged are `tokens/keep_ratio`, `tokens/layer_tokens` (what the layers have computed so far, summed over layers, to
    compare runs by), `tokens/step_seconds` and `tokens/speedup_ceiling`.

    Args:
        keep_ratio: share of the tokens that is kept; the last 20% of the run are at full length, so that the model that
            is delivered is the one that was trained. Or a `KeepSchedule`.
        first_layer, last_layer, criterion, stack, min_tokens, multiple_of, protect_first, protected_ids, for_good,
            seed: see `attnwatch.TokenDropper`. With `for_good`, tokens are dropped at all times: all of the run, and in
            evaluation while the callback is in the trainer.

    Attributes:
        dropper: the `TokenDropper` of the run; None before training starts.

    Raises:
        ConfigurationError: an argument is wrong, or when training starts, if tokens can't be dropped in the model.
    """

    steers_training = True

    def __init__(
        self,
        keep_ratio: float | KeepSchedule = 0.5,
        *,
        first_layer: int = 1,
        last_layer: int | None = None,
        criterion: Criterion = "random",
        stack: str | None = None,
        min_tokens: int = 16,
        multiple_of: int = 1,
        protect_first: int = 1,
        protected_ids: Sequence[int] = (),
        for_good: bool = False,
        seed: int = 0,
    ):
        if isinstance(keep_ratio, KeepSchedule):
            self.schedule = keep_ratio
        else:
            self.schedule = KeepSchedule.constant(keep_ratio, full_length_from=None if for_good else 0.8)
        self._options = {
            "first_layer": first_layer,
            "last_layer": last_layer,
            "criterion": criterion,
            "stack": stack,
            "min_tokens": min_tokens,
            "multiple_of": multiple_of,
            "protect_first": protect_first,
            "protected_ids": tuple(protected_ids),
            "for_good": for_good,
            "seed": seed,
        }
        self.dropper: TokenDropper | None = None
        self._clock = StepClock()
        self._seconds: dict[float, list[float]] = {}

    @property
    def criterion(self) -> Criterion:
        """By which tokens are kept."""
        return self._options["criterion"]

    def summary(self) -> str:
        """What it came to: tokens that were computed, and step times against their ceiling."""
        dropper = self.dropper
        if dropper is None:
            return "no tokens were dropped: the training has not started"
        share = dropper.layer_tokens / max(dropper.all_layer_tokens, 1)
        text = f"the layers computed {share:.0%} of the tokens"
        medians = {ratio: statistics.median(seconds) for ratio, seconds in sorted(self._seconds.items())}
        whole = medians.pop(1.0, None)
        for ratio, seconds in medians.items():
            text += f"; a step took {1e3 * seconds:.3g} ms with {ratio:.0%} of them"
            if whole is not None:
                ceiling = dropper.speedup_ceiling(ratio)
                text += f", {1e3 * whole:.3g} ms with all: {whole / seconds:.2f} times as fast"
                text += f"; {ceiling:.2f} if cost were linear in tokens"
        return text

    def _attach_for_good(self, model: nn.Module) -> None:
        """Outside of training, where tokens may be dropped at all times."""
        if self._options["for_good"]:
            self.dropper = TokenDropper(model, keep_ratio=self.schedule(1), **self._options)
            self.dropper.attach()

    # What happens in a training.

    def _start(self, run: TrainerRun, model: nn.Module) -> None:
        self._detach()
        self._seconds.clear()
        if run.total_steps is None and len(self.schedule.steps) > 1:
            raise ConfigurationError(
                "the length of the run is not known, which `keep_ratio` needs: give the trainer max_steps, or "
                "KeepSchedule.constant(keep_ratio, full_length_from=None)."
            )
        self.dropper = TokenDropper(model, keep_ratio=self.schedule(0), **self._options)
        self.dropper.attach()

    def _go_on(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        if state:
            self.dropper.load_state_dict(state)
        self._clock.start(run.global_step)

    def _begin_batch(self, run: TrainerRun) -> None:
        self.dropper.keep_ratio = self.schedule(run.global_step / (run.total_steps or float("inf")))
        self._clock.batch_starts()

    def _end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        seconds = self._clock.batch_ends(run.global_step)
        if seconds is None:
            return
        self.dropper.synchronize()
        ratio = self.dropper.keep_ratio
        self._seconds.setdefault(ratio, []).append(seconds)
        numbers = {
            "tokens/keep_ratio": ratio,
            "tokens/layer_tokens": float(self.dropper.layer_tokens),
            "tokens/step_seconds": seconds,
            "tokens/speedup_ceiling": self.dropper.speedup_ceiling(ratio),
        }
        run.log(numbers, run.global_step, to_sinks=True)

    def _end(self, run: TrainerRun) -> None:
        run.tell(self.summary())

    def _state(self) -> dict[str, Any]:
        return {} if self.dropper is None else self.dropper.state_dict()

    def _detach(self) -> None:
        if self.dropper is not None:
            self.dropper.detach()
