"""Token dropping as a Lightning callback: a thin layer over the token dropper."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from attnwatch.errors import ConfigurationError
from attnwatch.lightning.steps import StepClock, total_steps
from attnwatch.tokens import KeepSchedule, TokenDropper
from attnwatch.tokens.criteria import Criterion


class TokenDropping(pl.Callback):
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
        dropper: the `TokenDropper` of the run; None before fitting starts.

    Raises:
        ConfigurationError: an argument is wrong, or when fitting starts, if tokens can't be dropped in the model.
    """

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
        self._restored: dict[str, Any] = {}
        self._total_steps = math.inf
        self._clock = StepClock()
        self._seconds: dict[float, list[float]] = {}

    # Lightning's hooks, in the order in which they come.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if sum(isinstance(callback, TokenDropping) for callback in trainer.callbacks) > 1:
            raise ConfigurationError("`callbacks` has two TokenDropping: one of them must do.")
        if stage != "fit" and self._options["for_good"]:
            self.dropper = TokenDropper(pl_module, keep_ratio=self.schedule(1), **self._options)
            self.dropper.attach()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._detach()
        self._seconds.clear()
        self._total_steps = total_steps(trainer, pl_module)
        if self._total_steps == math.inf and len(self.schedule.steps) > 1:
            raise ConfigurationError(
                "the length of the run is not known, which `keep_ratio` needs: give the trainer max_steps, or "
                "KeepSchedule.constant(keep_ratio, full_length_from=None)."
            )
        self.dropper = TokenDropper(pl_module, keep_ratio=self.schedule(0), **self._options)
        if self._restored:
            self.dropper.load_state_dict(self._restored)
            self._restored = {}
        self.dropper.attach()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock.start(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        self.dropper.keep_ratio = self.schedule(trainer.global_step / self._total_steps)
        self._clock.batch_starts()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        seconds = self._clock.batch_ends(trainer)
        if seconds is None:
            return
        self.dropper.synchronize()
        ratio = self.dropper.keep_ratio
        self._seconds.setdefault(ratio, []).append(seconds)
        pl_module.log_dict(
            {
                "tokens/keep_ratio": ratio,
                "tokens/layer_tokens": float(self.dropper.layer_tokens),
                "tokens/step_seconds": seconds,
                "tokens/speedup_ceiling": self.dropper.speedup_ceiling(ratio),
            }
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank_zero_info(f"attnwatch: {self.summary()}")

    def state_dict(self) -> dict[str, Any]:
        return {} if self.dropper is None else self.dropper.state_dict()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._detach()

    # What the hooks share.

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

    def _detach(self) -> None:
        if self.dropper is not None:
            self.dropper.detach()
