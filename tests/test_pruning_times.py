"""The pruner in a plain loop, with steps that take as long as we say."""

import pytest
import torch
from models import llama, token_ids

from attnwatch import Guard, HeadImportance, PruningPlan
from attnwatch.pruning.pruner import HeadPruner, PruningOptions
from attnwatch.pruning.schedule import PruningSchedule

IDS = token_ids()


def train(guard: Guard | None, seconds, *, steps: int = 40) -> tuple[HeadPruner, list[str]]:
    """One cut after step 5. Returns the pruner, and the news of all steps."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    importance = HeadImportance(model)
    options = PruningOptions(0.5, "gate", 5, 5, 1, "global", "auto", 1, guard, 0)
    schedule = PruningSchedule.spread(0.5, start=5, end=5, num_cuts=1, total_steps=steps)
    pruner = HeadPruner(lambda: [(model, [optimizer])], importance, options, schedule)
    news = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        importance.update()
        optimizer.step()
        pruner.record(loss.detach())
        news += [str(cut) for cut in pruner.after_step(step, seconds(step))]
    assert bool(PruningPlan.of(model).heads) == (not pruner.cuts[0].taken_back)
    return pruner, news


def test_step_times_before_and_after_a_cut_are_told():
    # The first three steps after the cut pay for it: 0.3 s each beyond the usual.
    pruner, news = train(None, lambda step: 0.2 if step <= 5 else 0.4 if step <= 8 else 0.1)
    (cut,) = pruner.cuts
    assert (cut.seconds_before, cut.seconds_after) == (0.2, 0.1)
    assert cut.seconds_lost > 0.9  # and the cut itself
    assert news[0] == "4 heads removed after step 5"
    assert news[1].startswith("4 heads removed after step 5: a step took 200 ms, now 100 ms; the cut itself took ")
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
    told = "the 4 heads that were removed after step 5 are back: a step takes"
    assert any(line.startswith(told) for line in news) == is_taken_back
