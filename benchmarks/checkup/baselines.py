"""Ways to find faults without a checkup: the verdict on the attention statistics alone, and a rule for the loss."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from attnwatch import AttentionRecorder, Finding, diagnose
from benchmarks.checkup.scripts import InStep, Outcome, Script, train

_LEAST_FALL = 0.05
_AT_ENDS = 4

MEANINGS: Mapping[str, frozenset[str]] = {
    "blind_attention": frozenset({"blind_attention"}),
    "entropy_collapse": frozenset({"wrong_attention_scale", "initialisation", "rate_too_high"}),
    "exploding_logits": frozenset({"wrong_attention_scale", "initialisation", "rate_too_high"}),
    "frozen_attention": frozenset(
        {
            "frozen_parameters",
            "not_in_optimizer",
            "no_gradient",
            "broken_gradient_path",
            "rate_too_low",
            "lost_updates",
        }
    ),
    "non_finite": frozenset({"nonfinite_gradient", "rate_too_high", "loss_rises"}),
    "uniform_attention": frozenset({"wrong_attention_scale", "initialisation", "blind_attention"}),
}
"""Causes that a finding of `diagnose` may have: it names a fault if one of these does."""


def diagnosed(script: Script, steps: int) -> Outcome:
    """Train with a recorder at every step, and judge the run at its end."""
    recorders: list[AttentionRecorder] = []

    @contextlib.contextmanager
    def observe(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[InStep]:
        with AttentionRecorder(model, every_n_steps=1) as recorder:
            recorders.append(recorder)
            yield recorder.step

    trained = train(replace(script, steps=steps, counts_batches=False), observe)
    history = recorders[0].history()
    losses = dict(enumerate(trained.losses))
    of_history = [losses.get(int(step), math.nan) for step in history.steps]
    return Outcome(list(diagnose(history, loss=of_history, total_steps=steps).findings), {}, trained)


def names(finding: Finding, kinds: Sequence[str]) -> bool:
    """Return whether a finding of `diagnose` may have one of the causes."""
    return bool(MEANINGS.get(finding.kind.value, frozenset()) & set(kinds))


def is_bad_loss(losses: Sequence[float]) -> bool:
    """Return whether the mean of the last quarter is not 5% below that of the first, or a loss is not finite."""
    if not losses or not all(map(math.isfinite, losses)):
        return True
    count = max(1, len(losses) // _AT_ENDS)
    first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
    return last > first - _LEAST_FALL * abs(first)
