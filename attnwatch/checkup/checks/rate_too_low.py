"""Learning rates that change nothing."""

import itertools
from collections.abc import Sequence
from statistics import median

from torch.optim import SGD

from attnwatch.checkup.checks.base import Check, Fault, register
from attnwatch.checkup.evidence import StepEvidence
from attnwatch.checkup.updates import Update
from attnwatch.utils.messages import counted

# Fine-tuning with Adam at a rate of 1e-6 has ratios of 1e-5 to 5e-5; SGD at a rate meant for Adam has lower ones.
_LEAST, _LEAST_OF_SGD = 2e-6, 1e-5
# A warm-up starts at 0 and is above 0 from the second step on.
_STEPS_WITHOUT_RATE = 8
# A scheduler that is stepped too often multiplies the rate by the same factor in each step.
_FALLING_STEPS, _FALL, _SAME = 5, 0.97, 1e-3
# One that is stepped in each batch instead of each epoch is over after a few steps.
_STEPS_AFTER_END, _SHARE_AFTER_END = 3, 1e-4
_SHORT_RUN = 50
# Share of the full rate at which a warm-up seems to stand still, share of the first rate to which a rate drops, and
# number of steps in which it stays there.
_START_OF_WARM_UP, _DROPPED, _DROPPED_STEPS = 0.05, 0.2, 6
# A rate that rises over the whole run may be meant, to find the best one.
_RISING_STEPS, _LONGEST_WARM_UP, _MOST_OF_WEIGHTS = 5, 1.5, 0.3

_SCHEDULE = (
    "Check the schedule: the number of steps that it was made for, and how often scheduler.step() is called, once per "
    "step or once per epoch."
)


@register
class RateTooLow(Check):
    """The updates are a millionth of the weights, or the learning rate will soon be zero.

    The norm of each matrix's update is compared with the norm of the matrix over the first steps, at the full learning
    rate of the schedule. Half of the matrices must change by 2e-6 or more, or by 1e-5 with SGD. A rate that stays at 0
    is also reported. In runs of more than 50 steps, so is a rate that falls by the same factor (3% or more) in each of
    five steps, or that drops to 0 or to a fifth after the first few steps and stays there. A rate that stays at 5% of
    the schedule's full rate or less is noted, as a warm-up by epochs looks the same. So is a linear warm-up that takes
    1.5 times as long as the run: it may belong to a longer run.
    """

    name = "rate_too_low"
    severity = 0.6
    remedy = (
        "Raise the learning rate (SGD needs 100 to 1000 times the rate of Adam), and check how schedulers and "
        "parameter groups change it."
    )

    def look(self, step: StepEvidence) -> Fault | None:
        schedules = [update.schedule for updates in step.updates.steps for update in updates.values()]
        if len(step.updates.steps) >= _STEPS_WITHOUT_RATE and schedules and not any(schedules):
            return Fault(f"the learning rate was 0 in the first {len(step.updates.steps)} steps", remedy=_SCHEDULE)
        ratios = step.updates.ratios()
        middle = sorted(ratios.values())[len(ratios) // 2]
        if middle < (_LEAST_OF_SGD if all(isinstance(each, SGD) for each in step.optimizers) else _LEAST):
            what = f"half of the weight matrices change by {middle:.1g} of their norm or less in each step"
            return Fault(what, numbers={"median_update_ratio": middle})
        return _of_schedule(step)


def _of_schedule(step: StepEvidence) -> Fault | None:
    """Return the fault for a rate that falls too fast, ends too early, or rises too slowly."""
    if step.total_steps is not None and step.total_steps <= _SHORT_RUN:
        return None
    step.updates.require(_STEPS_WITHOUT_RATE)
    updates = [list(of_step.values()) for of_step in step.updates.steps if of_step]
    rates = [max(update.rate for update in of_step) for of_step in updates]
    num_above = _steps_before_end(rates)
    if num_above:
        what = f"the learning rate fell from {max(rates):.3g} to {rates[-1]:.3g} after {counted(num_above, 'step')}"
        return Fault(what, numbers={"first_rate": max(rates), "last_rate": rates[-1]}, remedy=_SCHEDULE)
    drops = [_step_of_drop([update.rate for update in each]) for each in step.updates.of_matrices().values()]
    if all(drops):
        what = f"the learning rate fell from {rates[0]:.3g} to {rates[-1]:.3g} after {counted(drops[0], 'step')}"
        return Fault(what, numbers={"first_rate": rates[0], "last_rate": rates[-1]}, remedy=_SCHEDULE)
    is_a_rate = median(step.updates.ratios().values()) < _MOST_OF_WEIGHTS  # schedules may be in units of 1
    shares = [max(update.schedule for update in of_step) for of_step in updates]
    if is_a_rate and len(shares) >= _STEPS_WITHOUT_RATE and len(set(shares)) == 1 and shares[0] <= _START_OF_WARM_UP:
        what = f"the learning rate has stayed at {shares[0]:.2g} of its full rate in the first {len(shares)} steps"
        return Fault(what, numbers={"share": shares[0], "rate": rates[-1]}, is_note=True, remedy=_SCHEDULE)
    warm_up = _steps_of_warm_up(shares)
    if step.total_steps is not None and is_a_rate and warm_up > _LONGEST_WARM_UP * step.total_steps:
        what = f"the warm-up of the learning rate takes {warm_up:,} steps, and the run has {step.total_steps:,}"
        return Fault(what, numbers={"warm_up": float(warm_up), "rate": rates[-1]}, is_note=True, remedy=_SCHEDULE)
    first, *others = step.updates.of_matrices().values()
    if not all(map(_falls, [first, *others])):
        return None
    begin, end = first[0].rate, first[-1].rate
    what = f"the learning rate has fallen from {begin:.3g} to {end:.3g} in the first {len(first)} steps"
    return Fault(what, numbers={"first_rate": begin, "last_rate": end}, remedy=_SCHEDULE)


def _step_of_drop(rates: Sequence[float]) -> int:
    """Return the number of steps after which the rate dropped, to stay where it is; 0 if it did not."""
    number = next((index for index, rate in enumerate(rates) if rate == rates[-1]), len(rates))
    stays = len(rates) - number >= _DROPPED_STEPS and set(rates[number:]) == {rates[-1]}
    return number if stays and number < _DROPPED_STEPS and 0 < rates[-1] <= _DROPPED * rates[0] else 0


def _steps_of_warm_up(schedule: Sequence[float]) -> int:
    """Return the number of steps until a rate that rises by the same amount in each step is reached; otherwise 0.

    Args:
        schedule: share of the full rate in each of the first steps.
    """
    rises = [after - before for before, after in itertools.pairwise(schedule)]
    if len(rises) < _RISING_STEPS or min(rises) <= 0 or max(rises) - min(rises) > _SAME * max(rises):
        return 0
    return round(len(rises) + (1 - schedule[-1]) / max(rises))


def _steps_before_end(rates: Sequence[float]) -> int:
    """Return the number of steps before the rate became 0 for good; 0 if it did not, or became negative."""
    if rates[-1] < 0:
        return 0
    above = [index for index, rate in enumerate(rates) if rate > _SHARE_AFTER_END * max(rates)]
    num_after = len(rates) - 1 - above[-1] if above else 0
    return above[-1] + 1 if num_after >= max(_STEPS_AFTER_END, len(above)) else 0


def _falls(updates: list[Update]) -> bool:
    factors = [after.rate / before.rate for before, after in itertools.pairwise(updates)][-_FALLING_STEPS:]
    return len(factors) >= _FALLING_STEPS and max(factors) <= _FALL and max(factors) - min(factors) < _SAME
