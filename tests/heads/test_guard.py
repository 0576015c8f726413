"""The pruner in a plain loop, with steps that take as long as we say."""

import pytest
import torch

from attnwatch import AttnwatchWarning, ConfigurationError, Guard, HeadImportance, PruningPlan, prune_heads
from attnwatch.heads.options import PruningOptions
from attnwatch.heads.pruner import HeadPruner
from attnwatch.heads.schedule import PruningSchedule
from attnwatch.heads.surgery import Surgery
from tests.support.models import gpt2, llama, token_ids

IDS = token_ids()


def train(guard: Guard | None, seconds, *, steps: int = 40, end: int = 5, num_cuts: int = 1, loss_at=None):
    """Cuts from step 5 on. Returns the pruner, and the news of all steps.

    Args:
        seconds: how long each step took.
        loss_at: what the guard is told of each step; None: the loss.
    """
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    importance = HeadImportance(model)
    options = PruningOptions(0.5, start=5, end=end, num_cuts=num_cuts, guard=guard)
    schedule = PruningSchedule.spread(0.5, start=5, end=end, num_cuts=num_cuts, total_steps=steps)
    pruner = HeadPruner(lambda: [(model, [optimizer])], importance, options, schedule)
    news = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        importance.update()
        optimizer.step()
        value = loss.detach() if loss_at is None else loss_at(step)
        if value is not None:
            pruner.record(value)
        news += [str(cut) for cut in pruner.after_step(step, seconds(step))]
    gone = PruningPlan.of(model)
    assert gone.num_removed == sum(cut.plan.num_removed for cut in pruner.cuts if not cut.taken_back)
    assert pruner.heads_left == 1 - gone.num_removed / gone.num_unpruned
    return pruner, news


def test_step_times_before_and_after_a_cut_are_told():
    # The first three steps after the cut pay for it: 0.3 s each beyond the usual.
    pruner, news = train(None, lambda step: 0.2 if step <= 5 else 0.4 if step <= 8 else 0.1)
    (cut,) = pruner.cuts
    assert (cut.seconds_before, cut.seconds_after) == (0.2, 0.1)
    assert cut.seconds_lost > 0.9  # and the cut itself
    assert news[0] == "4 heads removed after step 5"
    assert news[1].startswith(
        "the cut after step 5 (4 heads): a step took 200 ms before, 100 ms after; the cut itself "
    )
    assert len(news) == 2


@pytest.mark.parametrize(
    ("after", "require_speedup", "is_taken_back"),
    [(0.3, True, True), (0.2, True, True), (0.1, True, False), (0.3, False, False)],
    ids=["slower", "as slow", "faster", "slower, but nobody asked"],
)
def test_cut_that_does_not_make_steps_faster(after, require_speedup, is_taken_back):
    guard = Guard(mode="max", tolerance=99.0, recovery_steps=0, window=1, require_speedup=require_speedup)
    pruner, news = train(guard, lambda step: 0.2 if step <= 5 else after)
    assert bool(pruner.cuts[0].taken_back) == is_taken_back
    told = "the cut after step 5 (4 heads) was taken back: a step takes"
    assert any(line.startswith(told) for line in news) == is_taken_back


@pytest.mark.slow
def test_steps_are_compared_with_those_before_the_first_cut():
    """A cut in between may do nothing; the last one must have made a difference."""
    guard = Guard(mode="max", tolerance=0.05, recovery_steps=0, window=1, require_speedup=True)

    def cuts(second: float, third: float) -> list[bool]:
        by_cut = {0: 0.2, 1: 0.19, 2: second, 3: third}
        pruner, _ = train(
            guard,
            lambda step: by_cut[sum(step > at for at in (5, 11, 17))],
            end=17,
            num_cuts=3,
            loss_at=lambda step: 1.0,
        )
        return [bool(cut.taken_back) for cut in pruner.cuts]

    assert cuts(0.205, 0.18) == [False, False, False]
    assert cuts(0.22, 0.18) == [False, True]
    assert cuts(0.19, 0.201) == [False, False, True]
    assert cuts(0.19, 0.199) == [False, False, False]


def test_cuts_do_not_wait_for_a_metric_that_comes_rarely_and_are_judged_together():
    """Validation after steps 4, 24 and 30: cuts after 5, 9, 13 and 17 in the meantime."""
    values = {4: 1.0, 24: 1.5, 30: 1.0}
    guard = Guard("quality", recovery_steps=2)
    pruner, news = train(guard, lambda step: 0.1, end=17, num_cuts=4, loss_at=values.get)
    assert [cut.step for cut in pruner.cuts] == [5, 9, 13, 17]
    assert {cut.taken_back for cut in pruner.cuts} == {"quality went from 1 to 1.5"}
    assert sum("was taken back: quality went from 1 to 1.5" in line for line in news) == 4


def test_value_between_two_cuts_judges_the_first():
    values = {4: 1.0, 8: 1.0, 16: 2.0}
    guard = Guard("quality", recovery_steps=2)
    pruner, _ = train(guard, lambda step: 0.1, end=13, num_cuts=3, loss_at=values.get)
    assert [bool(cut.taken_back) for cut in pruner.cuts] == [False, True, True]


def test_value_that_came_before_the_recovery_was_over_judges_nothing():
    pruner, _ = train(Guard("quality", recovery_steps=8), lambda step: 0.1, loss_at={4: 1.0, 8: 9.0, 20: 1.0}.get)
    assert [cut.taken_back for cut in pruner.cuts] == [""]


def test_summary():
    pruner, _ = train(None, lambda step: 0.2 if step <= 5 else 0.1 if step < 9 else 0.05, end=9, num_cuts=2)
    assert pruner.summary() == (
        "4 of 8 heads removed; the target was 50%; a step took 200 ms before the first cut, 50 ms after the last"
    )


@pytest.mark.parametrize("min_heads", [1, 4])
def test_target_that_no_cut_can_come_near_is_an_error_at_once(min_heads):
    model = llama()
    options = PruningOptions(0.5, start=5, end=5, num_cuts=1, min_heads=min_heads, guard=None)
    schedule = PruningSchedule((5,), (0.5,))

    def make() -> HeadPruner:
        return HeadPruner(lambda: [(model, [])], HeadImportance(model), options, schedule)

    if min_heads == 1:
        make()
        return
    with pytest.raises(
        ConfigurationError, match=r"`target` 0.5: no head of this model can be removed with min_heads=4"
    ):
        make()


def test_cut_of_no_head_is_none():
    """The model has reached the target before."""
    model = llama()
    prune_heads(model, {0: [0, 1], 1: [0, 1]})
    options = PruningOptions(0.5, criterion="random", start=2, end=3, num_cuts=2)
    importance = HeadImportance(model, criterion="random")
    pruner = HeadPruner(lambda: [(model, [])], importance, options, PruningSchedule((2, 3), (0.25, 0.5)))
    for step in range(1, 5):
        pruner.record(1.0)
        assert pruner.after_step(step) == []
    assert pruner.summary() == "4 of 8 heads removed; the target was 50%"


def test_cut_that_fails_leaves_the_guard_of_the_ones_before(monkeypatch):
    """The second cut of two that would be judged together can't be made."""
    apply, calls = Surgery.apply, []

    def fail_at_the_second(surgery):
        calls.append(surgery)
        apply(surgery)
        if len(calls) == 2:
            raise MemoryError("no memory")

    monkeypatch.setattr(Surgery, "apply", fail_at_the_second)
    guard = Guard("quality", recovery_steps=2)
    with pytest.warns(AttnwatchWarning, match="none will be: no memory"):
        pruner, _ = train(guard, lambda step: 0.1, end=9, num_cuts=2, loss_at={4: 1.0, 24: 1.5}.get)
    assert [cut.step for cut in pruner.cuts] == [5]
    assert pruner.cuts[0].taken_back == "quality went from 1 to 1.5"
