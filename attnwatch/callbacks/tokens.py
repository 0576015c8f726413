"""Token dropping: a thin layer over the token dropper."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from attnwatch.callbacks.clock import StepClock, StepTimes
from attnwatch.callbacks.part import TrainingPart, others_workload
from attnwatch.callbacks.publisher import Publisher
from attnwatch.errors import ConfigurationError
from attnwatch.runs import RunEvent
from attnwatch.tokens import KeepSchedule, TokenDropper
from attnwatch.tokens.schedule import KeepRatio, schedule_of
from attnwatch.tokens.scoring import Criterion, make_criterion
from attnwatch.trainers.base import TrainerRun


class TokenDropping(TrainingPart):
    """Compute only some of the tokens in the middle layers while a model trains, so that its steps get faster.

    The callback logs `tokens/keep_ratio`, `tokens/layer_tokens` (tokens computed so far, summed over layers, for the
    comparison of runs), `tokens/step_seconds` and `tokens/speedup_ceiling`, and the text `tokens/changes` whenever the
    number of tokens changes. With `stack`, its name follows `tokens/`; a trainer takes one callback per stack. A
    monitor in the same trainer reports which of its statistics come from shortened sequences.

    Args:
        keep_ratio: share of the tokens to keep; the last 20% of the run use full sequences, so that training ends
            with the model as it will be used. Or a `KeepSchedule`, the name of a schedule, or a function of the
            completed share of the run, which is approximated by 20 steps.
        first_layer, last_layer, criterion, stack, min_tokens, multiple_of: see `attnwatch.TokenDropper`.
        protect_first, protected_ids, seed: see `attnwatch.TokenDropper`.
        drop_in_evaluation: see `attnwatch.TokenDropper`. Tokens are then dropped throughout the run, and in
            evaluation while the callback is in the trainer.

    Attributes:
        dropper: the `TokenDropper` of the run; None before training starts.

    Raises:
        ConfigurationError: an argument is invalid, or the model can't drop tokens (raised when training starts).
    """

    example = "TokenDropping(keep_ratio=0.5)"
    steers_training = True
    schedule: KeepSchedule
    dropper: TokenDropper | None

    def __init__(
        self,
        keep_ratio: KeepRatio = 0.5,
        *,
        first_layer: int = 1,
        last_layer: int | None = None,
        criterion: Criterion = "random",
        stack: str | None = None,
        min_tokens: int = 16,
        multiple_of: int = 1,
        protect_first: int = 1,
        protected_ids: Sequence[int] = (),
        drop_in_evaluation: bool = False,
        seed: int = 0,
    ):
        self.schedule = schedule_of(keep_ratio, full_length_from=None if drop_in_evaluation else 0.8)
        self._make_dropper = partial(
            TokenDropper,
            first_layer=first_layer,
            last_layer=last_layer,
            criterion=criterion,
            stack=stack,
            min_tokens=min_tokens,
            multiple_of=multiple_of,
            protect_first=protect_first,
            protected_ids=tuple(protected_ids),
            drop_in_evaluation=drop_in_evaluation,
            seed=seed,
        )
        self._criterion, self._stack = criterion, stack
        self.works_in_evaluation = drop_in_evaluation
        known = make_criterion(criterion)
        if "attention" in known.reads:
            self.choice_by_attention = f"tokens by criterion={known.name!r}", "criterion='random'"
        self.dropper = None
        self._clock = StepClock()
        self._times = StepTimes()
        self._step, self._others = 0, 1.0
        self._begins: list[tuple[int, float]] = []
        self._counted = (0, 0)
        self._publisher = Publisher()

    @property
    def distinguished_by(self) -> dict[str, Any]:
        return {} if self._stack is None else {"stack": self._stack}

    @property
    def _tag(self) -> str:
        """Prefix of the callback's tags."""
        return "/".join(["tokens", *self.distinguished_by.values()])

    @property
    def criterion(self) -> Criterion:
        """Criterion by which tokens are kept."""
        return self._criterion

    def summary(self) -> str:
        """Return the share of the tokens that was computed, and the speedup of steps with its ceiling.

        Steps are compared only with full-length steps of a model with the same number of heads.
        """
        dropper = self.dropper
        if dropper is None:
            return "no tokens were dropped: the training has not started"
        share = dropper.layer_tokens / max(dropper.all_layer_tokens, 1)
        return f"the layers computed {share:.0%} of the tokens" + self._times.summary(dropper.speedup_ceiling)

    @property
    def workload(self) -> float:
        """Share of the tokens that is computed."""
        return 1.0 if self.dropper is None else self.dropper.keep_ratio

    @property
    def description(self) -> str:
        return "" if self.dropper is None else self.summary()

    @property
    def events(self) -> list[RunEvent]:
        """Changes in the number of tokens so far."""
        return [self._event(step, ratio) for step, ratio in self._begins[1:] if step <= self._step]

    def _event(self, step: int, ratio: float) -> RunEvent:
        text = f"{ratio:.0%} of the tokens are computed from step {step} on"
        details: dict[str, float | str] = {"keep ratio": ratio}
        speedup = self.dropper and self._times.speedup(ratio, self.dropper.speedup_ceiling)
        if speedup and ratio < 1:
            details |= {
                "step [s]": speedup.seconds,
                "with all tokens [s]": speedup.seconds_with_all,
                "times as fast": speedup.ratio,
                "at most": speedup.ceiling,
            }
        return RunEvent(step, "tokens", f"{ratio:.0%} of the tokens", f"{text}.", details)

    @property
    def remarks(self) -> list[str]:
        """Sentences on where attention was observed with only some of the tokens."""
        if self.dropper is None:
            return []
        first, last = self.dropper.layer_range
        ends = [step for step, _ in self._begins[1:]] + [None]
        return [
            f"Attention in layers {first} to {last} was observed on sequences shortened "
            f"to {ratio:.0%} of their tokens from step {begin} "
            + ("on" if end is None else f"to {end - 1}")
            + ": its statistics are not those of full length."
            for (begin, ratio), end in zip(self._begins, ends, strict=False)
            if ratio < 1 and begin <= self._step
        ]

    def attach_for_evaluation(self, model: nn.Module) -> None:
        if self.works_in_evaluation:
            self.dropper = self._make_dropper(model, keep_ratio=self.schedule(1))
            self.dropper.attach()

    # Training hooks.

    def start(self, run: TrainerRun) -> None:
        self.detach()
        self._times, self._publisher = StepTimes(), Publisher()
        if run.total_steps is None and len(self.schedule.steps) > 1:
            raise ConfigurationError(
                "`keep_ratio` needs the length of the run, which is not known: give the trainer max_steps, or use "
                "KeepSchedule.constant(keep_ratio, full_length_from=None)."
            )
        self.dropper = self._make_dropper(run.model, keep_ratio=self.schedule(0))
        self.dropper.attach()

    def resume(self, run: TrainerRun, state: Mapping[str, Any] | None) -> None:
        if state:
            self._attached.load_state_dict(state)
        self._clock.start(run.global_step)
        self._begins = _begins(self.schedule, run.total_steps)
        self._counted = (self._attached.layer_tokens, self._attached.all_layer_tokens)

    def begin_batch(self, run: TrainerRun) -> None:
        self._step = run.global_step
        self._attached.keep_ratio = self.schedule(run.global_step / (run.total_steps or float("inf")))
        self._others = others_workload(self, run)  # read before the step, which may change it
        self._clock.batch_starts()

    def end_batch(self, run: TrainerRun, loss: Tensor | None, *, is_last: bool) -> None:
        seconds = self._clock.batch_ends(run.global_step)
        if seconds is None:
            return
        dropper = self._attached
        dropper.synchronize()
        ratio, kept = dropper.keep_ratio, self._kept_share(dropper)
        self._times.add(seconds, keep_ratio=ratio if kept < 1 else 1.0, others=self._others, kept=kept)
        if self._step > 0 and (self._step, ratio) in self._begins:
            text = self._event(self._step, ratio).text
            self._publisher.text(run.loggers, f"{self._tag}/changes", text, run.global_step)
        numbers = {
            f"{self._tag}/keep_ratio": ratio,
            f"{self._tag}/layer_tokens": float(dropper.layer_tokens),
            f"{self._tag}/step_seconds": seconds,
            f"{self._tag}/speedup_ceiling": dropper.speedup_ceiling(kept),
        }
        run.log(numbers, run.global_step, to_loggers=True)

    @property
    def _attached(self) -> TokenDropper:
        if self.dropper is None:
            raise ConfigurationError("TokenDropping has no `dropper` yet: no training has started.")
        return self.dropper

    def _kept_share(self, dropper: TokenDropper) -> float:
        """Return the share of the tokens that the layers computed since the last call."""
        before, self._counted = self._counted, (dropper.layer_tokens, dropper.all_layer_tokens)
        return dropper.kept_share(self._counted[0] - before[0], self._counted[1] - before[1])

    def end(self, run: TrainerRun) -> None:
        run.inform(self.summary())

    def state_dict(self) -> dict[str, Any]:
        return {} if self.dropper is None else self.dropper.state_dict()

    def detach(self) -> None:
        if self.dropper is not None:
            self.dropper.detach()


def _begins(schedule: KeepSchedule, total_steps: int | None) -> list[tuple[int, float]]:
    """Return (completed steps, share of the tokens from then on) for each part of the schedule."""
    return [(math.ceil((share - 1e-9) * (total_steps or 0)) if share else 0, ratio) for share, ratio in schedule.steps]
